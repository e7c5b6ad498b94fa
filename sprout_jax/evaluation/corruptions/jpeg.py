"""JPEG compression from its definition, without a codec.

It follows ITU-T T.81 with the tables of its annex K, JFIF's YCbCr, and libjpeg: its scale of
quality, 2x2 means of the chroma (4:2:0), triangular interpolation back, and its roundings. Entropy
coding is lossless and is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation.corruptions.contract import Severity
from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption

QUALITY = (80, 65, 58, 50, 40)
LUMINANCE = np.array(
  [  # annex K.1 of T.81
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ]
)
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# The orthonormal cosine transform of 8 points: cos((2 i + 1) u pi / 16) / 2, row 0 1 / sqrt(8).
COSINES = np.cos(np.outer(np.arange(8), 2 * np.arange(8) + 1) * np.pi / 16) / 2
COSINES[0] = 1 / np.sqrt(8)
SCALE = 4 * np.sqrt(8)  # scale of libjpeg's integers between the transforms of the two axes

TO_YCC = np.array(
  [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
)
TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])


def quantisation_tables(base: np.ndarray) -> np.ndarray:
  """Returns `base` at the quality of each severity, [5, 8, 8], by libjpeg's scale."""
  scales = [5000 // quality if quality < 50 else 200 - 2 * quality for quality in QUALITY]
  return np.stack([np.clip((base * scale + 50) // 100, 1, 255) for scale in scales])


@corruption
def jpeg_compression(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Compresses and decompresses at quality 80, 65, 58, 50, 40. The result has 256 levels.

  Three channels are coded as YCbCr with chroma 4:2:0, one channel as luma, as by PIL's defaults.
  """
  del key
  levels = _round(jnp.clip(image, 0, 1) * 255)
  fine = at(severity, quantisation_tables(LUMINANCE))
  if image.shape[-1] == 1:
    return _coded(levels[..., 0], fine)[..., None] / 255
  coarse = at(severity, quantisation_tables(CHROMINANCE))
  luma, blue_chroma, red_chroma = jnp.moveaxis(_mixed(levels, TO_YCC, [0, 128, 128]), -1, 0)
  planes = [
    _coded(luma, fine),
    _chroma(blue_chroma, coarse) - 128,
    _chroma(red_chroma, coarse) - 128,
  ]
  return _mixed(jnp.stack(planes, -1), TO_RGB, [0, 0, 0]) / 255


def _round(values: jax.Array) -> jax.Array:
  return jnp.floor(values + 0.5)


def _mixed(planes: jax.Array, matrix: np.ndarray, offsets: list[int]) -> jax.Array:
  """Converts colours, [..., 3] to [..., 3], rounded in 16-bit fixed point like libjpeg."""
  matrix = np.round(65536 * matrix).astype(np.int32)
  half = np.where(offsets, 32767, 32768)  # chroma, which has an offset, rounds halves down
  products = planes.astype(jnp.int32)[..., None, :] * matrix.reshape(1, 1, 3, 3)
  rounded = (products.sum(-1) + half.reshape(1, 1, 3).astype(np.int32)) >> 16
  return (rounded + np.array(offsets, np.int32).reshape(1, 1, 3)).astype(jnp.float32)


def _coded(plane: jax.Array, table: jax.Array) -> jax.Array:
  """Codes and decodes a plane [height, width] of levels: transform, quantisation, and back."""
  height, width = plane.shape
  plane = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), "edge")
  blocks = (plane - 128).reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8)
  # libjpeg rounds coefficients to eighths before it divides them by the table.
  rows = _round(SCALE * jnp.einsum("vj,aibj->aibv", COSINES, blocks))
  eighths = _round(8 / SCALE * jnp.einsum("ui,aibv->aubv", COSINES, rows))
  table = table[None, :, None, :]
  counts = jnp.sign(eighths) * jnp.floor((jnp.abs(eighths) + 4 * table) / (8 * table))
  columns = _round(SCALE * jnp.einsum("ui,aubv->aibv", COSINES, counts * table))
  blocks = jnp.einsum("vj,aibv->aibj", COSINES, columns) / SCALE
  return jnp.clip(_round(blocks.reshape(plane.shape) + 128), 0, 255)[:height, :width]


def _chroma(plane: jax.Array, table: jax.Array) -> jax.Array:
  """Codes and decodes a plane at half the resolution, and enlarges it again."""
  height, width = plane.shape
  plane = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), "edge")
  sums = plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]
  dither = 1 + jnp.arange(sums.shape[1]) % 2  # libjpeg alternates between rounding up and down
  small = _coded(jnp.floor((sums + dither[None]) / 4), table)[:, : (width + 1) // 2]
  tall = _doubled(small, 0)  # times 4
  fine = jnp.floor((_doubled(tall, 1) + jnp.array([8, 7] * small.shape[1])[None]) / 16)
  return fine[:height, :width]


def _doubled(plane: jax.Array, axis: int) -> jax.Array:
  """Doubles the samples along an axis, times 4: 3 parts of the nearer sample, 1 of the next."""
  first, last = (jnp.take(plane, jnp.array([i]), axis) for i in (0, plane.shape[axis] - 1))
  rest = lambda start, stop: jnp.take(plane, jnp.arange(start, stop), axis)
  before = jnp.concatenate([first, rest(0, plane.shape[axis] - 1)], axis)
  after = jnp.concatenate([rest(1, plane.shape[axis]), last], axis)
  both = jnp.stack([3 * plane + before, 3 * plane + after], axis + 1)
  return both.reshape([n * (1 + (i == axis)) for i, n in enumerate(plane.shape)])
