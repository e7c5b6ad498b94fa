"""What an ensemble of attacks has done so far, in memory and in a file that survives a kill."""

import hashlib
import json
import os
import pathlib
import time

import jax
import numpy as np

from sprout_jax.attacks.attack import is_wrong

ADVICE = "delete it to begin anew, or give another state_file"


class State:
  """Which examples are robust, and which the present attack is done with; kept in a file."""

  def __init__(self, path, save_seconds, spec, images, labels, indices, logits):
    self._path = None if path is None else pathlib.Path(path)
    self._save_seconds, self._saved_at, self._start = (
      save_seconds,
      time.monotonic(),
      time.monotonic(),
    )
    clean = ~is_wrong(logits, labels)
    self.robust, self.done = clean.copy(), np.zeros_like(clean)
    self.images, self.per_attack, self._earlier = images.copy(), {}, 0.0
    decides = {
      key: value for key, value in spec.items() if key != "device"
    }  # another number of them may continue
    identity = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for array in (images, labels, indices):
      identity.update(np.ascontiguousarray(array).data)
    self._identity, self._logits, self._clean = identity.hexdigest(), logits, clean
    if self._path is not None and self._path.exists():
      self._load()
    elif self._path is not None and not self._path.parent.is_dir():
      raise ValueError(
        f"auto_attack: the folder of state_file {self._path} does not exist; create it first"
      )

  def _load(self):
    stored = _read(self._path)
    scale = 1e-3 * max(1, np.abs(self._logits).max())  # a shape's rounding is no other model
    if str(stored["identity"]) != self._identity or not np.allclose(
      stored["logits"], self._logits, rtol=0, atol=scale
    ):
      raise ValueError(
        f"auto_attack: {self._path} belongs to another call (other images, labels, model, key or "
        f"attacks); {ADVICE}"
      )
    self.robust, self.done, broken = stored["robust"], stored["done"], stored["broken"]
    self.images[broken] = stored["adversarial"]
    self.per_attack = {name: stored[f"after {name}"] for name in stored["finished"].tolist()}
    self._earlier = float(stored["seconds"])

  def seconds(self):
    return self._earlier + time.monotonic() - self._start

  def finish(self, name):
    self.per_attack[name] = self.robust.copy()
    self.done[:] = False
    self.save(now=True)

  def save(self, now=False):
    """Writes the file whole or not at all, unless it was written a short while ago."""
    start = time.monotonic()
    if (
      self._path is None
      or jax.process_index() > 0
      or not (now or start - self._saved_at > self._save_seconds)
    ):
      return
    broken = self._clean & ~self.robust
    _write(
      self._path,
      {
        "identity": np.array(self._identity),
        "logits": self._logits,
        "robust": self.robust,
        "done": self.done,
        "broken": broken,
        "adversarial": self.images[broken],
        "finished": np.array(list(self.per_attack), dtype=str),
        "seconds": np.array(self.seconds()),
        **{f"after {name}": robust for name, robust in self.per_attack.items()},
      },
    )
    self._saved_at = time.monotonic()
    # Large sets: at most a tenth of the time goes into writing.
    self._save_seconds = max(self._save_seconds, 10 * (self._saved_at - start) if not now else 0)


def _digest(arrays):
  """SHA-256 of names, types, shapes and contents."""
  found = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    found.update(repr((name, array.dtype.str, array.shape)).encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()


def _read(path):
  """The arrays of a file of `_write`.

  Raises:
    ValueError: the file cannot be read, or is not as `_write` left it.
  """
  try:
    with open(path, "rb") as file, np.load(file) as stored:
      arrays = {name: stored[name] for name in stored.files}
    digest = str(arrays.pop("digest"))
  except Exception as error:  # whatever zipfile, zlib and NumPy make of foreign bytes
    raise ValueError(
      f"auto_attack: {path} cannot be read as a state of auto_attack "
      f"({type(error).__name__}: {error}); {ADVICE}"
    ) from error
  if digest != _digest(arrays):
    raise ValueError(f"auto_attack: {path} is damaged: its digest does not fit; {ADVICE}")
  return arrays


def _write(path, arrays):
  """Writes arrays and their digest whole or not at all.

  Raises:
    OSError: the file cannot be written. What was there before is still there.
  """
  temporary = path.with_name(path.name + ".tmp")
  try:
    with open(temporary, "wb") as file:
      np.savez(file, digest=np.array(_digest(arrays)), **arrays)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise OSError(
      error.errno,
      f"auto_attack: the state cannot be saved to {path} ({error.strerror or error}); free some "
      "space, or give another state_file; what was saved before is still there",
    ) from error
