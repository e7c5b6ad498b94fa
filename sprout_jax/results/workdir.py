"""A workdir: the folder of one run, what lies in it, and what may be read from it.

config.json      the resolved config; a workdir belongs to one config
versions.json    versions and settings that could change a number
data.json        what it was trained on: name, digest, classes, shape of the images
metrics.jsonl    a line per `config.log_every` steps and per validation: a log, never an input
tensorboard/     the same as event files
checkpoints/     the last few and the best
evaluation/      what each evaluation left (`sprout_jax.results.store`)
results.json     everything that was measured (`sprout_jax.results.summary`)
results.txt      the same as a table
plots/, report/  figures; the page of `--mode report`
"""

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from sprout_jax.errors import UserError
from sprout_jax.results import files


def is_run(workdir: pathlib.Path | str) -> bool:
  """Whether a folder is a workdir that belongs to a config."""
  return (pathlib.Path(workdir) / "config.json").exists()


def claim(workdir: pathlib.Path | str, config: Mapping, versions: Mapping, data: Mapping) -> None:
  """Makes a folder the workdir of a config: writes config.json, versions.json and data.json.

  Raises:
    UserError: the folder cannot be written.
  """
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--workdir {workdir} cannot be written ({error.strerror or error}); name another folder"
    ) from error
  for name, value in (("config", config), ("versions", versions), ("data", data)):
    path = workdir / f"{name}.json"
    try:
      is_there = path.exists() and files.read_json(path) == files.plain(dict(value))
    except files.Damaged:
      is_there = False
    if not is_there:
      files.write_json(path, dict(value))


def read_config(workdir: pathlib.Path | str) -> dict:
  """The config that a workdir belongs to, as a dictionary.

  Raises:
    UserError: there is none, or it is damaged.
  """
  if not is_run(workdir):
    raise UserError(
      f"{workdir} is no workdir of a run (it has no config.json); train there first: "
      f"python launch.py --config CONFIG --workdir {workdir}"
    )
  return files.read_json(pathlib.Path(workdir) / "config.json")


def read_versions(workdir: pathlib.Path | str) -> dict:
  """The versions with which a workdir was trained; {} where they are not known."""
  path = pathlib.Path(workdir) / "versions.json"
  try:
    return files.read_json(path) if path.exists() else {}
  except files.Damaged as error:
    warnings.warn(f"{error}; where the run was trained is not known", stacklevel=2)
    return {}


def read_data(workdir: pathlib.Path | str) -> dict:
  """What a workdir was trained on: {name, fingerprint, provenance, class_names, image_shape}.

  Raises:
    UserError: data.json is not there, or damaged.
  """
  path = pathlib.Path(workdir) / "data.json"
  again = f"type the training command of {workdir} again: it writes the file anew"
  try:
    found = files.read_json(path)
  except UserError as error:
    raise UserError(f"{error}; {again}") from error
  if not isinstance(found.get("class_names"), list) or len(found.get("image_shape", ())) != 3:
    raise files.Damaged(f"{path} is damaged: it lacks class_names or image_shape; {again}")
  return found


def read_metrics(workdir: pathlib.Path | str) -> list[dict[str, Any]]:
  """The records of metrics.jsonl; a line that is damaged is left out with a warning."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return files.read_lines(path, lambda text: warnings.warn(text, stacklevel=3))
