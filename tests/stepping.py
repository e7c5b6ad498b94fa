"""For tests that take training steps on the digits: models, configs, and the steps themselves."""

import functools

import flax.linen as nn
import jax
import numpy as np

from configs import default
from sprout_jax import data
from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax.data import order
from sprout_jax.launcher import configuration
from sprout_jax.training import parallel
from sprout_jax.training import state as state_lib
from sprout_jax.training import step as step_lib


class Linear(nn.Module):
  """Logits of a dense layer, or of one after batch norm."""

  use_norm: bool = False

  @nn.compact
  def __call__(self, images, train):
    x = images.reshape(len(images), -1)
    if self.use_norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return nn.Dense(10)(x)


class Mlp(nn.Module):
  """A smooth network without batch norm."""

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(10)(nn.gelu(nn.Dense(32)(images.reshape(len(images), -1))))


def make_config(overrides, method="sprout", variant="paper", penalty="none"):
  config = default.get_config(method, variant, penalty)
  config.batch_size = 16
  config.optimizer.schedule = "constant"
  config.update_from_flattened_dict(overrides)
  return config


def make_recipe(config, model, steps_per_epoch=80):
  return state_lib.make_recipe(
    config,
    model,
    methods.create(config.method.name, configuration.options(config.method)),
    methods.create_penalty(config.penalty.name, configuration.options(config.penalty)),
    10,
    steps_per_epoch,
  )


def minibatch(step=0, size=16):
  """The images [size, 8, 8, 1] and labels of a minibatch, as the steps below see it."""
  train = data.load("digits").train
  rows = order.batch_indices(0, step, 1, len(train.labels), size)[0]
  return train.images[rows], train.labels[rows]


def run_steps(config, model, num_steps=2, devices=1):
  """Trains on the digits; returns the recipe, the first and the last state, and the metrics."""
  dataset = data.load("digits")
  recipe = make_recipe(config, model)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  create = jax.jit(functools.partial(state_lib.create, recipe, dataset.image_shape))
  run = parallel.compile_steps(
    functools.partial(step_lib.train_step, recipe), mesh, config.parallelism, max_steps=4
  )
  first = jax.tree.map(np.asarray, create())
  images, labels = sharding.put(
    (dataset.train.images, dataset.train.labels), sharding.replicated(mesh)
  )
  rows = order.batch_indices(config.seed, 0, num_steps, len(labels), config.batch_size)
  state, history = run(sharding.put(first, sharding.replicated(mesh)), images, labels, rows)
  return (
    recipe,
    first,
    jax.tree.map(np.asarray, state),
    jax.tree.map(lambda values: np.asarray(values)[:num_steps], history),
  )


def model_step_keys(steps_per_batch=1, seed=0):
  """The (vicinity, attack) keys of each model step of the first minibatch."""
  key_model = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)[1]
  return [jax.random.split(key) for key in jax.random.split(key_model, steps_per_batch)]
