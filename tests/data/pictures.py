"""Image files for the tests of folders: written by Pillow, or byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def pixels(seed, height=12, width=16, channels=3):
  """Random uint8 [height, width, channels]."""
  return np.random.RandomState(seed).randint(0, 256, (height, width, channels), np.uint8)


def encoded(array, form="PNG", mode=None, **options):
  """An array as the bytes of an image file."""
  array = np.asarray(array)
  image = Image.fromarray(array[..., 0] if array.shape[-1:] == (1,) else array)
  file = io.BytesIO()
  (image if mode is None else image.convert(mode)).save(file, form, **options)
  return file.getvalue()


def png(width, height, bits, kind, rows):
  """A PNG file with a header of choice; `rows` are the bytes of all rows, each begun by a 0."""

  def chunk(name, content):
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

  header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def folder(root, counts, size=(12, 16), suffix=".png", channels=3):
  """Writes {class folder: number of images} below a folder; returns {path: pixels}."""
  written = {}
  for place, (name, count) in enumerate(counts.items()):
    (root / name).mkdir(parents=True)
    for number in range(count):
      path = root / name / f"{number:03d}{suffix}"
      array = pixels(1000 * place + number, *size, channels)
      path.write_bytes(encoded(array, {".png": "PNG", ".bmp": "BMP"}[suffix]))
      written[path.relative_to(root).as_posix()] = array
  return written
