"""A cache of decoded arrays on disk.

An entry is `STEM.images.npy`, `STEM.labels.npy` and `STEM.json`. The JSON holds the source of the
arrays (`key`), their SHA-256 digests and further facts. An entry is returned only if its key is the
requested one and the arrays match their digests. Otherwise it counts as absent, and the next write
replaces it. Files are replaced atomically, so readers need no lock: the files of two different
writers do not match the digests. `read_or_write` also saves
the work of decoding an entry twice at once.

Arrays are written image by image, and mapped into memory when they are read. A split can therefore
be larger than the memory.
"""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import IO
from typing import Any

import numpy as np

from sprout_jax.data import dataset
from sprout_jax.errors import UserError

PIECE = 2**24  # bytes that are read at once for a digest, or copied at once
IN_MEMORY = 2**28  # bytes of a part of a split that is copied in memory
Entry = tuple[dataset.Split, list[str], Any]  # the arrays, their digests, further facts


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an entry is, and what it must be.

  Attributes:
    folder: the folder of the cache.
    stem: the beginning of the names of the files.
    key: JSON that describes the source of the arrays.
  """

  folder: pathlib.Path
  stem: str
  key: Any

  def path(self, suffix: str) -> pathlib.Path:
    """Returns the path of one file of the entry."""
    return self.folder / f"{self.stem}.{suffix}"


def directory(cache_dir: str = "") -> pathlib.Path:
  """Returns `cache_dir`, or by default the folder sprout_jax in $XDG_CACHE_HOME or ~/.cache."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "sprout_jax"


def read(place: Place) -> Entry | None:
  """Returns (split, [digest of images, digest of labels], extra); None without a valid entry.

  The images are mapped into memory; they cannot be written to.
  """
  try:
    entry = json.loads(place.path("json").read_text())
    if entry["key"] != place.key:
      return None
    found = [_open(place.path(f"{name}.npy")) for name in ("images", "labels")]
    digests = [digest for _, digest in found]
    if digests != entry["digests"]:
      return None
    (images, _), (labels, _) = found
    return dataset.Split(images, np.array(labels)), digests, entry["extra"]
  except (OSError, EOFError, ValueError, KeyError, TypeError):  # incomplete or damaged files
    return None


def _open(path: pathlib.Path) -> tuple[np.ndarray, str]:
  """Maps a .npy file into memory; returns the array and its digest, as `dataset.digest` has it.

  The digest is computed from the file, not from the mapped memory, which would count as memory of
  this process.

  Raises:
    ValueError: the file is too short, or is not an array of numbers.
  """
  with path.open("rb") as file:
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(_after_magic(file))
    if is_fortran or dtype.hasobject:
      raise ValueError(f"{path} is not a plain array")
    offset = file.tell()
    sha = _sha256(dtype, shape)
    while piece := file.read(PIECE):
      sha.update(piece)
    return _mapped(file, dtype, shape, offset), sha.hexdigest()


def _after_magic(file: IO[bytes]) -> IO[bytes]:
  if np.lib.format.read_magic(file) != (1, 0):
    raise ValueError("another version of the .npy format")
  return file


def _sha256(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
  return hashlib.sha256(f"{dtype.str}{shape}".encode())


def _mapped(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
  """Maps an open file; the array lives on when the file is closed, or deleted."""
  return np.asarray(np.memmap(file, dtype, "r", offset, shape))


def write(
  place: Place, examples: Iterable[tuple[np.ndarray, int]], count: int, extra: Any
) -> Entry:
  """Writes an entry and returns it as `read` does.

  Args:
    place: where to write, and the key.
    examples: (image, label) of each example; the images have one shape and type.
    count: the number of examples, at least 1.
    extra: any JSON value.

  Raises:
    UserError: the folder cannot be written, or has too little space.
  """
  iterator = iter(examples)
  first = next(iterator)
  try:
    place.folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(place)
    free, needed = shutil.disk_usage(place.folder).free, count * first[0].nbytes
    if needed > free:
      raise UserError(
        f"decoded images need {needed / 2**30:.1f} GiB, but {place.folder} has "
        f"{free / 2**30:.1f} GiB; give another cache_dir, or take a part of the set"
      )
    with _replacing(place.path("images.npy")) as file:
      labels, images_digest = _write_images(file, first, iterator, count)
      file.flush()
      shape = (count, *first[0].shape)
      offset = file.tell() - needed
      images = _mapped(file, first[0].dtype, shape, offset)
    with _replacing(place.path("labels.npy")) as file:
      np.lib.format.write_array(file, labels, version=(1, 0), allow_pickle=False)
    digests = [images_digest, dataset.digest(labels)]
    text = json.dumps({"key": place.key, "digests": digests, "extra": extra}, indent=1)
    # The last file, because it makes the entry valid.
    with _replacing(place.path("json")) as file:
      file.write(text.encode())
  except OSError as error:
    raise UserError(
      f"decoded images cannot be stored in {place.folder} ({error}); give another cache_dir, or "
      "set XDG_CACHE_HOME"
    ) from error
  return dataset.Split(images, labels), digests, extra


def _write_images(
  file: IO[bytes],
  first: tuple[np.ndarray, int],
  rest: Iterator[tuple[np.ndarray, int]],
  count: int,
) -> tuple[np.ndarray, str]:
  """Writes images as one array, one after the other; returns their labels and the digest."""
  shape, dtype = (count, *first[0].shape), first[0].dtype
  header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
  labels, sha = np.empty(count, np.int32), _sha256(dtype, shape)
  for number, (image, label) in enumerate(itertools.chain([first], rest)):
    content = np.ascontiguousarray(image).data
    file.write(content)
    sha.update(content)
    labels[number] = label
  return labels, sha.hexdigest()


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Yields a file under a temporary name, and then moves it to `path` atomically."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
  try:
    with temporary.open("x+b") as file:
      lock(file, wait=True)
      yield file
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _remove_leftovers(place: Place) -> None:
  """Removes the temporary files of writers that were killed. Living writers hold a lock."""
  for path in place.folder.glob(f"{glob.escape(place.stem)}.*.tmp"):
    with contextlib.suppress(OSError), path.open("r+b") as file:
      if lock(file, wait=False):
        path.unlink()


def read_or_write(
  place: Place, make: Callable[[], Iterable[tuple[np.ndarray, int]]], count: int, extra: Any
) -> Entry:
  """Returns an entry: from the cache, or made once and stored there.

  One process at a time makes an entry. The others wait, and find it in the cache then. Where the
  folder cannot be locked, they do not wait.

  Args:
    place: where the entry is, and what it must be.
    make: returns the (image, label) of each example.
    count: the number of examples, at least 1.
    extra: any JSON value.

  Raises:
    UserError: the folder cannot be written, or has too little space.
  """
  with contextlib.ExitStack() as stack:
    with contextlib.suppress(OSError):
      place.folder.mkdir(parents=True, exist_ok=True)
      lock(stack.enter_context(place.path("lock").open("a")), wait=True)
    return read(place) or write(place, make(), count, extra)


def lock(file: IO[Any], wait: bool) -> bool:
  """Locks an open file for this process, until it is closed; returns whether that succeeded."""
  try:
    import fcntl  # pylint: disable=g-import-not-at-top

    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except (ImportError, OSError):  # Windows; a file system without locks; another process has it
    return False
  return True


def take(array: np.ndarray, indices: np.ndarray, cache_dir: str = "") -> np.ndarray:
  """Returns `array[indices]`. A large result is in a file, not in memory.

  The file is in the folder of the cache. It has no name, and is gone when the array is.

  Args:
    array: [n, ...].
    indices: int [m].
    cache_dir: as in `directory`.

  Raises:
    UserError: the folder cannot be written.
  """
  shape = (len(indices), *array.shape[1:])
  row = array.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
  if row * len(indices) <= IN_MEMORY:
    return array[indices]
  folder = directory(cache_dir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      for start in range(0, len(indices), step := max(1, PIECE // row)):
        file.write(np.ascontiguousarray(array[indices[start : start + step]]).data)
      file.flush()
      return _mapped(file, array.dtype, shape, 0)
  except OSError as error:
    raise UserError(
      f"a part of the images cannot be stored in {folder} ({error}); give another cache_dir, or "
      "set XDG_CACHE_HOME"
    ) from error
