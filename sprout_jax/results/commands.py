"""The commands that messages suggest, in the form in which the user called the launcher."""

import pathlib
import shlex

program = "launch.py"  # or "sprout", the installed command; set by `launcher.command.main`


def train(config: str, workdir: pathlib.Path | str) -> str:
  """Returns the command that trains a config in a workdir."""
  name = shlex.quote(str(workdir))
  if program == "sprout":
    return f"sprout train {config} --workdir {name}"
  return f"python launch.py --config {config} --workdir {name}"


def evaluate(workdir: pathlib.Path | str) -> str:
  """Returns the command that evaluates a trained run."""
  name = shlex.quote(str(workdir))
  if program == "sprout":
    return f"sprout evaluate {name}"
  return f"python launch.py --mode evaluate --workdir {name}"


def evaluate_weights(file: str, config: str, workdir: pathlib.Path | str) -> str:
  """Returns the command that evaluates a file of published weights."""
  start = "sprout evaluate" if program == "sprout" else "python launch.py --mode evaluate"
  name = shlex.quote(str(workdir))
  return f"{start} --weights {shlex.quote(file)} --config {config} --workdir {name}"


def report(*workdirs: pathlib.Path | str) -> str:
  """Returns the command that writes one page about runs."""
  names = [shlex.quote(str(workdir)) for workdir in workdirs]
  if program == "sprout":
    return f"sprout report {' '.join(names)}"
  return f"python launch.py --mode report --workdir {','.join(names)}"
