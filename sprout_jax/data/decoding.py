"""From encoded images to arrays of one shape: decoding, resizing and cropping, with Pillow.

`open_image` reads a file of PNG, JPEG, BMP or WebP. `to_channels` makes it grey or RGB. A `Decoder`
makes arrays of one shape from the examples of a folder or of a TFDS set. It can be sent to another
process. The Pillow functions release Python's lock, so threads decode in parallel.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from typing import IO
from typing import Protocol

import numpy as np
from PIL import BmpImagePlugin
from PIL import Image
from PIL import ImageFile
from PIL import ImageOps
from PIL import JpegImagePlugin
from PIL import PngImagePlugin
from PIL import WebPImagePlugin
from tqdm import tqdm

from sprout_jax.errors import UserError

# The largest image, in pixels: 400 MB as RGB. A small file can claim to be larger.
MAX_PIXELS = 2**27
GREY = ("1", "L", "LA", "La")  # Pillow's modes of grey images
ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")  # its modes with transparency
DEEP = ("I", "F")  # how its modes with more than 8 bits per channel begin
COLOURS = ("P", "RGB", "CMYK")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by number of channels
CHUNK = 256  # images that are decoded in parallel, and held in memory
TRIES = 10  # of the random-resized crop, before the centre is taken
ASPECTS = (3 / 4, 4 / 3)  # of the random-resized crop: width / height


def open_image(file: IO[bytes], where: str) -> ImageFile.ImageFile:
  """Reads the header of an image; the pixels are decoded later.

  The format is determined by the first bytes, not by the name. Only the decoders of PNG, JPEG, BMP
  and WebP can be called. Of an animation, the first picture is taken.

  Args:
    file: the encoded image.
    where: the name of the file, for messages.

  Raises:
    UserError: another format, a damaged header, more than MAX_PIXELS pixels, or an image that has
      more than 8 bits per channel.
  """
  start = file.read(16)
  file.seek(0)
  if not start:
    raise UserError(f"{where} is empty (0 bytes); expected an image: replace or remove it")
  opener = _opener(start)
  if opener is None:
    raise UserError(
      f"{where} is no PNG, JPEG, BMP or WebP image, judged by its first bytes; convert or remove it"
    )
  try:
    image = opener(file, where)
  except MemoryError:
    raise
  except Exception as error:  # decoders raise many types
    raise _damaged(where, error) from error
  width, height = image.size
  if width * height > MAX_PIXELS:
    raise UserError(
      f"{where} has {width} x {height} pixels; expected at most {MAX_PIXELS:,} in all: make the "
      "image smaller, or remove it"
    )
  # Pillow reads 16-bit colour as 8-bit colour; only the name of the raw mode shows it.
  raw = str(image.tile[0][3]) if image.tile else ""
  is_deep = image.format == "PNG" and ";16" in raw
  if is_deep or image.mode not in (*GREY, *ALPHA, *COLOURS):
    bits = "16 bits per channel" if is_deep else f"pixels of the type {image.mode}"
    raise UserError(
      f"{where} has {bits}; expected 8 bits per channel. The value of white is not known: scale "
      "the values to 0..255 and store the image with 8 bits"
    )
  return image


def _opener(start: bytes) -> type[ImageFile.ImageFile] | None:
  """Returns Pillow's class for a file that begins so.

  The classes are called directly. `Image.open` warns about large images, and a warning can only be
  silenced for all threads.
  """
  if start.startswith(b"\x89PNG\r\n\x1a\n"):
    return PngImagePlugin.PngImageFile
  if start.startswith(b"\xff\xd8\xff"):
    return JpegImagePlugin.JpegImageFile
  if start.startswith(b"BM"):
    return BmpImagePlugin.BmpImageFile
  if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
    return WebPImagePlugin.WebPImageFile
  return None


def _damaged(where: str, error: Exception) -> UserError:
  return UserError(
    f"{where} cannot be decoded ({type(error).__name__}: {error}); the file is damaged or "
    "incomplete: replace or remove it"
  )


def is_grey(image: Image.Image) -> bool:
  """Returns whether an image is stored as grey. One with a palette counts as coloured."""
  return image.mode in GREY


def to_channels(image: Image.Image, channels: int, where: str) -> Image.Image:
  """Decodes an image from `open_image` and makes it upright, opaque, and grey or RGB.

  The EXIF orientation is applied. Transparent pixels are laid over white. Palettes, CMYK and grey
  become RGB by Pillow's conversion. Colour profiles are ignored.

  Args:
    image: from `open_image`.
    channels: 1 for grey, 3 for RGB.
    where: the name of the file, for messages.

  Raises:
    UserError: the file is damaged or incomplete.
  """
  try:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ALPHA or "transparency" in image.info:
      colours = image.convert("RGBA")
      image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])
  except MemoryError:
    raise
  except Exception as error:  # decoders raise many types
    raise _damaged(where, error) from error


class Examples(Protocol):
  """Images with labels, encoded, with random access. It can be sent to another process."""

  @property
  def channels(self) -> int:
    """The channels of every decoded image."""
    ...

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
    """Returns a decoded image with `channels` channels, and its label.

    Raises:
      UserError: the image cannot be read; the message names it.
    """
    ...

  def where(self, index: int, /) -> str:
    """Returns the name of an example, for messages."""
    ...


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Makes arrays of one shape from examples.

  Attributes:
    examples: the encoded examples.
    image_size: (height, width) of the arrays.
    is_resized: whether images are resized; otherwise each must have the size `image_size`.
    crop_fraction: the share of the shorter side that the centre crop keeps.
    smallest_area: the smallest share of the area of a random-resized crop; 0 = centre crop.
  """

  examples: Examples
  image_size: tuple[int, int]
  is_resized: bool
  crop_fraction: float = 1.0
  smallest_area: float = 0.0

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """The shape of an array, (height, width, channels)."""
    return (*self.image_size, self.examples.channels)

  def centre(self, index: int) -> tuple[np.ndarray, int]:
    """Returns (uint8 [height, width, channels], label) of an example, as it is evaluated."""
    image, label = self.examples[index]
    where = self.examples.where(index)
    if self.is_resized:
      image = centre_crop(image, self.image_size, self.crop_fraction, where)
    elif image.size != self.image_size[::-1]:
      raise UserError(
        f"{where} has height and width {image.size[::-1]}, but the first image has "
        f"{self.image_size}; expected one size. To resize all images, type "
        "--config.dataset.image_size=HEIGHT,WIDTH, e.g. 64,64"
      )
    return self._array(image), label

  def training(self, index: int, *seeds: int) -> tuple[np.ndarray, int]:
    """Returns (uint8 [height, width, channels], label) of an example, as it is trained on.

    Args:
      index: the example.
      *seeds: integers >= 0 that determine the random-resized crop, if there is one.
    """
    if not self.smallest_area:
      return self.centre(index)
    image, label = self.examples[index]
    # RandomState, because NumPy promises that its stream never changes.
    box = random_box(np.random.RandomState(seeds), image.size, self.smallest_area)
    size = self.image_size[::-1]
    return self._array(image.resize(size, Image.Resampling.BILINEAR, box)), label

  def _array(self, image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(self.image_shape)


def centre_crop(
  image: Image.Image, size: tuple[int, int], fraction: float, where: str
) -> Image.Image:
  """Resizes an image, and crops its centre.

  The image is scaled, with its aspect ratio, so that it just covers round(size / fraction). For a
  square size, this is the length of the shorter side. The filter is Pillow's bilinear filter, which
  antialiases. The centre of the given size is kept.

  Args:
    image: the image.
    size: (height, width) of the result.
    fraction: in (0, 1]; 1 keeps the whole shorter side.
    where: the name of the file, for messages.

  Raises:
    UserError: the image is so long that its scaled form has too many pixels.
  """
  height, width = size
  rows, columns = (round(length / fraction) for length in size)
  scale = max(rows / image.height, columns / image.width)
  columns, rows = max(columns, round(image.width * scale)), max(rows, round(image.height * scale))
  if rows * columns > MAX_PIXELS:
    raise UserError(
      f"{where} has {image.width} x {image.height} pixels. Resized to cover {height} x "
      f"{width}, it would have more than {MAX_PIXELS:,} pixels: crop or remove it"
    )
  if image.size != (columns, rows):
    image = image.resize((columns, rows), Image.Resampling.BILINEAR)
  left, top = (columns - width) // 2, (rows - height) // 2
  if image.size == (width, height):
    return image
  return image.crop((left, top, left + width, top + height))


def random_box(
  random: np.random.RandomState, size: tuple[int, int], smallest_area: float
) -> tuple[int, int, int, int]:
  """Draws the box of a random-resized crop.

  The share of the area is uniform in [smallest_area, 1]. The logarithm of width / height is uniform
  between those of 3/4 and 4/3. A box that does not fit into the image is drawn again, at most 10
  times. Then the largest centre box with such an aspect ratio is taken. (Szegedy et al., "Going
  Deeper with Convolutions", CVPR 2015, section 6.)

  Args:
    random: the random numbers.
    size: (width, height) of the image.
    smallest_area: the smallest share of the area, in (0, 1].

  Returns:
    (left, top, right, bottom) in pixels.
  """
  width, height = size
  low, high = (math.log(aspect) for aspect in ASPECTS)
  for _ in range(TRIES):
    area = width * height * random.uniform(smallest_area, 1)
    aspect = math.exp(random.uniform(low, high))
    columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < columns <= width and 0 < rows <= height:
      left, top = random.randint(width - columns + 1), random.randint(height - rows + 1)
      return left, top, left + columns, top + rows
  columns = max(1, min(width, round(height * ASPECTS[1])))
  rows = max(1, min(height, round(width / ASPECTS[0])))
  left, top = (width - columns) // 2, (height - rows) // 2
  return left, top, left + columns, top + rows


def cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def decode_all(
  decoder: Decoder, indices: Sequence[int] | np.ndarray, name: str
) -> Iterator[tuple[np.ndarray, int]]:
  """Decodes examples in parallel, as they are evaluated, with a progress bar.

  Args:
    decoder: the decoder.
    indices: the examples.
    name: the name of the bar.

  Yields:
    (image, label) of each example, in order. At most CHUNK images are in memory.
  """
  with (
    futures.ThreadPoolExecutor(cores(), thread_name_prefix="sprout-decode") as pool,
    tqdm(total=len(indices), desc=f"decoding {name}", unit="image", disable=None) as bar,
  ):
    for start in range(0, len(indices), CHUNK):
      chunk = [int(index) for index in indices[start : start + CHUNK]]
      yield from pool.map(decoder.centre, chunk)
      bar.update(len(chunk))
