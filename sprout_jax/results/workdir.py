"""The workdir: the folder of one run, and its files.

::

    config.json      the resolved config; a workdir belongs to one config
    weights.json     the file of published weights, if it stands in the place of a training
    versions.json    package versions and settings that can change numbers
    data.json        the training data: name, digest, classes, shape of the images
    metrics.jsonl    a record per `config.log_every` steps and per validation; a log, never an input
    tensorboard/     the same records as event files
    checkpoints/     the last few checkpoints and the best one
    evaluation/      the stored evaluations (`sprout_jax.results.store`)
    results.json     everything that was measured (`sprout_jax.results.summary`)
    results.txt      the main numbers as a table
    plots/, report/  figures; the page of `--mode report`
    .lock            held by the process that trains or evaluates (`lock`)
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import platform
import sys
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

if sys.platform != "win32":
  import fcntl

from sprout_jax.errors import UserError
from sprout_jax.results import commands
from sprout_jax.results import files


def is_run(workdir: pathlib.Path | str) -> bool:
  """Returns whether a folder is the workdir of a config."""
  return (pathlib.Path(workdir) / "config.json").exists()


def claim(
  workdir: pathlib.Path | str,
  config: Mapping[str, Any],
  versions: Mapping[str, Any],
  data: Mapping[str, Any],
  weights: Mapping[str, Any] | None = None,
) -> None:
  """Makes a folder the workdir of a config: writes config.json, versions.json and data.json.

  Args:
    workdir: the folder.
    config: the config.
    versions: package versions and settings.
    data: the data set's {name, fingerprint, ...}.
    weights: the file of weights that is evaluated, for weights.json; None for a training.

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
  # First weights.json, and config.json last: `is_run` asks for config.json.
  parts = {"weights": weights, "versions": versions, "data": data, "config": config}
  for name, value in parts.items():
    if value is None:
      continue
    path = workdir / f"{name}.json"
    try:
      is_there = path.exists() and files.read_json(path) == files.plain(dict(value))
    except files.Damaged:
      is_there = False
    if not is_there:
      files.write_json(path, dict(value))


@contextlib.contextmanager
def lock(workdir: pathlib.Path | str, doing: str) -> Iterator[None]:
  """Keeps a workdir for one process: a second one is refused while the first lives.

  The operating system releases the lock when the process ends, however it ends. On a file system
  without locks, and on Windows, nothing is locked.

  Args:
    workdir: the folder; it is created.
    doing: what the process does there, for the message of the second one: "trains".

  Raises:
    UserError: another process has the lock, or the folder cannot be written.
  """
  path = pathlib.Path(workdir) / ".lock"
  with contextlib.ExitStack() as stack:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(open(path, "ab+", buffering=0))
    except OSError as error:
      raise UserError(
        f"{workdir} cannot be written ({error.strerror or error}); change the folder's "
        "permissions, or name another --workdir"
      ) from error
    if sys.platform != "win32":
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
          raise UserError(f"{workdir} is in use: {_holder(path)}") from error
      else:
        file.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"process": os.getpid(), "host": platform.node(), "doing": doing, "since": now}
        with contextlib.suppress(OSError):  # a full disk: the lock holds nevertheless
          file.write(json.dumps(holder).encode())
        for left in (*path.parent.glob("*.tmp"), *path.parent.glob("evaluation/*.tmp")):
          left.unlink(missing_ok=True)  # by a process that was killed while it wrote
    yield


def _holder(path: pathlib.Path) -> str:
  """Returns a sentence about the process that has a lock."""
  try:
    found = files.read_json(path)
    who = "process {process} on {host} {doing} there since {since}".format(**found)
  except (UserError, KeyError, TypeError):
    who = "another process trains or evaluates there"
  return f"{who}. Wait until it ends, or stop it, or name another --workdir"


def read_config(workdir: pathlib.Path | str) -> dict[str, Any]:
  """Returns the config of a workdir as a dictionary.

  Raises:
    UserError: the workdir has no config.json, or a damaged one.
  """
  if not is_run(workdir):
    raise UserError(
      f"{workdir} is not the workdir of a run (it has no config.json); train there first: "
      f"{commands.train('CONFIG', workdir)}"
    )
  return files.read_json(pathlib.Path(workdir) / "config.json")


def read_weights(workdir: pathlib.Path | str) -> dict[str, Any] | None:
  """Returns the content of weights.json; None where the workdir is not that of a file of weights.

  Raises:
    UserError: the file is damaged.
  """
  path = pathlib.Path(workdir) / "weights.json"
  return files.read_json(path) if path.exists() else None


def read_versions(workdir: pathlib.Path | str) -> dict[str, Any]:
  """Returns the package versions with which a workdir was trained; {} where they are unknown."""
  path = pathlib.Path(workdir) / "versions.json"
  try:
    return files.read_json(path) if path.exists() else {}
  except files.Damaged as error:
    warnings.warn(f"{error}; the devices of the training are unknown", stacklevel=2)
    return {}


def read_data(workdir: pathlib.Path | str) -> dict[str, Any]:
  """Returns the training data's {name, fingerprint, provenance, class_names, image_shape}.

  Raises:
    UserError: data.json is missing or damaged.
  """
  path = pathlib.Path(workdir) / "data.json"
  again = f"type the first command of {workdir} again: it writes the file"
  try:
    found = files.read_json(path)
  except UserError as error:
    raise UserError(f"{error}; {again}") from error
  if not isinstance(found.get("class_names"), list) or len(found.get("image_shape", ())) != 3:
    raise files.Damaged(f"{path} is damaged: it lacks class_names or image_shape; {again}")
  return found


def read_metrics(workdir: pathlib.Path | str) -> list[dict[str, Any]]:
  """Returns the records of metrics.jsonl. A damaged line is skipped with a warning."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return files.read_lines(path, lambda text: warnings.warn(text, stacklevel=3))
