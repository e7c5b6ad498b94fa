"""What a run leaves for reading later: metrics.jsonl and TensorBoard event files."""

import contextlib
import json
import os
import pathlib
import resource
import socket
import sys
import time

import jax
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from sprout_jax.errors import UserError
from sprout_jax.results import files
from sprout_jax.results import workdir as workdir_lib

SECONDS_PER_FLUSH = 10  # of the event file


def peak_memory():
  """The most memory used so far, in bytes: of the fullest device; on a CPU, of this process."""
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
  ]
  unit = 1 if sys.platform == "darwin" else 1024
  return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
  """Writes records to `workdir`/metrics.jsonl and `workdir`/tensorboard.

  A resumed run repeats the steps after its checkpoint: their earlier records are dropped, so that
  the file reads as if the run had never been interrupted. Both files are written by the caller's
  thread: a full disk is an error of the call that met it.
  """

  def __init__(self, workdir, first_step):
    """Opens the files; records of steps > `first_step` are dropped."""
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
      # With the process in its name: one that starts within the same second has a file of its own.
      name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
      self._events = RecordWriter(str(events / name))
      self._flushed_at = time.monotonic()
      self._add(event_pb2.Event(file_version="brain.Event:2"))
      if kept:  # TensorBoard forgets what an interrupted run wrote from this step on
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=first_step + 1, session_log=start))

  def write(self, step, split, values):
    """Appends a record; lists (SPROUT: beta) become one TensorBoard curve per entry.

    Raises:
      UserError: it cannot be written (a full disk).
    """
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

  def close(self):
    """Closes the files; what cannot be written any more was an error before."""
    for file in (self._file, self._events):
      with contextlib.suppress(OSError):
        file.close()

  def _add(self, event):
    event.wall_time = time.time()
    self._events.write(event.SerializeToString())

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except OSError as error:
      raise UserError(
        f"{self._path.parent} cannot be written ({error.strerror or error}); free some space, then "
        "type the same command: it continues from the newest checkpoint"
      ) from error
