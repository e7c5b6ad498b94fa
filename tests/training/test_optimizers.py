"""optimizers: schedules by hand, SGD with decay as PyTorch computes it, clipping, accumulation."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from sprout_jax.errors import UserError
from sprout_jax.training import optimizers


def optimizer_config(**changes):
  config = default.get_config().optimizer
  with config.unlocked():
    config.update(changes)
  return config


def test_piecewise_schedule_divides_at_its_epochs():
  shape = optimizers.schedule(
    optimizer_config(schedule="piecewise", boundaries=(2.0, 3.0), decay_factor=0.1), 10, 4
  )
  np.testing.assert_allclose(
    [shape(step) for step in (0, 19, 20, 21, 29, 31, 39)],
    [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01],
    rtol=1e-6,
  )


def test_cosine_schedule_ends_at_zero_and_warm_up_is_linear():
  shape = optimizers.schedule(optimizer_config(schedule="cosine", warmup_epochs=1.0), 10, 4)
  steps = np.array([0, 5, 10, 20, 40])
  expected = np.minimum(1, steps / 10) * (1 + np.cos(np.pi * steps / 40)) / 2
  np.testing.assert_allclose([shape(step) for step in steps], expected, atol=1e-6)


def test_schedule_counts_applied_updates():
  shape = optimizers.schedule(optimizer_config(schedule="cosine", accumulate_steps=5), 10, 4)
  assert shape(4) == pytest.approx(0.5) and shape(8) == pytest.approx(0, abs=1e-6)


def test_the_rate_is_the_peak_times_the_schedule():
  config = optimizer_config(learning_rate=0.3, schedule="piecewise", boundaries=(2.0,))
  rate = optimizers.learning_rate(config, 10, 4)
  np.testing.assert_allclose([rate(19), rate(20)], [0.3, 0.03], rtol=1e-6)


def run(optimizer, gradients, start):
  parameters, state, path = jnp.float32(start), optimizer.init(jnp.float32(start)), []
  for gradient in gradients:
    updates, state = optimizer.update(jnp.float32(gradient), state, parameters)
    parameters = optax.apply_updates(parameters, updates)
    path.append(float(parameters))
  return path


def test_sgd_is_pytorchs_with_coupled_decay():
  config = optimizer_config(momentum=0.9, weight_decay=0.01)
  got = run(optimizers.model_optimizer(config, lambda count: 0.1), [1.0, -2.0, 0.5], 3.0)
  value, velocity, expected = 3.0, 0.0, []
  for gradient in [1.0, -2.0, 0.5]:
    velocity = 0.9 * velocity + gradient + 0.01 * value
    value -= 0.1 * velocity
    expected.append(value)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_clipping_comes_before_decay_and_momentum():
  config = optimizer_config(momentum=0.0, weight_decay=0.1, gradient_clip=0.5)
  np.testing.assert_allclose(
    run(optimizers.model_optimizer(config, lambda count: 1.0), [100.0], 2.0), [2 - 0.5 - 0.2]
  )


def test_adamw_decay_is_decoupled():
  config = optimizer_config(name="adamw", weight_decay=0.5)
  got = run(optimizers.model_optimizer(config, lambda count: 0.1), [1e-3], 2.0)
  np.testing.assert_allclose(got, [2 - 0.1 * (1 + 0.5 * 2)], rtol=1e-4)


def test_accumulation_applies_the_mean_of_k():
  config = optimizer_config(momentum=0.0, weight_decay=0.0, accumulate_steps=2)
  optimizer = optimizers.model_optimizer(config, lambda count: 1.0)
  np.testing.assert_allclose(run(optimizer, [1.0, 3.0, 5.0, 5.0], 0.0), [0, -2, -2, -7])
  state = optimizer.init(jnp.float32(0))
  applied = []
  for _ in range(4):
    _, state = optimizer.update(jnp.float32(1), state, jnp.float32(0))
    applied.append(bool(optimizers.is_update_applied(state)))
  assert applied == [False, True, False, True]


def test_the_adversarys_rate_follows_the_schedule():
  sgd = lambda schedule: optax.sgd(lambda count: 2.0 * schedule(count), momentum=0.5)
  optimizer = optimizers.adversary_optimizer(
    optimizer_config(), sgd, lambda count: jnp.where(count < 1, 1.0, 0.1)
  )
  np.testing.assert_allclose(run(optimizer, [1.0, 1.0], 0.0), [-2, -2 - 0.2 * 1.5], rtol=1e-6)


def test_senseless_boundaries_are_errors():
  with pytest.raises(UserError, match="needs boundaries"):
    optimizers.check_schedule(optimizer_config(schedule="piecewise"), 10)
  with pytest.raises(UserError, match="ascending and between 0 and config.num_epochs, 10"):
    optimizers.check_schedule(optimizer_config(schedule="piecewise", boundaries=(11.0,)), 10)
