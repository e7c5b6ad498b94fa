"""Streamed minibatches give the training of those in memory; parameters split over devices too."""

import contextlib
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits as config_file
from sprout_jax import data
from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax.data import order
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.training import checkpoints
from sprout_jax.training import feed
from sprout_jax.training import loop
from sprout_jax.training import parallel
from sprout_jax.training import state as state_lib
from sprout_jax.training import step as step_lib
from tests import stepping


class Examples:
  """The digits as a streamed set."""

  image_shape = (8, 8, 1)

  def __init__(self):
    self.train = data.load("digits").train
    self.asked, self.closed = [], 0

  def __len__(self):
    return len(self.train.labels)

  def batches(self, seed, first_step, last_step, batch_size, rows):
    self.asked.append((first_step, last_step))
    try:
      for step in range(first_step, last_step):
        chosen = order.batch_indices(seed, step, 1, len(self), batch_size)[0][rows]
        yield self.train.images[chosen], self.train.labels[chosen]
    finally:
      self.closed += 1


def setting(devices=1, shards=1, method="natural", model=None, **overrides):
  """(recipe, step function, config, mesh, shardings of the state)."""
  config = stepping.make_config({"parameter_shards": shards, "log_every": 4} | overrides, method)
  recipe = stepping.make_recipe(config, model or stepping.Mlp())
  mesh = sharding.make_mesh(jax.devices()[:devices], shards)
  shapes = jax.eval_shape(lambda: state_lib.create(recipe, (8, 8, 1)))
  step_fn = functools.partial(step_lib.train_step, recipe)
  return recipe, step_fn, config, mesh, sharding.of_state(mesh, shapes)


def train(examples, num_steps=3, **options):
  """Trains from the initial state; returns it, the metrics of the steps, and the feed."""
  recipe, step_fn, config, mesh, placed = setting(**options)
  state = jax.jit(lambda: state_lib.create(recipe, (8, 8, 1)), out_shardings=placed)()
  found = feed.create(step_fn, config, examples, mesh, placed, last_step=num_steps)
  state, history = found.run(state, 0, num_steps)
  found.close()
  return state, {name: np.stack(values)[:num_steps] for name, values in history.items()}


def in_memory():
  return data.load("digits").train


class Wide(nn.Module):
  """A network with a layer that is large enough to be split."""

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(10)(nn.gelu(nn.Dense(128)(images.reshape(len(images), -1))))


# Crops, flips, noise, pairs and labels are drawn for the whole minibatch.
DRAWN = {
  "method": "sprout",
  "method.draw": "mean",
  "dataset.crop_padding": 1,
  "dataset.flip": True,
  "ema_decay": 0.9,
  "model": Wide(),
}


@pytest.fixture(scope="module")
def expected():
  """What one device trains from the digits in memory."""
  return train(in_memory(), **DRAWN)


@pytest.mark.parametrize("devices", [1, 8])
def test_streamed_training_is_that_in_memory(expected, devices):
  chex.assert_trees_all_close(train(Examples(), devices=devices, **DRAWN), expected, atol=2e-5)


def test_programs_per_device_average_their_gradients():
  """Without draws, the mean of eight gradients is the gradient of the whole minibatch."""
  expected, _ = train(in_memory())
  found, _ = train(Examples(), devices=8, parallelism="shard_map")
  chex.assert_trees_all_close(found, expected, atol=2e-5)


def test_each_program_gets_its_rows_and_its_number():
  def step_fn(state, images, labels, *, shard, mean, part):
    assert shard(images) is images
    return state, {"seen": jnp.zeros((8, 2)).at[part].set(labels), "mean": mean(part)}

  mesh = sharding.make_mesh(jax.devices()[:8])
  step = parallel.compile_streamed_step(step_fn, mesh, "shard_map")
  rows = np.arange(16)
  # An output is that of one device: of the first, unless it was averaged.
  _, found = step({}, *sharding.put_local((rows, rows), mesh))
  assert found["mean"] == 3.5
  for shard in found["seen"].addressable_shards:
    number = list(mesh.devices.flat).index(shard.device)
    assert shard.data[number].tolist() == [2 * number, 2 * number + 1]


def test_each_program_draws_other_noise():
  def losses(method):
    recipe = setting(method=method)[0]
    state = state_lib.create(recipe, (8, 8, 1))
    run = jax.jit(
      lambda part: step_lib.train_step(
        recipe, state, *stepping.minibatch(), shard=lambda x: x, mean=lambda x: x, part=part
      )[1]["loss"]
    )
    return {float(run(part)) for part in range(4)}

  assert len(losses("gaussian")) == 4
  assert len(losses("natural")) == 1


def test_shard_map_is_pmap():
  states = [
    train(in_memory(), devices=8, method="gaussian", model=stepping.Linear(True), parallelism=name)
    for name in ("shard_map", "pmap")
  ]
  chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("examples", [in_memory, Examples])
def test_split_parameters_train_like_whole_ones(expected, examples):
  state, metrics = train(examples(), devices=8, shards=4, **DRAWN)
  chex.assert_trees_all_close((state, metrics), expected, atol=2e-5)
  pairs = [
    (leaf.size, leaf.addressable_shards[0].data.size) for leaf in jax.tree.leaves(state.params)
  ]
  assert {whole // part for whole, part in pairs if whole >= sharding.SMALLEST_SPLIT} == {4}
  assert {whole // part for whole, part in pairs if whole < sharding.SMALLEST_SPLIT} == {1}
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size >= 2**12]
  assert moments and all(leaf.addressable_shards[0].data.size * 4 == leaf.size for leaf in moments)


def test_a_state_is_read_on_any_number_of_devices(tmp_path):
  state, _ = train(in_memory(), 1, devices=8, shards=4, model=Wide())
  with contextlib.closing(checkpoints.Checkpoints(tmp_path, 1)) as saved:
    saved.save(sharding.gather(state))
    saved.wait()
    for devices, shards in ((1, 1), (2, 2), (8, 1), (8, 8)):
      _, _, _, mesh, placed = setting(devices, shards, model=Wide())
      abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        placed,
      )
      found = saved.restore_latest(abstract)
      chex.assert_trees_all_equal(found, state)
      assert jax.tree.map(lambda leaf: leaf.sharding, found) == placed


def test_rows_of_a_process():
  mesh = sharding.make_mesh(jax.devices()[:4], 2)
  assert sharding.local_rows(mesh, 8).tolist() == list(range(8))  # one process has all devices
  placed = sharding.put_local(np.arange(8), mesh)
  assert [shard.data.tolist() for shard in placed.addressable_shards] == [
    [0, 1],
    [2, 3],
    [4, 5],
    [6, 7],
  ]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("pmap", 1, True), "--config.parallelism=shard_map"),
    (("shard_map", 2, False), "--config.parallelism=jit"),
    (("pmap", 2, False), "--config.parallelism=jit"),
  ],
)
def test_what_does_not_go_together(arguments, message):
  with pytest.raises(UserError, match=message):
    parallel.check(*arguments)


def test_shards_that_do_not_divide_the_devices():
  with pytest.raises(UserError, match="3, which does not divide the 8 devices"):
    sharding.make_mesh(jax.devices()[:8], 3)


def test_a_perturbation_per_place_of_the_minibatch_needs_the_whole_minibatch():
  recipe = setting(method="free")[0]
  with pytest.raises(UserError, match="--config.parallelism=jit"):
    state_lib.check_adversary(recipe, (8, 8, 1))
  state_lib.check_adversary(setting(method="sprout")[0], (8, 8, 1))


def run_loop(tmp_path, examples, capsys=None, **overrides):
  config = config_file.get_config("method=natural")
  config.update_from_flattened_dict(
    {"num_epochs": 2, "batch_size": 256, "log_every": 2, "checkpoint.every_steps": 3} | overrides
  )
  configuration.validate(config)
  dataset = data.load("digits")
  object.__setattr__(dataset, "train", examples)
  mesh = sharding.make_mesh(jax.devices()[:1])
  method = methods.create("natural", {})
  tmp_path.mkdir(exist_ok=True)
  validate = lambda variables: {}
  return loop.train(
    config, tmp_path, dataset, stepping.Mlp(), method, None, mesh, validate=validate
  ), loop.prepare(config, dataset, stepping.Mlp(), method, None, mesh)[1]


def test_a_killed_streamed_run_continues_with_the_next_example(tmp_path):
  class Killed(Exception):
    pass

  class Failing(Examples):
    def batches(self, *args):
      for number, batch in enumerate(super().batches(*args)):
        if number == 5:
          raise Killed
        yield batch

  whole, stopped = Examples(), Failing()
  assert run_loop(tmp_path / "whole", whole)[0]
  with pytest.raises(Killed):
    run_loop(tmp_path / "stopped", stopped)
  again = Examples()
  finished, abstract = run_loop(tmp_path / "stopped", again)
  assert finished
  assert whole.asked == [(0, 10)] and again.asked == [(3, 10)]  # the checkpoint is of step 3
  assert whole.closed == stopped.closed == again.closed == 1
  states = []
  for name in ("whole", "stopped"):
    with contextlib.closing(checkpoints.Checkpoints(tmp_path / name, 3)) as saved:
      states.append(saved.restore_latest(abstract))
  chex.assert_trees_all_equal(*states)


def test_the_user_is_told_that_the_input_is_slow(tmp_path, capsys, monkeypatch):
  class Slow(Examples):
    def batches(self, *args):
      for batch in super().batches(*args):
        clock[0] += 1.0
        yield batch

  clock = [0.0]
  monkeypatch.setattr(feed.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0] + 1e-3 * next(ticks))
  ticks = iter(range(10**6))
  assert run_loop(tmp_path / "slow", Slow())[0]
  told = capsys.readouterr().err
  assert told.count("the input is the bottleneck") == 1 and "--config.dataset.workers" in told
