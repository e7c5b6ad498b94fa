"""batch_indices: coverage, replay, chunking and its errors."""

import numpy as np
import pytest

from sprout_jax.data.order import batch_indices
from sprout_jax.errors import UserError


def test_every_epoch_is_a_shuffle_without_replacement():
  batches = batch_indices(3, 0, 9, num_examples=12, batch_size=4)
  assert batches.shape == (9, 4) and batches.dtype == np.int32
  epochs = batches.reshape(3, 12)
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(epoch) for epoch in epochs}) == 3  # each its own shuffle


def test_remainder_of_the_epoch_is_dropped():
  epochs = batch_indices(0, 0, 6, num_examples=11, batch_size=3).reshape(2, 9)
  for epoch in epochs:
    assert len(set(epoch)) == 9 and epoch.min() >= 0 and epoch.max() <= 10
  # What is left out differs from epoch to epoch: nothing is lost for good.
  assert set(epochs[0]) != set(epochs[1])


def test_is_the_documented_permutation():
  order = np.random.RandomState([5, 2]).permutation(10)  # epoch 2 begins at step 2 * 3
  np.testing.assert_array_equal(batch_indices(5, 6, 3, 10, 3), order[:9].reshape(3, 3))


def test_resumed_and_chunked_runs_replay():
  whole = batch_indices(7, 0, 25, num_examples=10, batch_size=3)
  for first, count in ((0, 1), (2, 2), (5, 13), (24, 1), (25, 0)):
    np.testing.assert_array_equal(
      batch_indices(7, first, count, 10, 3), whole[first : first + count]
    )
  assert not np.array_equal(batch_indices(8, 0, 25, 10, 3), whole)


def test_far_steps_need_no_walk_from_the_start():
  assert batch_indices(0, 10**9, 2, 50, 50).shape == (2, 50)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      (0, 0, 1, 10, 11),
      "batch_size is 11; it must be from 1 to 10, the number of training examples",
    ),
    ((0, 0, 1, 10, 0), "batch_size is 0"),
    ((-1, 0, 1, 10, 5), "seed is -1"),
    ((0, -1, 1, 10, 5), "first_step is -1"),
    ((0, 0, -2, 10, 5), "num_steps is -2"),
  ],
)
def test_errors(arguments, message):
  with pytest.raises(UserError, match=message):
    batch_indices(*arguments)
