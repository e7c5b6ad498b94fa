"""Checkpoints: the last few and the best one, each with digests of its files and arrays.

::

    checkpoints/252/checkpoint.json   step, validation accuracy, beta, digests; sealed
    checkpoints/252/...               Orbax's files
    checkpoints/.unfinished/          checkpoints that are being written or deleted
    damaged_checkpoints/252/          checkpoints that were found damaged

The arrays are in two parts: "model" (params, batch_stats, ema), which evaluation and other runs
read, and "training" (everything else).

Process 0 writes, in its own thread, while training continues. Every process reads. Orbax's
collective writing is not used, because a process that cannot write would leave the others at a
barrier. A checkpoint is renamed to its final name when all of it is on disk, and renamed again
before it is deleted. So readers, and a run after a kill, see only whole checkpoints.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from concurrent import futures
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from sprout_jax.errors import UserError
from sprout_jax.results import commands
from sprout_jax.results import files
from sprout_jax.training import agreement

RECORD = "checkpoint.json"
KEYS = {"step", "validation_accuracy", "beta", "arrays", "files"}  # the keys of the record
Record = dict[str, Any]
Accuracies = dict[int, float | None]  # {step: validation accuracy}
UNFINISHED = ".unfinished"
MODEL = ("params", "batch_stats", "ema")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk without space


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model that was read from a checkpoint.

  Attributes:
    model: {"params", "batch_stats", "ema"}.
    step: the number of minibatches of its training.
    validated: whether a checkpoint of the workdir has a validation accuracy. Without one, the best
      checkpoint is the last.
    beta: float32 [classes], SPROUT's learned concentration at that step; None for other methods.
  """

  model: dict[str, Any]
  step: int
  validated: bool
  beta: np.ndarray | None


def split_state(state: Any) -> dict[str, Any]:
  """Splits a TrainState into the two parts of a checkpoint."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  model = {name: fields.pop(name) for name in MODEL}
  return {"model": model, "training": fields}


def sha256(tree: Any) -> str:
  """Returns the SHA-256 (hex) of the paths, types, shapes and bytes of a pytree's arrays."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(leaf.tobytes())  # NumPy gives no buffer of bfloat16
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints of a run in training.

  Every process has one and makes the same calls. Process 0 writes. `save`, `check` and `wait` raise
  in process 0 only, so call them inside `agreement.agreed`.
  """

  def __init__(self, workdir: pathlib.Path | str, keep: int) -> None:
    """Opens the folder `workdir`/checkpoints.

    Args:
      workdir: the folder of the run.
      keep: number of last checkpoints to keep, besides the best.

    Raises:
      UserError: the folder cannot be created.
    """
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._keep, self._is_first = keep, jax.process_index() == 0
    self._accuracies: Accuracies = {}  # of the present checkpoints; None without validation
    self._writing: futures.Future[None] | None = None
    self._inodes: dict[pathlib.Path, int] = {}
    with agreement.agreed():
      if self._is_first:
        try:
          self.directory.mkdir(exist_ok=True)
          shutil.rmtree(self.directory / UNFINISHED, ignore_errors=True)  # left by a killed run
          folders = self.directory, self.directory.parent
          self._inodes = {folder: folder.stat().st_ino for folder in folders}
        except OSError as error:
          raise UserError(
            f"{self.directory} cannot be created ({_reason(error)}); name another --workdir"
          ) from error
    self._writer = futures.ThreadPoolExecutor(1, "checkpoints")

  def close(self) -> None:
    """Waits until all writing has ended. `check` and `wait` have raised its failures."""
    self._writer.shutdown()

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints on disk, ascending."""
    return _steps(self.directory)

  def restore_latest(self, abstract_state: Any) -> Any:
    """Reads the newest undamaged state. Damaged checkpoints are moved aside with a warning.

    Args:
      abstract_state: a TrainState of jax.ShapeDtypeStruct with shardings.

    Returns:
      The state; None without checkpoints.

    Raises:
      UserError: no checkpoint can be read (nothing is moved then), or they are those of another
        model.
    """
    found = _read(self.directory, "last", split_state(abstract_state), thorough=True)
    if found is None:
      return None
    parts, _, self._accuracies = found
    return type(abstract_state)(**parts["model"], **parts["training"])

  def save(self, state: Any, validation_accuracy: float | None = None) -> None:
    """Copies a state and writes the copy while the caller continues. Waits for the save before.

    Args:
      state: a TrainState whose arrays this process can read (see `sharding.gather`).
      validation_accuracy: what selects the best checkpoint; None for a state that was not
        validated, which is never the best.

    Raises:
      UserError: the save before has failed.
    """
    if not self._is_first:
      return
    self.wait()
    for leaf in jax.tree.leaves(state):
      if isinstance(leaf, jax.Array):
        leaf.copy_to_host_async()
    parts = jax.tree.map(np.array, split_state(state))  # copies: the next step overwrites the state
    self._writing = self._writer.submit(self._write, parts, validation_accuracy)

  def check(self) -> None:
    """Checks, without waiting, that finished saves are on disk.

    Raises:
      UserError: a save has failed, or the folder is gone.
    """
    if self._is_first and (self._writing is None or self._writing.done()):
      self.wait()
      if not self._is_there():
        raise UserError(self._gone())

  def wait(self) -> None:
    """Waits until the last save is on disk.

    Raises:
      UserError: the save has failed.
    """
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()

  def _is_there(self) -> bool:
    if not self._accuracies:
      return self.directory.is_dir()
    return (self.directory / str(max(self._accuracies)) / RECORD).exists()

  def _gone(self) -> str:
    return (
      f"{self.directory} was removed or renamed during training, so nothing can be saved there. "
      "Type the same command to train again from the beginning. If the folder was renamed, give "
      "its new name as --workdir to continue"
    )

  def _write(self, parts: dict[str, Any], validation_accuracy: float | None) -> None:
    step = int(parts["training"]["step"])
    unfinished = self.directory / UNFINISHED
    started, folder = unfinished / "started", unfinished / str(step)
    try:
      unfinished.mkdir(exist_ok=True)
      started.touch()
      _reserve(unfinished / "space", parts)
      with _orbax() as orbax:
        orbax.save(folder, args=ocp.args.PyTreeSave(parts))
      files.write_sealed(folder / RECORD, _record(folder, step, parts, validation_accuracy))
      _sync(folder / RECORD)
      if not started.exists():  # the folder was removed, and Orbax has created it again
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(started))
      os.rename(folder, self.directory / str(step))
      with contextlib.suppress(OSError):  # not every file system can sync a folder
        _sync(self.directory)
      self._accuracies[step] = validation_accuracy
      for old in self._superfluous():
        self._retire(old)
      shutil.rmtree(unfinished)
    except Exception as error:  # Orbax's and TensorStore's errors have many types
      shutil.rmtree(unfinished, ignore_errors=True)
      for made, inode in self._inodes.items():
        with contextlib.suppress(OSError):  # it is gone, or not empty
          if made.stat().st_ino != inode:
            made.rmdir()
      is_there = self._is_there()
      raise UserError(self._failed(step, error) if is_there else self._gone()) from error

  def _superfluous(self) -> list[int]:
    steps = sorted(self._accuracies)
    validated = [step for step in steps if self._accuracies[step] is not None]
    kept = {*steps[-self._keep :], *([_best(self._accuracies)] if validated else [])}
    return [step for step in steps if step not in kept]

  def _retire(self, step: int) -> None:
    with contextlib.suppress(FileNotFoundError):
      os.rename(self.directory / str(step), self.directory / UNFINISHED / f"{step}.old")
    self._accuracies.pop(step, None)

  def _failed(self, step: int, error: BaseException) -> str:
    newest = max(self._accuracies, default=None)
    kept = (
      f"earlier checkpoints are intact, the newest is {newest}"
      if newest is not None
      else "there is no earlier checkpoint"
    )
    advice = "Free some space" if _errno(error) in FULL else "Fix the cause"
    return (
      f"checkpoint {step} cannot be saved in {self.directory} ({_reason(error)}); {kept}. "
      f"{advice}, then type the same command again: it continues from the newest checkpoint"
    )


def load_model(workdir: pathlib.Path | str, which: str, abstract_model: Any) -> Loaded:
  """Reads the "model" part of a checkpoint. The run can be finished or still in training.

  A damaged checkpoint is moved to damaged_checkpoints, with a warning, and the best or last of the
  others is read. With several processes, all of them make this call.

  Args:
    workdir: the folder of the run.
    which: "best" on the validation split (the later of two equals), or "last".
    abstract_model: {"params", "batch_stats", "ema"} of jax.ShapeDtypeStruct with shardings.

  Returns:
    A `Loaded`.

  Raises:
    UserError: there is no checkpoint, none can be read, or they are those of another model.
  """
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
  found = _read(directory, which, {"model": abstract_model}, thorough=False)
  if found is None:
    raise UserError(
      f"{workdir} has no checkpoints; train there first: {commands.train('CONFIG', workdir)}"
    )
  parts, record, accuracies = found
  return Loaded(
    model=parts["model"],
    step=record["step"],
    validated=any(accuracy is not None for accuracy in accuracies.values()),
    beta=None if record["beta"] is None else np.array(record["beta"], np.float32),
  )


def _read(
  directory: pathlib.Path, which: str, abstract: dict[str, Any], thorough: bool
) -> tuple[dict[str, Any], Record, Accuracies] | None:
  """Finds, verifies and loads a checkpoint. This is a collective call.

  Args:
    directory: the folder of the checkpoints.
    which: "best" or "last" of the intact checkpoints.
    abstract: {"model": abstract pytree} and/or {"training": abstract pytree}, with shardings.
    thorough: whether to verify the files of all checkpoints, or only those of the one to load.

  Returns:
    The parts, the record, and the accuracies of all checkpoints; None without checkpoints.
  """
  damaged: dict[int, str] = {}
  while True:
    mine = None
    with agreement.agreed():
      if jax.process_index() == 0:
        mine = _find(directory, which, damaged, thorough)
    found = json.loads(agreement.from_first(json.dumps(mine)))
    if found is None:
      return None
    record, accuracies = found
    folder, damage = directory / str(record["step"]), ""
    parts: dict[str, Any] = {}
    with agreement.agreed():
      try:
        parts = _load(folder, record, abstract)
      except files.Damaged as error:
        damage = str(error)
    damages = [text for text in agreement.gather(damage) if text]
    if not damages:
      return parts, record, {int(step): accuracy for step, accuracy in accuracies.items()}
    if folder.exists():
      damaged[record["step"]] = damages[0]


def _find(
  directory: pathlib.Path, which: str, damaged: dict[int, str], thorough: bool
) -> tuple[Record, Accuracies] | None:
  """Returns the record of the best or last intact checkpoint, and the accuracies of all.

  Damaged checkpoints are moved aside only if another one is intact: otherwise the disk may have
  failed. Without checkpoints, the result is None.
  """
  while records := _records(directory, damaged):
    accuracies = {step: record["validation_accuracy"] for step, record in records.items()}
    step = _best(accuracies) if which == "best" else max(records)
    is_intact = True
    for each in records if thorough else [step]:
      try:
        _verify(directory / str(each), records[each])
      except files.Damaged as error:
        is_intact = False
        if (directory / str(each)).exists():
          damaged[each] = str(error)
    if is_intact:
      _move_away(directory, damaged, step)
      return records[step], accuracies
  if damaged:
    raise UserError(
      f"none of the checkpoints in {directory} can be read: "
      + "; ".join(damaged[step] for step in sorted(damaged, reverse=True))
      + ". Nothing was changed there. Fix the cause (a faulty disk?), or train in another --workdir"
    )
  return None


def _best(accuracies: Accuracies) -> int:
  """Returns the step of highest validation accuracy, the later of two equals; else the last."""

  def rank(step: int) -> tuple[float, int]:
    accuracy = accuracies[step]
    return (-1.0 if accuracy is None else accuracy), step

  return max(accuracies, key=rank)


def _records(directory: pathlib.Path, damaged: dict[int, str]) -> dict[int, Record]:
  """Reads the sealed records by step, except those in `damaged`, and adds damaged ones to it."""
  records: dict[int, Record] = {}
  for step in _steps(directory):
    if step in damaged:
      continue
    folder = directory / str(step)
    try:
      record = files.read_sealed(folder / RECORD)
      if set(record) != KEYS or record["step"] != step:
        raise files.Damaged(f"{folder / RECORD} is not the record of checkpoint {step}")
      records[step] = record
    except UserError as error:
      if folder.exists():  # otherwise a running training has deleted it
        damaged[step] = str(error)
  return records


def _steps(directory: pathlib.Path) -> list[int]:
  if not directory.is_dir():
    return []
  names = (path.name for path in directory.iterdir())
  return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _record(
  folder: pathlib.Path, step: int, parts: dict[str, Any], validation_accuracy: float | None
) -> Record:
  beta = parts["training"]["adversary"].get("beta")  # SPROUT's
  return {
    "step": step,
    "validation_accuracy": validation_accuracy,
    "beta": None if beta is None else [float(value) for value in beta],
    "arrays": {name: sha256(part) for name, part in parts.items()},
    "files": {
      str(path.relative_to(folder)): [path.stat().st_size, _digest(path)]
      for path in sorted(folder.rglob("*"))
      if path.is_file()
    },
  }


def _reserve(path: pathlib.Path, parts: dict[str, Any]) -> None:
  """Raises OSError if the disk has no space for a checkpoint. It leaves no file.

  TensorStore reports a full disk by many tracebacks from its own threads; this is a single error.
  """
  leaves = jax.tree.leaves(parts)
  size = sum(leaf.nbytes for leaf in leaves) + 2**10 * len(leaves) + 2**16  # with Orbax's own files
  try:
    with open(path, "wb") as file:
      if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    if error.errno in FULL:  # other errors: the file system cannot reserve, but may have space
      raise
  finally:
    path.unlink(missing_ok=True)


def _digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: pathlib.Path, record: Record) -> None:
  """Raises `files.Damaged`, which names the file, unless all files are unchanged."""
  for name, (size, digest) in record["files"].items():
    path = folder / name
    try:
      found = path.stat().st_size
      is_same = found == size and _digest(path) == digest
    except OSError as error:
      raise files.Damaged(f"{path} cannot be read ({error.strerror})") from error
    if found != size:
      raise files.Damaged(f"{path} has {found} bytes, but {size} were written")
    if not is_same:
      raise files.Damaged(f"{path} was changed after it was written")


def _move_away(directory: pathlib.Path, damaged: dict[int, str], used: int) -> None:
  for step, reason in sorted(damaged.items(), reverse=True):
    target = directory.parent / "damaged_checkpoints" / str(step)
    try:
      target.parent.mkdir(exist_ok=True)
      shutil.rmtree(target, ignore_errors=True)
      os.rename(directory / str(step), target)
      del damaged[step]
      done = f"it was moved to {target}"
    except OSError as error:
      done = f"it cannot be moved aside ({error.strerror})"
    logging.warning(
      "Checkpoint %d is damaged: %s; %s. Checkpoint %d is used.", step, reason, done, used
    )


def _load(folder: pathlib.Path, record: Record, abstract: dict[str, Any]) -> dict[str, Any]:
  """Reads parts of a checkpoint whose files are intact.

  Raises:
    files.Damaged: the arrays are not those that were saved, or the folder is gone.
    UserError: the arrays do not fit `abstract`.
  """
  as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
  try:
    with _orbax() as orbax:
      loaded = orbax.restore(
        folder,
        args=ocp.args.PyTreeRestore(item=abstract, restore_args=as_numpy, partial_restore=True),
      )
  except Exception as error:  # Orbax's and TensorStore's errors have many types
    kind = UserError if folder.exists() else files.Damaged
    raise kind(f"{folder} cannot be loaded into this model ({_reason(error)})") from error
  loaded = jax.tree.map(np.asarray, loaded)
  expected = jax.tree_util.tree_leaves_with_path(abstract)
  for (path, leaf), got in zip(expected, jax.tree.leaves(loaded), strict=True):
    if (leaf.shape, leaf.dtype) != (got.shape, got.dtype):
      there = "absent" if got.dtype == object else f"{got.dtype} {got.shape}"
      raise UserError(
        f"{folder} is of another model: {jax.tree_util.keystr(path)} is {there}, expected "
        f"{leaf.dtype} {leaf.shape}"
      )
  for name, part in loaded.items():
    if sha256(part) != record["arrays"][name]:
      raise files.Damaged(f"the arrays of {folder}, part {name!r}, are not those that were saved")
  return jax.tree.map(
    lambda leaf, got: jax.make_array_from_callback(
      got.shape, leaf.sharding, lambda index: got[index]
    ),
    abstract,
    loaded,
  )


def _orbax() -> Any:
  """Makes Orbax's reader and writer for this process only."""
  number = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _errno(error: BaseException) -> int | None:
  """Returns the operating system's number of an error, or of one that TensorStore reports."""
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, OSError) and cause.errno:
      return cause.errno
    if told := re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(cause)):
      return int(told[1] or told[2])
    cause = cause.__cause__
  return None


def _reason(error: BaseException) -> str:
  number = _errno(error)
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return os.strerror(number) if number else lines[0][:200]
