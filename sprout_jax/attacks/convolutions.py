"""Convolutions whose gradients are fast in a compiled loop on a CPU.

Usage::

    predict = convolutions.fastest(predict, images)

XLA for CPUs has fast code for a convolution of channels-last images with a kernel [rows, columns,
channels, features]. Outside loops XLA converts other convolutions to this form. Inside loops it
does not, and attacks are loops. There it is slow on channels-first images, and on all input
gradients, which JAX writes as a convolution with the reversed kernel. So this module converts them:

- Channels-first images are transposed, convolved and transposed back.
- The input gradient convolves the cotangent with the kernel reversed and transposed, behind
  `lax.optimization_barrier`: XLA would move the reversal back into the convolution. Strides dilate
  the cotangent. Windows that lie side by side (patches) are one matmul.
- The kernel gradient is one matmul for each row of the window. Attacks never compute it.

All are the same sums up to rounding; channels-last outputs are equal to the bit.

`exchange_convolutions` changes any function: it traces the function to a jaxpr and gives the
convolutions in it another primitive. That primitive has the parameters, the value and the type of
`lax.conv_general_dilated`, and derivatives of its own, of any order. Four kinds of convolutions do
not change: those with dilation or groups, those that are not two-dimensional, those that are not
floating point, and those inside functions with derivatives of their own (`jax.custom_jvp`,
`jax.custom_vjp`).
"""

import dataclasses
import math
import time
import weakref
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import ad
from jax.interpreters import batching
from jax.interpreters import mlir

from sprout_jax.attacks.inputs import Array

IMAGES = 8  # largest number of images whose gradient `pays` times
SECONDS = 0.3  # time after which no new round of timing begins
ROUNDS = 10  # largest number of rounds of timing
GAIN = 1.1  # smallest speed-up that pays
CHANNELS_LAST = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


def exchange_convolutions(predict: Callable) -> Callable:
  """Exchanges the convolutions of a function for ones whose gradients are fast on a CPU.

  Args:
    predict: any function that JAX can trace.

  Returns:
    A function of the same arguments. Outputs of channels-last convolutions are equal to the bit,
    where both are compiled; everything else is equal up to rounding (float32: 1e-6 of the largest
    entry). Where `predict` is a pytree (a `jax.tree_util.Partial`, an Equinox or NNX module), the
    result is a `Partial` with the same leaves. Two exchanges of a function give equal functions, so
    that compiled programs are found again.
  """
  if isinstance(predict, jax.tree_util.Partial):
    return jax.tree_util.Partial(_Exchanged(predict.func), *predict.args, **predict.keywords)
  if jax.tree_util.all_leaves([predict]):
    return _Exchanged(predict)
  return jax.tree_util.Partial(_Exchanged(_call), predict)


def fastest(predict: Callable, images: Array) -> Callable:
  """Returns `exchange_convolutions(predict)` where that `pays`, else `predict`.

  With several processes, all use the choice of process 0, because they run the same programs.

  Args:
    predict: function images -> logits.
    images: float array [n, ...], n at least 1.
  """
  is_faster = pays(predict, images)
  if jax.process_count() > 1:
    is_faster = bool(multihost_utils.broadcast_one_to_all(np.int32(is_faster)))
  return exchange_convolutions(predict) if is_faster else predict


def pays(predict: Callable, images: Array) -> bool:
  """Tests by a timing on this machine whether the exchange makes input gradients faster.

  It compiles a loop of input gradients of up to IMAGES images twice, plain and exchanged, and times
  the two in turn. On devices that are not CPUs, and without a convolution to exchange, the result
  is False without a timing.

  Args:
    predict: function images -> logits.
    images: float array [n, ...], n at least 1.
  """
  if jax.default_backend() != "cpu":
    return False
  images = images[:IMAGES]
  jaxpr, _, _ = _trace(_call, (predict, images), {})
  if _exchange(jaxpr) is jaxpr:
    return False
  runs = [_gradient_loop(fn, images) for fn in (predict, exchange_convolutions(predict))]
  best, start = [math.inf, math.inf], time.perf_counter()
  for _ in range(ROUNDS):
    for place, run in enumerate(runs):
      begin = time.perf_counter()
      run()
      best[place] = min(best[place], time.perf_counter() - begin)
    if time.perf_counter() - start > SECONDS:
      break
  plain, exchanged = best
  return plain > GAIN * exchanged


def _gradient_loop(predict: Callable, images: Array) -> Callable[[], Any]:
  """A function that computes one input gradient in a compiled loop and waits for it."""
  weights, rebuild = _arrays_of(predict)

  def gradients(weights: list[Array], images: jax.Array, count: jax.Array) -> jax.Array:
    loss = lambda images: jnp.sum(jnp.square(rebuild(weights)(images)))
    step = lambda _, images: images + 1e-6 * jax.grad(loss)(images)
    return lax.fori_loop(0, count, step, images)

  compiled = jax.jit(gradients).lower(weights, images, 1).compile()
  return lambda: jax.block_until_ready(compiled(weights, images, 1))


def _call(predict: Callable, *args: Any, **kwargs: Any) -> Any:
  return predict(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Exchanged:
  """A function with its convolutions exchanged; equal for the same function."""

  function: Callable

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    jaxpr, structure, arrays = _trace(self.function, args, kwargs)
    return jax.tree.unflatten(structure, core.jaxpr_as_fun(_exchange(jaxpr))(*arrays))


def _trace(
  function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any, list[Array]]:
  """The jaxpr of a call, the structure of its result, and the arrays that the jaxpr takes."""
  arrays, rebuild = _arrays_of((args, kwargs))

  def flat(*arrays: Array) -> Any:
    args, kwargs = rebuild(arrays)
    return function(*args, **kwargs)

  jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*arrays)
  return jaxpr, jax.tree.structure(shapes), arrays


def _arrays_of(tree: Any) -> tuple[list[Array], Callable[[Sequence[Array]], Any]]:
  """The arrays among the leaves, and a function from such arrays to the tree."""
  leaves, structure = jax.tree.flatten(tree)
  is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

  def rebuild(arrays: Sequence[Array]) -> Any:
    rest = iter(arrays)
    both = [next(rest) if known else leaf for known, leaf in zip(is_array, leaves, strict=True)]
    return jax.tree.unflatten(structure, both)

  return [leaf for known, leaf in zip(is_array, leaves, strict=True) if known], rebuild


# Primitives whose inner jaxprs are evaluated and differentiated as they are written.
TRANSPARENT = (
  primitives.closed_call_p,
  primitives.cond_p,
  primitives.jit_p,
  primitives.remat_p,
  primitives.scan_p,
  primitives.while_p,
)

# Jaxpr -> the jaxpr exchanged, None where there is nothing to exchange. A jaxpr that occurs twice
# is exchanged once, so that it is compiled once, also by the next call.
_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _exchange(jaxpr: Any) -> Any:
  """The jaxpr with its convolutions exchanged; the same object where there are none."""
  if jaxpr not in _known:
    _known[jaxpr] = _exchange_anew(jaxpr)
  return jaxpr if _known[jaxpr] is None else _known[jaxpr]


def _exchange_anew(jaxpr: Any) -> Any:
  inner = getattr(jaxpr, "jaxpr", jaxpr)
  if inner is not jaxpr:  # JAX before 0.12: a ClosedJaxpr holds a Jaxpr
    exchanged = _exchange(inner)
    return None if exchanged is inner else jaxpr.replace(jaxpr=exchanged)
  equations = [_exchange_equation(equation) for equation in jaxpr.eqns]
  if all(new is old for new, old in zip(equations, jaxpr.eqns, strict=True)):
    return None
  return jaxpr.replace(eqns=equations)


def _exchange_equation(equation: Any) -> Any:
  if equation.primitive is primitives.conv_general_dilated_p:
    if _is_eligible(equation.invars[0].aval.dtype, **equation.params):
      return equation.replace(primitive=_convolution_p)
  elif equation.primitive in TRANSPARENT:
    params = {name: _exchange_parameter(value) for name, value in equation.params.items()}
    if any(params[name] is not value for name, value in equation.params.items()):
      return equation.replace(params=params)
  return equation


def _exchange_parameter(value: Any) -> Any:
  if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
    return _exchange(value)
  if isinstance(value, tuple):
    parts = [_exchange_parameter(part) for part in value]
    if any(new is not old for new, old in zip(parts, value, strict=True)):
      return tuple(parts)
  return value


def _is_eligible(
  dtype: Any,
  *,
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  feature_group_count: int,
  batch_group_count: int,
  preferred_element_type: Any,
  out_sharding: Any,
  **_: Any,
) -> bool:
  """Tests whether a convolution of these parameters can be exchanged."""
  return (
    (*lhs_dilation, *rhs_dilation) == (1, 1, 1, 1)
    and feature_group_count == batch_group_count == 1
    and jnp.issubdtype(dtype, jnp.floating)
    and preferred_element_type in (None, dtype)
    and out_sharding is None
  )


def _input_gradient(
  cotangent: jax.Array,
  images: Any,  # of the images, only the type is known
  kernel: jax.Array,
  *,
  window_strides: tuple[int, int],
  padding: tuple[tuple[int, int], ...],
  dimension_numbers: lax.ConvDimensionNumbers,
  precision: Any,
  **params: Any,
) -> jax.Array:
  """The cotangent of the images, in their layout."""
  images_spec, kernel_spec, out_spec = dimension_numbers
  sizes = [
    (images.aval.shape[i], kernel.shape[k], cotangent.shape[o])
    for i, k, o in zip(images_spec[2:], kernel_spec[2:], out_spec[2:], strict=True)
  ]
  if window_strides != (1, 1) and window_strides == tuple(window for _, window, _ in sizes):
    return _gradient_of_patches(cotangent, kernel, sizes, padding, dimension_numbers, precision)
  pads = []
  for (size, window, count), stride, (low, _) in zip(sizes, window_strides, padding, strict=True):
    before = window - 1 - low
    pads.append((before, size + window - 1 - before - ((count - 1) * stride + 1)))
  turned = lax.rev(kernel, kernel_spec[2:])
  turned = lax.transpose(turned, [kernel_spec[i] for i in (2, 3, 0, 1)])
  convolve = _convolution_p.bind if window_strides == (1, 1) else _convolve_channels_last
  return convolve(
    cotangent,
    lax.optimization_barrier(turned),
    window_strides=(1, 1),
    padding=tuple(pads),
    dimension_numbers=lax.ConvDimensionNumbers(out_spec, CHANNELS_LAST.rhs_spec, images_spec),
    precision=precision,
    **{**params, "lhs_dilation": window_strides},
  )


def _gradient_of_patches(
  cotangent: jax.Array,
  kernel: jax.Array,
  sizes: list[tuple[int, int, int]],
  padding: tuple[tuple[int, int], ...],
  dimension_numbers: lax.ConvDimensionNumbers,
  precision: Any,
) -> jax.Array:
  """The cotangent of the images where windows lie side by side, as one matmul."""
  images, weights, out = (
    "".join(letter for _, letter in sorted(zip(spec, letters, strict=True)))
    for spec, letters in zip(dimension_numbers, ("nchw", "fcuv", "nfhw"), strict=True)
  )
  split = images.replace("h", "hu").replace("w", "wv")
  gradient = jnp.einsum(f"{out},{weights}->{split}", cotangent, kernel, precision=precision)
  shape, config = list(cotangent.shape), [(0, 0, 0)] * 4
  images_spec, kernel_spec, out_spec = dimension_numbers
  shape[images_spec[0]] = cotangent.shape[out_spec[0]]
  shape[images_spec[1]] = kernel.shape[kernel_spec[1]]
  for axis, (size, window, count), (low, _) in zip(images_spec[2:], sizes, padding, strict=True):
    shape[axis] = count * window
    config[axis] = (-low, low + size - count * window, 0)
  return lax.pad(gradient.reshape(shape), jnp.zeros((), gradient.dtype), config)


def _kernel_gradient(
  cotangent: jax.Array,
  images: jax.Array,
  kernel: Any,  # of the kernel, only the type is known
  *,
  window_strides: tuple[int, int],
  padding: tuple[tuple[int, int], ...],
  dimension_numbers: lax.ConvDimensionNumbers,
  precision: Any,
  **unused: Any,
) -> jax.Array:
  """The cotangent of the kernel, in its layout: one matmul for each row of the window."""
  images_spec, kernel_spec, out_spec = dimension_numbers
  _, channels, rows, columns = (kernel.aval.shape[axis] for axis in kernel_spec)
  _, features, height, width = (cotangent.shape[axis] for axis in out_spec)
  images = lax.transpose(images, [images_spec[i] for i in (0, 2, 3, 1)])
  images = lax.pad(
    images, jnp.zeros((), images.dtype), [(0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)]
  )
  cotangent = lax.transpose(cotangent, [out_spec[i] for i in (1, 0, 2, 3)])
  cotangent = lax.optimization_barrier(cotangent.reshape(features, -1))

  def windows(x: jax.Array, axis: int, start: int, count: int) -> jax.Array:
    stride = window_strides[axis - 1]
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)

  products = []
  for row in range(rows):
    part = windows(images, 1, row, height)
    part = jnp.concatenate([windows(part, 2, column, width) for column in range(columns)], axis=-1)
    product = lax.dot(cotangent, part.reshape(-1, columns * channels), precision=precision)
    products.append(product.reshape(features, columns, channels))
  order = sorted(zip(kernel_spec, (1, 3, 0, 2), strict=True))  # of [rows, features, columns, ...]
  return lax.transpose(jnp.stack(products), [axis for _, axis in order])


def _batch(
  args: Sequence[jax.Array],
  axes: Sequence[int | None],
  *,
  dimension_numbers: lax.ConvDimensionNumbers,
  **params: Any,
) -> tuple[jax.Array, int]:
  """Batching rule: images join the batch; kernels become groups of the original convolution."""
  (images, kernel), (axis, kernel_axis) = args, axes
  if kernel_axis is not None or axis is None:
    plain = lambda images, kernel: primitives.conv_general_dilated_p.bind(
      images, kernel, dimension_numbers=dimension_numbers, **params
    )
    return jax.vmap(plain, axes)(images, kernel), 0
  place, out = dimension_numbers[0][0], dimension_numbers[2][0]
  images = jnp.moveaxis(images, axis, place)
  size, batch = images.shape[place], images.shape[place + 1]
  images = images.reshape(*images.shape[:place], size * batch, *images.shape[place + 2 :])
  found = _convolution_p.bind(images, kernel, dimension_numbers=dimension_numbers, **params)
  return found.reshape(*found.shape[:out], size, batch, *found.shape[out + 1 :]), out


def _convolve_channels_last(
  images: jax.Array,
  kernel: jax.Array,
  *,
  dimension_numbers: lax.ConvDimensionNumbers,
  **params: Any,
) -> jax.Array:
  """The convolution of these parameters, computed on channels-last arrays."""
  images_spec, kernel_spec, out_spec = dimension_numbers
  found = primitives.conv_general_dilated_p.bind(
    lax.transpose(images, [images_spec[i] for i in (0, 2, 3, 1)]),
    lax.transpose(kernel, [kernel_spec[i] for i in (2, 3, 1, 0)]),
    dimension_numbers=CHANNELS_LAST,
    **params,
  )
  return lax.transpose(found, np.argsort([out_spec[i] for i in (0, 2, 3, 1)]))


_convolution_p = core.Primitive("exchanged_convolution")
_convolution_p.def_impl(_convolve_channels_last)
_convolution_p.def_effectful_abstract_eval(primitives.conv_general_dilated_p.abstract_eval)
mlir.register_lowering(
  _convolution_p, mlir.lower_fun(_convolve_channels_last, multiple_results=False)
)
ad.defbilinear(_convolution_p, _input_gradient, _kernel_gradient)
batching.primitive_batchers[_convolution_p] = _batch
