"""Estimates the remaining time of an ensemble of attacks from the times of its compiled calls."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import Attack


@dataclasses.dataclass
class Forecast:
  """Estimate of the seconds that are left, for the attack in work and those after it.

  The time of a step is unit * passes of the attack. The unit depends on the number of slots and is
  measured. The first call of a program takes longer, because it compiles. For each later attack,
  the mean compilation time so far is added once.

  Broken and finished examples need no more steps. Examples in work are assumed to survive, because
  most examples that break do so in their first steps. Waiting examples are assumed to need the mean
  number of steps of the examples before them.

  Attributes:
    attacks: each attack of the ensemble with its numbers of slots, from large to small; in order.
    units: {number of slots: measured seconds of one step for one pass}.
  """

  attacks: Sequence[tuple[Attack, Sequence[int]]]
  units: dict[int, float] = dataclasses.field(default_factory=dict)
  _first: dict[tuple[int, int], float | None] = dataclasses.field(default_factory=dict)
  _compilation: list[float] = dataclasses.field(default_factory=list)

  def measure(self, number: int, call: slots.Call, seconds: float) -> None:
    """Records the time of a call.

    Args:
      number: position of the attack, from 0.
      call: the call.
      seconds: the time that it took.
    """
    program = number, call.width
    if program not in self._first:
      self._first[program] = seconds
      return
    if not call.steps:
      return
    self.units[call.size] = seconds / call.steps / self.attacks[number][0].passes
    first = self._first[program]
    if first is not None:  # once
      self._compilation.append(max(0.0, first - seconds))
      self._first[program] = None

  def left(
    self,
    number: int,
    call: slots.Call,
    waiting: int,
    finished: int,
    survived: int,
    steps: int,
    earlier: int = 0,
  ) -> float | None:
    """The seconds that are left; None where no call was measured.

    Args:
      number: position of the attack in work, from 0.
      call: its last call.
      waiting: examples that wait for it.
      finished: examples that the attack has finished.
      survived: finished examples that are still robust.
      steps: total steps of the finished examples.
      earlier: examples that this attack left robust before an interruption.
    """
    if not self.units:
      return None
    attack, _ = self.attacks[number]
    in_work = len(call.left)
    whole = attack.num_runs * attack.num_steps
    entered = max(1, finished + in_work)
    share = (survived + in_work) / entered
    average = (steps + in_work * whole) / entered / whole
    if waiting:
      own = call.left.sum() / call.size * self._step(number, call.size)
    else:
      runs = -(-call.left.sum() // attack.num_steps)  # each needs about one slot
      own = self._together(number, min(runs, call.size), call.left.sum(), call.longest)
    own += self._whole(number, waiting * average)
    return float(own + self._after(number, earlier + survived + in_work + waiting * share))

  def _after(self, number: int, survivors: float) -> float:
    """Seconds of all later attacks on this many examples, if all stay robust."""
    if survivors < 0.5:
      return 0.0
    compilation = float(np.mean(self._compilation or [0.0]))
    return sum(
      compilation + self._whole(place, survivors) for place in range(number + 1, len(self.attacks))
    )

  def _whole(self, number: int, count: float) -> float:
    """Seconds of all steps of an attack on examples, in full slots and fewer for the rest."""
    attack, sizes = self.attacks[number]
    whole = attack.num_runs * attack.num_steps
    full, rest = divmod(round(count), sizes[0])
    seconds = full * whole * self._step(number, sizes[0])
    longest = attack.num_steps if rest else 0
    return seconds + self._together(number, rest, rest * whole, longest)

  def _together(self, number: int, count: int, total: float, longest: float) -> float:
    """Seconds of examples none of which waits; later runs fill the free slots.

    Args:
      number: position of the attack, from 0.
      count: number of slots that are needed.
      total: steps of all runs.
      longest: the most steps of one run.
    """
    size = slots.fitting(self.attacks[number][1], count)
    return max(total / size, longest) * self._step(number, size)

  def _step(self, number: int, size: int) -> float:
    """Seconds of a step. A size that was not measured is scaled from the nearest measured size."""
    nearest = min(self.units, key=lambda known: abs(np.log(known / size)))
    return self.attacks[number][0].passes * self.units[nearest] * size / nearest
