"""State of an ensemble of attacks, in memory and in a file from which it continues."""

import hashlib
import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from sprout_jax.attacks.attack import is_wrong

# Provenance, which does not decide whether a state continues: other devices and a newer JAX may.
PROVENANCE = ("device", "jax")
ADVICE = "delete it to start again, or give another state_file"


class StateError(ValueError):
  """The state file is damaged or belongs to another call. The message says what to do."""


class State:
  """Robust examples and the progress of the current attack; kept in a file.

  Attributes:
    robust: bool [n], True where no attack so far broke the example.
    done: bool [n], True where the current attack is done with the example.
    images: float [n, height, width, channels], the adversarial images found so far, else the clean.
    per_attack: name of a finished attack -> `robust` after it.
    passes: name of an attack -> forward passes on the examples that it is done with.
  """

  def __init__(
    self,
    path: str | os.PathLike[str] | None,
    save_seconds: float,
    spec: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    logits: np.ndarray,
  ):
    """Starts from the clean images, or continues from the file.

    Args:
      path: path of the file; None keeps no file.
      save_seconds: smallest time between two writes, in seconds.
      spec: constants of the ensemble, which must be those of the file.
      images: host array [n, height, width, channels], the clean images.
      labels: host array [n].
      indices: host array [n], the examples' positions in the whole data set.
      logits: host array [n, classes], the clean logits.

    Raises:
      StateError: the file is damaged or belongs to another call.
      ValueError: the folder of the file does not exist.
    """
    self._path = None if path is None else pathlib.Path(path)
    self._save_seconds, self._saved_at, self._start = (
      save_seconds,
      time.monotonic(),
      time.monotonic(),
    )
    clean = ~is_wrong(logits, labels)
    self.robust, self.done = clean.copy(), np.zeros_like(clean)
    self.images, self._earlier = images.copy(), 0.0
    self.per_attack: dict[str, np.ndarray] = {}
    self.passes: dict[str, int] = {}
    decides = {key: value for key, value in spec.items() if key not in PROVENANCE}
    identity = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for array in (images, labels, indices):
      identity.update(np.ascontiguousarray(array).data)
    self._identity, self._logits, self._clean = identity.hexdigest(), logits, clean
    if self._path is not None and self._path.exists():
      self._load(self._path)
    elif self._path is not None and not self._path.parent.is_dir():
      raise ValueError(
        f"auto_attack: the folder of state_file {self._path} does not exist; create it first"
      )

  def _load(self, path: pathlib.Path) -> None:
    stored = _read(path)
    # Rounding, which differs between the shapes of programs, does not make another model.
    scale = 1e-3 * max(1, np.abs(self._logits).max())
    if str(stored["identity"]) != self._identity or not np.allclose(
      stored["logits"], self._logits, rtol=0, atol=scale
    ):
      raise StateError(
        f"auto_attack: {path} belongs to another call (other images, labels, model, key or "
        f"attacks); {ADVICE}"
      )
    self.robust, self.done, broken = stored["robust"], stored["done"], stored["broken"]
    self.images[broken] = stored["adversarial"]
    self.per_attack = {name: stored[f"after {name}"] for name in stored["finished"].tolist()}
    self.passes = json.loads(str(stored["passes"]))
    self._earlier = float(stored["seconds"])

  def seconds(self) -> float:
    """Seconds of work so far, those before an interruption included."""
    return self._earlier + time.monotonic() - self._start

  def finish(self, name: str) -> None:
    """Records that an attack is finished, and saves."""
    self.per_attack[name] = self.robust.copy()
    self.done[:] = False
    self.save(now=True)

  def save(self, now: bool = False) -> None:
    """Writes the file whole or not at all.

    Args:
      now: True writes in any case, False only `save_seconds` after the last time.

    Raises:
      OSError: the file cannot be written. The last state saved is still there.
    """
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
        "passes": np.array(json.dumps(self.passes)),
        **{f"after {name}": robust for name, robust in self.per_attack.items()},
      },
    )
    self._saved_at = time.monotonic()
    # Large sets of images take long to write: writing gets at most a tenth of the time.
    self._save_seconds = max(self._save_seconds, 10 * (self._saved_at - start) if not now else 0)


def _digest(arrays: dict[str, np.ndarray]) -> str:
  """SHA-256 of names, types, shapes and contents."""
  found = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    found.update(repr((name, array.dtype.str, array.shape)).encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a file that `_write` wrote.

  Raises:
    StateError: the file cannot be read, or is not as `_write` left it.
  """
  try:
    with open(path, "rb") as file, np.load(file) as stored:
      arrays = {name: stored[name] for name in stored.files}
    digest = str(arrays.pop("digest"))
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds on foreign bytes
    raise StateError(
      f"auto_attack: {path} cannot be read as a state of auto_attack "
      f"({type(error).__name__}: {error}); {ADVICE}"
    ) from error
  if digest != _digest(arrays):
    raise StateError(f"auto_attack: {path} is damaged: its digest differs; {ADVICE}")
  return arrays


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays and their digest, whole or not at all.

  Raises:
    OSError: the file cannot be written. The earlier file is still there.
  """
  temporary = path.with_name(path.name + ".tmp")
  contents: dict[str, Any] = {"digest": np.array(_digest(arrays)), **arrays}
  try:
    with open(temporary, "wb") as file:
      np.savez(file, **contents)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise OSError(
      error.errno,
      f"auto_attack: the state cannot be saved to {path} ({error.strerror or error}); free some "
      "space, or give another state_file; the last state saved is still there",
    ) from error
