"""The training step: one step by hand in NumPy; the same on 1 and 8 devices, jit and pmap."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sprout_jax import data
from sprout_jax import models
from sprout_jax.data import order
from sprout_jax.training import step as step_lib
from tests.stepping import Linear
from tests.stepping import make_config
from tests.stepping import make_recipe
from tests.stepping import model_step_keys
from tests.stepping import run_steps

SPROUT = {"method.draw": "mean", "method.noise_stddev": 0.0, "method.mixup_alpha": 0.0}


def test_one_sprout_step_by_hand():
  """Loss, gradient norm, SGD with momentum and decay, beta's ascent and projection: in NumPy."""
  config = make_config(
    SPROUT
    | {
      "method.concentration": "released",
      "method.beta.learning_rate": 2.0,
      "method.beta.init": "ones",
      "method.beta.weight_decay": 0.1,
      "optimizer.learning_rate": 0.3,
      "ema_decay": 0.9,
    }
  )
  _, before, after, metrics = run_steps(config, Linear(), num_steps=1)
  dataset = data.load("digits")
  rows = order.batch_indices(0, 0, 1, len(dataset.train.labels), 16)[0]
  x = dataset.train.images[rows].reshape(16, 64).astype(np.float64)
  y = np.eye(10)[dataset.train.labels[rows]]
  kernel, bias = (before.params["Dense_0"][name].astype(np.float64) for name in ("kernel", "bias"))
  beta = np.ones(10)
  log_p = scipy.special.log_softmax(x @ kernel + bias, axis=-1)
  concentration = 10 * y + beta
  soft = concentration / concentration.sum(-1, keepdims=True)
  loss = -(soft * log_p).sum(-1)
  d_logits = (np.exp(log_p) - soft) / 16
  d_kernel, d_bias = x.T @ d_logits, d_logits.sum(0)
  # d/d beta_k of -sum_j c_j log p_j / sum(c) = (-log p_k - loss) / sum(c).
  d_beta = ((-log_p - loss[:, None]) / concentration.sum(-1, keepdims=True)).mean(0)
  np.testing.assert_allclose(metrics["loss"], [loss.mean()], rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], [(log_p.argmax(-1) == y.argmax(-1)).mean()])
  np.testing.assert_allclose(
    metrics["grad_norm"], [np.sqrt((d_kernel**2).sum() + (d_bias**2).sum())], rtol=1e-4
  )
  new_kernel = kernel - 0.3 * (d_kernel + 5e-4 * kernel)
  np.testing.assert_allclose(after.params["Dense_0"]["kernel"], new_kernel, atol=1e-6)
  expected_beta = np.maximum(beta + 2.0 * (d_beta - 0.1 * beta), 1e-3)
  np.testing.assert_allclose(after.adversary["beta"], expected_beta, rtol=1e-4)
  assert expected_beta.max() - expected_beta.min() > 0.01
  np.testing.assert_allclose(
    after.ema["params"]["Dense_0"]["kernel"], 0.9 * kernel + 0.1 * new_kernel, atol=1e-6
  )
  assert after.step == 1


def test_beta_stays_at_the_minimum():
  config = make_config(
    SPROUT
    | {
      "method.beta.learning_rate": 0.5,
      "method.beta.weight_decay": 1.0,
      "method.beta.minimum": 0.25,
    }
  )
  _, _, after, _ = run_steps(config, Linear(), num_steps=3)
  assert after.adversary["beta"].min() == 0.25


@pytest.mark.parametrize(
  "method, variant", [("natural", "paper"), ("sprout", "paper"), ("sprout", "released")]
)
def test_devices_and_parallelism_do_not_matter(method, variant):
  """1 device = 8 devices, jit = pmap, with crops, flips, noise, pairs and labels drawn."""
  overrides = {"dataset.crop_padding": 1, "dataset.flip": True, "ema_decay": 0.9}
  model = models.create("small_cnn", num_classes=10, image_shape=(8, 8, 1))
  states = {}
  for parallelism, devices in (("jit", 1), ("jit", 8), ("pmap", 8)):
    config = make_config(overrides | {"parallelism": parallelism}, method, variant)
    _, first, states[parallelism, devices], _ = run_steps(config, model, devices=devices)
  chex.assert_trees_all_close(states["jit", 1], states["jit", 8], atol=2e-5)
  chex.assert_trees_all_close(states["jit", 1], states["pmap", 8], atol=2e-5)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, states["jit", 1].params)
  assert min(jax.tree.leaves(moved)) > 1e-3


def test_batch_norm_sees_the_whole_batch_under_jit_and_the_devices_part_under_pmap():
  states = {}
  for parallelism, devices in (("jit", 1), ("jit", 8), ("pmap", 8)):
    config = make_config({"parallelism": parallelism}, "natural")
    _, _, states[parallelism, devices], _ = run_steps(config, Linear(True), 1, devices)
  chex.assert_trees_all_close(states["jit", 1], states["jit", 8], atol=2e-5)
  stats, per_device = (states[key].batch_stats["BatchNorm_0"] for key in (("jit", 1), ("pmap", 8)))
  dataset = data.load("digits")
  x = dataset.train.images[order.batch_indices(0, 0, 1, 1347, 16)[0]].reshape(16, 64)
  np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), atol=1e-6)
  np.testing.assert_allclose(per_device["mean"], stats["mean"], atol=1e-6)  # means average exactly
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0), atol=1e-5)
  np.testing.assert_allclose(
    per_device["var"], 0.9 + 0.1 * x.reshape(8, 2, 64).var(1).mean(0), atol=1e-5
  )


def test_accumulated_steps_equal_one_large_batch():
  large = run_steps(make_config(SPROUT | {"batch_size": 64}), Linear(), num_steps=1)[2]
  small = run_steps(
    make_config(SPROUT | {"optimizer.accumulate_steps": 4, "ema_decay": 0.5}), Linear(), num_steps=4
  )[2]
  chex.assert_trees_all_close(large.params, small.params, atol=1e-6)
  chex.assert_trees_all_close(large.adversary, small.adversary, atol=1e-6)
  three = run_steps(
    make_config(SPROUT | {"optimizer.accumulate_steps": 4, "ema_decay": 0.5}), Linear(), num_steps=3
  )
  chex.assert_trees_all_equal(three[1].params, three[2].params)  # not applied yet
  chex.assert_trees_all_close(  # one applied update: halfway between the two
    small.ema["params"],
    jax.tree.map(lambda a, b: (a + b) / 2, three[1].params, small.params),
    atol=1e-6,
  )


def test_several_steps_per_batch_and_the_clean_batch_of_the_released_variant():
  """Three model steps on one minibatch; beta ascends on the clean batch with the updated model."""
  released = make_config(
    {"method.noise_stddev": 0.0, "method.mixup_alpha": 0.0, "method.draw": "mean"},
    variant="released",
  )
  recipe, before, after, _ = run_steps(released, Linear(), num_steps=1)
  single = make_config(
    SPROUT
    | {
      "method.concentration": "released",
      "method.beta.init": "ones",
      "method.beta.learning_rate": 0.0,
    }
  )
  one_step = run_steps(single, Linear(), num_steps=1)[0]
  dataset = data.load("digits")
  rows = order.batch_indices(0, 0, 1, len(dataset.train.labels), 16)[0]
  state = jax.tree.map(jnp.asarray, before)
  step = jax.jit(
    functools.partial(step_lib.train_step, one_step, shard=lambda x: x, mean=lambda x: x)
  )
  for _ in range(3):
    state, _ = step(
      state.replace(step=jnp.int32(0)), dataset.train.images[rows], dataset.train.labels[rows]
    )
  chex.assert_trees_all_close(state.params, after.params, atol=1e-6)

  logits = Linear().apply({"params": after.params}, dataset.train.images[rows], train=True)
  log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  soft = (10 * np.eye(10)[dataset.train.labels[rows]] + 1) / 20
  loss = -(soft * log_p).sum(-1, keepdims=True)
  d_beta = ((-log_p - loss) / 20).mean(0)
  np.testing.assert_allclose(after.adversary["beta"], 1 + 0.01 * (d_beta - 5e-4), rtol=1e-5)


def test_the_schedule_counts_minibatches_whatever_the_steps_per_batch():
  """released takes three model steps a minibatch; both rates fall with the share of the run."""
  config = make_config(
    {
      "optimizer.schedule": "cosine",
      "num_epochs": 1,
      "optimizer.momentum": 0.0,
      "optimizer.weight_decay": 0.0,
      "optimizer.learning_rate": 1.0,
      "method.beta.momentum": 0.0,
      "method.beta.weight_decay": 0.0,
      "method.beta.learning_rate": 1.0,
    },
    variant="released",
  )
  recipe = make_recipe(config, Linear())
  for optimizer, calls_per_batch in ((recipe.optimizer, 3), (recipe.adversary_optimizer, 1)):
    state, rates = optimizer.init(jnp.float32(0)), []
    for _ in range(80 * calls_per_batch):
      update, state = optimizer.update(jnp.float32(1), state, jnp.float32(0))
      rates.append(-float(update))
    share = np.arange(80 * calls_per_batch) / (80 * calls_per_batch)
    np.testing.assert_allclose(rates, (1 + np.cos(np.pi * share)) / 2, atol=1e-5)


def test_every_step_of_a_minibatch_has_fresh_draws():
  """With a rate of (almost) zero, the running mean of noisy inputs tells the passes apart."""
  config = make_config(
    {
      "method.noise_stddev": 0.5,
      "method.mixup_alpha": 0.0,
      "ema_decay": 0.9,
      "optimizer.learning_rate": 1e-12,
    },
    variant="released",
  )
  recipe, before, after, _ = run_steps(config, Linear(True), num_steps=1)
  rows = order.batch_indices(0, 0, 1, 1347, 16)[0]
  images = data.load("digits").train.images[rows]
  keys = [key for key, _ in model_step_keys(3)]
  passes = [
    np.asarray(recipe.method.vicinity(k, images, jnp.eye(16, 10), before.adversary)[0]).reshape(
      16, 64
    )
    for k in keys
  ]
  passes.append(images.reshape(16, 64))  # beta's pass: the clean batch, and the norm sees it too
  mean, variance, ema = np.zeros(64), np.ones(64), np.zeros(64)
  for number, x in enumerate(passes):
    mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0)
    ema = 0.9 * ema + 0.1 * mean if number < 3 else ema
  np.testing.assert_allclose(after.batch_stats["BatchNorm_0"]["mean"], mean, atol=1e-5)
  np.testing.assert_allclose(after.batch_stats["BatchNorm_0"]["var"], variance, atol=1e-5)
  np.testing.assert_allclose(after.ema["batch_stats"]["BatchNorm_0"]["mean"], ema, atol=1e-5)


def test_the_seed_and_the_step_determine_the_randomness():
  config = make_config({})
  one, two = (run_steps(config, Linear())[2] for _ in range(2))
  chex.assert_trees_all_equal(one, two)
  other = run_steps(make_config({"seed": 1}), Linear())[2]
  assert not np.allclose(one.adversary["beta"], other.adversary["beta"])
  step, labels = jnp.int32(0), jnp.zeros(16, jnp.int32)
  recipe, first, _, _ = run_steps(config, Linear())
  one_step = jax.jit(
    functools.partial(step_lib.train_step, recipe, shard=lambda x: x, mean=lambda x: x)
  )
  outcomes = [
    one_step(
      jax.tree.map(jnp.asarray, first).replace(step=step + k), jnp.full((16, 8, 8, 1), 0.5), labels
    )[1]["loss"]
    for k in (0, 1)
  ]
  assert outcomes[0] != outcomes[1]


def test_bfloat16_computes_but_keeps_float32_state():
  model = models.create("small_cnn", num_classes=10, image_shape=(8, 8, 1), dtype="bfloat16")
  _, _, after, metrics = run_steps(make_config({}), model)
  assert {leaf.dtype.name for leaf in jax.tree.leaves((after.params, after.opt_state))} <= {
    "float32",
    "int32",
  }
  assert np.isfinite(metrics["loss"]).all()
