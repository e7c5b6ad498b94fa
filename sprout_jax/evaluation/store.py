"""What evaluations leave in a workdir: they are not repeated, and continue where a kill ended them.

    evaluation/NAME-IDENTITY.json             what an evaluation found, its options and its time
    evaluation/NAME-IDENTITY.partial.jsonl    pieces of one that is not finished
    evaluation/NAME-IDENTITY/                 files of its own (AutoAttack's state)

IDENTITY is a hash of all that decides about the numbers: the weights, the data, the code and the versions
that compute them, and the evaluation's options. Another radius is another file; going back to an earlier
one finds its numbers again.

All processes read the same files, then wait for each other, and process 0 writes.
"""

import hashlib
import importlib.metadata
import json
import math
import pathlib
import time

import jax

from sprout_jax.records import write_json


class Memo:
  """memo(name, compute) -> compute(), from disk if it was computed before; values are JSON.

  Attributes:
    folder: where an evaluation may keep files of its own.
    seconds: what the pieces took that were there already.
  """

  def __init__(self, path):
    """Reads the pieces that an earlier run left in `path`; a last line that was cut is ignored."""
    self.folder = path.with_name(path.name.removesuffix(".partial.jsonl"))
    self._path, self._pieces, self.seconds, whole = path, {}, 0.0, []
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
      try:
        name, value, seconds = json.loads(line)
      except json.JSONDecodeError:
        break
      self._pieces[name], self.seconds = value, self.seconds + seconds
      whole.append(line + "\n")
    wait_for_all(f"{path.name} is read")
    if len(whole) < len(lines) and jax.process_index() == 0:
      repaired = path.with_name(path.name + ".tmp")
      repaired.write_text("".join(whole))
      repaired.replace(path)

  def __call__(self, name, compute):
    if name not in self._pieces:
      start = time.monotonic()
      self._pieces[name] = as_json(compute())  # so that an interrupted run has no other values
      if jax.process_index() == 0:
        with self._path.open("a") as file:
          file.write(json.dumps([name, self._pieces[name], time.monotonic() - start]) + "\n")
    return self._pieces[name]


def as_json(value):
  """A value as JSON gives it back; numbers that are not finite become None, which JSON has."""

  def finite(value):
    if isinstance(value, dict):
      return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
      return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return json.loads(json.dumps(finite(value)))


def wait_for_all(name):
  """Returns when all processes are here: none may write what another has yet to read."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


# What computes the numbers.
CODE = (
  "attacks",
  "data/dataset.py",
  "evaluation",
  "losses.py",
  "models",
  "statistics.py",
  "vicinity.py",
)
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")


def code_identity():
  """A hash of the sources that compute the numbers, the versions of packages, and the kind of device."""
  root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for name in CODE:
    for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
      digest.update(path.read_bytes())
  versions = {package: importlib.metadata.version(package) for package in PACKAGES}
  return {"code": digest.hexdigest(), **versions, "device": jax.devices()[0].device_kind}


class Store:
  """The evaluations of one workdir's weights."""

  def __init__(self, workdir, identity):
    """`identity`: what decides about the numbers besides an evaluation's options, as JSON."""
    self._folder, self._identity = pathlib.Path(workdir) / "evaluation", identity

  def read(self, name, options):
    """What is stored of an evaluation with these options; None if nothing is."""
    path = self._path(name, options)
    return json.loads(path.read_text()) if path.exists() else None

  def run(self, name, options, compute):
    """Returns what is stored, or else stores what `compute`, memo -> dictionary, returns.

    Args:
      name: of the evaluation.
      options: its options, as JSON.
      compute: gets a `Memo`.

    Returns:
      {"options", "wall_seconds" (of all runs since the first piece), and what was computed}.
    """
    found = self.read(name, options)
    if found is None:
      path = self._path(name, options)
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_name(f"{path.stem}.partial.jsonl")
      start, memo = time.monotonic(), Memo(partial)
      earlier = memo.seconds
      found = as_json({"options": options, **compute(memo)})
      found = {"wall_seconds": earlier + time.monotonic() - start, **found}
      if jax.process_index() == 0:
        write_json(path, found)
        partial.unlink(missing_ok=True)
    return found

  def _path(self, name, options):
    text = json.dumps([self._identity, options], sort_keys=True)
    return self._folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
