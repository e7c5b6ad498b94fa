"""The runs of examples in slots: the outcome is that of one run after the other."""

import numpy as np
import pytest

from sprout_jax.attacks.schedule import Schedule

STEPS = 10


def drive(breaks_at, slots, sizes, chunk=3, runs=4):
  """Attacks examples that break as `breaks_at` says; returns their outcomes and the slot-steps.

  Args:
    breaks_at: {(example, run): step at which it breaks}.
    slots: number of slots.
    sizes: numbers of slots in use, from large to small.
    chunk: steps of a call.
    runs: runs of an example.
  """
  waiting = [3, 1, 4, 15, 9, 2, 6]
  schedule = Schedule(waiting, slots, runs, STEPS)
  step, found, cost, size = np.zeros(slots, int), {}, 0, sizes[0]
  for _ in range(1000):
    schedule.begin_examples(size)
    fitting = min(one for one in sizes if one >= schedule.occupied.sum())
    if not schedule.waits and fitting < size:
      order, size = np.argsort(~schedule.occupied, kind="stable"), fitting
      schedule.keep(order)
      step = step[order]
    schedule.begin_later_runs(size)
    assert not schedule.occupied[size:].any()
    if not schedule.occupied.any():
      break
    step[schedule.fresh] = 0
    schedule.fresh[:] = False
    taken = np.stack([schedule.example, schedule.run])[:, schedule.occupied]
    assert np.unique(taken, axis=1).shape == taken.shape  # no run is in two slots
    cost += size
    broken = np.zeros(slots, bool)
    for slot in np.flatnonzero(schedule.occupied):
      last = breaks_at.get((schedule.example[slot], schedule.run[slot]), STEPS + 1)
      step[slot] = min(step[slot] + chunk, STEPS, last)
      broken[slot] = step[slot] == last
    images = (100 * schedule.example + schedule.run)[:, None, None, None].astype(float)
    for ended in schedule.end_runs(broken, step, images):
      assert ended.position not in found
      found[ended.position] = ended
    left = schedule.left(step)
    assert len(left) == len(schedule.runs()) and (left > 0).all()
    for steps, first in zip(left, schedule.runs(), strict=True):
      assert steps <= (runs - first) * STEPS  # the runs before `first` are over
    assert schedule.longest(step) <= min(STEPS, left.max(initial=0))
  assert found.keys() == set(waiting)
  return found, cost


@pytest.mark.parametrize(
  "slots, sizes",
  [(1, [1]), (4, [4, 2]), (7, [7]), (8, [8, 6, 4, 2]), (32, [32, 16, 4])],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_first_run_that_breaks_an_example_counts(slots, sizes, seed):
  rng = np.random.default_rng(seed)
  breaks_at = {
    (example, run): int(rng.integers(1, STEPS + 1))
    for example in (3, 1, 4, 15)
    for run in range(4)
    if rng.random() < 0.4
  }
  found, _ = drive(breaks_at, slots, sizes)
  for example, ended in found.items():
    runs = [run for run in range(4) if (example, run) in breaks_at]
    assert ended.broken == bool(runs)
    if runs:
      assert ended.image.item() == 100 * example + runs[0]
      assert ended.steps == STEPS * runs[0] + breaks_at[example, runs[0]]
    else:
      assert ended.image is None and ended.steps == 4 * STEPS


def test_later_runs_fill_the_slots():
  """7 examples have 28 runs of 4 calls, which are 112 calls of one slot."""
  assert drive({}, 16, [16])[1] == 16 * 8  # two rounds of 4 calls
  assert drive({}, 1, [1])[1] == 112
  _, cost = drive({}, 8, [8, 4])
  assert cost <= 120
