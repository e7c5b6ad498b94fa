"""The plan of the CIFAR-10 rows, benchmarks/frontier.py, and its runner where runs fail."""

import inspect
import json
import re
import shlex
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import frontier
from configs import cifar10
from sprout_jax import methods
from sprout_jax.launcher import configuration
from sprout_jax.results import files
from tests.report import runs


def config(name):
  """A row's config, without the launcher."""
  row = frontier.ROWS[name]
  config = cifar10.get_config(
    f"model={row.model},method={row.method},penalty={row.penalty},variant={row.variant},epochs=10"
  )
  config.update_from_flattened_dict(frontier.PROTOCOL | row.options)
  return config


def test_every_row_is_a_valid_run():
  for name in frontier.ROWS:
    row = config(name)
    configuration.validate(row)
    methods.create(row.method.name, configuration.options(row.method))
    methods.create_penalty(row.penalty.name, configuration.options(row.penalty))


def test_rows_differ_in_the_method_and_in_what_their_names_say():
  natural = configuration.flatten(config("natural"))
  allowed = {"relu": {"model.activation"}, "awp": {"awp_gamma"}, "width": {"model.name"}}
  for name in frontier.ROWS:
    flat = configuration.flatten(config(name))
    different = {key for key in flat.keys() | natural.keys() if flat.get(key) != natural.get(key)}
    different = {key for key in different if not key.startswith(("method.", "penalty."))}
    expected = set().union(*(keys for word, keys in allowed.items() if word in name.split("_")))
    assert different == expected, name


def test_no_row_is_trained_before_the_one_that_it_starts_from():
  order = [run for stage in frontier.STAGES for run in frontier.runs(stage)]
  assert len(order) == len(set(order)) == len(frontier.ROWS) + 2 * 6  # two more seeds of six rows
  for name, seed in order:
    start = frontier.ROWS[name].start
    if start:
      assert order.index((start, seed)) < order.index((name, seed))
      assert config(name).model == config(start).model


def test_the_command_line_of_a_run():
  command = shlex.join(frontier.launcher_arguments("sprout", 1, "DIR", "DATA", "DIR/natural_1"))
  for part in (
    "--config configs/cifar10.py:model=wrn_16_1,method=sprout,penalty=none,variant=paper,epochs=10",
    "--workdir DIR/sprout_1",
    "--config.seed=1",
    "--config.init_from=DIR/natural_1",
    "--config.dataset.data_dir=DATA",
    "--config.dataset.validation_fraction=0.0",
  ):
    assert part in command


@pytest.mark.parametrize(
  ("name", "parts"),
  [
    ("sprout", {"noise", "mixup", "dirichlet"}),
    ("sprout_noise", {"noise"}),
    ("sprout_mixup", {"mixup"}),
    ("sprout_dirichlet", {"dirichlet"}),
    ("sprout_noise_mixup", {"noise", "mixup"}),
    ("sprout_noise_dirichlet", {"noise", "dirichlet"}),
    ("sprout_mixup_dirichlet", {"mixup", "dirichlet"}),
    ("sprout_uniform", {"noise", "mixup", "dirichlet"}),
  ],
)
def test_the_parts_of_sprout(name, parts):
  method = methods.create("sprout", configuration.options(config(name).method))
  # Each image has one value: noise makes it several, mixup another one.
  values = np.arange(8) / 16 + 0.25
  images = jnp.asarray(np.broadcast_to(values[:, None, None, None], (8, 32, 32, 3)), jnp.float32)
  key = jax.random.key(0)
  adversary = method.adversary.init(key, 10, images.shape)
  drawn, labels = method.vicinity(key, images, jax.nn.one_hot(jnp.arange(8), 10), adversary)
  spread = np.std(drawn, axis=(1, 2, 3))
  # Noise of 0.1 leaves the mean of 3,072 values within 0.01.
  moved = np.abs(np.mean(drawn, axis=(1, 2, 3)) - values) > 0.01
  found = {
    "noise": (spread > 1e-6).any(),
    "mixup": moved.any(),
    "dirichlet": (np.count_nonzero(labels, axis=1) > 2).any(),  # mixup has two classes
  }
  assert {part for part, there in found.items() if there} == parts
  assert np.allclose(np.sum(labels, axis=1), 1, atol=1e-5)


def test_uniform_smoothing_learns_no_beta():
  adversary = methods.create(
    "sprout", configuration.options(config("sprout_uniform").method)
  ).adversary
  beta = adversary.init(jax.random.key(0), 10, (8, 32, 32, 3))
  optimizer = adversary.optimizer(lambda count: 1.0)
  updates, _ = optimizer.update({"beta": jnp.ones(10)}, optimizer.init(beta), beta)
  assert np.array_equal(beta["beta"], np.ones(10)) and not np.any(updates["beta"])


def test_hours():
  # 10 epochs of 390 steps, 0.15 s each: 585 s, twice that for a step of double cost.
  assert frontier.hours("natural", {"natural": 2.0}) == pytest.approx(2 * 585 / 3600)
  assert frontier.hours("mixup", {"natural": 1.0}) == pytest.approx(0.1625)  # a natural step
  assert frontier.hours("pgd", {"natural": 1.0}) is None


def test_the_plan_says_what_is_not_measured():
  text = frontier.plan(
    {name: 1.0 for name in frontier.ROWS if name != "n_fgsm"}, {"pgd": "from its parts"}
  )
  runs = len(frontier.ROWS) + 2 * 6 - 3  # two more seeds of six rows; not the three of "n_fgsm"
  last = text.split("\n\n")[0].splitlines()[-1]
  assert last.split()[-2:] == ["0.16", f"{runs * 0.1625:.1f}"]
  assert text.endswith("Not measured, not in the sum: n_fgsm.")
  assert "Cost of pgd: from its parts.\n" in text


LAUNCHER = """
  import json, pathlib, sys

  workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
  if workdir.name == "natural_0":
    sys.exit(3)
  workdir.mkdir(exist_ok=True)
  steps = 5 if workdir.name == "pgd_0" else 10
  results = {"training": {"steps": steps, "planned_steps": 10}}
  (workdir / "results.json").write_text(json.dumps(results))
"""


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
  (tmp_path / "launch.py").write_text(textwrap.dedent(LAUNCHER))
  recorded = []
  monkeypatch.setattr(frontier, "ROOT", tmp_path)
  monkeypatch.setattr(frontier, "RESULTS", tmp_path)
  monkeypatch.setattr(frontier, "commit", lambda: "abc")
  monkeypatch.setattr(frontier, "record", lambda name, seed, workdir: recorded.append(name))
  monkeypatch.setattr(frontier.zoo, "names", list)
  chosen = [("natural", 0), ("sprout", 0), ("n_fgsm", 0), ("pgd", 0), ("mixup", 0)]
  with frontier.locked(tmp_path / "runs") as lock:
    failed = frontier.train_all(chosen, tmp_path / "runs", tmp_path / "data", lock)
  assert recorded == ["n_fgsm"]  # "pgd" was stopped in the middle: nothing is started after it
  assert "natural_0: launch.py ended with exit status 3" in failed[0]
  assert "first: --row natural --seed 0" in failed[1]
  (call,) = (tmp_path / "runs" / "n_fgsm_0" / "calls.jsonl").read_text().splitlines()
  assert json.loads(call)["commit"] == "abc"


EVALUATOR = """
  import pathlib, sys

  sys.path.insert(0, {root!r})
  from sprout_jax.results import files

  value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
  weights = value("--weights")
  if weights == "zoo/wrn_16_1_n_fgsm":
    sys.exit(3)
  workdir = pathlib.Path(value("--workdir"))
  workdir.mkdir(parents=True, exist_ok=True)
  protocol = "paper" if "--config.evaluation.num_steps=20" in sys.argv else "main"
  config = {{"dataset": {{"name": "cifar10", "data_dir": str(workdir), "cache_dir": "x"}}}}
  results = {{"parameters_sha256": weights, "config": config, "protocol": protocol}}
  files.write_sealed(workdir / "results.json", results)
"""


def test_models_of_the_zoo_are_evaluated(tmp_path, monkeypatch):
  (tmp_path / "launch.py").write_text(textwrap.dedent(EVALUATOR.format(root=str(frontier.ROOT))))
  monkeypatch.setattr(frontier, "ROOT", tmp_path)
  monkeypatch.setattr(frontier, "RESULTS", tmp_path / "results")
  (tmp_path / "results").mkdir()
  rows = ("natural", "sprout", "n_fgsm")
  monkeypatch.setattr(frontier.zoo, "names", lambda: [f"wrn_16_1_{name}" for name in rows])
  for name in (*rows, "pgd"):  # "pgd" has a record and no model
    digest = "other" if name == "sprout" else f"zoo/wrn_16_1_{name}"
    frontier.result_file(name, 0).write_text(json.dumps({"parameters_sha256": digest}))
  chosen = [(name, 0) for name in (*rows, "pgd", "mixup")]
  failed = frontier.evaluate_all(chosen, tmp_path / "runs", tmp_path / "data")
  for protocol in frontier.EVALUATIONS:
    found = files.read_sealed(tmp_path / "results" / "natural_0" / f"{protocol}.json")
    assert found["protocol"] == protocol
    assert found["config"]["dataset"] == {"name": "cifar10", "data_dir": "", "cache_dir": ""}
  assert sorted(path.name for path in (tmp_path / "results").glob("*/")) == ["natural_0"]
  assert len(failed) == 4
  assert "sprout_0: the evaluated weights have the SHA-256 zoo/wrn_16_1_sprout" in failed[0]
  assert "n_fgsm_0: launch.py ended with exit status 3" in failed[2]


def test_two_runners_do_not_train_in_one_folder(tmp_path):
  with frontier.locked(tmp_path):
    second = frontier.locked(tmp_path)
    with pytest.raises(SystemExit, match="trains in"):
      second.__enter__()


def test_a_run_starts_from_a_workdir_or_else_from_the_zoo(tmp_path, monkeypatch):
  where, digest = frontier.start_of("sprout", 0, tmp_path)
  assert where == "zoo/wrn_16_1_natural"
  assert digest == json.loads(frontier.result_file("natural", 0).read_text())["parameters_sha256"]
  with pytest.raises(RuntimeError, match="train it first: --row natural --seed 1"):
    frontier.start_of("sprout", 1, tmp_path)
  for seed in (0, 1):
    runs.workdir(tmp_path / f"natural_{seed}")
  monkeypatch.setattr(frontier, "is_complete", lambda run: run.name.startswith("natural"))
  where, own = frontier.start_of("sprout", 1, tmp_path)
  assert where == str(tmp_path / "natural_1")
  assert own == frontier.read_results(tmp_path / "natural_1")["parameters_sha256"]
  # What was begun from the zoo goes on from there.
  (tmp_path / "sprout_0").mkdir()
  config = {"init_from": "zoo/wrn_16_1_natural"}
  (tmp_path / "sprout_0" / "config.json").write_text(json.dumps(config))
  assert frontier.start_of("sprout", 0, tmp_path) == ("zoo/wrn_16_1_natural", digest)


def test_a_record_reads_what_results_json_has(tmp_path):
  """`frontier.record` reads these keys, of the run and of what it starts from."""
  source = inspect.getsource(frontier.record)
  read = set(re.findall(r'results\["(\w+)"\]', source))
  run = runs.workdir(tmp_path / "run")
  assert {"clean", "data", "training"} <= read <= frontier.read_results(run).keys()
