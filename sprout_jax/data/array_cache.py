"""A cache of decoded arrays on disk.

An entry is `STEM.images.npy`, `STEM.labels.npy` and `STEM.json`. The JSON holds the source of the
arrays (`key`), their SHA-256 digests and further facts. An entry is returned only if its key is the
requested one and the arrays match their digests. Otherwise it counts as absent, and the next write
replaces it. Files are replaced atomically, so readers and writers need no lock: the files of two
different writers do not match the digests.
"""

import functools
import json
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import IO
from typing import Any

import numpy as np

from sprout_jax.data import dataset
from sprout_jax.errors import UserError

ARRAYS = ("images", "labels")
Entry = tuple[dataset.Split, list[str], Any]  # the arrays, their digests, further facts


def directory(cache_dir: str = "") -> pathlib.Path:
  """Returns `cache_dir`, or by default the folder sprout_jax in $XDG_CACHE_HOME or ~/.cache."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "sprout_jax"


def read(folder: pathlib.Path, stem: str, key: Any) -> Entry | None:
  """Returns (split, [digest of images, digest of labels], extra); None without a valid entry."""
  try:
    entry = json.loads((folder / f"{stem}.json").read_text())
    if entry["key"] != key:
      return None
    arrays = [np.load(folder / f"{stem}.{name}.npy", allow_pickle=False) for name in ARRAYS]
    digests = [dataset.digest(array) for array in arrays]
    if digests != entry["digests"]:
      return None
    return dataset.Split(*arrays), digests, entry["extra"]
  except (OSError, EOFError, ValueError, KeyError, TypeError):  # incomplete or damaged files
    return None


def write(folder: pathlib.Path, stem: str, key: Any, split: dataset.Split, extra: Any) -> Entry:
  """Writes an entry and returns it as `read` does. `extra` is any JSON value.

  Raises:
    UserError: the folder cannot be written.
  """
  arrays = [split.images, split.labels]
  digests = [dataset.digest(array) for array in arrays]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(ARRAYS, arrays):
      save = functools.partial(np.save, arr=array, allow_pickle=False)
      _replace(folder / f"{stem}.{name}.npy", save)
    text = json.dumps({"key": key, "digests": digests, "extra": extra}, indent=1)
    # The last file, because it makes the entry valid.
    _replace(folder / f"{stem}.json", lambda f: f.write(text.encode()))
  except OSError as error:
    raise UserError(
      f"decoded images cannot be stored in {folder} ({error}); give another cache_dir, or set "
      "XDG_CACHE_HOME"
    ) from error
  return split, digests, extra


def _replace(path: pathlib.Path, fill: Callable[[IO[bytes]], Any]) -> None:
  """Writes a file under a temporary name, then moves it to `path` atomically."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
  try:
    with temporary.open("xb") as file:
      fill(file)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
