"""Two processes with four devices in all train and measure what one with four does."""

import pytest

from benchmarks import processes

WAYS = ("shard_map", "streamed jit", "split")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("processes")
  _, found = processes.compare((1, 2), workdir, "gaussian", WAYS, ["pgd"])
  return found


@pytest.mark.parametrize("way", [*WAYS, "continued"])
def test_two_processes_train_like_one(two, way):
  """Up to rounding: the sum over the devices has another order."""
  assert two.differences[way] < 2e-5
  assert two.agree[way]


def test_two_processes_read_every_example_of_an_epoch_once(two):
  assert two.reads == {"streamed jit": [1]}


def test_two_processes_measure_what_one_measures(two):
  assert two.different == [] and two.outcomes == 180
