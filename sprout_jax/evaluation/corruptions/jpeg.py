"""JPEG compression by its definition, without a codec: only what loses information.

ITU-T T.81 with the tables of its annex K, JFIF's YCbCr, and libjpeg's choices: its scale of
quality, 2x2 means of the chroma (4:2:0) and triangular interpolation back, all roundings included.
Entropy coding loses nothing and is left out.
"""

import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption

QUALITY = (80, 65, 58, 50, 40)
LUMINANCE = np.array([  # annex K.1 of T.81
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# The orthonormal cosine transform of 8 points: cos((2 i + 1) u pi / 16) / 2, row 0 1 / sqrt(8).
COSINES = np.cos(np.outer(np.arange(8), 2 * np.arange(8) + 1) * np.pi / 16) / 2
COSINES[0] = 1 / np.sqrt(8)


def quantisation_tables(base):
  """[5, 8, 8]: `base` at the quality of each severity, by libjpeg's scale."""
  scales = [5000 // quality if quality < 50 else 200 - 2 * quality for quality in QUALITY]
  return np.stack([np.clip((base * scale + 50) // 100, 1, 255) for scale in scales])


@corruption
def jpeg_compression(key, image, severity):
  """Compresses and decompresses at quality 80, 65, 58, 50, 40; the result has 256 levels.

  Three channels as YCbCr with chroma 4:2:0, one channel as luma alone: PIL's defaults.
  """
  del key
  levels = _round(jnp.clip(image, 0, 1) * 255)
  fine = at(severity, quantisation_tables(LUMINANCE))
  if image.shape[-1] == 1:
    return _coded(levels[..., 0], fine)[..., None] / 255
  red, green, blue = jnp.moveaxis(levels, -1, 0)
  luma = _round(0.299 * red + 0.587 * green + 0.114 * blue)
  coarse = at(severity, quantisation_tables(CHROMINANCE))
  blue_chroma, red_chroma = (
      _chroma(_round(128 + plane), coarse) - 128 for plane in (
          -0.168735892 * red - 0.331264108 * green + 0.5 * blue,
          0.5 * red - 0.418687589 * green - 0.081312411 * blue))
  luma = _coded(luma, fine)
  return jnp.stack([luma + _round(1.402 * red_chroma),
                    luma + _round(-0.344136286 * blue_chroma - 0.714136286 * red_chroma),
                    luma + _round(1.772 * blue_chroma)], -1) / 255


def _round(values):
  return jnp.floor(values + 0.5)


def _coded(plane, table):
  """A plane [height, width] of levels through transform, quantisation and back."""
  height, width = plane.shape
  plane = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), "edge")
  blocks = (plane - 128).reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8)
  # Both transforms act on axes 1 and 3; libjpeg keeps coefficients to an eighth before it divides.
  eighths = _round(8 * jnp.einsum("ui,vj,aibj->aubv", COSINES, COSINES, blocks))
  table = table[None, :, None, :]
  counts = jnp.sign(eighths) * jnp.floor((jnp.abs(eighths) + 4 * table) / (8 * table))
  blocks = jnp.einsum("ui,vj,aubv->aibj", COSINES, COSINES, counts * table)
  return jnp.clip(_round(blocks.reshape(plane.shape) + 128), 0, 255)[:height, :width]


def _chroma(plane, table):
  """A plane at half the resolution through `_coded`, and back to full size."""
  height, width = plane.shape
  plane = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), "edge")
  sums = plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]
  dither = 1 + jnp.arange(sums.shape[1]) % 2  # libjpeg rounds up and down by turns
  small = _coded(jnp.floor((sums + dither[None]) / 4), table)[:, : (width + 1) // 2]
  tall = _doubled(small, 0)  # times 4
  fine = jnp.floor((_doubled(tall, 1) + jnp.array([8, 7] * small.shape[1])[None]) / 16)
  return fine[:height, :width]


def _doubled(plane, axis):
  """Twice as many samples along an axis, times 4: 3 parts of the nearer and 1 of the next one."""
  first, last = (jnp.take(plane, jnp.array([i]), axis) for i in (0, plane.shape[axis] - 1))
  rest = lambda start, stop: jnp.take(plane, jnp.arange(start, stop), axis)
  before = jnp.concatenate([first, rest(0, plane.shape[axis] - 1)], axis)
  after = jnp.concatenate([rest(1, plane.shape[axis]), last], axis)
  both = jnp.stack([3 * plane + before, 3 * plane + after], axis + 1)
  return both.reshape([n * (1 + (i == axis)) for i, n in enumerate(plane.shape)])
