"""The time that AutoAttack says it still takes, under a clock that counts passes."""

import jax
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.attacks import ensemble
from sprout_jax.attacks import slots
from tests.attacks.test_auto_attack import KEY
from tests.attacks.test_auto_attack import interior
from tests.attacks.test_auto_attack import linear_model

COMPILATION = 3.0  # seconds of the first call of each attack at each size


@pytest.fixture
def clock(monkeypatch):
  """A clock that a call moves by the passes of its batch, and by a compilation."""
  now, compiled = [0.0], set()
  attack_examples = slots.attack_examples

  def timed(attack, *args):
    for call in attack_examples(attack, *args):
      is_new = (attack, call.size) not in compiled
      compiled.add((attack, call.size))
      now[0] += call.steps * attack.passes * call.size**0.8 / 1000 + COMPILATION * is_new
      yield call

  monkeypatch.setattr(slots, "attack_examples", timed)
  monkeypatch.setattr(ensemble, "clock", lambda: now[0])
  return now


@pytest.mark.parametrize("epsilon", [0.001, 0.003, 0.005, 0.007])
def test_after_a_tenth_the_time_left_is_within_a_factor(clock, epsilon):
  """Where few and where most images survive; with images that wait and without."""
  _, predict = linear_model()
  images, labels = interior(90, predict)
  seen = []
  result = attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    epsilon=epsilon,
    batch_size=32,
    devices=jax.devices()[:1],
    on_progress=lambda now: seen.append((clock[0], now.seconds_left)),
  )
  end = clock[0]
  late = [(now, left) for now, left in seen if end / 10 < now < 0.98 * end]
  ratios = np.array([left / (end - now) for now, left in late])
  assert len(late) > 100 and 5 < result.robust.sum() < 80
  assert ratios.min() > 1 / 1.5 and ratios.max() < 1.5, (ratios.min(), ratios.max())
  assert seen[-1][1] == 0


def test_before_a_second_call_nothing_is_known(clock):
  _, predict = linear_model()
  images, labels = interior(20, predict)
  seen = []
  attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    epsilon=0.001,
    version="apgd-ce",
    batch_size=32,
    devices=jax.devices()[:1],
    on_progress=seen.append,
  )
  assert seen[0].seconds_left is None and "left ?" in str(seen[0])
  assert seen[1].seconds_left is not None
