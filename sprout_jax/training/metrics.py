"""The records of a training: metrics.jsonl and TensorBoard event files."""

import contextlib
import json
import os
import pathlib
import resource
import socket
import sys
import time
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax

from sprout_jax.errors import UserError
from sprout_jax.results import files
from sprout_jax.results import workdir as workdir_lib

SECONDS_PER_FLUSH = 10  # time between flushes of the event file


def peak_memory() -> int:
  """Returns the peak memory in bytes, of the fullest device; on a CPU, of this process."""
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
  ]
  unit = 1 if sys.platform == "darwin" else 1024
  return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
  """Writes records to `workdir`/metrics.jsonl and `workdir`/tensorboard.

  A resumed run repeats the steps after its checkpoint. Their earlier records are dropped, so the
  file is as if the run had never been interrupted. Both files are written in the caller's thread,
  so a full disk is an error of the call that writes.
  """

  def __init__(self, workdir: pathlib.Path | str, first_step: int) -> None:
    """Opens the files and drops the records of steps after `first_step`."""
    from tensorboardX.proto import event_pb2  # imports PyTorch if it is installed
    from tensorboardX.record_writer import RecordWriter

    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [
      record
      for record in workdir_lib.read_metrics(workdir)
      if isinstance(record.get("step"), int) and record["step"] <= first_step
    ]
    files.write(self._path, "".join(json.dumps(record) + "\n" for record in kept))
    with self._explained():
      self._file = self._path.open("ab", buffering=0)
      events = pathlib.Path(workdir) / "tensorboard"
      events.mkdir(exist_ok=True)
      # The process id makes the name unique where two processes start within a second.
      name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
      self._events = RecordWriter(str(events / name))
      self._flushed_at = time.monotonic()
      self._add(event_pb2.Event(file_version="brain.Event:2"))
      if kept:  # makes TensorBoard drop the events of an interrupted run from this step on
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=first_step + 1, session_log=start))

  def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Appends a record. Lists (SPROUT's beta) become one TensorBoard curve per entry.

    Args:
      step: minibatches done.
      split: "train" or "validation".
      values: {name: number or list of numbers}.

    Raises:
      UserError: the record cannot be written (a full disk).
    """
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    now = time.monotonic()
    with self._explained():
      self._file.write(json.dumps({"step": step, "split": split, **values}).encode() + b"\n")
      for name, value in values.items():
        entries = enumerate(value) if isinstance(value, list) else [("", value)]
        for index, entry in entries:
          tag = f"{name}/{index}" if index != "" else f"{split}/{name}"
          self._add(event_pb2.Event(step=step, summary=summary.scalar(tag, entry)))
      if now - self._flushed_at > SECONDS_PER_FLUSH:
        self._events.flush()
        self._flushed_at = now

  def close(self) -> None:
    """Closes the files. Write errors were raised before."""
    for file in (self._file, self._events):
      with contextlib.suppress(OSError):
        file.close()

  def _add(self, event: Any) -> None:
    event.wall_time = time.time()
    self._events.write(event.SerializeToString())

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise UserError(
        f"{self._path.parent} cannot be written ({error.strerror or error}); free some space, then "
        "type the same command again: it continues from the newest checkpoint"
      ) from error
