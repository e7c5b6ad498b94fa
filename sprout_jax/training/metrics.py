"""What a run leaves for reading later: metrics.jsonl and TensorBoard event files."""

import json
import os
import pathlib
import resource
import sys

import jax
import tensorboardX

from sprout_jax import records


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
  the file reads as if the run had never been interrupted.
  """

  def __init__(self, workdir, first_step):
    """Opens the files; records of steps > `first_step` are dropped."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [record for record in records.read_metrics(workdir) if record["step"] <= first_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(temporary, path)
    self._file = open(path, "a", buffering=1)
    self._events = tensorboardX.SummaryWriter(
      str(pathlib.Path(workdir) / "tensorboard"), purge_step=first_step + 1 if kept else None
    )

  def write(self, step, split, values):
    """Appends a record; lists (SPROUT: beta) become one TensorBoard curve per entry."""
    self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
    for name, value in values.items():
      entries = enumerate(value) if isinstance(value, list) else [("", value)]
      for index, entry in entries:
        tag = f"{name}/{index}" if index != "" else f"{split}/{name}"
        self._events.add_scalar(tag, entry, step)

  def close(self):
    self._file.close()
    self._events.close()
