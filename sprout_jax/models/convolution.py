"""Two-dimensional convolution, in the form that is fast on the platform.

GPUs and TPUs use XLA's own. On a CPU its gradients are ten times slower than matmuls inside
compiled loops, and training and attacks are loops. So, on a CPU, convolutions are matmuls:

- 3x3 convolutions with stride 1 in float32 use Winograd's algorithm, with less than half of the
  multiplications; see `winograd`.
- Convolutions of few channels (the images) are one matmul over patches, which hold all values of a
  window.
- All others are one matmul over patches that hold one row of the window. It multiplies them by all
  rows of the kernel, and the products are added, each shifted by its row. Windows overlap in rows
  and columns. Copying the columns before and adding the rows after moves three times less memory
  than copying both, and gives the matmul three times the features.

All are the same sum up to rounding, differentiable in every mode and to any order. What they read
is computed once, and so is their cotangent; see `_once`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sprout_jax.models import winograd

# Chosen by measurement (benchmarks/convolution.py), as the form for each shape is.
FEW_CHANNELS = 8  # fewer channels are convolved by one matmul over whole windows


def convolve(
  images: jax.Array, kernel: jax.Array, strides: int, padding: int, matmuls: bool
) -> jax.Array:
  """Computes a two-dimensional cross-correlation.

  With s the strides, the output is::

      out[b, i, j, f] = sum_{u, v, c} padded[b, i s + u, j s + v, c] kernel[u, v, c, f]

  Args:
    images: array [batch, height, width, channels].
    kernel: array [rows, columns, channels, features].
    strides: stride in both directions.
    padding: rows and columns of zeros on all four sides. It is explicit, because with stride 2
      "SAME" differs from PyTorch.
    matmuls: False uses XLA's convolution, True matmuls.

  Returns:
    Array [batch, out_height, out_width, features], where out_height = (height + 2 padding - rows)
    // strides + 1, and out_width likewise.
  """
  if not matmuls:
    return lax.conv_general_dilated(
      images,
      kernel,
      (strides, strides),
      [(padding, padding)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  return _once(_by_matmuls(_once(images, kernel), kernel, strides, padding), kernel)


def _by_matmuls(images: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
  if images.shape[-1] < FEW_CHANNELS:
    return _by_windows(images, kernel, strides, padding)
  if (
    kernel.shape[:2] == (winograd.SIZE, winograd.SIZE)
    and strides == 1
    and images.dtype == jnp.float32
    and min(_count(size, winograd.SIZE, strides, padding) for size in images.shape[1:3]) > 1
  ):
    return winograd.convolve(images, kernel, padding)
  return _by_rows(images, kernel, strides, padding)


def _once(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x, in a form whose value and cotangent XLA computes only once.

  A convolution reads x in up to 16 places. XLA for CPUs would compute the norm and the activation
  before it in each of them, and the gradients of both in each place that reads the cotangent. It
  removes `lax.optimization_barrier` before it decides that. But it repeats no division. The divisor
  is one. The compiler cannot know that unless the kernel is a constant of the program.
  """
  one = 1 + 0 * lax.stop_gradient(kernel[0, 0, 0, 0])
  return x / one


def _count(size: int, window: int, strides: int, padding: int) -> int:
  """Number of windows in one direction."""
  return (size + 2 * padding - window) // strides + 1


def _strided(x: jax.Array, axis: int, start: int, count: int, strides: int) -> jax.Array:
  return lax.slice_in_dim(x, start, start + (count - 1) * strides + 1, strides, axis)


def _by_windows(images: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
  rows, columns, channels, features = kernel.shape
  batch, height, width, _ = images.shape
  height, width = (_count(height, rows, strides, padding), _count(width, columns, strides, padding))
  images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  x = jnp.concatenate(
    [
      _strided(_strided(images, 1, u, height, strides), 2, v, width, strides)
      for u in range(rows)
      for v in range(columns)
    ],
    axis=-1,
  )
  x = x.reshape(-1, rows * columns * channels) @ kernel.reshape(-1, features)
  return x.reshape(batch, height, width, features)


def _by_rows(images: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
  """Adds matmuls of rows: out[i] = sum_u (patches of row i strides + u - padding) @ kernel[u].

  With strides, a row of the images meets only every `strides`-th row of the kernel: the rows of
  each remainder are one matmul.
  """
  rows, columns, channels, features = kernel.shape
  batch, height, width, _ = images.shape
  height, width = (_count(height, rows, strides, padding), _count(width, columns, strides, padding))
  images = jnp.pad(images, ((0, 0), (0, 0), (padding, padding), (0, 0)))
  out = jnp.zeros((batch, height, width, features), images.dtype)
  for remainder in range(strides):
    met = [u for u in range(rows) if (u - padding) % strides == remainder]
    part = images[:, remainder::strides]
    if not met or not part.shape[1]:
      continue
    x = jnp.concatenate([_strided(part, 2, v, width, strides) for v in range(columns)], axis=-1)
    weights = kernel[met[0] :: strides].transpose(1, 2, 0, 3).reshape(columns * channels, -1)
    products = (x.reshape(-1, columns * channels) @ weights).reshape(*x.shape[:3], -1)
    for u, product in zip(met, jnp.split(products, len(met), axis=-1)):
      low = (padding + remainder - u) // strides  # exact; where negative, rows are cut off
      high = height - x.shape[1] - low
      out += lax.pad(
        product, jnp.zeros((), out.dtype), ((0, 0, 0), (low, high, 0), (0, 0, 0), (0, 0, 0))
      )
  return out
