"""Filters that several corruptions share: filters of one axis as matrices, and motion blur.

The matrices are computed in NumPy when a function is traced. They depend only on the size of the
image. A plane is filtered by `rows @ plane @ columns.T`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def both_axes(rows: jax.Array, image: jax.Array, columns: jax.Array) -> jax.Array:
  """Filters each channel: out[y, x, c] = sum_ij rows[y, i] columns[x, j] image[i, j, c]."""
  return jnp.einsum("yi,ijc,xj->yxc", rows, image, columns)


@functools.cache
def gaussian(size: int, stddevs: tuple[float, ...], mode: str, truncate: float) -> np.ndarray:
  """Returns SciPy's Gaussian filters, [len(stddevs), size, size]; see `gaussian_filter1d`."""
  import scipy.ndimage  # slow to import

  smooth = lambda stddev: scipy.ndimage.gaussian_filter1d(
    np.eye(size), stddev, axis=0, mode=mode, truncate=truncate
  )
  return np.stack([smooth(stddev) if stddev else np.eye(size) for stddev in stddevs])


@functools.cache
def clipped_zoom(size: int, factor: float) -> np.ndarray:
  """Returns the matrix [size, size] that zooms the middle ceil(size / factor) pixels linearly.

  As in `scipy.ndimage.zoom`, the zoomed row has round(ceil(size / factor) * factor) pixels, and its
  ends are the first and the last of the cut pixels. Its middle `size` pixels are kept.
  """
  import scipy.ndimage

  kept = int(np.ceil(size / factor))
  start = (size - kept) // 2
  zoomed = scipy.ndimage.zoom(np.eye(size)[start : start + kept], (factor, 1), order=1)
  start = (len(zoomed) - size) // 2
  return zoomed[start : start + size]


@functools.cache
def box(size: int, between: int) -> np.ndarray:
  """Returns the matrix [size, size] of a box filter to `between` pixels and back, as in PIL."""

  def resize(old: int, new: int) -> np.ndarray:
    reach = max(old / new, 1) / 2
    offset = np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new
    weights = (offset > -reach) & (offset <= reach)
    return weights / weights.sum(1, keepdims=True)

  return resize(between, size) @ resize(size, between)


def motion_weights(radii_and_stddevs: Sequence[Sequence[float]]) -> np.ndarray:
  """Returns half Gaussians [severities, taps]: exp(-t^2 / (2 stddev^2)) for t = 0 ... 2 radius.

  The weights of a severity sum to 1.
  """
  taps = np.arange(2 * max(radius for radius, _ in radii_and_stddevs) + 1)
  weights = np.stack(
    [
      np.exp(-0.5 * (taps / stddev) ** 2) * (taps <= 2 * radius)
      for radius, stddev in radii_and_stddevs
    ]
  )
  return weights / weights.sum(1, keepdims=True)


def motion_blur(image: jax.Array, degrees: jax.Array, weights: jax.Array) -> jax.Array:
  """Blurs along a trail to one side: sum_t weights[t] image[y + dy_t, x + dx_t].

  (dy_t, dx_t) = t (sin, cos), each rounded to whole pixels (halves down), as in ImageMagick. Edge
  pixels are repeated.

  Args:
    image: [height, width, channels].
    degrees: the direction of the trail, scalar; 0 is to the right, 90 down.
    weights: [taps], from `motion_weights`.
  """
  height, width, _ = image.shape
  pad = weights.shape[0] - 1
  padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), "edge")
  steps = jnp.arange(pad + 1, dtype=jnp.float32)
  angle = jnp.deg2rad(degrees)
  offsets = jnp.ceil(steps[:, None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)])[None] - 0.5)

  def add(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    (dy, dx), weight = tap
    shifted = jax.lax.dynamic_slice(padded, (pad + dy, pad + dx, 0), image.shape)
    return total + weight * shifted, None

  return jax.lax.scan(
    add, jnp.zeros_like(image), (offsets.astype(jnp.int32), jnp.asarray(weights))
  )[0]
