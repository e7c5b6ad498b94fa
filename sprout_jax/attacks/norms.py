"""Geometry of the threat models: what an attack must know about a norm.

All functions act on [batch, height, width, channels] arrays, example by example. `epsilon` and
sizes are in pixel units (images in [0, 1]), scalars or arrays [batch].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

_PIXELS = (1, 2, 3)


def per_example(value, like):
  """Returns a scalar or a [batch] array as [1 or batch, 1, 1, 1], in the dtype of `like`."""
  return jnp.asarray(value, like.dtype).reshape(-1, 1, 1, 1)


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


def _linf_project(perturbation, epsilon):
  epsilon = per_example(epsilon, perturbation)
  return jnp.clip(perturbation, -epsilon, epsilon)


def _l2_project(perturbation, epsilon):
  size = jnp.maximum(_l2(perturbation), jnp.finfo(perturbation.dtype).tiny)
  return perturbation * jnp.minimum(1, per_example(epsilon, perturbation) / size)


def clip_to_box(candidates, images):
  """The nearest points in the box [0, 1], stretched to hold an image that lies outside of it.

  So clipping never leads away from the image: what is within epsilon of it stays there.
  """
  return jnp.clip(candidates, jnp.minimum(images, 0), jnp.maximum(images, 1))


def project(candidates, images, epsilon, norm):
  """The nearest points in the ball around the images, then in the box."""
  return clip_to_box(images + NORMS[norm].project(candidates - images, epsilon), images)


@dataclasses.dataclass(frozen=True)
class Norm:
  """What defines an attack's threat model, apart from the loss.

  Attributes:
    start: (keys [batch], images, epsilon) -> perturbation, uniform in the ball of radius epsilon.
    surface: (keys [batch], images, epsilon) -> random perturbation of size epsilon.
    direction: gradient -> the steepest-ascent direction of size 1.
    project: (perturbation, epsilon) -> the nearest perturbation within the ball.
    size: perturbation -> [batch], its norm.
    slope: the steepest-ascent direction's entries are sign(w) * slope(w), up to its size.
  """

  start: Callable
  surface: Callable
  direction: Callable
  project: Callable
  size: Callable
  slope: Callable


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
