"""What an ensemble of attacks has done so far, in memory and in a file that survives a kill."""

import hashlib
import json
import os
import pathlib
import time

import jax
import numpy as np


class State:
  """Which examples are robust, and which the present attack is done with; kept in a file."""

  def __init__(self, path, save_seconds, spec, images, labels, indices, logits):
    self._path = None if path is None else pathlib.Path(path)
    self._save_seconds, self._saved_at, self._start = (
      save_seconds,
      time.monotonic(),
      time.monotonic(),
    )
    clean = logits.argmax(-1) == labels
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
      raise ValueError(f"auto_attack: the folder of state_file {self._path} does not exist")

  def _load(self):
    with np.load(self._path) as stored:
      scale = 1e-3 * max(1, np.abs(self._logits).max())  # a shape's rounding is no other model
      if str(stored["identity"]) != self._identity or not np.allclose(
        stored["logits"], self._logits, rtol=0, atol=scale
      ):
        raise ValueError(
          f"auto_attack: {self._path} belongs to another call (other images, labels, "
          "model, key or attacks); delete it, or give another state_file"
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
    temporary = self._path.with_name(self._path.name + ".tmp")
    with open(temporary, "wb") as file:
      np.savez(
        file,
        identity=self._identity,
        logits=self._logits,
        robust=self.robust,
        done=self.done,
        broken=broken,
        adversarial=self.images[broken],
        finished=np.array(list(self.per_attack), dtype=str),
        seconds=self.seconds(),
        **{f"after {name}": robust for name, robust in self.per_attack.items()},
      )
    os.replace(temporary, self._path)
    self._saved_at = time.monotonic()
    # Large sets: at most a tenth of the time goes into writing.
    self._save_seconds = max(self._save_seconds, 10 * (self._saved_at - start) if not now else 0)
