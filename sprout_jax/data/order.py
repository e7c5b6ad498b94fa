"""Which examples each training step sees: a pure function of (seed, step)."""

import numpy as np

from sprout_jax.errors import UserError


def batch_indices(seed, first_step, num_steps, num_examples, batch_size):
  """Returns the examples of steps first_step .. first_step + num_steps - 1.

  An epoch is num_examples // batch_size steps. Each epoch is a fresh shuffle without replacement,
  `np.random.RandomState([seed, epoch]).permutation(num_examples)`, whose last
  num_examples % batch_size entries are dropped. Nothing is remembered between calls, so a resumed
  run, or one asked for in other chunks, sees the same batches.

  Args:
    seed: integer >= 0.
    first_step: integer >= 0, counted from the start of training.
    num_steps: integer >= 0.
    num_examples: size of the training set.
    batch_size: examples in a step, over all devices; from 1 to num_examples.

  Returns:
    int32 [num_steps, batch_size], each in 0..num_examples-1.

  Raises:
    UserError: an argument is out of its range.
  """
  for what, value in (("seed", seed), ("first_step", first_step), ("num_steps", num_steps)):
    if value < 0:
      raise UserError(f"{what} is {value}; it must be 0 or more")
  if not 1 <= batch_size <= num_examples:
    raise UserError(
      f"batch_size is {batch_size} with {num_examples} training examples; it must be "
      f"from 1 to {num_examples}: choose a smaller batch or a larger training set"
    )
  per_epoch = num_examples // batch_size
  out = np.empty((num_steps, batch_size), np.int32)
  done = 0
  while done < num_steps:
    epoch, start = divmod(first_step + done, per_epoch)
    # RandomState: NumPy promises that its stream never changes.
    order = np.random.RandomState([seed, epoch]).permutation(num_examples)
    order = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
    rows = order[start : start + num_steps - done]
    out[done : done + len(rows)] = rows
    done += len(rows)
  return out
