"""Files of published weights: `--weights FILE` as a run, and training that starts from a file."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import sprout_jax
from sprout_jax import data
from sprout_jax import models
from sprout_jax import results as results_lib
from sprout_jax.errors import UserError
from sprout_jax.launcher import command
from sprout_jax.launcher import configuration
from sprout_jax.launcher import modes
from sprout_jax.launcher import published
from sprout_jax.models.weights import names
from sprout_jax.results import commands
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.training import checkpoints
from tests import stepping

CONFIG = "digits:model=wrn_10_1"
MODEL = models.create("wrn_10_1", num_classes=10, image_shape=(8, 8, 1))
NORMALISED = ("--config.model.mean=0.5", "--config.model.std=0.25")
FEW = ("--config.evaluation.evaluations=calibration",)  # without gradients, which compile slowly


@pytest.fixture(autouse=True)
def program(monkeypatch):
  monkeypatch.setattr(commands, "program", "launch.py")


@pytest.fixture(autouse=True, scope="module")
def no_cache():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(modes, "cache_compilations", lambda: None)  # it changes JAX for later tests
    yield


def random_variables(seed=0):
  rng = np.random.default_rng(seed)
  found = {}
  for place, shape in names.places(MODEL, 1).items():
    is_positive = place[-1] in ("scale", "var")
    values = rng.uniform(0.5, 1.5, shape) if is_positive else 0.3 * rng.normal(size=shape)
    found[place] = values.astype(np.float32)
  return found


def state_dict(variables):
  """PyTorch's names and layouts of a WRN-10-1, by hand."""
  leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
  leaves |= {"mean": "running_mean", "var": "running_var"}
  outside = {"conv": "conv1", "norm": "bn1", "dense": "fc"}
  inside = {"norm1": "bn1", "norm2": "bn2", "shortcut": "convShortcut"}
  found = {}
  for (_, *modules, leaf), array in variables.items():
    name = outside.get(modules[0])
    if name is None:
      name = f"block{modules[0][5]}.layer.0.{inside.get(modules[1], modules[1])}"
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    found[f"{name}.{leaves[leaf]}"] = np.ascontiguousarray(array)
  return found


def write(path, **changes):
  save_file(state_dict(random_variables()) | changes, path)
  return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  return write(tmp_path_factory.mktemp("files") / "net.safetensors")


def evaluate(*words):
  command.execute(["--mode", "evaluate", *map(str, words)])


def content(workdir):
  return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def evaluated(file, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("evaluated") / "run"
  evaluate("--weights", file, "--config", CONFIG, "--workdir", workdir, *NORMALISED, *FEW)
  return workdir


def test_the_file_stands_in_the_place_of_the_run(evaluated, file):
  found = content(evaluated)
  assert found["training"] is None and set(found["evaluations"]) == {"calibration"}
  assert found["label"] == {"name": "net.safetensors", "model": "wrn_10_1", "data": "digits"}
  assert found["checkpoint"] == {
    "file": "net.safetensors",
    "entry": "",
    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    "form": "TRADES' and RobustBench's Wide ResNets",
    "normalisation": "given",
    "mean": [0.5],
    "std": [0.25],
  }
  assert found["config"].keys() == {"model", "dataset", "evaluation"}
  assert found["config"]["model"]["mean"] == [0.5]
  assert not {"flip", "crop_padding", "validation_fraction"} & found["config"]["dataset"].keys()
  text = (evaluated / "results.txt").read_text()
  assert found["checkpoint"]["sha256"] in text.replace("\n", "") and "mean 0.5" in text
  assert "step" not in text and "epoch" not in text


def test_the_clean_accuracy_is_that_of_the_network(evaluated):
  """By `load_weights`, whose logits are those of PyTorch (tests/models/test_weights.py)."""
  test = data.load("digits").test
  loaded = models.load_weights(
    workdir_lib.read_weights(evaluated)["path"], model="wrn_10_1", mean=(0.5,), std=(0.25,)
  )
  logits = np.asarray(jax.jit(lambda w, x: w(x))(loaded, data.to_float(test.images)))
  assert content(evaluated)["clean"]["accuracy"] == np.mean(logits.argmax(1) == test.labels)
  again = sprout_jax.load(evaluated)
  assert (again.file["path"], again.step, again.beta) == (loaded.path, 0, None)
  assert (again.model.mean, again.model.std) == ((0.5,), (0.25,))
  jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)


def test_a_run_trained_here_with_these_weights_has_the_same_identity(evaluated, tmp_path):
  config = configuration.load(f"{CONFIG},method=natural").unlock()
  flags = [flag.removeprefix("--config.").split("=") for flag in (*NORMALISED, *FEW)]
  configuration.override(config, flags)
  recipe = stepping.make_recipe(config, MODEL)
  state = jax.eval_shape(lambda: stepping.state_lib.create(recipe, (8, 8, 1)))
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
  variables = names.variables(random_variables())
  state = stepping.state_lib.start_from(state, variables)
  facts = modes._facts(data.load("digits"))
  workdir_lib.claim(tmp_path, config.to_dict(), {}, facts)
  saved = checkpoints.Checkpoints(tmp_path, 1)
  saved.save(state, None)
  saved.wait()
  saved.close()
  modes.evaluate(config.lock(), tmp_path)
  trained, file = content(tmp_path), content(evaluated)
  assert trained["parameters_sha256"] == file["parameters_sha256"]
  subjects = {one["evaluations"]["calibration"]["subject"] for one in (trained, file)}
  assert len(subjects) == 1
  assert trained["numbers"] == file["numbers"]
  paths = [{p.name for p in (w / "evaluation").iterdir()} for w in (tmp_path, evaluated)]
  assert paths[0] == paths[1]


def test_later_calls_measure_nothing_twice(evaluated, file, capsys):
  before = (evaluated / "results.json").read_bytes()
  evaluate("--workdir", evaluated)
  folder = evaluated.parent / "moved"
  folder.mkdir()
  moved = folder / file.name
  moved.write_bytes(file.read_bytes())
  # The same content in another place.
  evaluate("--weights", moved, "--config", CONFIG, "--workdir", evaluated, *NORMALISED, *FEW)
  assert capsys.readouterr().out.count("calibration: already measured") == 2
  assert (evaluated / "results.json").read_bytes() == before
  assert workdir_lib.read_weights(evaluated)["path"] == str(moved)


def test_reports_and_frames_of_it(evaluated, capsys):
  command.execute(["--mode", "report", "--workdir", str(evaluated)])
  page = (evaluated / "report" / "report.html").read_text()
  assert "not trained here" in page and "net.safetensors" in page
  for word in ("epoch", "trained by", "0 s", "num_epochs", "seconds per"):
    assert f"{word}<" not in page and f">{word}" not in page
  run = results_lib.read(evaluated)
  assert run.about["training"] is None and "net.safetensors" in capsys.readouterr().out
  frame = results_lib.frame([evaluated])
  assert set(frame["run_name"]) == {"net.safetensors"} and set(frame["run_model"]) == {"wrn_10_1"}
  assert frame["run_method"].isna().all() and frame["run_seed"].isna().all()


def test_it_is_a_source_of_transferred_attacks(evaluated):
  source = modes._source(str(evaluated), data.load("digits"))
  assert source.label == "net.safetensors, wrn_10_1"
  assert source.digest == content(evaluated)["parameters_sha256"]


def test_a_workdir_belongs_to_one_file_model_and_normalisation(evaluated, file, tmp_path):
  other = write(tmp_path / "other.safetensors", **{"fc.bias": np.zeros(10, np.float32)})
  start = ("--config", CONFIG, "--workdir", evaluated, *FEW)
  with pytest.raises(UserError, match=r"belongs to .*net\.saf.*SHA.*, not to .*other.*--workdir"):
    evaluate("--weights", other, *start, *NORMALISED)
  with pytest.raises(UserError, match=r"model.mean: \[0.5\] there, \[0.4\] here"):
    evaluate("--weights", file, *start, "--config.model.mean=0.4", "--config.model.std=0.25")
  config = configuration.load(CONFIG)
  with pytest.raises(UserError, match="belongs to a file of weights.*another --workdir"):
    modes.train(config, evaluated)
  trained = tmp_path / "trained"
  workdir_lib.claim(trained, config.to_dict(), {}, {})
  with pytest.raises(UserError, match="belongs to a training, not to a file"):
    evaluate("--weights", file, "--config", CONFIG, "--workdir", trained, *NORMALISED)
  assert workdir_lib.read_weights(trained) is None


@pytest.mark.parametrize("name", ["gone", "changed"])
def test_a_file_that_is_gone_or_changed_is_named(evaluated, name, tmp_path):
  path, workdir = tmp_path / f"{name}.safetensors", tmp_path / name
  if name == "changed":
    path.write_text("x")
  record = workdir_lib.read_weights(evaluated) | {"path": str(path)}
  config, facts = (json.loads((evaluated / f"{p}.json").read_text()) for p in ("config", "data"))
  workdir_lib.claim(workdir, config, {}, facts, weights=record)
  for call in (lambda: sprout_jax.load(workdir), lambda: evaluate("--workdir", workdir)):
    with pytest.raises(UserError, match=f"{name}.*gone or has changed.*--weights NEW_PATH"):
      call()


@pytest.mark.parametrize(
  "flags, message",
  [
    ((), r"not guessed; add --config\.model\.mean=.*model\.mean=0 --config\.model\.std=1"),
    (
      NORMALISED[:1],
      r"model\.mean is set, but config\.model\.std is not; add --config\.model\.std=VALUES",
    ),
    ((*NORMALISED, "--config.num_epochs=3"), r"--config\.num_epochs has no effect"),
    ((*NORMALISED, "--config.evaluation.use_ema=true"), r"use_ema has no effect"),
    ((*NORMALISED, "--config.model.name=wrn_16_1"), "missing: block1.layer.1"),
  ],
)
def test_what_the_file_does_not_state_is_demanded(flags, message, file, tmp_path):
  with pytest.raises(UserError, match=message):
    evaluate("--weights", file, "--config", CONFIG, "--workdir", tmp_path / "run", *FEW, *flags)
  assert not (tmp_path / "run").exists()


def test_the_default_counts_if_it_is_typed_or_the_file_states_its_own(file, tmp_path):
  config = configuration.load(CONFIG)
  load = lambda path, config, *typed: published.load(
    published.File(path), config, 10, (8, 8, 1), typed
  )
  found, same = load(file, config, "model.mean", "model.std")
  assert (found.mean, found.normalisation, same.model.mean) == ((0.0,), "given", (0.0,))
  stated = {"mu": np.full(1, 0.4914, np.float32), "sigma": np.full(1, 0.2, np.float32)}
  path = write(tmp_path / "stated.safetensors", **stated)
  found, with_mean = load(path, config)
  assert found.normalisation == "mu, sigma" and config.model.mean == (0.0,)
  # As typed, so that a run trained here with this mean has the same identity.
  assert (with_mean.model.mean, with_mean.model.std) == ((0.4914,), (0.2,))
  with pytest.raises(UserError, match=r"\(given\).*FILE:entry=NAME,ignore=PATTERN"):
    load(path, config, "model.mean", "model.std")


def test_classes_and_channels_are_those_of_the_data(file):
  config = configuration.load(CONFIG)
  typed = ("model.mean", "model.std")
  with pytest.raises(UserError, match="has 10 classes, but digits has 12; give the data"):
    published.load(published.File(file), config, 12, (8, 8, 1), typed)
  with pytest.raises(UserError, match="1 channels, but those of digits have 3"):
    published.load(published.File(file), config, 10, (8, 8, 3), typed)


def test_parts_of_a_file(tmp_path):
  path = tmp_path / "net.pt"
  path.touch()
  parse = lambda text: published.parse("--weights", f"{tmp_path}/{text}")
  assert parse("net.pt") == published.File(path)
  assert parse("net.pt:entry=models.0,ignore=*.scores,ignore=mu") == published.File(
    path, "models.0", ("*.scores", "mu")
  )
  (tmp_path / "a:entry=b").touch()
  assert parse("a:entry=b") == published.File(tmp_path / "a:entry=b")
  assert parse("other:entry=b") == published.File(tmp_path / "other:entry=b")  # load says so
  for wrong in ("last", "entry=a,entry=b", "ignore="):
    with pytest.raises(UserError, match="expected entry=NAME"):
      parse(f"net.pt:{wrong}")


def test_the_command_says_what_is_missing(file, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="evaluate --weights .* --config configs/cifar10.py:model="):
    evaluate("--weights", file, "--workdir", tmp_path / "run")
  with pytest.raises(UserError, match=f"--config.init_from={file}"):
    command.execute(
      ["--weights", str(file), "--config", CONFIG, "--workdir", str(tmp_path / "run")]
    )
  monkeypatch.setattr(commands, "program", "sprout")
  assert commands.evaluate_weights("a b", "x", "c") == (
    "sprout evaluate --weights 'a b' --config x --workdir c"
  )
  words = command._from_words(["evaluate", "--weights", "f", "--config", "c", "--workdir", "d"])
  assert words == ["--mode", "evaluate", "--weights", "f", "--config", "c", "--workdir", "d"]


# --- Training --------------------------------------------------------------------------------


def train(workdir, *flags):
  command.execute(
    ["--config", f"{CONFIG},method=natural", "--workdir", str(workdir), *map(str, flags)]
  )


@pytest.fixture
def started(monkeypatch):
  """The starts of trainings, which end at once: variables, or None for random ones."""
  starts = []

  def fake(*args, initial_variables, **kwargs):
    starts.append(None if initial_variables is None else initial_variables())
    return False  # as after a signal

  monkeypatch.setattr(modes.loop, "train", fake)
  return starts


def test_training_starts_from_a_file_and_continues_without_it(file, started, tmp_path):
  copy, workdir = tmp_path / "net.safetensors", tmp_path / "run"
  copy.write_bytes(file.read_bytes())
  flags = (f"--config.init_from={copy}", *NORMALISED)
  train(workdir, *flags)
  jax.tree.map(np.testing.assert_array_equal, started[0], names.variables(random_variables()))
  everywhere = {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(started[0])}
  assert everywhere == {True} and len(jax.tree.leaves(started[0])[0].sharding.device_set) == 8
  copy.unlink()
  with pytest.raises(UserError, match="neither the workdir of a run nor a file of weights"):
    train(workdir, *flags)
  (workdir / "checkpoints" / "2").mkdir(parents=True)  # a checkpoint of its own
  train(workdir, *flags)
  assert started[1:] == [None]


def test_training_starts_from_the_workdir_of_a_file(evaluated):
  config = configuration.load(f"{CONFIG},method=natural").unlock()
  config.init_from, config.model.mean, config.model.std = str(evaluated), (0.5,), (0.25,)
  dataset = data.load("digits")
  variables = modes._initial_variables(config, evaluated.parent / "new", dataset, ())()
  expected = names.variables(random_variables())
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  config.model.activation = "gelu"
  with pytest.raises(UserError, match="model.activation is 'relu' in .*, 'gelu' in this config"):
    modes._initial_variables(config, evaluated.parent / "new", dataset, ())


@pytest.mark.parametrize(
  "changes, flags, message",
  [
    ({}, (), "not guessed; add --config.model.mean="),
    (
      {"mu": np.full(1, 0.4, np.float32), "sigma": np.full(1, 0.2, np.float32)},
      (),
      r"than this config: model.mean is \[0.4\] in .*, \[0.0\] in .*; model.std is \[0.2\] in",
    ),
    (
      {"fc.weight": np.zeros((7, 64), np.float32), "fc.bias": np.zeros(7, np.float32)},
      NORMALISED,
      "has 7 classes, but digits has 10",
    ),
    ({"head.weight": np.zeros((2, 2), np.float32)}, NORMALISED, "not used: head.weight"),
  ],
)
def test_a_start_that_does_not_fit_is_an_error(changes, flags, message, started, tmp_path):
  path = write(tmp_path / "net.safetensors", **changes)
  with pytest.raises(UserError, match=message):
    train(tmp_path / "run", f"--config.init_from={path}", *flags)
  assert not (tmp_path / "run").exists() and not started


def test_a_start_that_is_not_there_is_an_error(tmp_path):
  with pytest.raises(UserError, match="neither the workdir of a run nor a file of weights"):
    train(tmp_path / "run", "--config.init_from=nowhere.pt")
