"""Geometry of the threat models: starts, steps and projections in Linf and L2.

All functions act on arrays [batch, height, width, channels], example by example. `epsilon` and
sizes are in pixel units (images in [0, 1]), scalars or arrays [batch].
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_PIXELS = (1, 2, 3)


def per_example(value: ArrayLike, like: jax.Array) -> jax.Array:
  """Reshapes a scalar or an array [batch] to [1 or batch, 1, 1, 1], in the dtype of `like`."""
  return jnp.asarray(value, like.dtype).reshape(-1, 1, 1, 1)


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


def _linf_project(perturbation: jax.Array, epsilon: ArrayLike) -> jax.Array:
  epsilon = per_example(epsilon, perturbation)
  return jnp.clip(perturbation, -epsilon, epsilon)


def _l2_project(perturbation: jax.Array, epsilon: ArrayLike) -> jax.Array:
  size = jnp.maximum(_l2(perturbation), jnp.finfo(perturbation.dtype).tiny)
  return perturbation * jnp.minimum(1, per_example(epsilon, perturbation) / size)


def clip_to_box(candidates: jax.Array, images: jax.Array) -> jax.Array:
  """Clips to the box [0, 1], enlarged where an image lies outside of it.

  So clipping never moves a point away from its image: a point within epsilon stays within epsilon.
  """
  return jnp.clip(candidates, jnp.minimum(images, 0), jnp.maximum(images, 1))


def project(candidates: jax.Array, images: jax.Array, epsilon: ArrayLike, norm: str) -> jax.Array:
  """Projects on the ball of radius epsilon around the images, then on the box.

  Args:
    candidates: float array [batch, height, width, channels].
    images: array like `candidates`, the centres of the balls.
    epsilon: radius in pixel units, scalar or [batch].
    norm: a key of `NORMS`.

  Returns:
    An array like `candidates`.
  """
  return clip_to_box(images + NORMS[norm].project(candidates - images, epsilon), images)


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
    direction: gradient -> direction of steepest ascent, of size 1.
    project: (perturbation, epsilon) -> nearest perturbation within the ball.
    size: perturbation -> its norm [batch].
    slope: gradient w -> absolute value of the direction of steepest ascent, up to a factor: the
      direction is sign(w) * slope(w).
  """

  start: DrawPerturbation
  surface: DrawPerturbation
  direction: Callable[[jax.Array], jax.Array]
  project: Callable[[jax.Array, ArrayLike], jax.Array]
  size: Callable[[jax.Array], jax.Array]
  slope: Callable[[jax.Array], jax.Array]


NORMS = {
  "linf": Norm(
    _linf_start,
    _linf_surface,
    jnp.sign,
    _linf_project,
    lambda values: jnp.max(jnp.abs(values), axis=_PIXELS),
    jnp.ones_like,
  ),
  "l2": Norm(
    _l2_start, _l2_surface, _unit_l2, _l2_project, lambda values: _l2(values)[:, 0, 0, 0], jnp.abs
  ),
}
