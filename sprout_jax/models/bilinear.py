"""Convolution of stride 1 on a CPU, whose gradients are the two operations here, and nothing else.

Convolution is linear in the images and in the kernel, and so is the kernel's gradient in the images
and in the cotangents. Each one's gradients are one or the other:

    out = convolve(images, kernel)       images: convolve(out, turned kernel)   kernel: correlate(images, out)
    kernel = correlate(images, out)      images: convolve(out, turned kernel)   out: convolve(images, kernel)

XLA derives its gradients otherwise, ten times slower on a CPU. As a pair of JAX primitives, they
are differentiable in both modes and to any order, which `jax.custom_vjp` is not.
"""

import functools

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad
from jax.interpreters import batching
from jax.interpreters import mlir
import jax.numpy as jnp


PIECE = 8 * 2**20  # bytes of shifted copies in a piece, by measurement


def convolve(images, kernel, padding, pieces=None):
  """out[b, i, j, f] = sum_{u, v, c} padded[b, i + u, j + v, c] kernel[u, v, c, f].

  Args:
    images: [batch, height, width, channels].
    kernel: [rows, columns, channels, features].
    padding: zeros (above and below, left and right), less than the kernel's size.
    pieces: of how many equal parts the batch is in the kernel's gradient, so that its copies stay in
      the CPU's cache; a divisor of the batch. None: as many as memory suggests, but 1 where there
      are several devices, over which the batch may be cut already.
  """
  if pieces is None:
    pieces = 1 if jax.device_count() > 1 else _num_pieces(images, kernel)
  return _convolve_p.bind(images, kernel, padding=padding, pieces=pieces)


def _num_pieces(images, kernel):
  """The smallest divisor of the batch that makes pieces small enough."""
  rows, columns, channels, features = kernel.shape
  batch = len(images)
  size = images.size // channels * (columns * channels + rows * features) * images.dtype.itemsize
  return next(n for n in range(1, batch + 1) if batch % n == 0 and (size <= n * PIECE or n == batch))


def _convolve(images, kernel, *, padding, pieces):
  del pieces
  return lax.conv_general_dilated(images, kernel, (1, 1), [(p, p) for p in padding],
                                  dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _correlate(images, out, *, padding, pieces):
  """kernel[u, v, c, f] = sum_{b, i, j} padded[b, i + u, j + v, c] out[b, i, j, f].

  A matmul of the images, shifted by column, and `out`, shifted by row. The images' channels come
  first there: the order in which matmuls are fastest.
  """
  split = lambda x: x.reshape(pieces, -1, *x.shape[1:])
  piece = functools.partial(_correlate_piece, padding=padding)
  if pieces == 1:
    return piece(images, out)
  shape = jax.eval_shape(piece, split(images)[0], split(out)[0])
  add = lambda total, parts: (total + piece(*parts), None)
  return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), (split(images), split(out)))[0]


def _correlate_piece(images, out, *, padding):
  _, height, width, channels = images.shape
  _, out_height, out_width, features = out.shape
  rows, columns = (height + 2 * padding[0] - out_height + 1, width + 2 * padding[1] - out_width + 1)
  # The barrier: else the transposition is done again for every column.
  images = lax.optimization_barrier(images.transpose(3, 0, 1, 2))
  images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (padding[1], padding[1])))
  shifted = jnp.stack([images[..., v:v + out_width] for v in range(columns)])
  # Row r of the images meets row r + padding - u of `out`.
  low, high = rows - 1 - padding[0], height + padding[0] - out_height
  out = jnp.pad(out, ((0, 0), (low, high), (0, 0), (0, 0)))
  out = jnp.stack([out[:, low + padding[0] - u:][:, :height] for u in range(rows)], axis=-2)
  kernel = shifted.reshape(columns * channels, -1) @ out.reshape(-1, rows * features)
  return kernel.reshape(columns, channels, rows, features).transpose(2, 0, 1, 3)


def _images_gradient(out, kernel, padding, pieces):
  # The barrier: else XLA joins turning and convolution into one operation that is slow.
  turned = lax.optimization_barrier(lax.rev(kernel, (0, 1)).transpose(0, 1, 3, 2))
  padding = tuple(size - 1 - p for size, p in zip(kernel.shape, padding))
  return _convolve_p.bind(out, turned, padding=padding, pieces=pieces)


def _primitive(name, fn, images_rule, other_rule):
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(fn, static_argnames=("padding", "pieces")))

  def shape(*args, **params):
    out = jax.eval_shape(functools.partial(fn, **params), *args)
    return jax.core.ShapedArray(out.shape, out.dtype)

  primitive.def_abstract_eval(shape)
  mlir.register_lowering(primitive, mlir.lower_fun(fn, multiple_results=False))
  ad.defbilinear(primitive, images_rule, other_rule)
  batching.primitive_batchers[primitive] = lambda args, axes, **params: (
      jax.vmap(functools.partial(fn, **params), axes)(*args), 0)
  return primitive


_convolve_p = _primitive(
    "convolve", _convolve,
    lambda out, images, kernel, **params: _images_gradient(out, kernel, **params),
    lambda out, images, kernel, **params: _correlate_p.bind(images, out, **params))
_correlate_p = _primitive(
    "correlate", _correlate,
    lambda kernel, images, out, **params: _images_gradient(out, kernel, **params),
    lambda kernel, images, out, **params: _convolve_p.bind(images, kernel, **params))
