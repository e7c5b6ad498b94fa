"""Estimates the remaining time of an ensemble of attacks from the times of its compiled calls."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import Attack


@dataclasses.dataclass
class Forecast:
  """Estimate of the seconds that are left, for the attack in work and those after it.

  The time of a step is unit * passes of the attack. The unit depends on the batch size and is
  measured. The first call of an attack at a size takes longer, because it compiles. For each later
  attack, the mean compilation time so far is added once.

  Broken and finished examples need no more steps. Examples in a batch are assumed to survive,
  because most examples that break do so in their first steps. Waiting examples are assumed to need
  the mean number of steps of the examples before them.

  Attributes:
    attacks: the attacks of the ensemble, in their order.
    sizes: the sizes of batches, from large to small.
    units: {batch size: measured seconds of one step for one pass}.
  """

  attacks: Sequence[Attack]
  sizes: Sequence[int]
  units: dict[int, float] = dataclasses.field(default_factory=dict)
  _first: dict[tuple[int, int], float | None] = dataclasses.field(default_factory=dict)
  _compilation: list[float] = dataclasses.field(default_factory=list)

  def measure(self, number: int, size: int, steps: int, seconds: float) -> None:
    """Records the time of a call.

    Args:
      number: position of the attack, from 0.
      size: examples of the batch.
      steps: steps of the call.
      seconds: the time that it took.
    """
    if (number, size) not in self._first:
      self._first[number, size] = seconds
      return
    if not steps:
      return
    self.units[size] = seconds / steps / self.attacks[number].passes
    first = self._first[number, size]
    if first is not None:  # once
      self._compilation.append(max(0.0, first - seconds))
      self._first[number, size] = None

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
    attack, occupied = self.attacks[number], len(call.left)
    whole = attack.num_runs * attack.num_steps
    entered = max(1, finished + occupied)
    share = (survived + occupied) / entered
    average = (steps + occupied * whole) / entered / whole
    if waiting:
      own = call.left.sum() / call.size * self._step(number, call.size)
    else:
      own = call.left.max(initial=0) * self._step(number, slots.fitting(self.sizes, occupied))
    own += self._whole(number, waiting * average)
    return float(own + self._after(number, earlier + survived + occupied + waiting * share))

  def _after(self, number: int, survivors: float) -> float:
    """Seconds of all later attacks on this many examples, if all stay robust."""
    if survivors < 0.5:
      return 0.0
    compilation = float(np.mean(self._compilation or [0.0]))
    return sum(
      compilation + self._whole(place, survivors) for place in range(number + 1, len(self.attacks))
    )

  def _whole(self, number: int, count: float) -> float:
    """Seconds of all steps of an attack on examples, in full batches and one for the rest."""
    attack, size = self.attacks[number], self.sizes[0]
    full, rest = divmod(round(count), size)
    seconds = full * self._step(number, size)
    if rest:
      seconds += self._step(number, slots.fitting(self.sizes, rest))
    return attack.num_runs * attack.num_steps * seconds

  def _step(self, number: int, size: int) -> float:
    """Seconds of a step. A size that was not measured is scaled from the nearest measured size."""
    nearest = min(self.units, key=lambda known: abs(np.log(known / size)))
    return self.attacks[number].passes * self.units[nearest] * size / nearest
