"""Where an evaluation's random numbers come from: a seed and names, never a place in a table."""

import zlib

import jax
import numpy as np


def root_key(seed: int) -> jax.Array:
  """The root of an evaluation's random numbers. Training folds in small numbers, its steps."""
  return jax.random.fold_in(jax.random.key(seed), 2**32 - 1)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """A key for a name: `fold_in(key, crc32(name))`, the same wherever the name stands."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def choose(count: int, num_examples: int) -> np.ndarray:
  """The fixed random choice of test images: their positions, int [min(count, num_examples)].

  Args:
    count: size of the test set.
    num_examples: how many to choose; 0 takes all, in order. A smaller choice is the beginning of a
      larger one.
  """
  if not num_examples or num_examples >= count:
    return np.arange(count)
  # RandomState: NumPy promises that its stream never changes.
  return np.random.RandomState(0).permutation(count)[:num_examples]
