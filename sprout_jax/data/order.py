"""The order of the training examples, a pure function of seed and step."""

import functools

import numpy as np

from sprout_jax.errors import UserError


def batch_indices(
  seed: int, first_step: int, num_steps: int, num_examples: int, batch_size: int
) -> np.ndarray:
  """Returns the examples of the steps first_step, ..., first_step + num_steps - 1.

  An epoch has num_examples // batch_size steps. Each epoch has a new permutation,
  `np.random.RandomState([seed, epoch]).permutation(num_examples)`, whose last
  num_examples % batch_size entries are dropped. The function has no state, so a resumed run, or
  calls of other lengths, give the same batches.

  Args:
    seed: integer >= 0.
    first_step: integer >= 0, counted from the start of training.
    num_steps: integer >= 0.
    num_examples: size of the training set.
    batch_size: examples per step, over all devices; from 1 to num_examples.

  Returns:
    int32 [num_steps, batch_size], entries from 0 to num_examples - 1.

  Raises:
    UserError: an argument is out of range.
  """
  check(seed, first_step, num_steps, num_examples, batch_size)
  per_epoch = num_examples // batch_size
  out = np.empty((num_steps, batch_size), np.int32)
  done = 0
  while done < num_steps:
    epoch, start = divmod(first_step + done, per_epoch)
    order = of_epoch(seed, epoch, num_examples)
    order = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
    rows = order[start : start + num_steps - done]
    out[done : done + len(rows)] = rows
    done += len(rows)
  return out


def check(seed: int, first_step: int, num_steps: int, num_examples: int, batch_size: int) -> None:
  """Raises UserError unless `batch_indices` can take these arguments."""
  for what, value in (("seed", seed), ("first_step", first_step), ("num_steps", num_steps)):
    if value < 0:
      raise UserError(f"{what} is {value}; it must be at least 0")
  if not 1 <= batch_size <= num_examples:
    raise UserError(
      f"batch_size is {batch_size}; it must be from 1 to {num_examples}, the number of training "
      "examples: choose a smaller batch or a larger training set"
    )


@functools.lru_cache(maxsize=2)  # a stream asks for each example; two epochs can be in work
def of_epoch(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """Returns the permutation of an epoch, int [num_examples]; it cannot be written to."""
  # RandomState, because NumPy promises that its stream never changes.
  order = np.random.RandomState([seed, epoch]).permutation(num_examples)
  order.flags.writeable = False
  return order
