"""Which run of which example is in which slot.

An attack makes several runs (restarts or targets) of each example, one after the other, until one
breaks it. When no example waits, free slots take later runs of the examples in work. Of the runs
that break an example, the one with the smallest number counts. So if a later run breaks it, the
earlier runs still go on, and the outcome does not depend on the number of slots. If an earlier run
breaks it, the later runs were in vain and leave their slots at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ended(NamedTuple):
  """An example that is finished.

  Attributes:
    position: its position among all examples.
    broken: True where it is misclassified.
    steps: steps of its runs up to the one that broke it, or of all.
    image: adversarial image [height, width, channels]; None where it is not broken.
  """

  position: int
  broken: bool
  steps: int
  image: np.ndarray | None


@dataclasses.dataclass
class _Example:
  """An example in work.

  Attributes:
    limit: the first run that broke it, so that only the runs before it are awaited; if none did,
      the number of runs.
    begun: number of runs that are begun or over: 0, ..., begun - 1.
    over: the runs that ended without a success.
    steps: steps of the run that broke it.
    image: its adversarial image.
  """

  limit: int
  begun: int = 0
  over: set[int] = dataclasses.field(default_factory=set)
  steps: int = 0
  image: np.ndarray | None = None


class Schedule:
  """The slots of an attack, as host arrays.

  Attributes:
    example: int [slots], position of the example in each slot; -1: the slot is empty.
    run: int [slots], number of its run, from 0.
    fresh: bool [slots], True where a run begins, or where there was none yet.
  """

  def __init__(self, waiting: Sequence[int] | np.ndarray, slots: int, runs: int, steps: int):
    """Makes empty slots.

    Args:
      waiting: positions of the examples, in their order.
      slots: number of slots.
      runs: runs of an example.
      steps: steps of a run.
    """
    self.example = np.full(slots, -1)
    self.run = np.zeros(slots, np.int32)
    self.fresh = np.ones(slots, bool)
    self._queue = list(reversed(waiting))
    self._runs, self._steps = runs, steps
    self._work: dict[int, _Example] = {}

  @property
  def occupied(self) -> np.ndarray:
    """Bool [slots], True where the slot holds a run."""
    return self.example >= 0

  @property
  def waits(self) -> bool:
    """Whether an example waits."""
    return bool(self._queue)

  def begin_examples(self, size: int) -> None:
    """Gives the empty ones among the first `size` slots to waiting examples."""
    for slot in np.flatnonzero(~self.occupied[:size])[: len(self._queue)]:
      position = self._queue.pop()
      self._work[position] = _Example(self._runs)
      self._begin(int(slot), position)

  def begin_later_runs(self, size: int) -> None:
    """Gives the empty ones among the first `size` slots to later runs of examples in work."""
    able = {where: one for where, one in self._work.items() if one.begun < one.limit}
    for slot in np.flatnonzero(~self.occupied[:size]):
      if not able:
        return
      # The example with the fewest runs begun, so that all end at about the same time.
      position = min(able, key=lambda where: able[where].begun)
      self._begin(int(slot), position)
      if able[position].begun == able[position].limit:
        del able[position]

  def _begin(self, slot: int, position: int) -> None:
    one = self._work[position]
    self.example[slot], self.run[slot], self.fresh[slot] = position, one.begun, True
    one.begun += 1

  def keep(self, order: np.ndarray) -> None:
    """Moves the slots to a new order, or chosen ones to fewer slots."""
    self.example, self.run, self.fresh = self.example[order], self.run[order], self.fresh[order]

  def end_runs(self, broken: np.ndarray, step: np.ndarray, images: np.ndarray) -> list[Ended]:
    """Enters what the slots have become, empties those that are over, and finishes examples.

    Args:
      broken: bool [slots].
      step: int [slots], the steps of each run.
      images: float [slots, height, width, channels], read where a slot is broken.

    Returns:
      The examples that are finished, in the order of their slots.
    """
    changed = {}
    for slot in np.flatnonzero(self.occupied & (broken | (step >= self._steps))):
      position, run = int(self.example[slot]), int(self.run[slot])
      one = self._work[position]
      changed[position] = one
      if not broken[slot]:
        one.over.add(run)
      elif run < one.limit:
        # A copy: a view would keep the images of all slots.
        one.limit, one.steps, one.image = run, int(step[slot]), images[slot].copy()
      self.example[slot] = -1
    ended = []
    for position, one in changed.items():
      if one.limit < self._runs:  # later runs do not matter
        self.example[(self.example == position) & (self.run > one.limit)] = -1
      if all(run in one.over for run in range(one.limit)):
        is_broken = one.limit < self._runs
        ended.append(Ended(position, is_broken, one.limit * self._steps + one.steps, one.image))
        del self._work[position]
    for position in changed:
      # An example in work always has a slot: it takes one before others do.
      if position in self._work and not (self.example == position).any():
        self._begin(int(np.flatnonzero(~self.occupied)[0]), position)
    return ended

  def left(self, step: np.ndarray) -> np.ndarray:
    """Int [examples in work], the steps that each still has, over all its runs.

    Args:
      step: int [slots], the steps of each run; those of runs that begin do not count.
    """
    made = {
      position: self._steps * sum(run < one.limit for run in one.over)
      for position, one in self._work.items()
    }
    for slot in np.flatnonzero(self.occupied & ~self.fresh):
      made[int(self.example[slot])] += int(step[slot])
    return np.array(
      [self._work[position].limit * self._steps - steps for position, steps in made.items()], int
    )

  def longest(self, step: np.ndarray) -> int:
    """The most steps that a run in a slot still has; `step` as for `left`."""
    made = np.where(self.fresh, 0, step)[self.occupied]
    return int(self._steps - made.min(initial=self._steps))

  def runs(self) -> list[int]:
    """The first run of each example in work that is not over."""
    return [min(set(range(one.limit)) - one.over) for one in self._work.values()]
