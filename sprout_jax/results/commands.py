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


def report(*workdirs: pathlib.Path | str) -> str:
  """Returns the command that writes one page about runs."""
  names = [shlex.quote(str(workdir)) for workdir in workdirs]
  if program == "sprout":
    return f"sprout report {' '.join(names)}"
  return f"python launch.py --mode report --workdir {','.join(names)}"
