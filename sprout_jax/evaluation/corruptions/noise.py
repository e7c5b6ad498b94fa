"""Noise: Gaussian, shot, impulse."""

import jax
import jax.numpy as jnp

from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption


@corruption
def gaussian_noise(key, image, severity):
  """x + c n, n ~ N(0, 1) for every pixel and channel; c = 0.04, 0.06, 0.08, 0.09, 0.1."""
  return image + at(severity, [0.04, 0.06, 0.08, 0.09, 0.10]) * jax.random.normal(key, image.shape)


@corruption
def shot_noise(key, image, severity):
  """Poisson(c x) / c, c = 500, 250, 100, 75, 50 photons at white; needs JAX's default PRNG."""
  photons = at(severity, [500, 250, 100, 75, 50])
  return jax.random.poisson(key, photons * image).astype(jnp.float32) / photons


@corruption
def impulse_noise(key, image, severity):
  """Each value becomes 0 or 1 (even odds) with probability 0.01, 0.02, 0.03, 0.05, 0.07."""
  key_hit, key_white = jax.random.split(key)
  hit = jax.random.bernoulli(key_hit, at(severity, [0.01, 0.02, 0.03, 0.05, 0.07]), image.shape)
  white = jax.random.bernoulli(key_white, 0.5, image.shape)
  return jnp.where(hit, white.astype(jnp.float32), image)
