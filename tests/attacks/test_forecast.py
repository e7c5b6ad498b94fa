"""AutoAttack's estimate of its remaining time, tested with a clock that counts passes."""

import types

import jax
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.attacks import ensemble
from sprout_jax.attacks import slots
from sprout_jax.attacks.forecast import Forecast
from tests.attacks.test_auto_attack import KEY
from tests.attacks.test_auto_attack import interior
from tests.attacks.test_auto_attack import linear_model

COMPILATION = 3.0  # seconds of the first call of each program


@pytest.fixture
def clock(monkeypatch):
  """A clock that a call moves by the passes of its slots, and by a compilation."""
  now, compiled = [0.0], set()
  attack_examples = slots.attack_examples

  def timed(attack, *args):
    for call in attack_examples(attack, *args):
      is_new = (attack, call.width) not in compiled
      compiled.add((attack, call.width))
      now[0] += call.steps * attack.passes * call.size**0.8 / 1000 + COMPILATION * is_new
      yield call

  monkeypatch.setattr(slots, "attack_examples", timed)
  monkeypatch.setattr(ensemble, "clock", lambda: now[0])
  return now


@pytest.mark.parametrize("epsilon", [0.001, 0.003, 0.005, 0.007])
def test_after_a_tenth_the_time_left_is_within_a_factor(clock, epsilon):
  """With few and many survivors, and with and without waiting images."""
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


def test_after_an_interruption_the_survivors_before_it_count(clock, tmp_path):
  """Nearly all images survive and are done when the call is stopped: the later attacks remain."""
  _, predict = linear_model()
  images, labels = interior(90, predict)
  options = dict(
    epsilon=0.001,
    batch_size=32,
    devices=jax.devices()[:1],
    state_file=tmp_path / "state.npz",
    save_seconds=0.0,
  )

  class Stop(Exception):
    pass

  def stop(now):
    if now.attack == "apgd-t" and now.done > 60:
      raise Stop

  with pytest.raises(Stop):
    attacks.auto_attack(KEY, predict, images, labels, on_progress=stop, **options)
  seen = []
  record = lambda now: seen.append((clock[0], now.seconds_left))
  attacks.auto_attack(KEY, predict, images, labels, on_progress=record, **options)
  ratios = [left / (clock[0] - now) for now, left in seen[3:] if clock[0] - now > 1]
  assert min(ratios) > 1 / 1.5 and max(ratios) < 1.5


def test_a_call_that_ends_early_measures_no_step():
  attack = types.SimpleNamespace(passes=3, num_runs=1, num_steps=100)
  forecast = Forecast([(attack, [32, 8])] * 2)
  call = slots.Call([], [0], 0.5, 32, 32, 10, np.array([50]), 50)
  forecast.measure(0, call, 0.0)
  forecast.measure(0, call, 30.0)
  forecast.measure(0, call._replace(steps=0), 1.0)
  assert forecast.units == {32: 1.0}
  assert forecast.left(0, call, 0, 0, 0, 0) == 50 * 3 * 8 / 32 + 100 * 3 * 8 / 32


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
