"""state: the recipe's parts belong together."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import stepping


@pytest.mark.parametrize(
  "method, overrides, updates",
  [
    ("natural", {}, 1),
    ("natural", {"optimizer.accumulate_steps": 3}, 1),
    ("free", {"method.replays": 4}, 4),
  ],
)
def test_the_rate_that_the_recipe_tells_is_the_one_that_its_optimizer_takes(
  method, overrides, updates
):
  """Plain gradient descent on a gradient of one moves a parameter by minus the learning rate."""
  config = stepping.make_config(
    {
      "num_epochs": 2,
      "optimizer.schedule": "cosine",
      "optimizer.warmup_epochs": 1.0,
      "optimizer.momentum": 0.0,
      "optimizer.weight_decay": 0.0,
      **overrides,
    },
    method,
  )
  recipe = stepping.make_recipe(config, stepping.Linear(), steps_per_epoch=6)
  assert recipe.method.steps_per_batch == updates
  value, state = jnp.float32(0), recipe.optimizer.init(jnp.float32(0))
  accumulate = config.optimizer.accumulate_steps
  for minibatch in range(12):
    moves = []
    for _ in range(updates):
      change, state = recipe.optimizer.update(jnp.float32(1), state, value)
      value, before = optax.apply_updates(value, change), value
      moves.append(float(before - value))
    if (minibatch + 1) % accumulate == 0:  # the last of those that make one update
      np.testing.assert_allclose(
        moves[0], float(recipe.learning_rate(minibatch)), rtol=1e-5, atol=1e-7
      )
