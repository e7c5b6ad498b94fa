"""checkpoints: what is kept, what is best, every kind of damage. (Real processes: test_launch.)"""

import contextlib
import gc
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.training import checkpoints as checkpoints_lib
from sprout_jax.training import state as state_lib

MODEL = ("params", "batch_stats", "ema")
# Orbax leaves a coroutine behind when it fails, which complains when it is collected.
pytestmark = [
  pytest.mark.filterwarnings("ignore:coroutine 'PyTreeHandler:RuntimeWarning"),
  pytest.mark.filterwarnings("ignore:.*PyTreeHandler:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collect_here():
  """Complaints of collected objects come within this file's filters, not in the next test."""
  yield
  gc.collect()


def state(step):
  values = jax.random.normal(jax.random.key(step), (3000,))  # incompressible
  return jax.device_put(
    state_lib.TrainState(
      step=jnp.int32(step),
      params={"w": values},
      batch_stats={},
      opt_state=(values * 2,),
      adversary={"beta": jnp.ones(3) * step},
      adversary_opt_state=(),
      ema={},
    ),
    sharding.replicated(sharding.make_mesh()),
  )


def abstract():
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0)
  )


def saved(workdir, accuracies, keep=2):
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir, keep)) as checkpoints:
    for step, accuracy in enumerate(accuracies, 1):
      checkpoints.save(state(step), accuracy)


def restored(workdir):
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir, 2)) as checkpoints:
    return checkpoints.restore_latest(abstract()), checkpoints.steps()


def test_keeps_the_last_and_the_best_and_restores_exactly(tmp_path):
  saved(tmp_path, [0.5, 0.9, 0.9, 0.1, None, 0.2])
  got, steps = restored(tmp_path)
  assert steps == [3, 5, 6]
  chex.assert_trees_all_equal(got, state(6))
  model = {name: getattr(abstract(), name) for name in MODEL}
  for which, step in (("best", 3), ("last", 6)):
    part, found = checkpoints_lib.load_model(tmp_path, which, model)
    assert found == step
    chex.assert_trees_all_equal(part["params"], state(step).params)


def test_without_validation_the_last_is_the_best(tmp_path):
  saved(tmp_path, [None, None, None])
  model = {name: getattr(abstract(), name) for name in MODEL}
  assert checkpoints_lib.load_model(tmp_path, "best", model)[1] == 3


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert restored(tmp_path) == (None, [])


def flip_a_byte(folder):
  largest = max(
    (path for path in (folder / "training").rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


def cut(folder):
  for path in (folder / "model").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
  "damage",
  [
    flip_a_byte,
    cut,
    lambda folder: shutil.rmtree(folder / "model"),
    lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    lambda folder: (folder / "_CHECKPOINT_METADATA").write_text("{"),
    lambda folder: [path.write_bytes(b"") for path in folder.rglob("*") if path.is_file()],
  ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage):
  saved(tmp_path, [None, None])
  damage(tmp_path / "checkpoints" / "2")
  got, steps = restored(tmp_path)
  chex.assert_trees_all_equal(got, state(1))
  assert steps == [1]
  assert "Checkpoint 2 is damaged" in caplog.text and "The one before it is used" in caplog.text
  assert (tmp_path / "damaged_checkpoints" / "2").is_dir()


def test_where_nothing_can_be_read_nothing_is_moved(tmp_path, monkeypatch):
  saved(tmp_path, [None, None])

  def fail(self, step, abstract):
    raise OSError("stale file handle")

  monkeypatch.setattr(checkpoints_lib.Checkpoints, "load", fail)
  with pytest.raises(UserError, match=r"none of the checkpoints .* 2 \(stale file handle\)"):
    restored(tmp_path)
  assert not (tmp_path / "damaged_checkpoints").exists()
  monkeypatch.undo()
  chex.assert_trees_all_equal(restored(tmp_path)[0], state(2))


def test_evaluation_of_a_damaged_or_missing_checkpoint_is_one_error(tmp_path):
  model = {name: getattr(abstract(), name) for name in MODEL}
  with pytest.raises(UserError, match="train there first"):
    checkpoints_lib.load_model(tmp_path, "best", model)
  saved(tmp_path, [None])
  cut(tmp_path / "checkpoints" / "1")
  with pytest.raises(UserError, match="run the training command again"):
    checkpoints_lib.load_model(tmp_path, "best", model)


def test_a_damaged_best_checkpoint_is_not_replaced_by_another(tmp_path):
  saved(tmp_path, [0.9, 0.1])
  cut(tmp_path / "checkpoints" / "1")
  model = {name: getattr(abstract(), name) for name in MODEL}
  with pytest.raises(UserError, match="evaluation.checkpoint=last"):
    checkpoints_lib.load_model(tmp_path, "best", model)
  assert checkpoints_lib.load_model(tmp_path, "last", model)[1] == 2


def test_digest_sees_every_bit_and_name():
  tree = {"a": jnp.arange(3.0), "b": {"c": jnp.zeros((2, 2))}}
  digests = {
    checkpoints_lib.sha256(t)
    for t in (
      tree,
      {"a": tree["b"]["c"], "b": {"c": tree["a"]}},
      tree | {"a": jnp.arange(3)},
      tree | {"a": tree["a"].at[2].set(jnp.nextafter(jnp.float32(2), jnp.float32(3)))},
    )
  }
  assert len(digests) == 4
  assert checkpoints_lib.sha256(tree) == checkpoints_lib.sha256(jax.tree.map(jnp.copy, tree))
