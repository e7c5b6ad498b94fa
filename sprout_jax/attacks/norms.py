"""Geometry of the threat models: starts, steps and projections in Linf, L2 and L1.

All functions act on arrays [batch, height, width, channels], example by example. `epsilon` and
sizes are in pixel units (images in [0, 1]), scalars or arrays [batch].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from typing import Protocol
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_PIXELS = (1, 2, 3)
SPARSITY = 0.01  # share of the entries that a step in L1 changes, rounded up
BISECTIONS = 60  # largest number of steps of the L1 projection; float precision ends it earlier
# The L1 projection stays below epsilon, because pixels are rounded after it. It leaves free
# MARGIN * epsilon + ROUNDING * sqrt(number of values of an image). The second term is about 6
# standard deviations of the sum of the rounding errors.
MARGIN, ROUNDING = 1e-6, 1e-7

# Number of the step, left end, right end, norm at the right end.
_Bracket: TypeAlias = tuple[Any, jax.Array, jax.Array, jax.Array]


def per_example(value: ArrayLike, like: jax.Array) -> jax.Array:
  """Reshapes a scalar or an array [batch] to [1 or batch, 1, 1, 1], in the dtype of `like`."""
  return jnp.asarray(value, like.dtype).reshape(-1, 1, 1, 1)


def _l1(values: jax.Array) -> jax.Array:
  return jnp.sum(jnp.abs(values), axis=_PIXELS, keepdims=True)


def _linf(values: jax.Array) -> jax.Array:
  return jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True)


def _l2(values: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(values**2, axis=_PIXELS, keepdims=True))


def _unit_l2(values: jax.Array) -> jax.Array:
  # Squares of a confident model's gradients underflow, so that they are scaled first. An all-zero
  # gradient stays zero instead of becoming NaN.
  tiny = jnp.finfo(values.dtype).tiny
  values = values / jnp.maximum(jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True), tiny)
  return values / jnp.maximum(_l2(values), tiny)


def _linf_start(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  return per_example(epsilon, images) * draw(keys, jax.random.uniform, images, minval=-1, maxval=1)


def _l2_start(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  """Uniform in the ball: a Gaussian direction with radius epsilon * u^(1 / dimension)."""
  key_direction, key_radius = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
  direction = _unit_l2(draw(key_direction, jax.random.normal, images))
  radius = draw(key_radius, jax.random.uniform, images[:, :1, :1, :1])
  return per_example(epsilon, images) * radius ** (1 / images[0].size) * direction


def _l1_start(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  """Uniform in the ball: d + 1 exponential variates by their sum, d of them with random signs."""
  parts = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 3))(keys), axis=1)
  sizes = draw(parts[0], jax.random.exponential, images)
  signs = draw(parts[1], jax.random.rademacher, images)
  rest = draw(parts[2], jax.random.exponential, images[:, :1, :1, :1])
  return per_example(epsilon, images) * signs * sizes / (_l1(sizes) + rest)


def _l1_surface(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  """A normal direction, scaled to the norm epsilon."""
  values = draw(keys, jax.random.normal, images)
  return per_example(epsilon, images) * values / _l1(values)


def largest_number(holds: Callable[[jax.Array], jax.Array], like: jax.Array) -> jax.Array:
  """The largest number t >= 0, per example, for which a condition holds; 0 where it never does.

  The condition must hold up to some number and for none above it. The bits of floats are in the
  order of the numbers. So the search bisects the bits, in as many steps as a float has bits. It
  does not sort, which is slow in compiled programs on a CPU.

  Args:
    holds: (t [batch, 1, 1, 1]) -> bool [batch, 1, 1, 1].
    like: float array [batch, ...]; the result has its dtype.

  Returns:
    Float array [batch, 1, 1, 1], finite.
  """
  bits = jnp.finfo(like.dtype).bits
  kind = jnp.dtype(f"int{bits}")
  to_float = lambda pattern: jax.lax.bitcast_convert_type(pattern, like.dtype)
  first = jnp.zeros((len(like), 1, 1, 1), kind)
  beyond = jax.lax.bitcast_convert_type(jnp.full_like(first, jnp.inf, like.dtype), kind)

  def narrow(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = carry
    middle = low + (high - low) // 2
    is_low = holds(to_float(middle))
    return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

  found = to_float(jax.lax.fori_loop(0, bits, narrow, (first, beyond))[0])
  return jnp.where(found < jnp.finfo(like.dtype).tiny, 0, found)  # XLA takes those as zeros


def sparse_direction(gradient: jax.Array, share: ArrayLike) -> jax.Array:
  """Signs of the largest entries of a gradient, divided by their number: a step of L1 norm 1.

  Args:
    gradient: float array [batch, height, width, channels].
    share: scalar or [batch], the share of the entries that are not zero, at least one entry.

  Returns:
    An array like `gradient`; zeros where the gradient is zero.
  """
  size = gradient[0].size
  skipped = jnp.clip(((1 - per_example(share, gradient)) * size).astype(jnp.int32), 0, size - 1)
  magnitude = jnp.abs(gradient)
  smallest = largest_number(
    lambda t: jnp.sum(magnitude >= t, axis=_PIXELS, keepdims=True) >= size - skipped, gradient
  )
  signs = jnp.where(magnitude >= smallest, jnp.sign(gradient), 0)
  return signs / jnp.maximum(_l1(signs), 1)


def _linf_surface(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  """Uniform in the box, then stretched until its largest entry is epsilon."""
  values = draw(keys, jax.random.uniform, images, minval=-1, maxval=1)
  return (
    per_example(epsilon, images) * values / jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True)
  )


def _l2_surface(keys: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  return per_example(epsilon, images) * _unit_l2(draw(keys, jax.random.normal, images))


def draw(
  keys: jax.Array, sampler: Callable[..., jax.Array], like: jax.Array, **kwargs: Any
) -> jax.Array:
  """Draws one array per example with its own key, independent of the rest of the batch.

  Args:
    keys: PRNG keys [batch].
    sampler: function of `jax.random` with the arguments key, shape and dtype.
    like: array [batch, ...] whose shape and dtype the draws have.
    **kwargs: further arguments of the sampler.

  Returns:
    An array like `like`.
  """
  return jax.vmap(lambda key: sampler(key, like.shape[1:], like.dtype, **kwargs))(keys)


def _linf_project(candidates: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  epsilon = per_example(epsilon, images)
  return clip_to_box(images + jnp.clip(candidates - images, -epsilon, epsilon), images)


def _l2_project(candidates: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  perturbation = candidates - images
  size = jnp.maximum(_l2(perturbation), jnp.finfo(perturbation.dtype).tiny)
  within = perturbation * jnp.minimum(1, per_example(epsilon, perturbation) / size)
  return clip_to_box(images + within, images)


def _l1_project(candidates: jax.Array, images: jax.Array, epsilon: ArrayLike) -> jax.Array:
  """The nearest points in the intersection of ball and box (Croce, Hein, ICML 2021).

  d_i = sign(c_i) * min(max(abs(c_i) - t, 0), room_i), where c is the perturbation of the candidates
  and room_i the distance to the box's face in that direction. t >= 0 is the smallest number for
  which d has an L1 norm of at most epsilon. This norm is piecewise linear in t and falls. Bisection
  brackets t. Newton's step from the left end finds t as soon as both ends lie on one piece.
  """
  change, epsilon = candidates - images, per_example(epsilon, images)
  epsilon = epsilon - jnp.minimum(
    epsilon * MARGIN + ROUNDING * math.sqrt(images[0].size), epsilon / 100
  )
  aim = epsilon * (1 - 2 * MARGIN)
  size = jnp.abs(change)
  low, high = jnp.minimum(images, 0), jnp.maximum(images, 1)
  room = jnp.where(change > 0, high - images, images - low)

  def shrunk(t: jax.Array) -> jax.Array:
    return jnp.clip(size - t, 0, room)

  def total(t: jax.Array) -> jax.Array:
    return jnp.sum(shrunk(t), axis=_PIXELS, keepdims=True)

  def narrow(carry: _Bracket) -> _Bracket:
    number, left, right, reached = carry
    falling = jnp.sum((size > left) & (size - left < room), axis=_PIXELS, keepdims=True)
    # It aims a little below epsilon: a norm that rounds to more would not end the loop.
    newton = left + (total(left) - aim) / jnp.maximum(falling, 1).astype(size.dtype)
    for point in (newton, (left + right) / 2):
      inside, norm = (point > left) & (point < right), total(point)
      fits = inside & (norm <= epsilon)
      left = jnp.where(inside & ~fits, point, left)
      right, reached = jnp.where(fits, point, right), jnp.where(fits, norm, reached)
    return number + 1, left, right, reached

  def goes_on(carry: _Bracket) -> jax.Array:
    number, left, right, reached = carry
    middle = (left + right) / 2
    is_open = (middle > left) & (middle < right) & (reached < 2 * aim - epsilon)
    return (number < BISECTIONS) & jnp.any(is_open)

  zero = jnp.zeros_like(size[:, :1, :1, :1])
  everything = total(zero)
  is_inside = everything <= epsilon
  start = (
    jnp.int32(0),
    zero,
    jnp.where(is_inside, zero, _linf(size)),  # the norm is 0 at the right end
    jnp.where(is_inside, everything, zero),
  )
  t = jax.lax.while_loop(goes_on, narrow, start)[2]
  return images + jnp.sign(change) * shrunk(t)


def clip_to_box(candidates: jax.Array, images: jax.Array) -> jax.Array:
  """Clips to the box [0, 1], enlarged where an image lies outside of it.

  So clipping never moves a point away from its image: a point within epsilon stays within epsilon.
  """
  return jnp.clip(candidates, jnp.minimum(images, 0), jnp.maximum(images, 1))


def project(candidates: jax.Array, images: jax.Array, epsilon: ArrayLike, norm: str) -> jax.Array:
  """Projects on the ball of radius epsilon around the images and on the box.

  In Linf and L1 the result is the nearest point of both; in L2 the nearest of the ball, then of the
  box.

  Args:
    candidates: float array [batch, height, width, channels].
    images: array like `candidates`, the centres of the balls.
    epsilon: radius in pixel units, scalar or [batch].
    norm: a key of `NORMS`.

  Returns:
    An array like `candidates`.
  """
  return NORMS[norm].project(candidates, images, epsilon)


def size_of_ones(norm: str, count: int) -> float:
  """Norm of a vector of `count` entries +-1: 1 in Linf, sqrt(count) in L2, count in L1."""
  return {"linf": 1.0, "l2": math.sqrt(count), "l1": float(count)}[norm]


def ascent_step(gradient: jax.Array, step_size: ArrayLike, norm: str) -> jax.Array:
  """A step of size `step_size` along `Norm.direction`, which fits into the box.

  In L1 it changes at least so many entries that none changes by more than 1/2, half of the range of
  a pixel: a larger change would mostly be lost at the faces of the box.

  Args:
    gradient: float array [batch, height, width, channels].
    step_size: scalar or [batch], in pixel units.
    norm: a key of `NORMS`.

  Returns:
    An array like `gradient`.
  """
  size = per_example(step_size, gradient)
  if norm == "l1":
    share = jnp.clip(2 * size / gradient[0].size, SPARSITY, 1)
    return size * sparse_direction(gradient, share.ravel())
  return size * NORMS[norm].direction(gradient)


class DrawPerturbation(Protocol):
  """A random perturbation per example."""

  def __call__(self, keys: jax.Array, images: jax.Array, epsilon: ArrayLike, /) -> jax.Array:
    """Draws perturbations like `images`, with PRNG keys [batch]."""


@dataclasses.dataclass(frozen=True)
class Norm:
  """Geometry of one norm.

  Attributes:
    start: (keys [batch], images, epsilon) -> perturbation, uniform in the ball of radius epsilon.
    surface: (keys [batch], images, epsilon) -> random perturbation of size epsilon.
    direction: gradient -> direction of an ascent step, of size 1. In Linf and L2 the steepest one.
      In L1, where the steepest step changes one entry, the largest `SPARSITY` of the entries.
    project: (candidates, images, epsilon) -> points of ball and box, see `project`.
    size: perturbation -> its norm [batch].
    dual: gradient -> its dual norm [batch]: the largest first-order gain of a step of size 1.
  """

  start: DrawPerturbation
  surface: DrawPerturbation
  direction: Callable[[jax.Array], jax.Array]
  project: Callable[[jax.Array, jax.Array, ArrayLike], jax.Array]
  size: Callable[[jax.Array], jax.Array]
  dual: Callable[[jax.Array], jax.Array]


def _sizes(norm: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """Drops the axes of size 1."""
  return lambda values: norm(values)[:, 0, 0, 0]


NORMS = {
  "linf": Norm(_linf_start, _linf_surface, jnp.sign, _linf_project, _sizes(_linf), _sizes(_l1)),
  "l2": Norm(_l2_start, _l2_surface, _unit_l2, _l2_project, _sizes(_l2), _sizes(_l2)),
  "l1": Norm(
    _l1_start,
    _l1_surface,
    lambda gradient: sparse_direction(gradient, SPARSITY),
    _l1_project,
    _sizes(_l1),
    _sizes(_linf),
  ),
}
