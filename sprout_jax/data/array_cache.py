"""Decoded arrays on disk, so that a second start does not decode again.

An entry is `STEM.images.npy`, `STEM.labels.npy` and `STEM.json`. The JSON holds what the arrays
were made from (`key`), their sha256 and what belongs to them. An entry is served only if the key
is the one asked for and the arrays have their sha256; otherwise it counts as absent and the next
write replaces it. Each file is replaced whole, so readers and writers need no lock: a mixture of
two writers' files fails its sha256.
"""

import json
import os
import pathlib
import secrets

import numpy as np

from sprout_jax.data import dataset
from sprout_jax.errors import UserError

ARRAYS = ("images", "labels")


def directory(cache_dir=""):
  """Returns `cache_dir`, or the folder sprout_jax of $XDG_CACHE_HOME or of ~/.cache."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "sprout_jax"


def read(folder, stem, key):
  """Returns (Split, [sha256 of images, of labels], extra), or None if there is no sound entry."""
  try:
    entry = json.loads((folder / f"{stem}.json").read_text())
    if entry["key"] != key:
      return None
    arrays = [np.load(folder / f"{stem}.{name}.npy", allow_pickle=False) for name in ARRAYS]
    digests = [dataset.digest(array) for array in arrays]
    if digests != entry["digests"]:
      return None
    return dataset.Split(*arrays), digests, entry["extra"]
  except (OSError, EOFError, ValueError, KeyError, TypeError):  # cut short, overwritten, not ours
    return None


def write(folder, stem, key, split, extra):
  """Writes an entry and returns what `read` would. `extra` is any JSON value."""
  arrays = [split.images, split.labels]
  digests = [dataset.digest(array) for array in arrays]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(ARRAYS, arrays):
      _replace(folder / f"{stem}.{name}.npy", lambda f, a=array: np.save(f, a, allow_pickle=False))
    text = json.dumps({"key": key, "digests": digests, "extra": extra}, indent=1)
    _replace(folder / f"{stem}.json", lambda f: f.write(text.encode()))  # last: it vouches
  except OSError as error:
    raise UserError(
      f"cannot keep decoded images in {folder}: {error}; expected a directory to "
      "write in: give another cache_dir, or set XDG_CACHE_HOME"
    ) from error
  return split, digests, extra


def _replace(path, fill):
  """Writes a file under a name of its own, then moves it to `path` in one step."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
  try:
    with temporary.open("xb") as file:
      fill(file)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
