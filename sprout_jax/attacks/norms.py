"""Geometry of the threat models: what an attack must know about a norm.

All functions act on [batch, height, width, channels] arrays, example by example. `epsilon` and
sizes are in pixel units (images in [0, 1]), scalars or arrays [batch].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

_PIXELS = (1, 2, 3)
SPARSITY = 0.01  # share of the entries that a step of L1 changes, rounded up
BISECTIONS = 60  # most steps of the L1 projection; it ends earlier, at the precision of floats
MARGIN = 1e-6  # share of epsilon that L1 leaves free: pixels are rounded after the projection


def per_example(value, like):
  """Returns a scalar or a [batch] array as [1 or batch, 1, 1, 1], in the dtype of `like`."""
  return jnp.asarray(value, like.dtype).reshape(-1, 1, 1, 1)


def _l1(values):
  return jnp.sum(jnp.abs(values), axis=_PIXELS, keepdims=True)


def _linf(values):
  return jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True)


def _l2(values):
  return jnp.sqrt(jnp.sum(values**2, axis=_PIXELS, keepdims=True))


def _unit_l2(values):
  # Squares of a confident model's gradients underflow: scale them first. An all-zero gradient stays
  # zero instead of becoming NaN.
  tiny = jnp.finfo(values.dtype).tiny
  values = values / jnp.maximum(jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True), tiny)
  return values / jnp.maximum(_l2(values), tiny)


def _linf_start(key, images, epsilon):
  return per_example(epsilon, images) * draw(key, jax.random.uniform, images, minval=-1, maxval=1)


def _l2_start(key, images, epsilon):
  """Uniform in the ball: a Gaussian direction with radius epsilon * u^(1 / dimension)."""
  key_direction, key_radius = jnp.unstack(jax.vmap(jax.random.split)(key), axis=1)
  direction = _unit_l2(draw(key_direction, jax.random.normal, images))
  radius = draw(key_radius, jax.random.uniform, images[:, :1, :1, :1])
  return per_example(epsilon, images) * radius ** (1 / images[0].size) * direction


def _l1_start(key, images, epsilon):
  """Uniform in the ball: d + 1 exponential variates by their sum, d of them with random signs."""
  keys = jnp.unstack(jax.vmap(lambda k: jax.random.split(k, 3))(key), axis=1)
  sizes = draw(keys[0], jax.random.exponential, images)
  signs = draw(keys[1], jax.random.rademacher, images)
  rest = draw(keys[2], jax.random.exponential, images[:, :1, :1, :1])
  return per_example(epsilon, images) * signs * sizes / (_l1(sizes) + rest)


def _l1_surface(key, images, epsilon):
  """A normal direction, scaled to the norm epsilon."""
  values = draw(key, jax.random.normal, images)
  return per_example(epsilon, images) * values / _l1(values)


def largest_number(holds, like):
  """The largest number t >= 0, per example, for which a condition holds; 0 where it never does.

  The condition must hold up to some number and for none above it. The search bisects the bits of a
  float, which are in the order of the numbers: as many steps as a float has bits, and no sorting,
  which compiled programs do slowly on a CPU.

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

  def narrow(_, carry):
    low, high = carry
    middle = low + (high - low) // 2
    is_low = holds(to_float(middle))
    return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

  found = to_float(jax.lax.fori_loop(0, bits, narrow, (first, beyond))[0])
  return jnp.where(found < jnp.finfo(like.dtype).tiny, 0, found)  # XLA takes those as zeros


def sparse_direction(gradient, share):
  """The signs of the largest entries of a gradient, divided by their number: of L1 size 1.

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


def _linf_surface(key, images, epsilon):
  """Uniform in the box, then stretched until its largest entry is epsilon."""
  values = draw(key, jax.random.uniform, images, minval=-1, maxval=1)
  return (
    per_example(epsilon, images) * values / jnp.max(jnp.abs(values), axis=_PIXELS, keepdims=True)
  )


def _l2_surface(key, images, epsilon):
  return per_example(epsilon, images) * _unit_l2(draw(key, jax.random.normal, images))


def draw(keys, sampler, like, **kwargs):
  """One draw per example, each with its own key: independent of the rest of the batch."""
  return jax.vmap(lambda key: sampler(key, like.shape[1:], like.dtype, **kwargs))(keys)


def _linf_project(candidates, images, epsilon):
  epsilon = per_example(epsilon, images)
  return clip_to_box(images + jnp.clip(candidates - images, -epsilon, epsilon), images)


def _l2_project(candidates, images, epsilon):
  perturbation = candidates - images
  size = jnp.maximum(_l2(perturbation), jnp.finfo(perturbation.dtype).tiny)
  within = perturbation * jnp.minimum(1, per_example(epsilon, perturbation) / size)
  return clip_to_box(images + within, images)


def _l1_project(candidates, images, epsilon):
  """The nearest points in the intersection of ball and box (Croce, Hein, ICML 2021).

  d_i = sign(c_i) min(max(|c_i| - t, 0), room_i), where c is the candidates' perturbation, room_i
  what the box leaves in that direction, and t >= 0 the smallest number for which |d|_1 <= epsilon.
  |d|_1 is piecewise linear in t and falls. Bisection brackets t; Newton's step from the left end
  finds it as soon as both ends lie on one piece.
  """
  change, epsilon = candidates - images, per_example(epsilon, images) * (1 - MARGIN)
  size = jnp.abs(change)
  low, high = jnp.minimum(images, 0), jnp.maximum(images, 1)
  room = jnp.where(change > 0, high - images, images - low)

  def shrunk(t):
    return jnp.clip(size - t, 0, room)

  def total(t):
    return jnp.sum(shrunk(t), axis=_PIXELS, keepdims=True)

  def narrow(carry):
    number, left, right, reached = carry
    falling = jnp.sum((size > left) & (size - left < room), axis=_PIXELS, keepdims=True)
    newton = left + (total(left) - epsilon) / jnp.maximum(falling, 1).astype(size.dtype)
    for point in (newton, (left + right) / 2):
      inside, norm = (point > left) & (point < right), total(point)
      fits = inside & (norm <= epsilon)
      left = jnp.where(inside & ~fits, point, left)
      right, reached = jnp.where(fits, point, right), jnp.where(fits, norm, reached)
    return number + 1, left, right, reached

  def goes_on(carry):
    number, left, right, reached = carry
    middle = (left + right) / 2
    is_open = (middle > left) & (middle < right) & (reached < epsilon * (1 - MARGIN))
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


def clip_to_box(candidates, images):
  """The nearest points in the box [0, 1], stretched to hold an image that lies outside of it.

  So clipping never leads away from the image: what is within epsilon of it stays there.
  """
  return jnp.clip(candidates, jnp.minimum(images, 0), jnp.maximum(images, 1))


def project(candidates, images, epsilon, norm):
  """Points of the ball around the images and of the box, near the candidates.

  Linf and L1: the nearest ones. L2: the nearest of the ball, then of the box.
  """
  return NORMS[norm].project(candidates, images, epsilon)


@dataclasses.dataclass(frozen=True)
class Norm:
  """What defines an attack's threat model, apart from the loss.

  Attributes:
    start: (keys [batch], images, epsilon) -> perturbation, uniform in the ball of radius epsilon.
    surface: (keys [batch], images, epsilon) -> random perturbation of size epsilon.
    direction: gradient -> the direction of an ascent step, of size 1: the steepest in Linf and L2;
      in L1 the largest `SPARSITY` of the entries, as the steepest changes only one.
    project: (candidates, images, epsilon) -> points within ball and box, see `project`.
    size: perturbation -> [batch], its norm.
    dual: gradient -> [batch], its dual norm: the most that a step of size 1 gains.
  """

  start: Callable
  surface: Callable
  direction: Callable
  project: Callable
  size: Callable
  dual: Callable


def _sizes(norm):
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
