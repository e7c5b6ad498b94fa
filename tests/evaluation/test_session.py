"""session: stored results are found again; damaged or different ones are measured again."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import sprout_jax
from sprout_jax import results as results_lib
from sprout_jax.errors import EvaluationFailed
from sprout_jax.errors import ProcessLost
from sprout_jax.errors import UserError
from sprout_jax.evaluation import evaluate
from sprout_jax.evaluation import session
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.evaluation.table import Evaluation
from sprout_jax.results import checks
from sprout_jax.results import summary
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement
from tests.disks import largest_file
from tests.evaluation import subjects

ABOUT = dict.fromkeys(summary.ABOUT) | {"label": {"name": "linear"}, "parameters_sha256": "abc"}


class Killed(BaseException):
  """Ends the call at once, as Ctrl-C does."""


class Brightness:
  """A throw-away evaluation that counts how often its pieces are computed."""

  def __init__(self):
    self.computed, self.kill_after = [], 99

  def function(self, subject, *, threshold, seed):
    numbers = []
    for name, rows in (("dark", slice(0, 20)), ("light", slice(20, None))):
      share = subject.memo(
        name, lambda name=name, rows=rows: self.share(name, subject.images[rows], threshold)
      )
      numbers.append(Number("bright", share, {"place": name, "strength": threshold, "seed": seed}))
    return Measurement(Numbers(numbers), {"threshold": threshold}, ("Pixels were counted.",))

  def share(self, name, images, threshold):
    if len(self.computed) == self.kill_after:
      raise Killed
    self.computed.append(name)
    return float((images > threshold).mean())


@pytest.fixture
def brightness(monkeypatch):
  """Installs it: one function and one row."""
  counting = Brightness()

  def evaluate_brightness(
    subject: Subject,
    *,
    threshold: Annotated[float, Option("above it a pixel is bright", 0, 1)] = 0.5,
    seed: Seed,
  ) -> Measurement:
    return counting.function(subject, threshold=threshold, seed=seed)

  row = Evaluation(evaluate_brightness, 1, "the share of bright pixels")
  monkeypatch.setitem(EVALUATIONS, "brightness", row)
  return counting


def measure(
  workdir, names=("brightness",), subject=None, identity=("weights",), say=print, **changes
):
  return session.measure(
    subject or subjects.make(),
    names,
    subjects.settings(**changes),
    workdir=workdir,
    identity=list(identity),
    about=ABOUT,
    say=say,
  )[0]


def stored_file(workdir, name="brightness"):
  (path,) = (workdir / "evaluation").glob(f"{name}-*.json")
  return path


# Another evaluation is one function and one row.


def test_a_throw_away_evaluation_is_everywhere(brightness, tmp_path, capsys):
  """Its options, its number in results.json, in the frame, in the terminal and on the page."""
  subject = subjects.make()
  found = evaluate(
    subject.predict,
    subject.images,
    subject.labels,
    workdir=tmp_path,
    evaluations=("brightness",),
    brightness={"threshold": 0.25},
  )
  assert table.defaults()["brightness"] == {"threshold": 0.5}
  expected = np.mean(subject.images[:20] > 0.25)
  written = json.loads((tmp_path / "results.json").read_text())
  (number, _) = [n for n in written["numbers"] if n["evaluation"] == "brightness"]
  np.testing.assert_allclose(number["value"], expected)
  assert (number["place"], number["strength"], number["seed"]) == ("dark", 0.25, 0)
  entry = written["evaluations"]["brightness"]
  assert entry["options"] == {"threshold": 0.25, "seed": 0} and entry["version"] == 1
  assert entry["details"] == {"threshold": 0.25} and entry["notes"] == ["Pixels were counted."]
  frame = results_lib.frame([tmp_path]).query("metric == 'bright'")
  assert frame["place"].tolist() == ["dark", "light"]
  np.testing.assert_allclose(frame["value"].iloc[0], expected)
  printed, page = capsys.readouterr().out, (tmp_path / "report" / "report.html").read_text()
  for text in (printed, page):
    assert "bright" in text and "light" in text and f"{100 * expected:.1f}" in text
  assert found.numbers.first(place="dark").value == number["value"]
  with pytest.raises(UserError, match="evaluate.brightness.threshold is 2"):
    evaluate(
      subject.predict,
      subject.images,
      subject.labels,
      workdir=tmp_path,
      brightness={"threshold": 2.0},
    )


# What is stored is found by what decides about it.


@pytest.mark.parametrize(
  "change, is_other",
  [
    (lambda measure: measure(brightness=dict(threshold=0.4)), True),
    (lambda measure: measure(seed=1), True),
    (lambda measure: measure(identity=["other weights"]), True),
    (lambda measure: measure(version=2), True),
    (lambda measure: measure(numerics={"device": "TPU v9"}), True),
    (lambda measure: measure(numerics={"matmul_precision": "default"}), True),
    (lambda measure: measure(epsilon=0.5), False),  # no option of this evaluation
    (lambda measure: measure(noise=dict(num_draws=1)), False),
    (
      lambda measure: measure(subject=subjects.make(batch_size=8, class_names=("x", "y", "z"))),
      False,
    ),
    (lambda measure: measure(jax="1.2.3"), False),
    (lambda measure: measure(title="renamed"), False),
  ],
)
def test_what_is_measured_again(brightness, tmp_path, monkeypatch, change, is_other):
  row, numerics = EVALUATIONS["brightness"], subject_lib.numerics()

  def changed(jax=None, **changes):
    for name in ("version", "title"):
      if name in changes:
        other = dataclasses.replace(row, **{name: changes.pop(name)})
        monkeypatch.setitem(EVALUATIONS, "brightness", other)
    other = numerics | changes.pop("numerics", {})
    monkeypatch.setattr(subject_lib, "numerics", lambda: dict(other))
    if jax is not None:
      monkeypatch.setattr("importlib.metadata.version", lambda package: jax)
    return measure(tmp_path, **changes)

  measure(tmp_path)
  changed()
  assert brightness.computed == ["dark", "light"]
  change(changed)
  assert brightness.computed == ["dark", "light"] * (2 if is_other else 1)
  if not is_other:
    stored_file(tmp_path)  # one


@pytest.mark.parametrize(
  "context", [lambda: jax.enable_x64(True), lambda: jax.default_prng_impl("rbg")]
)
def test_another_precision_or_generator_is_another_measurement(brightness, tmp_path, context):
  measure(tmp_path)
  with context():
    measure(tmp_path)
  assert len(brightness.computed) == 4


def test_other_weights_or_data_are_another_measurement(brightness, tmp_path, monkeypatch):
  """`evaluate` itself identifies the weights and the data."""
  for name in ("summarize", "compare"):  # they take longer than all the rest
    monkeypatch.setattr(f"sprout_jax.report.{name}", lambda *args: "")
  subject = subjects.make()
  weights = subjects.linear_network(subjects.kernel())

  def call(weights=weights, images=subject.images, labels=subject.labels, **changes):
    evaluate(
      jax.tree_util.Partial(subjects.network, weights),
      images,
      labels,
      workdir=tmp_path,
      evaluations=("brightness",),
      progress=False,
      **changes,
    )
    return len(brightness.computed) // 2

  assert call() == 1 and call(batch_size=8) == 1 and call(name="renamed") == 1
  images, other = subject.images.copy(), subject.labels.copy()
  images[0, 0, 0] += np.float32(1e-6)
  other[1] = (other[1] + 1) % 3
  assert call(weights | {"bias1": weights["bias1"] + 1}) == 2
  assert call(images=images) == 3 and call(labels=other) == 4
  assert call() == 4  # the first is still there
  # Features are the binarisation test's alone.
  assert call(features=jax.tree_util.Partial(subjects.hidden, weights)) == 4


SCRIPT = """
import sys
import numpy as np
import tests.conftest
import sprout_jax
from sprout_jax.evaluation import session
from tests.evaluation import subjects, test_session

assert sprout_jax.__file__.startswith(sys.argv[1]), sprout_jax.__file__
names = ("calibration", "noise")
test_session.measure(sys.argv[2], names, subjects.make(), ("weights",))
"""


def test_a_comment_in_the_sources_measures_nothing_again(tmp_path):
  """A copy of the sources with a new first line in every file."""
  workdir, copy = tmp_path / "run", tmp_path / "copy"
  root = pathlib.Path(sprout_jax.__file__).parents[1]
  said = []
  measure(workdir, ("calibration", "noise"), say=said.append)
  assert said[0].startswith("calibration (1 of 2)") and "already measured" not in " ".join(said)
  for part in ("sprout_jax", "tests"):
    ignored = shutil.ignore_patterns("__pycache__", "configs")
    shutil.copytree(root / part, copy / part, ignore=ignored)
  for path in (copy / "sprout_jax").rglob("*.py"):
    path.write_text(f"# A comment.\n\n{path.read_text()}")
  (copy / "script.py").write_text(SCRIPT)
  done = subprocess.run(
    [sys.executable, "-W", "error", "script.py", str(copy), str(workdir)],
    cwd=copy,
    capture_output=True,
    text=True,
    check=False,
    env={"PATH": "", "PYTHONPATH": str(copy)},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == ["calibration: already measured", "noise: already measured"]


def test_features_decide_about_the_binarisation_test_alone(tmp_path, monkeypatch):
  for name in ("summarize", "compare"):
    monkeypatch.setattr(f"sprout_jax.report.{name}", lambda *args: "")
  weights, subject = subjects.linear_network(subjects.kernel()), subjects.make()

  def call(**changes):
    evaluate(
      subject.predict,
      subject.images,
      subject.labels,
      workdir=tmp_path,
      evaluations=("binarization", "calibration"),
      binarization=dict(num_examples=1, num_inner=3),
      num_steps=1,
      progress=False,
      **changes,
    )
    stored = (tmp_path / "evaluation").glob("*-*.json")
    return sorted(path.name.split("-")[0] for path in stored)

  partial = lambda by: jax.tree_util.Partial(lambda w, x: by * subjects.hidden(w, x), weights)
  assert call() == ["binarization", "calibration", "clean"]
  assert call(features=partial(1)) == ["binarization", "binarization", "calibration", "clean"]
  assert call(features=partial(1)).count("binarization") == 2
  assert call(features=partial(2)).count("binarization") == 3


def test_a_model_that_was_trained_on_is_measured_as_it_is(tmp_path):
  """The function is the same object, but it computes other outputs."""
  subject, sign = subjects.make(), [1.0]
  kernel = subjects.kernel()
  functions = [
    lambda images: subjects.linear(sign[0] * kernel, images),
    jax.tree_util.Partial(lambda w, images: subjects.linear(sign[0] * w, images), kernel),
  ]
  for number, predict in enumerate(functions):
    found = []
    for sign[0] in (1.0, -1.0, 1.0):
      results = evaluate(
        predict,
        subject.images,
        subject.labels,
        workdir=tmp_path / str(number),
        evaluations=("calibration", "auto_attack"),
        auto_attack=dict(version="apgd-ce"),
        epsilon=1e-6,
        step_size=1e-6,
        progress=False,
      )
      attack = results.numbers.first(evaluation="auto_attack").value
      calibration = results.numbers.first(evaluation="calibration", metric="accuracy").value
      assert results.clean.value == calibration == attack
      found.append((results.about["parameters_sha256"], attack))
    assert found[0] == found[2] and found[0][0] != found[1][0]
    assert found[0][1] == 0.9 and found[1][1] < 0.2


# Kills and damage.


def test_killed_and_continued(brightness, tmp_path):
  expected = measure(tmp_path / "whole")
  brightness.computed.clear()
  brightness.kill_after = 1
  with pytest.raises(Killed):
    measure(tmp_path)
  (partial,) = (tmp_path / "evaluation").glob("*.partial.jsonl")
  assert len(partial.read_text().splitlines()) == 1 and brightness.computed == ["dark"]
  brightness.kill_after = 99
  found = measure(tmp_path)
  assert brightness.computed == ["dark", "light"] and not partial.exists()
  assert [n.value for n in found.numbers] == [n.value for n in expected.numbers]
  measure(tmp_path)
  assert len(brightness.computed) == 2


def test_a_kill_leaves_the_results_of_what_was_finished(brightness, tmp_path):
  brightness.kill_after = 0
  with pytest.raises(Killed):
    measure(tmp_path, ("calibration", "brightness"))
  found = results_lib.read(tmp_path)
  assert found.stored.keys() == {"calibration"} and found.clean.value == 0.9


def change_a_digit(path):
  text = path.read_text()
  place = text.index("0.", text.index('"value"'))
  digit = text[place + 2]
  path.write_text(f"{text[: place + 2]}{(int(digit) + 1) % 10}{text[place + 3 :]}")


@pytest.mark.parametrize("damage", [change_a_digit, lambda path: path.write_text('{"numbers": [')])
def test_a_damaged_file_is_named_set_aside_and_measured_again(brightness, tmp_path, damage):
  whole = measure(tmp_path)
  path = stored_file(tmp_path)
  before = path.read_text()
  damage(path)
  damaged = path.read_text()
  with pytest.warns(
    UserWarning, match=rf"{path.name}.*{path.name}.damaged; brightness is measured again"
  ):
    found = measure(tmp_path)
  assert path.with_name(path.name + ".damaged").read_text() == damaged
  assert brightness.computed == 2 * ["dark", "light"]
  # No changed digit has come through.
  assert [n.value for n in found.numbers] == [n.value for n in whole.numbers]
  numbers = json.loads((tmp_path / "results.json").read_text())["numbers"]
  assert numbers[1:] == json.loads(before)["numbers"]  # the first is the clean accuracy


def test_a_damaged_file_of_another_evaluation_does_not_reach_results_json(brightness, tmp_path):
  """It is not measured again in this call, and not in results.json."""
  measure(tmp_path)
  change_a_digit(stored_file(tmp_path))
  with pytest.warns(UserWarning, match="its digest does not match"):
    found = measure(tmp_path, ("calibration",))
  assert found.stored.keys() == {"calibration"}
  assert "brightness" not in json.loads((tmp_path / "results.json").read_text())["evaluations"]


def test_a_damaged_piece_is_named_and_measured_again(brightness, tmp_path):
  whole = measure(tmp_path / "whole")
  brightness.computed.clear()
  brightness.kill_after = 1
  with pytest.raises(Killed):
    measure(tmp_path)
  (partial,) = (tmp_path / "evaluation").glob("*.partial.jsonl")
  change_a_digit(partial)
  brightness.kill_after = 99
  with pytest.warns(UserWarning, match=rf"line 1 of .*{partial.name} is damaged"):
    found = measure(tmp_path)
  assert brightness.computed == ["dark", "dark", "light"]
  assert [n.value for n in found.numbers] == [n.value for n in whole.numbers]


def crash(error):
  def crashing(subject, *, seed: Seed) -> Measurement:
    raise error

  return Evaluation(crashing, 1, "crashes")


def test_an_evaluation_that_crashes_leaves_the_others(brightness, tmp_path, monkeypatch, capsys):
  """Also as the first. The error is named, and raised when all else is done."""
  out_of_memory = RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore lines")
  monkeypatch.setitem(EVALUATIONS, "calibration", crash(out_of_memory))
  subject = subjects.make()
  with pytest.raises(EvaluationFailed, match=r"calibration was not measured .Runtime.*RESOURCE"):
    evaluate(
      subject.predict,
      subject.images,
      subject.labels,
      workdir=tmp_path,
      evaluations=("calibration", "brightness"),
      progress=False,
    )
  found = results_lib.read(tmp_path)
  assert found.stored.keys() == {"brightness"} and brightness.computed == ["dark", "light"]
  expected = "RuntimeError: RESOURCE_EXHAUSTED: out of memory. Give a smaller batch_size"
  assert found.failed == {"calibration": expected}
  assert (tmp_path / "report" / "report.html").exists()
  assert "raise error\nRuntimeError: RESOURCE_EXHAUSTED" in capsys.readouterr().err
  brightness.kill_after = 2
  monkeypatch.setitem(EVALUATIONS, "calibration", crash(ValueError("a defect")))
  with pytest.raises(Killed):
    measure(tmp_path / "killed", ("calibration", "brightness"))
  assert results_lib.read(tmp_path / "killed").failed == {"calibration": "ValueError: a defect"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ProcessLost("a process is lost")])
def test_some_errors_end_the_call_at_once(brightness, tmp_path, monkeypatch, error):
  monkeypatch.setitem(EVALUATIONS, "calibration", crash(error))
  with pytest.raises(type(error)):
    measure(tmp_path, ("calibration", "brightness"))
  assert not brightness.computed


def test_of_several_processes_an_error_ends_all(brightness, tmp_path, monkeypatch):
  """It may be in one of them only, and the others would wait for it."""
  monkeypatch.setitem(EVALUATIONS, "calibration", crash(RuntimeError("here only")))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(session, "wait_for_all", lambda name: None)
  with pytest.raises(RuntimeError, match="here only"):
    measure(tmp_path, ("calibration", "brightness"))


# Findings are derived, not measured.


def rising(subject, *, seed: Seed) -> Measurement:
  """Accuracies under PGD that cannot be right."""
  numbers = [
    accuracy(np.arange(1000) < right, np.arange(1000), attack="pgd", norm="linf", epsilon=epsilon)
    for epsilon, right in ((0.0, 900), (0.1, 500), (0.2, 510))
  ]
  return Measurement(Numbers(numbers))


def raises(*args, **kwargs):
  raise AssertionError("the model was called")


def test_findings_are_derived_again_without_a_model(brightness, tmp_path, monkeypatch):
  monkeypatch.setitem(EVALUATIONS, "pgd", Evaluation(rising, 1, "rising"))
  names = ("pgd", "brightness")
  first = measure(tmp_path, names)
  assert [(f.check, f.passed) for f in first.findings] == [("monotone", False)]
  path = tmp_path / "results.json"
  before = json.loads(path.read_text())
  path.unlink()
  brightness.kill_after = 0
  subject = subjects.make()
  broken = dataclasses.replace(subject, predict=subject_lib.as_pytree(raises), _known={})
  monkeypatch.setattr(Subject, "map", raises)
  measure(tmp_path, names, broken)
  assert json.loads(path.read_text()) == before
  # A new check and a new wording measure nothing either.
  renamed = dataclasses.replace(checks.CHECKS["monotone"], derive=lambda evidence: [finding])
  finding = checks.Finding("monotone", True, 1.0, 2.0, "A new wording.", ({"evaluation": "pgd"},))
  monkeypatch.setitem(checks.CHECKS, "monotone", renamed)
  found = measure(tmp_path, names, broken)
  assert [f.text for f in found.findings] == ["A new wording."]
  assert json.loads(path.read_text())["findings"][0]["text"] == "A new wording."


def test_what_cannot_be_measured_is_named_and_the_rest_is_measured(brightness, tmp_path):
  found = measure(tmp_path, ("transfer", "brightness"), transfer=dict(sources=()))
  assert found.failed.keys() == {"transfer"} and "give sources" in found.failed["transfer"]
  assert found.stored.keys() == {"brightness"} and brightness.computed
  assert results_lib.read(tmp_path).failed == found.failed


def test_an_earlier_results_json_with_other_numbers_is_kept(brightness, tmp_path):
  said = []
  measure(tmp_path, say=said.append)
  first = (tmp_path / "results.json").read_text()
  measure(tmp_path, ("calibration", "brightness"), say=said.append)
  assert not (tmp_path / "results_previous.json").exists()  # nothing was lost
  second = (tmp_path / "results.json").read_text()
  measure(tmp_path, brightness=dict(threshold=0.4), say=said.append)
  assert said.count("the earlier results.json is now results_previous.json") == 1
  assert (tmp_path / "results_previous.json").read_text() == second != first


# The call.


def call(tmp_path, **changes):
  subject = subjects.make()
  options = dict(workdir=tmp_path, evaluations=("calibration",), progress=False) | changes
  return evaluate(
    options.pop("predict", subject.predict), subject.images, subject.labels, **options
  )


def on_the_host(images):
  """A model whose weights are where JAX does not see them."""
  kernel = np.random.RandomState(0).randn(64, 4).astype(np.float32)
  shape = jax.ShapeDtypeStruct((len(images), 4), np.float32)
  host = lambda images: np.asarray(images).reshape(len(images), -1) @ kernel
  return jax.pure_callback(host, shape, images)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(evaluations=("fgsm",)), "evaluations: an entry is 'fgsm'; choose one of"),
    (dict(nothing=1), "evaluate has no option 'nothing'; .*num_examples.*noise"),
    (dict(noise={"draws": 3}), "'noise' has no option draws; its options are: num_draws"),
    (dict(noise=3), "options of the evaluation 'noise' are 3; expected a dictionary"),
    (dict(num_steps=-1), "evaluate.num_steps is -1"),
    (dict(epsilon=8), "evaluate.epsilon is 8, .* did you mean 8/255"),
    (dict(epsilons=(0.1, 2.0)), "evaluate.epsilons is 2, but pixels are in"),
    (dict(epsilons=(0.2, 0.1)), "must be distinct and ascending"),
    (dict(class_names=("a", "b")), "class_names has 2 entries; expected one for each of the 4"),
    (dict(loss="dlrr"), "evaluate.loss is 'dlrr'; choose one of"),
    (dict(predict=lambda x: jnp.ones((len(x), 4)) / 4), "probabilities"),
    (dict(batch_size=0), "batch_size is 0; it must be a number of at least 1"),
    (dict(batch_size=-3), "batch_size is -3"),
    (dict(batch_size=8.0), "batch_size is 8.0; it must be an integer"),
    (dict(features=lambda x: x.nothing), "cannot trace features .*AttributeError"),
    (dict(features=lambda x: x), r"features returns \(2, 8, 8, 1\); .* array of features"),
    (dict(sources={"a": lambda x: x @ x}), r"cannot trace sources\['a'\]"),
    (dict(predict=on_the_host), "calls Python on the host"),
  ],
)
def test_wrong_calls_are_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    call(tmp_path, **changes)
  assert not list(tmp_path.iterdir())  # before anything is written


@pytest.mark.parametrize(
  "epsilon", [1, np.float64(1), np.float32(1), jnp.float32(1), np.int64(1), np.array(1.0)]
)
def test_numbers_of_any_kind_are_one_identity(brightness, tmp_path, epsilon):
  options = dict(norm="l2", evaluations=("noise", "brightness"), noise=dict(num_draws=1))
  for one in (1.0, epsilon):
    call(
      tmp_path,
      epsilon=one,
      epsilons=[one],
      num_examples=type(epsilon)(4) if isinstance(epsilon, np.integer) else 4,
      brightness=dict(threshold=one),
      **options,
    )
  assert len(list((tmp_path / "evaluation").glob("*-*.json"))) == 3
  assert brightness.computed == ["dark", "light"]


def test_what_evaluate_leaves(tmp_path):
  found = call(tmp_path, name="mine", class_names="abcd", num_examples=20)
  assert {path.name for path in tmp_path.iterdir()} >= {
    "evaluation",
    "results.json",
    "results.txt",
    "report",
  }
  assert found.about["label"] == {"name": "mine"} and found.about["data"]["count"] == 40
  assert found.about["data"]["class_names"] == ["a", "b", "c", "d"] and found.clean.value == 0.9
  again = results_lib.read(tmp_path)
  assert summary.to_json(again) == summary.to_json(found)
  assert again.about["versions"]["jax"] == jax.__version__


def test_sources_are_tried_without_being_asked_for(tmp_path):
  """With other models given, "transfer" is measured."""
  other = jax.tree_util.Partial(subjects.network, subjects.linear_network(subjects.other_kernel()))
  steps = dict(epsilon=subjects.EPSILON, **subjects.STRONG)
  found = call(tmp_path, sources={"other": other}, **steps)
  numbers = found.numbers.where(evaluation="transfer")
  assert len(numbers) == 2 and numbers.values("source")[0].startswith("other (")
  assert found.failed == {}


@pytest.fixture
def own_programs(tmp_path):
  """A separate compilation cache, because truncated programs must not reach other tests."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


# JAX warns because its compilation cache is full, too.
@pytest.mark.filterwarnings("ignore:Error (reading|writing) persistent compilation cache")
@pytest.mark.parametrize("size", [0, 100, 1500])
def test_a_full_disk_is_one_error_and_the_same_call_continues(tmp_path, own_programs, size):
  subject = subjects.make()

  def call():
    return evaluate(
      subject.predict,
      subject.images,
      subject.labels,
      workdir=tmp_path / "run",
      evaluations=("noise",),
      epsilon=0.1,
      progress=False,
    )

  with largest_file(size), pytest.raises(UserError, match=r"cannot be written .*command again"):
    call()
  assert not list(tmp_path.rglob("*.tmp"))
  assert call().numbers.first(evaluation="noise", epsilon=0.1)
