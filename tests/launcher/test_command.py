"""The command `sprout`: its words, help, and messages that suggest commands in the same form."""

import sys

import pytest

import sprout_jax
from sprout_jax.configs import cifar10
from sprout_jax.configs import digits
from sprout_jax.errors import UserError
from sprout_jax.launcher import command
from sprout_jax.launcher import configuration
from sprout_jax.launcher import modes
from sprout_jax.results import commands


@pytest.fixture(autouse=True)
def program(monkeypatch):
  monkeypatch.setattr(commands, "program", "launch.py")  # restored after each test


@pytest.fixture
def call(monkeypatch, capsys):
  """sprout WORDS -> (exit status or message, standard output)."""

  def called(*words):
    monkeypatch.setattr(sys, "argv", ["sprout", *words])
    with pytest.raises(SystemExit) as ended:
      command.sprout()
    return ended.value.code, capsys.readouterr().out

  return called


@pytest.fixture
def started(monkeypatch):
  """The calls of the three modes, which do nothing."""
  calls = []
  for name in ("train", "evaluate"):
    start = lambda config, workdir, name=name, **options: calls.append((name, workdir))
    monkeypatch.setattr(modes, name, start)
  monkeypatch.setattr(modes, "show_report", lambda workdirs: calls.append(("report", *workdirs)))
  return calls


def test_sprout_alone_shows_its_commands(call):
  message, _ = call()
  for text in ("sprout train CONFIG --workdir DIR", "sprout evaluate DIR", "sprout report DIR"):
    assert text in message


@pytest.mark.parametrize("words", [("--version",), ("train", "--version")])
def test_version(call, words):
  code, out = call(*words)
  assert code == 0 and sprout_jax.__version__ in out


@pytest.mark.parametrize("words", [("--help",), ("train", "--help")])
def test_help_explains_the_words(call, words):
  code, out = call(*words)
  assert code == 0 and "digits:method=natural,epochs=10" in out and "mine.py" in out
  assert "--mode" not in out  # the first word says it


@pytest.mark.parametrize(
  "words, message",
  [
    (("trian", "digits"), "sprout has no command 'trian'. Did you mean 'train'? Its commands are:"),
    (("digits",), "sprout has no command 'digits'. Its commands are: train, evaluate, report"),
    (("train", "--workdir", "x"), "type e.g. sprout train digits --workdir x"),
    (("train", "digits"), "--workdir is missing"),
    (("evaluate", "nothing"), "train there first: sprout train CONFIG --workdir nothing"),
    (("report", "nothing"), "create it with: sprout evaluate nothing"),
    (("report", "x", "--config.seed=1"), "type sprout report DIR_A DIR_B"),
    (("evaluate", "x", "y"), "evaluate takes one --workdir, but 2 were given"),
    (("train", "digits", "--workdr", "x"), "--workdr x; type sprout --help for the options"),
  ],
)
def test_messages_suggest_commands_of_sprout(call, tmp_path, monkeypatch, words, message):
  monkeypatch.chdir(tmp_path)
  found, _ = call(*words)
  assert message in found and "launch.py" not in found


def test_workdirs_can_be_words(call, started, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = digits.get_config()
  monkeypatch.setattr("sprout_jax.launcher.trained.read_config", lambda workdir: config)
  assert call("train", "digits", "--workdir", "x")[0] == 0
  assert call("evaluate", "x", "--config.evaluation.epsilon=0.2")[0] == 0
  assert call("evaluate", "--workdir", "x")[0] == 0
  assert call("report", "x", "y")[0] == 0
  assert [(name, *map(str, where)) for name, *where in started] == [
    ("train", "x"),
    ("evaluate", "x"),
    ("evaluate", "x"),
    ("report", "x", "y"),
  ]


def test_commands_have_the_form_of_the_call(monkeypatch):
  assert commands.train("digits", "a b") == "python launch.py --config digits --workdir 'a b'"
  assert commands.evaluate("a") == "python launch.py --mode evaluate --workdir a"
  assert commands.report("a", "b") == "python launch.py --mode report --workdir a,b"
  monkeypatch.setattr(commands, "program", "sprout")
  assert commands.train("digits", "a") == "sprout train digits --workdir a"
  assert commands.evaluate("a b") == "sprout evaluate 'a b'"
  assert commands.report("a", "b") == "sprout report a b"


def test_epochs_of_the_digits():
  assert digits.get_config("epochs=60") == digits.get_config()
  assert digits.get_config().optimizer.warmup_epochs == 2.0
  for epochs in (1, 5):
    config = digits.get_config(f"epochs={epochs}")
    configuration.validate(config)
    assert (config.num_epochs, config.optimizer.warmup_epochs) == (epochs, epochs / 30)
  with pytest.raises(UserError, match="epochs is 'ten'; expected an integer of at least 1"):
    digits.get_config("epochs=ten")


@pytest.mark.parametrize("get", [digits.get_config, cifar10.get_config])
def test_an_unknown_argument_names_the_flag_of_other_values(get):
  with pytest.raises(UserError, match=r"'num_epochs=5'; .* flags, e.g. --config.num_epochs=5"):
    get("num_epochs=5")
