"""Checkpoints: Orbax, asynchronous; the last few and the best; every one carries its digest.

A checkpoint has two parts: "model" (params, batch_stats, ema), which evaluation and other runs
read, and "training" (everything else). Its custom metadata holds a SHA-256 of each part, which is
verified when it is read: a file that was cut or changed on disk is found out whatever the format
of the day makes of it.
"""

import contextlib
import hashlib
import logging
import pathlib
import shutil

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sprout_jax.errors import UserError

VALIDATION = "validation_accuracy"


def split_state(state):
  """A TrainState as the two parts of a checkpoint."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  model = {name: fields.pop(name) for name in ("params", "batch_stats", "ema")}
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
  """The checkpoints of one workdir."""

  def __init__(self, workdir, keep=None):
    """Opens `workdir`/checkpoints; `keep` is how many of the last ones stay (None: only read)."""
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    policies = ocp.training.preservation_policies
    # Half-written checkpoints of a killed run are in the way of the run that writes, only of it.
    self._is_writer = keep is not None
    self._policy = policies.AnyPreservationPolicy(
      [
        policies.LatestN(keep),
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[VALIDATION],
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._open()

  def _open(self):
    self._checkpointer = ocp.training.Checkpointer(
      self.directory, preservation_policy=self._policy, cleanup_tmp_directories=self._is_writer
    )

  def close(self):
    """Waits until everything is on disk."""
    self._checkpointer.close()

  def save(self, state, validation_accuracy=None, wait=False):
    """Saves asynchronously; a checkpoint without validation accuracy is never the best."""
    parts = split_state(state)
    metrics = None if validation_accuracy is None else {VALIDATION: validation_accuracy}
    saved = self._checkpointer.save_checkpointables_async(
      int(state.step),
      parts,
      force=True,
      overwrite=True,
      metrics=metrics,
      custom_metadata={"sha256": {name: sha256(part) for name, part in parts.items()}},
    )
    if wait:
      saved.result()

  def steps(self):
    """The steps of the checkpoints that are there, ascending."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def best_step(self):
    """The step with the highest validation accuracy, the later of two equals; else the last."""

    def rank(checkpoint):
      accuracy = (checkpoint.metrics or {}).get(VALIDATION, -1.0)
      return accuracy, checkpoint.step

    return max(self._checkpointer.checkpoints, key=rank).step

  def load(self, step, abstract):
    """Loads parts of the checkpoint of a step and verifies them.

    Args:
      step: one of `steps()`.
      abstract: {"model": abstract pytree} and/or {"training": abstract pytree}, with shardings.

    Raises:
      Exception: whatever Orbax finds wrong, or ValueError where the digest differs.
    """
    parts = self._checkpointer.load_checkpointables(step, abstract)
    expected = self._checkpointer.metadata(step).custom_metadata["sha256"]
    for name, part in parts.items():
      if sha256(part) != expected[name]:
        raise ValueError(f"the {name!r} part's SHA-256 is not the one it was saved with")
    return parts

  def restore_latest(self, abstract_state):
    """The newest undamaged state, or None. Damaged checkpoints are moved away, with a warning.

    Args:
      abstract_state: a TrainState of jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: there are checkpoints, but none can be read. Nothing is moved then.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        parts = self.load(step, split_state(abstract_state))
      except Exception as error:  # Orbax raises many types; whatever it is, the file is unusable.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        damaged.append((step, reason[0][:200]))
        continue
      # Only now is it sure that it was the file, not the disk or the library, that failed.
      for number, reason in damaged:
        self._move_away(number, reason)
      return type(abstract_state)(**parts["model"], **parts["training"])
    if damaged:
      raise UserError(
        f"none of the checkpoints in {self.directory} can be read: "
        + "; ".join(f"{step} ({reason})" for step, reason in damaged)
        + ". Mend the cause (a disk? another "
        "version of a library?), or start again in another --workdir"
      )
    return None

  def _move_away(self, step, reason):
    self.close()
    target = self.directory.parent / "damaged_checkpoints" / str(step)
    logging.warning(
      "Checkpoint %d is damaged (%s); moved to %s. The one before it is used.", step, reason, target
    )
    if jax.process_index() == 0:
      shutil.rmtree(target, ignore_errors=True)
      target.parent.mkdir(exist_ok=True)
      shutil.move(self.directory / str(step), target)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f"damaged {step}")
    self._open()


def load_model(workdir, which, abstract_model):
  """Reads the "model" part of a finished or running workdir's checkpoint.

  Args:
    workdir: where it was trained.
    which: "best" on its validation split, or "last".
    abstract_model: {"params", "batch_stats", "ema"} of jax.ShapeDtypeStruct with shardings.

  Returns:
    The model part, and the step it is from.

  Raises:
    UserError: there is no checkpoint, or it is damaged.
  """
  if not (pathlib.Path(workdir) / "checkpoints").is_dir():
    raise UserError(
      f"{workdir} has no checkpoints; train there first: python launch.py --config "
      f"CONFIG --workdir {workdir}"
    )
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    if not checkpoints.steps():
      raise UserError(
        f"{checkpoints.directory} is empty; train there first: python launch.py "
        f"--config CONFIG --workdir {workdir}"
      )
    step = checkpoints.best_step() if which == "best" else checkpoints.steps()[-1]
    try:
      return checkpoints.load(step, {"model": abstract_model})["model"], step
    except Exception as error:
      if step == checkpoints.steps()[-1]:
        advice = (
          "run the training command again: it moves the damaged checkpoint away and repeats "
          "what is missing"
        )
      else:
        advice = (
          f"evaluate the last one instead: python launch.py --mode evaluate --workdir "
          f"{workdir} --config configs/stored.py:{workdir} "
          "--config.evaluation.checkpoint=last"
        )
      raise UserError(
        f"checkpoint {checkpoints.directory / str(step)} is damaged ({str(error)[:200]}); {advice}"
      ) from error
