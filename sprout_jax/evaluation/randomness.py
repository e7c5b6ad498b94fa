"""The random numbers of evaluations: derived from a seed and names, never from table positions."""

import zlib

import jax
import numpy as np


def root_key(seed: int) -> jax.Array:
  """Returns the root key of an evaluation: `fold_in(key(seed), 2^32 - 1)`.

  Training folds in its step, a smaller number, so that the two never share a key.
  """
  return jax.random.fold_in(jax.random.key(seed), 2**32 - 1)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """Returns the key of a name: `fold_in(key, crc32(name))`."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def choose(count: int, num_examples: int) -> np.ndarray:
  """Returns the fixed random choice of test images: their positions in the test set.

  Args:
    count: size of the test set.
    num_examples: number of images; 0 takes all, in order. A smaller choice is the beginning of a
      larger one.

  Returns:
    Int array [min(count, num_examples)].
  """
  if not num_examples or num_examples >= count:
    return np.arange(count)
  # RandomState: NumPy promises that its stream never changes.
  return np.random.RandomState(0).permutation(count)[:num_examples]
