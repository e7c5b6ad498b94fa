"""modes: the measurements of the validation. trained: a workdir as a model."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import sprout_jax
from sprout_jax.configs import default
from sprout_jax.configs import digits
from sprout_jax.data import Split
from sprout_jax.errors import UserError
from sprout_jax.launcher import command
from sprout_jax.launcher import configuration
from sprout_jax.launcher import modes
from tests.linear import Linear
from tests.linear import linear_problem

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_validation_is_clean_or_under_attack(epsilon):
  """A linear model: right under attack where the margin exceeds epsilon |w|_1."""
  split, variables, margin, norm = linear_problem(64)
  config = default.get_config("natural")
  config.validation.epsilon, config.evaluation.batch_size = epsilon, 16
  found = modes.validation(config, split, Linear())(variables)
  assert found["accuracy"] == np.mean(margin > 0)
  if epsilon:
    assert found["robust_accuracy"] == np.mean(margin > epsilon * norm) < found["accuracy"]
    assert "PGD-10, Linf, epsilon 0.02" in modes.selection(config)
  else:
    assert set(found) == {"accuracy"}


def test_validation_compiles_once_for_all_weights():
  split, variables, margin, _ = linear_problem(64)
  validate = modes.validation(default.get_config("natural"), split, Linear())
  first = validate(variables)["accuracy"]
  with jax.log_compiles(False):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
      lambda event, seconds, **kwargs: compiled.append(event)
    )
    other = jax.tree.map(lambda leaf: -leaf, variables)
    second = validate(other)["accuracy"]
    jax.monitoring.clear_event_listeners()
  assert first == np.mean(margin > 0) and second == np.mean(margin < 0)
  assert not [event for event in compiled if "backend_compile" in event]


def test_without_a_validation_split_there_is_nothing_to_measure():
  empty = Split(np.zeros((0, 3, 3, 1), np.float32), np.zeros(0, np.int32))
  assert modes.validation(default.get_config("natural"), empty, Linear())({}) == {}


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("seed", "7", 7),
    ("optimizer.learning_rate", "1/4", 0.25),
    ("optimizer.nesterov", "true", True),
    ("optimizer.nesterov", "False", False),
    ("method.draw", "mean", "mean"),
    ("evaluation.epsilon", "8/255", 8 / 255),
    ("evaluation.epsilons", "2/255,8/255", (2 / 255, 8 / 255)),
    ("evaluation.epsilons", "(0.0, 0.1)", (0.0, 0.1)),
    ("evaluation.epsilons", "0.1", (0.1,)),
    ("evaluation.evaluations", "pgd,noise", ("pgd", "noise")),
    ("evaluation.evaluations", "('pgd',)", ("pgd",)),
    ("evaluation.strength.steps", "5,10", (5, 10)),
    ("evaluation.auto_attack.epsilons", "0.1,0.2", (0.1, 0.2)),
    ("evaluation.transfer.sources", "runs/a,runs/b", ("runs/a", "runs/b")),
    ("optimizer.boundaries", "1,2.5", (1.0, 2.5)),
    ("optimizer.boundaries", "()", ()),
    ("method.alpha", "0.5", 0.5),
  ],
)
def test_single_values_are_read_as_what_they_are(key, text, value):
  config = default.get_config().unlock()
  configuration.override(config, [(key, text)])
  found = configuration.flatten(config)[key]
  assert found == (list(value) if isinstance(value, tuple) else value)
  assert type(found) is (list if isinstance(value, tuple) else type(value))


@pytest.mark.parametrize(
  "key, text, message",
  [
    ("seed", "1.5", "--config.seed is '1.5'; expected an integer"),
    ("optimizer.nesterov", "maybe", "is 'maybe'; expected true or false"),
    ("optimizer.learning_rate", "1/0", "is '1/0'; expected a number"),
    ("evaluation.epsilons", "0.1,x", "expected values separated by commas, e.g. 1,2"),
    ("method", "trades", "--config FILE:method=trades"),
    ("evaluation", "pgd", "is a section"),
    ("seed.more", "1", "config.seed has no key 'more'"),
  ],
)
def test_single_values_of_another_type_are_named(key, text, message):
  config = default.get_config().unlock()
  with pytest.raises(UserError) as error:
    configuration.override(config, [(key, text)])
  assert message in str(error.value)


def test_workdirs_with_commas_and_tildes(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "lr=0.05,bs=64").mkdir()
  parser = command.parser()

  def workdirs(*argv):
    return command._workdirs(parser.parse_args(argv))

  assert workdirs("--workdir", "~/runs/a") == [tmp_path / "runs" / "a"]
  whole = str(tmp_path / "lr=0.05,bs=64")
  assert workdirs("--mode", "report", "--workdir", whole) == [tmp_path / "lr=0.05,bs=64"]
  assert [str(p) for p in workdirs("--mode", "report", "--workdir", "a,b", "--workdir", "c")] == [
    *"abc"
  ]
  assert [str(p) for p in workdirs("--workdir", "a,b")] == ["a,b"]


LONG = "x" * 300  # no file system takes such a name


@pytest.mark.parametrize(
  "argv",
  [
    ["--config", "configs/digits.py", "--workdir", LONG],
    ["--mode", "evaluate", "--workdir", LONG],
    ["--mode", "report", "--workdir", f"{LONG},b"],
    ["--mode", "report", "--workdir", "a\0b"],
    ["--config", LONG, "--workdir", "run"],
    ["--config", "configs/digits.py", "--workdir", "run", f"--config.init_from={LONG}"],
    ["--config", f"configs/images.py:dir={LONG}", "--workdir", "run"],
    ["--config", "configs/cifar10.py", "--workdir", "run", f"--config.dataset.data_dir={LONG}"],
    ["--mode", "evaluate", "--weights", LONG, "--config", "configs/digits.py", "--workdir", "run"],
  ],
  ids=lambda argv: " ".join(word[:24] for word in argv),
)
def test_names_that_no_file_can_have_are_one_error(tmp_path, monkeypatch, argv):
  root = pathlib.Path(__file__).parents[2]
  monkeypatch.chdir(tmp_path)
  argv = [str(root / word) if word.startswith("configs/") else word for word in argv]
  found = command.main(argv)
  assert str(found).startswith("error: ") and "\n" not in found
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("content", ["{", "3", '{"seed": 1}', "\\xff", '{"evaluation": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match="config.json"):
    sprout_jax.load(tmp_path)


def test_a_config_file_that_fails_is_named_with_its_line(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config():\n  return 1 / 0\n")
  with pytest.raises(UserError, match=r"mine\.py, line 2: ZeroDivisionError"):
    configuration.load(str(path))
  path.write_text("from sprout_jax.configs.digits import get_config\n")
  assert configuration.load(f"{path}:method=natural") == digits.get_config("method=natural")
  assert configuration.load("digits:method=natural") == digits.get_config("method=natural")


def test_a_signal_during_an_evaluation_ends_it_with_a_line():
  program = (
    "import os, pathlib, signal, time\n"
    "from sprout_jax.launcher import modes\n"
    "with modes._ends_at_signals(pathlib.Path('runs/a')):\n"
    "  os.kill(os.getpid(), signal.SIGHUP)\n"
    "  time.sleep(600)\n"
  )
  ended = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
  )
  assert ended.returncode == 0
  assert ended.stdout == (
    "Stopped by SIGHUP. What was measured is stored in runs/a. The same command continues.\n"
  )
