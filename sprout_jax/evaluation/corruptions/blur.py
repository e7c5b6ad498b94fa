"""Blurs: defocus, glass, motion, zoom. All lengths are in pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation.corruptions import linear
from sprout_jax.evaluation.corruptions.contract import Severity
from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))  # radius, smoothing
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # standard deviation, shuffles
MOTION = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))  # radius, standard deviation
ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)  # the end of a range of factors from 1 in steps of 0.01


@functools.cache
def defocus_kernels() -> np.ndarray:
  """Returns the kernels [severity, 5, 5]: disks, smoothed by a 3x3 Gaussian against aliasing."""
  offsets = np.arange(-2, 3)
  kernels = []
  for radius, stddev in DEFOCUS:
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    side = np.exp(-0.5 / stddev**2)  # the weight of a neighbour, relative to the middle
    smooth = (np.eye(5) + side * (np.eye(5, k=1) + np.eye(5, k=-1))) / (1 + 2 * side)
    kernels.append(smooth @ (disk / disk.sum()) @ smooth.T)
  return np.stack(kernels)


@corruption
def defocus_blur(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Convolves with a disk; edges are mirrored at the edge pixel. Constants in `DEFOCUS`."""
  del key
  kernel = jnp.asarray(at(severity, defocus_kernels()))
  padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), "reflect")
  convolve = lambda plane: jax.scipy.signal.convolve2d(plane, kernel, mode="valid")
  return jax.vmap(convolve, in_axes=-1, out_axes=-1)(padded)


@corruption
def glass_blur(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Blurs, replaces each pixel by a random neighbour once or twice, and blurs again.

  The neighbour is the pixel itself, the one above, to the left, or above to the left, with equal
  probability. The first two rows and columns are kept. Constants in `GLASS`.
  """
  stddevs = tuple(stddev for stddev, _ in GLASS)
  rows, columns = (at(severity, linear.gaussian(n, stddevs, "nearest", 4)) for n in image.shape[:2])
  result = linear.both_axes(rows, image, columns)
  y, x = jnp.meshgrid(*(jnp.arange(n) for n in image.shape[:2]), indexing="ij")
  inside = (y >= 2) & (x >= 2)
  steps = jax.random.bernoulli(key, 0.5, (2, 2, *y.shape)) & inside[None, None]
  for shuffle, (dy, dx) in enumerate(steps.astype(jnp.int32)):
    happens = shuffle < at(severity, [shuffles for _, shuffles in GLASS])
    result = jnp.where(happens, result[y - dy, x - dx], result)
  return linear.both_axes(rows, result, columns)


@corruption
def motion_blur(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Blurs along a random direction within 45 degrees of the horizontal. Constants in `MOTION`."""
  return linear.motion_blur(
    image,
    jax.random.uniform(key, minval=-45, maxval=45),
    at(severity, linear.motion_weights(MOTION)),
  )


@functools.cache
def zoom_matrices(size: int) -> np.ndarray:
  """Returns the zooms [severity, factors, size, size]; zeros after a severity's last factor."""
  factors = [np.arange(1, end, 0.01) for end in ZOOM]
  matrices = np.zeros((len(ZOOM), max(map(len, factors)), size, size), np.float32)
  for severity, some in enumerate(factors):
    matrices[severity, : len(some)] = [linear.clipped_zoom(size, factor) for factor in some]
  return matrices


@corruption
def zoom_blur(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Averages zooms: (x + sum of the image zoomed by 1, 1.01, 1.02, ...) / (1 + number of zooms).

  The last factor is 1.06, 1.11, 1.15, 1.2, 1.25, as `numpy.arange` with the ends in `ZOOM` gives.
  """
  del key
  rows, columns = (at(severity, zoom_matrices(size)) for size in image.shape[:2])
  zoomed = jnp.einsum("zyi,ijc,zxj->yxc", rows, image, columns)
  return (image + zoomed) / (1 + at(severity, [len(np.arange(1, end, 0.01)) for end in ZOOM]))
