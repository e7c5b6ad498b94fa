"""What is asked of a data set, and its splits: from the cache, from files, or as a stream."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from typing import Protocol

import numpy as np

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.data import decoding
from sprout_jax.data import streamed
from sprout_jax.errors import UserError
from sprout_jax.errors import check_range

LARGEST_SIDE = 10_000  # of a resized image, in pixels
FREE = ("name", "data_dir", "cache_dir")  # fields that every data set takes


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked of a data set. The fields are the keys of `config.dataset`.

  Attributes:
    name: the name of the data set, a key of `DATASETS` or a TFDS name.
    data_dir: the folder of images, the .npz file, or the folder of TFDS sets; for TFDS, "" is
      $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    cache_dir: folder for decoded arrays; "": sprout_jax in $XDG_CACHE_HOME or ~/.cache.
    train_split: a TFDS split expression, or the name of the folder of training images.
    test_split: a TFDS split expression, or the name of the folder of test images. The default also
      finds the folders "val" and "validation".
    test_fraction: share of each class that becomes the test split, in (0, 1), where a folder or a
      file has no test split of its own.
    image_size: (height, width) to which images are resized; () = as stored.
    crop_fraction: share of the shorter side that the centre crop keeps, in (0, 1].
    in_memory_gib: the largest training split in memory, in GiB of pixels; a larger one is streamed,
      and 0 streams every one.
    random_resized_crop: the smallest share of the area of a random crop that is resized to
      `image_size`, in [0, 1]; 0 = none. The training split is then streamed.
    workers: processes that decode a streamed split; 0 = threads.
  """

  name: str
  data_dir: str = ""
  cache_dir: str = ""
  train_split: str = "train"
  test_split: str = "test"
  test_fraction: float = 0.2
  image_size: tuple[int, ...] = ()
  crop_fraction: float = 1.0
  in_memory_gib: float = 4.0
  random_resized_crop: float = 0.0
  workers: int = 0

  def __post_init__(self) -> None:
    """Raises UserError unless the values are in range and fit each other."""
    sides = self.image_size
    is_size = all(isinstance(n, int) and 1 <= n <= LARGEST_SIDE for n in sides)
    if len(sides) not in (0, 2) or not is_size:
      raise UserError(
        f"image_size is {sides!r}; expected height and width, two whole numbers from 1 to "
        f"{LARGEST_SIDE}, such as 64,64, or () for images as they are stored"
      )
    check_range("test_fraction", self.test_fraction, 1e-6, 1 - 1e-6)
    check_range("crop_fraction", self.crop_fraction, 0.01, 1)
    check_range("in_memory_gib", self.in_memory_gib, 0, math.inf)
    check_range("random_resized_crop", self.random_resized_crop, 0, 1)
    check_range("workers", self.workers, 0, 1024)
    for field, value, unset in (
      ("crop_fraction", self.crop_fraction, 1),
      ("random_resized_crop", self.random_resized_crop, 0),
    ):
      if value != unset and not sides:
        raise UserError(
          f"{field} is {value:g}, but images are not resized, because image_size is (); give their "
          "height and width, e.g. --config.dataset.image_size=224,224"
        )

  def refuse(self, reason: str, *taken: str) -> None:
    """Raises UserError if a field other than `taken` is not at its default.

    Args:
      reason: why the data set does not take it, such as "'digits' has fixed splits".
      *taken: the fields that the data set takes, besides `FREE`.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in (*FREE, *taken) and value != field.default:
        raise UserError(
          f"{field.name} is {value!r}, but {reason}; leave {field.name} out (its default is "
          f"{field.default!r})"
        )


class Files(decoding.Examples, Protocol):
  """Encoded examples in files."""

  def digest(self) -> str:
    """Returns the SHA-256 (hex) of the names and sizes of the files, in order."""
    ...


@dataclasses.dataclass(frozen=True)
class Part:
  """A split of a data set in files.

  Attributes:
    name: the name for the progress bar.
    place: returns where the arrays are stored, or held-out parts of a stream. It is called again
      when the files are open, because opening can prepare them.
    open_files: opens the examples; called only if the cache lacks them.
    extra: returns JSON that is stored with the arrays.
  """

  name: str
  place: Callable[[], array_cache.Place]
  open_files: Callable[[], Files]
  extra: Callable[[], Any] = lambda: None


def evaluated(request: Request, part: Part) -> array_cache.Entry:
  """Returns a split as arrays: from the cache, or decoded once and stored there.

  Raises:
    UserError: an image cannot be read, or the cache cannot be written.
  """
  found = array_cache.read(part.place())
  if found is not None:
    return found
  files = part.open_files()
  return _decoded(part, decoder_of(request, files), len(files))


def trained_on(
  request: Request, part: Part
) -> tuple[dataset.Split | streamed.Streamed, list[str], Any]:
  """Returns a training split as arrays, or as a stream where it is too large or cropped at random.

  Returns:
    The split, its digests (see `dataset.fingerprint`), and the extra.

  Raises:
    UserError: an image cannot be read, or the cache cannot be written.
  """
  limit = request.in_memory_gib * 2**30
  if limit and not request.random_resized_crop:
    found = array_cache.read(part.place())
    if found is not None and found[0].images.nbytes <= limit:
      return found
  files = part.open_files()
  decoder = decoder_of(request, files)
  count = len(files)
  if request.random_resized_crop or count * math.prod(decoder.image_shape) > limit:
    stream = streamed.Streamed(decoder, np.arange(count), part.place(), request.workers)
    return stream, [files.digest()], part.extra()
  return _decoded(part, decoder, count)


def _decoded(part: Part, decoder: decoding.Decoder, count: int) -> array_cache.Entry:
  """Returns all images of a part as arrays."""
  make = lambda: decoding.decode_all(decoder, range(count), part.name)
  return array_cache.read_or_write(part.place(), make, count, part.extra())


def decoder_of(request: Request, files: Files) -> decoding.Decoder:
  """Returns the decoder of a split. Images as stored must have the size of the first one."""
  if request.image_size:
    height, width = request.image_size
  else:
    width, height = files[0][0].size
  return decoding.Decoder(
    files,
    (height, width),
    bool(request.image_size),
    request.crop_fraction,
    request.random_resized_crop,
  )


def described(request: Request) -> str:
  """Returns how images are resized, in words."""
  if not request.image_size:
    return "as stored"
  height, width = request.image_size
  how = "centre crop" + (
    f" of {request.crop_fraction:g} of the shorter side" if request.crop_fraction < 1 else ""
  )
  if request.random_resized_crop:
    how += f"; training: random crops of at least {request.random_resized_crop:g} of the area"
  return f"resized to {height}x{width} ({how})"
