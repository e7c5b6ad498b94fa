"""Checkpoints: the last few and the best; every one carries digests of its files and its arrays.

    checkpoints/252/checkpoint.json   step, validation accuracy, beta, digests; sealed
    checkpoints/252/...               Orbax's files
    checkpoints/.unfinished/          what is being written or deleted
    damaged_checkpoints/252/          what was found damaged

The arrays are in two parts: "model" (params, batch_stats, ema), which evaluation and other runs
read, and "training" (everything else).

Process 0 writes, in a thread of its own, while training goes on; every process reads. Orbax's
collective writing is not used: a process that cannot write would leave the others at its barriers.
A checkpoint gets its name by a rename, when all of it is on disk, and loses it by a rename before
it is deleted: a reader, and a run after a kill, sees whole checkpoints only.
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

import jax
import numpy as np
from orbax import checkpoint as ocp

from sprout_jax.errors import UserError
from sprout_jax.results import files
from sprout_jax.training import agreement

RECORD = "checkpoint.json"
KEYS = {"step", "validation_accuracy", "beta", "arrays", "files"}  # of the record
UNFINISHED = ".unfinished"
MODEL = ("params", "batch_stats", "ema")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a disk without space


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model as it was read from a checkpoint.

  Attributes:
    model: {"params", "batch_stats", "ema"}.
    step: minibatches that it was trained on.
    validated: whether any checkpoint of the workdir has a validation accuracy; without one, the
      best is the last.
    beta: float32 [classes], SPROUT's learned parameter at that step; None for other methods.
  """

  model: dict
  step: int
  validated: bool
  beta: np.ndarray | None


def split_state(state):
  """A TrainState as the two parts of a checkpoint."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  model = {name: fields.pop(name) for name in MODEL}
  return {"model": model, "training": fields}


def sha256(tree):
  """SHA-256 (hex) over the paths, types, shapes and bytes of a pytree's arrays."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(leaf.data)
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints that a run writes. All processes make one and call it alike; process 0 writes.

  `save`, `check` and `wait` raise in process 0 only; call them inside `agreement.agreed`.
  """

  def __init__(self, workdir, keep):
    """Opens `workdir`/checkpoints; the last `keep` stay, and the best.

    Raises:
      UserError: the folder cannot be made.
    """
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._keep, self._is_first = keep, jax.process_index() == 0
    self._accuracies = {}  # of the checkpoints that are there, by step; None without validation
    self._writing = None
    with agreement.agreed():
      if self._is_first:
        try:
          self.directory.mkdir(exist_ok=True)
          shutil.rmtree(self.directory / UNFINISHED, ignore_errors=True)  # of a run that was killed
          folders = self.directory, self.directory.parent
          self._inodes = {folder: folder.stat().st_ino for folder in folders}
        except OSError as error:
          raise UserError(
            f"{self.directory} cannot be made ({_reason(error)}); name another --workdir"
          ) from error
    self._writer = futures.ThreadPoolExecutor(1, "checkpoints")

  def close(self):
    """Waits until nothing is being written any more; failures were told by `check` and `wait`."""
    self._writer.shutdown()

  def steps(self):
    """The steps of the checkpoints on disk, ascending."""
    return _steps(self.directory)

  def restore_latest(self, abstract_state):
    """The newest undamaged state, or None. Damaged checkpoints are moved away, with a warning.

    Args:
      abstract_state: a TrainState of jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: there are checkpoints, but none can be read (nothing is moved then); or they are
        another model's.
    """
    found = _read(self.directory, "last", split_state(abstract_state), thorough=True)
    if found is None:
      return None
    parts, _, self._accuracies = found
    return type(abstract_state)(**parts["model"], **parts["training"])

  def save(self, state, validation_accuracy=None):
    """Copies a state and writes the copy, while the caller goes on; waits for the save before.

    A checkpoint without validation accuracy is never the best.

    Raises:
      UserError: the save before has failed.
    """
    if not self._is_first:
      return
    self.wait()
    for leaf in jax.tree.leaves(state):
      leaf.copy_to_host_async()
    parts = jax.tree.map(np.array, split_state(state))  # copies: the next step overwrites the state
    self._writing = self._writer.submit(self._write, parts, validation_accuracy)

  def check(self):
    """Looks whether what was saved is on disk, as far as it is written, without waiting.

    Raises:
      UserError: a save has failed, or the folder has gone.
    """
    if self._is_first and (self._writing is None or self._writing.done()):
      self.wait()
      if not self._is_there():
        raise UserError(self._gone())

  def wait(self):
    """Waits until what was saved is on disk.

    Raises:
      UserError: the save has failed.
    """
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()

  def _is_there(self):
    if not self._accuracies:
      return self.directory.is_dir()
    return (self.directory / str(max(self._accuracies)) / RECORD).exists()

  def _gone(self):
    return (
      f"{self.directory} was removed or renamed during training, and nothing can be saved there. "
      "Type the same command to train again from the beginning; if the folder was renamed, give "
      "its new name as --workdir to go on"
    )

  def _write(self, parts, validation_accuracy):
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
      if not started.exists():  # removed: Orbax has made the folders above `folder` anew
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
        with contextlib.suppress(OSError):  # it is there no more, or not empty
          if made.stat().st_ino != inode:
            made.rmdir()
      is_there = self._is_there()
      raise UserError(self._failed(step, error) if is_there else self._gone()) from error

  def _superfluous(self):
    steps = sorted(self._accuracies)
    validated = [step for step in steps if self._accuracies[step] is not None]
    kept = {*steps[-self._keep :], *([_best(self._accuracies)] if validated else [])}
    return [step for step in steps if step not in kept]

  def _retire(self, step):
    with contextlib.suppress(FileNotFoundError):
      os.rename(self.directory / str(step), self.directory / UNFINISHED / f"{step}.old")
    self._accuracies.pop(step, None)

  def _failed(self, step, error):
    newest = max(self._accuracies, default=None)
    kept = (
      f"the checkpoints before it are intact, the newest is {newest}"
      if newest is not None
      else "there is none before it"
    )
    advice = "Free some space" if _errno(error) in FULL else "Mend the cause"
    return (
      f"checkpoint {step} cannot be saved in {self.directory} ({_reason(error)}); {kept}. "
      f"{advice}, then type the same command: it continues from there"
    )


def load_model(workdir, which, abstract_model):
  """Reads the "model" part of a finished or running workdir's checkpoint.

  A checkpoint that is damaged is moved to damaged_checkpoints, with a warning, and the best or last
  of the others is read. With several processes, all of them call this.

  Args:
    workdir: where it was trained.
    which: "best" on its validation split (the later of two equals), or "last".
    abstract_model: {"params", "batch_stats", "ema"} of jax.ShapeDtypeStruct with shardings.

  Returns:
    A `Loaded`.

  Raises:
    UserError: there is no checkpoint, or none that can be read, or they are another model's.
  """
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
  found = _read(directory, which, {"model": abstract_model}, thorough=False)
  if found is None:
    raise UserError(
      f"{workdir} has no checkpoints; train there first: python launch.py --config CONFIG "
      f"--workdir {workdir}"
    )
  parts, record, accuracies = found
  return Loaded(
    model=parts["model"],
    step=record["step"],
    validated=any(accuracy is not None for accuracy in accuracies.values()),
    beta=None if record["beta"] is None else np.array(record["beta"], np.float32),
  )


def _read(directory, which, abstract, thorough):
  """Finds, verifies and loads a checkpoint. Collective.

  Args:
    directory: the checkpoints.
    which: "best" or "last" of those that are intact.
    abstract: {"model": abstract pytree} and/or {"training": abstract pytree}, with shardings.
    thorough: whether the files of all checkpoints are verified, or only of the one that is read.

  Returns:
    The parts, the record, and {step: validation accuracy or None} of all; None without checkpoints.
  """
  damaged = {}
  while True:
    found = None
    with agreement.agreed():
      if jax.process_index() == 0:
        found = _find(directory, which, damaged, thorough)
    found = json.loads(agreement.from_first(json.dumps(found)))
    if found is None:
      return None
    record, accuracies = found
    folder, parts, damage = directory / str(record["step"]), None, ""
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


def _find(directory, which, damaged, thorough):
  """The record of the best or last intact checkpoint, and the accuracies of all; None without any.

  Damaged ones are moved away, once it is sure that it is they, and not the disk, that fail.
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
      + ". Nothing was changed there. Mend the cause (a disk?), or train in another --workdir"
    )
  return None


def _best(accuracies):
  """The step with the highest validation accuracy, the later of two equals; else the last."""
  return max(
    accuracies, key=lambda step: (-1.0 if accuracies[step] is None else accuracies[step], step)
  )


def _records(directory, damaged):
  """The sealed records by step; why one cannot be read goes into `damaged`, where it stays out."""
  records = {}
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
      if folder.exists():  # otherwise the run that trains here has deleted it
        damaged[step] = str(error)
  return records


def _steps(directory):
  if not directory.is_dir():
    return []
  names = (path.name for path in directory.iterdir())
  return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _record(folder, step, parts, validation_accuracy):
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


def _reserve(path, parts):
  """Raises OSError where the disk has no space for a checkpoint; leaves nothing.

  Found out here it is one error; TensorStore tells of it in a hundred traces from its own threads.
  """
  leaves = jax.tree.leaves(parts)
  size = sum(leaf.nbytes for leaf in leaves) + 2**10 * len(leaves) + 2**16  # with Orbax's own files
  try:
    with open(path, "wb") as file:
      if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    if error.errno in FULL:  # a file system that cannot reserve may have space all the same
      raise
  finally:
    path.unlink(missing_ok=True)


def _digest(path):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder, record):
  """Raises `files.Damaged`, naming the file, unless all files are those that were written."""
  for name, (size, digest) in record["files"].items():
    path = folder / name
    try:
      found = path.stat().st_size
      is_same = found == size and _digest(path) == digest
    except OSError as error:
      raise files.Damaged(f"{path} cannot be read ({error.strerror})") from error
    if found != size:
      raise files.Damaged(f"{path} has {found} bytes, not the {size} that were written")
    if not is_same:
      raise files.Damaged(f"{path} holds other bytes than were written")


def _move_away(directory, damaged, used):
  for step, reason in sorted(damaged.items(), reverse=True):
    target = directory.parent / "damaged_checkpoints" / str(step)
    try:
      target.parent.mkdir(exist_ok=True)
      shutil.rmtree(target, ignore_errors=True)
      os.rename(directory / str(step), target)
      del damaged[step]
      done = f"it was moved to {target}"
    except OSError as error:
      done = f"it cannot be moved away ({error.strerror})"
    logging.warning(
      "Checkpoint %d is damaged: %s; %s. Checkpoint %d is used.", step, reason, done, used
    )


def _load(folder, record, abstract):
  """Reads parts of a checkpoint whose files are intact.

  Raises:
    files.Damaged: the arrays are not those that were saved, or the folder has gone.
    UserError: they do not fit `abstract`.
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


def _orbax():
  """Orbax's reader and writer for this process alone."""
  number = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _sync(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _errno(error):
  """The operating system's number of an error, also of one that TensorStore tells in words."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    if told := re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(error)):
      return int(told[1] or told[2])
    error = error.__cause__
  return None


def _reason(error):
  number = _errno(error)
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return os.strerror(number) if number else lines[0][:200]
