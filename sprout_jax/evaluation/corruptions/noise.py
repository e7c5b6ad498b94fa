"""Noise: Gaussian, shot, impulse."""

import jax
import jax.numpy as jnp

from sprout_jax.evaluation.corruptions.contract import Severity
from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption


@corruption
def gaussian_noise(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds Gaussian noise: x + c n, n ~ N(0, 1); c = 0.04, 0.06, 0.08, 0.09, 0.1."""
  return image + at(severity, [0.04, 0.06, 0.08, 0.09, 0.10]) * jax.random.normal(key, image.shape)


@corruption
def shot_noise(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds shot noise: Poisson(c x) / c, c = 500, 250, 100, 75, 50 photons at white.

  `jax.random.poisson` needs JAX's default PRNG.
  """
  photons = at(severity, [500, 250, 100, 75, 50])
  return jax.random.poisson(key, photons * image).astype(jnp.float32) / photons


@corruption
def impulse_noise(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Sets each value to 0 or 1, with equal odds, with probability 0.01, 0.02, 0.03, 0.05, 0.07."""
  key_hit, key_white = jax.random.split(key)
  hit = jax.random.bernoulli(key_hit, at(severity, [0.01, 0.02, 0.03, 0.05, 0.07]), image.shape)
  white = jax.random.bernoulli(key_white, 0.5, image.shape)
  return jnp.where(hit, white.astype(jnp.float32), image)
