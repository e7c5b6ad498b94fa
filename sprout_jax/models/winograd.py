"""3x3 convolution of stride 1 with 4 multiplications for each output, instead of 9.

Winograd's F(2x2, 3x3) (Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016)
computes two outputs of a one-dimensional convolution with three weights k from four inputs d by::

    out = A^T ((G k) * (B^T d))

          1  0 -1  0         1    0    0             1  1  1  0
    B^T = 0  1  1  0    G =  1/2  1/2  1/2     A^T = 0  1 -1 -1
          0 -1  1  0         1/2 -1/2  1/2
          0  1  0 -1         0    0    1

In two dimensions the same is done along rows and columns. Summed over channels, each of the 16
products is a matmul over all tiles of 2x2 outputs. Both gradients are these matmuls and the
transposed transformations. Rounding errors are about as large as those of the plain sum.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

SIZE = 3  # rows and columns of the kernel


# Recomputation costs no measurable time. Stored, the inputs of the gradients would take four times
# the memory of the images.
@functools.partial(jax.checkpoint, static_argnums=2)
def convolve(images: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
  """Computes a 3x3 cross-correlation with stride 1.

  The output is::

      out[b, i, j, f] = sum_{u, v, c} padded[b, i + u, j + v, c] kernel[u, v, c, f]

  Args:
    images: array [batch, height, width, channels].
    kernel: array [3, 3, channels, features].
    padding: rows and columns of zeros on all four sides.

  Returns:
    Array [batch, height + 2 padding - 2, width + 2 padding - 2, features].
  """
  batch, height, width, channels = images.shape
  features = kernel.shape[-1]
  out_height, out_width = (size + 2 * padding - SIZE + 1 for size in (height, width))
  rows, columns = -(-out_height // 2), -(-out_width // 2)  # tiles; the last may be cut in half
  images = jnp.pad(
    images,
    (
      (0, 0),
      *(
        (padding, 2 * count + 2 - padding - size)
        for count, size in ((rows, height), (columns, width))
      ),
      (0, 0),
    ),
  )
  products = [
    [
      (tile.reshape(-1, channels) @ weights).reshape(batch, rows, columns, features)
      for tile, weights in zip(_input(x, 2), _kernel(k, 0), strict=True)
    ]
    for x, k in zip(_input(images, 1), _kernel(kernel, 0), strict=True)
  ]
  by_columns = [_output(row) for row in products]  # 4 x 2
  by_rows = [_output(part) for part in zip(*by_columns, strict=True)]  # 2 x 2
  tiles = zip(*by_rows, strict=True)
  out = jnp.stack([jnp.stack(tile, axis=3) for tile in tiles], axis=2)
  return out.reshape(batch, 2 * rows, 2 * columns, features)[:, :out_height, :out_width]


def _input(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
  """B^T d along an axis, for the inputs d = 2i to 2i + 3 of all tiles i."""
  pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
  first, second = (lax.index_in_dim(pairs, parity, axis + 1, keepdims=False) for parity in (0, 1))
  (d0, d2), (d1, d3) = (
    (lax.slice_in_dim(part, 0, -1, axis=axis), lax.slice_in_dim(part, 1, None, axis=axis))
    for part in (first, second)
  )
  return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _kernel(k: jax.Array, axis: int) -> tuple[jax.Array, ...]:
  """G k along an axis, for its three weights k."""
  k0, k1, k2 = (lax.index_in_dim(k, place, axis, keepdims=False) for place in range(SIZE))
  return k0, (k0 + k1 + k2) / 2, (k0 - k1 + k2) / 2, k2


def _output(m: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
  """A^T m for four products m."""
  m0, m1, m2, m3 = m
  return m0 + m1 + m2, m1 - m2 - m3
