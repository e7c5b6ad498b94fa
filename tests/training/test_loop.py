"""The loop: where calls end, and that cutting a run into calls does not change it."""

import contextlib
import functools
import json
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from configs import digits
from sprout_jax import data
from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax.data import order
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError
from sprout_jax.training import checkpoints
from sprout_jax.training import loop
from sprout_jax.training import parallel
from sprout_jax.training import state as state_lib
from sprout_jax.training import step as step_lib
from tests import stepping


def setting(**overrides):
  config = digits.get_config("method=natural")
  config.update_from_flattened_dict(
    {
      "num_epochs": 2,
      "batch_size": 256,
      "log_every": 2,
      "checkpoint.every_epochs": 1,
      "optimizer.warmup_epochs": 0.0,
    }
    | overrides
  )
  dataset = data.load("digits")
  model = stepping.Mlp()
  return (
    config,
    dataset,
    model,
    methods.create("natural", {}),
    None,
    sharding.make_mesh(jax.devices()[:1]),
  )


def test_calls_end_at_records_and_checkpoints():
  config = setting(log_every=7)[0]
  config.checkpoint.every_steps = 10
  ends, done = [], 0
  while done < 42:
    done = loop.next_stop(config, done, per_epoch=21, last_step=42)
    ends.append(done)
  assert ends == [7, 10, 14, 20, 21, 28, 30, 35, 40, 42]
  assert loop.next_stop(config, 15, 21, 42) == 20  # a resumed run joins the same cuts


def test_the_loop_trains_on_the_order_of_the_whole_run(tmp_path):
  """Five steps an epoch in calls of two and one = all ten steps in one call."""
  config, dataset, model, method, penalty, mesh = setting()
  seen = []

  def validate(variables):
    seen.append(jax.tree.map(np.asarray, variables))
    # The attacked accuracy is what selects: the first checkpoint is the best here.
    return {"accuracy": 0.4 + 0.1 * len(seen), "robust_accuracy": 0.4 - 0.1 * len(seen)}

  assert loop.train(config, tmp_path, dataset, model, method, penalty, mesh, validate=validate)
  recipe, abstract = loop.prepare(config, dataset, model, method, penalty, mesh)
  with contextlib.closing(checkpoints.Checkpoints(tmp_path, 3)) as saved:
    assert saved.steps() == [5, 10]
    state = saved.restore_latest(abstract)
  model_part = checkpoints.split_state(abstract)["model"]
  assert checkpoints.load_model(tmp_path, "best", model_part).step == 5
  run = parallel.compile_steps(functools.partial(step_lib.train_step, recipe), mesh, "jit", 10)
  start = jax.jit(
    functools.partial(state_lib.create, recipe, dataset.image_shape),
    out_shardings=sharding.replicated(mesh),
  )()
  images, labels = sharding.put(
    (dataset.train.images, dataset.train.labels), sharding.replicated(mesh)
  )
  whole, _ = run(start, images, labels, order.batch_indices(0, 0, 10, len(labels), 256))
  chex.assert_trees_all_close(state, whole, atol=1e-6)
  assert len(seen) == 2
  chex.assert_trees_all_equal(seen[1]["params"], jax.tree.map(np.asarray, state.params))


def test_a_finished_run_is_not_trained_again(tmp_path):
  config, dataset, model, method, penalty, mesh = setting(num_epochs=1)
  for validate in (lambda variables: {}, lambda variables: pytest.fail("trained again")):
    assert loop.train(config, tmp_path, dataset, model, method, penalty, mesh, validate=validate)


@pytest.mark.parametrize("devices", [1, 8])
def test_stopped_and_resumed_has_the_bits_of_a_run_in_one_piece(tmp_path, devices):
  config, dataset, model, method, penalty, _ = setting(**{"checkpoint.every_steps": 3})
  mesh = sharding.make_mesh(jax.devices()[:devices])
  _, abstract = loop.prepare(config, dataset, model, method, penalty, mesh)

  def train(name, validate=lambda variables: {}):
    (tmp_path / name).mkdir(exist_ok=True)
    return loop.train(
      config, tmp_path / name, dataset, model, method, penalty, mesh, validate=validate
    )

  def stop(variables):
    signal.raise_signal(signal.SIGTERM)
    return {}

  def final(name):
    with contextlib.closing(checkpoints.Checkpoints(tmp_path / name, 3)) as saved:
      return saved.restore_latest(abstract)

  assert train("whole")
  assert not train("stopped", validate=stop)
  assert int(final("stopped").step) < 10
  assert train("stopped")
  chex.assert_trees_all_equal(final("stopped"), final("whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_last_validation_ends_the_run_saved(tmp_path, capsys, number):
  config, dataset, model, method, penalty, mesh = setting(num_epochs=1)
  before = signal.getsignal(number)

  def validate(variables):
    signal.raise_signal(number)
    return {}

  assert (
    loop.train(config, tmp_path, dataset, model, method, penalty, mesh, validate=validate) is False
  )
  assert signal.getsignal(number) == before  # handlers are put back
  saved = tmp_path / "checkpoints" / "5"
  said = capsys.readouterr().out
  assert (
    f"Stopped by {number.name} after step 5 of 5; the state is saved in {saved}. The same" in said
  )
  assert (saved / "checkpoint.json").exists()


def test_a_workdir_that_is_removed_stops_the_run_and_does_not_come_back(tmp_path):
  config, dataset, model, method, penalty, mesh = setting()
  workdir = tmp_path / "run"
  workdir.mkdir()

  def validate(variables):
    shutil.rmtree(workdir)
    return {}

  with pytest.raises(UserError, match="was removed or renamed during training"):
    loop.train(config, workdir, dataset, model, method, penalty, mesh, validate=validate)
  assert not workdir.exists()


def test_a_checkpoint_that_cannot_be_saved_stops_the_run_at_the_next_call(tmp_path, monkeypatch):
  config, dataset, model, method, penalty, mesh = setting(num_epochs=20)

  def full(self, parts, accuracy):
    raise UserError("the disk is full")

  monkeypatch.setattr(checkpoints.Checkpoints, "_write", full)
  validated = []
  with pytest.raises(UserError, match="^the disk is full$"):
    loop.train(
      config,
      tmp_path,
      dataset,
      model,
      method,
      penalty,
      mesh,
      validate=lambda _: validated.append(1) or {},
    )
  assert len(validated) <= 2


def test_the_logged_learning_rate_is_the_schedules(tmp_path):
  """Cosine over 5 applied updates (10 minibatches, 2 per update), after one of warm-up."""
  config, dataset, model, method, penalty, mesh = setting(
    log_every=1,
    **{
      "optimizer.accumulate_steps": 2,
      "optimizer.learning_rate": 0.5,
      "optimizer.warmup_epochs": 0.4,
    },
  )
  loop.train(config, tmp_path, dataset, model, method, penalty, mesh, validate=lambda variables: {})
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  updates = np.arange(10) // 2
  expected = 0.5 * np.minimum(1, updates) * (1 + np.cos(np.pi * updates / 5)) / 2
  np.testing.assert_allclose([record["learning_rate"] for record in records], expected, atol=1e-7)


def test_divergence_names_the_step_and_saves_nothing_after_it(tmp_path):
  config, dataset, model, method, penalty, mesh = setting(**{"optimizer.learning_rate": 1e12})
  with pytest.raises(TrainingDiverged, match=r"at step \d+ \(of steps \d to \d"):
    loop.train(
      config, tmp_path, dataset, model, method, penalty, mesh, validate=lambda variables: {}
    )
  assert not list((tmp_path / "checkpoints").iterdir())


def test_a_batch_larger_than_the_training_set_is_an_error():
  config, dataset, *_ = setting(batch_size=2048)
  with pytest.raises(UserError, match="there are only 1347 training images"):
    loop.steps_per_epoch(config, dataset)
