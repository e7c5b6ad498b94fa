"""Digital corruptions: brightness, contrast, elastic transform, pixelation. JPEG is in `jpeg`."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation.corruptions import linear
from sprout_jax.evaluation.corruptions.contract import Severity
from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption

# The shift, its smoothing, and the jitter of the affine map, as shares of the shorter side.
ELASTIC = (
  (0, 0, 0.08),
  (0.05, 0.2, 0.07),
  (0.08, 0.06, 0.06),
  (0.1, 0.04, 0.05),
  (0.1, 0.03, 0.03),
)
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)


@corruption
def brightness(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds c = 0.05, 0.1, 0.15, 0.2, 0.3 to the value of hue-saturation-value.

  The value is the largest channel. Hue and saturation do not change: a pixel is scaled so that its
  largest channel becomes min(value + c, 1). Black becomes grey.
  """
  del key
  value = jnp.max(image, -1, keepdims=True)
  brighter = jnp.minimum(value + at(severity, [0.05, 0.1, 0.15, 0.2, 0.3]), 1)
  return jnp.where(value > 0, image * (brighter / jnp.where(value > 0, value, 1)), brighter)


@corruption
def contrast(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Reduces the contrast: c (x - m) + m, m the mean of the channel; c = 0.75, ..., 0.15."""
  del key
  mean = jnp.mean(image, (0, 1), keepdims=True)
  return mean + at(severity, [0.75, 0.5, 0.4, 0.3, 0.15]) * (image - mean)


@corruption
def elastic_transform(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Applies a random affine map, then a smooth random shift of every pixel, both bilinear.

  The affine map moves three corners of a square, with 2/3 of the side length, by a uniform jitter.
  The shifts are uniform noise in [-1, 1], smoothed by a Gaussian. Constants in `ELASTIC`, times the
  shorter side.
  """
  height, width, _ = image.shape
  side = min(height, width)
  shift, _, jitter = (side * share for share in at(severity, ELASTIC))
  key_affine, key_shift = jax.random.split(key)
  places = np.stack(list(np.mgrid[:height, :width]), -1).astype(np.float32)

  # Corners at +-reach from the middle: lower right, upper right, upper left, as (y, x).
  reach = side // 3
  middle = np.array([height // 2, width // 2], np.float32)
  corners = middle + reach * np.array([[1, 1], [-1, 1], [-1, -1]], np.float32)
  moved = corners + jitter * jax.random.uniform(key_affine, (3, 2), minval=-1, maxval=1)
  # The edges were (2 reach, 0) and (0, 2 reach), so the matrix of the map is edges / (2 reach).
  (a, c), (b, d) = moved[0] - moved[1], moved[1] - moved[2]
  back = 2 * reach * jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
  sources = corners[1][None, None] + jnp.einsum("ij,yxj->yxi", back, places - moved[1][None, None])
  image = _resample(image, sources, "mirror")

  stddevs = tuple(side * share for _, share, _ in ELASTIC)
  rows, columns = (at(severity, linear.gaussian(n, stddevs, "reflect", 3)) for n in (height, width))
  noise = jax.random.uniform(key_shift, (height, width, 2), minval=-1, maxval=1)
  shifts = shift * linear.both_axes(rows, noise, columns)
  return _resample(image, places + shifts, "reflect")


@corruption
def pixelate(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Shrinks each side to 0.95, 0.9, 0.85, 0.75, 0.65 by a box filter, and enlarges it again."""
  del key
  rows, columns = (
    at(severity, np.stack([linear.box(n, int(n * share)) for share in PIXELATE]))
    for n in image.shape[:2]
  )
  return linear.both_axes(rows, image, columns)


def _resample(image: jax.Array, points: jax.Array, mode: str) -> jax.Array:
  """Samples an image at `points` [height, width, (y, x)], with bilinear interpolation."""
  sample = lambda plane: jax.scipy.ndimage.map_coordinates(
    plane, (points[..., 0], points[..., 1]), order=1, mode=mode
  )
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
