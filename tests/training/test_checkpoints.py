"""checkpoints: kept ones, the best one, damage, full disks, open files.

Real processes: test_several, tests/test_launch.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax import checkpoint as ocp

from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.training import checkpoints as checkpoints_lib
from sprout_jax.training import state as state_lib
from tests.disks import largest_file

MODEL = ("params", "batch_stats", "ema")


def state(step, size=3000):
  values = jax.random.normal(jax.random.key(step), (size,))  # incompressible
  return jax.device_put(
    state_lib.TrainState(
      step=jnp.int32(step),
      params={"w": values},
      batch_stats={},
      opt_state=(values * 2, ()),
      adversary={"beta": jnp.full(3, step / 3, jnp.float32)},
      adversary_opt_state=(),
      ema={},
    ),
    sharding.replicated(sharding.make_mesh()),
  )


def abstract(size=3000):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
    state(0, size),
  )


def abstract_model(size=3000):
  return {name: getattr(abstract(size), name) for name in MODEL}


@contextlib.contextmanager
def opened(workdir, keep=2):
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir, keep)) as checkpoints:
    yield checkpoints


def saved(workdir, accuracies, keep=2):
  with opened(workdir, keep) as checkpoints:
    for step, accuracy in enumerate(accuracies, 1):
      checkpoints.save(state(step), accuracy)
    checkpoints.wait()


def restored(workdir):
  with opened(workdir) as checkpoints:
    return checkpoints.restore_latest(abstract()), checkpoints.steps()


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_keeps_the_last_and_the_best_and_restores_exactly(tmp_path):
  saved(tmp_path, [0.5, 0.9, 0.9, 0.1, None, 0.2])
  got, steps = restored(tmp_path)
  assert steps == [3, 5, 6]
  chex.assert_trees_all_equal(got, state(6))
  assert jax.tree.leaves(got)[0].sharding == jax.tree.leaves(abstract())[0].sharding
  for which, step in (("best", 3), ("last", 6)):
    loaded = checkpoints_lib.load_model(tmp_path, which, abstract_model())
    assert (loaded.step, loaded.validated) == (step, True)
    chex.assert_trees_all_equal(loaded.model["params"], state(step).params)
    assert loaded.beta.dtype == np.float32
    np.testing.assert_array_equal(loaded.beta, np.float32(step) / np.float32(3))


def test_a_resumed_run_keeps_the_last_and_the_best_of_all(tmp_path):
  saved(tmp_path, [0.9, 0.5, 0.6])
  with opened(tmp_path) as checkpoints:
    checkpoints.restore_latest(abstract())
    checkpoints.save(state(4), 0.7)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 4]


def test_without_validation_the_last_is_the_best(tmp_path):
  saved(tmp_path, [None, None, None])
  loaded = checkpoints_lib.load_model(tmp_path, "best", abstract_model())
  assert (loaded.step, loaded.validated) == (3, False)


def test_a_method_that_learns_no_beta_has_none(tmp_path):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(state(1).replace(adversary={}))
  assert checkpoints_lib.load_model(tmp_path, "last", abstract_model()).beta is None


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert restored(tmp_path) == (None, [])
  with pytest.raises(UserError, match="train there first"):
    checkpoints_lib.load_model(tmp_path, "best", abstract_model())


def test_what_a_kill_left_half_written_is_cleared_and_never_read(tmp_path):
  saved(tmp_path, [None])
  shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / ".unfinished" / "2")
  assert checkpoints_lib.load_model(tmp_path, "last", abstract_model()).step == 1
  assert restored(tmp_path)[1] == [1]
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << len(content) % 8
  path.write_bytes(content)


DAMAGES = {
  "empty": lambda path: path.write_bytes(b""),
  "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  "one_bit": flip,
  "deleted": pathlib.Path.unlink,
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("three")
  saved(workdir, [0.2, 0.9, 0.5], keep=3)
  return workdir


@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_file_is_damaged_the_other_checkpoints_serve(three, tmp_path, caplog, kind):
  """Each file of the newest and best checkpoint in turn; for reading, then for training."""
  names = [
    path.relative_to(three / "checkpoints" / "2") for path in files_of(three / "checkpoints/2")
  ]
  assert len(names) > 8
  for number, name in enumerate(names):
    for is_reading in (True, False):
      workdir = tmp_path / f"{number}_{is_reading}"
      shutil.copytree(three, workdir)
      caplog.clear()
      damaged = workdir / "checkpoints" / "2" / name
      DAMAGES[kind](damaged)
      if is_reading:
        assert checkpoints_lib.load_model(workdir, "best", abstract_model()).step == 3
      else:
        got, steps = restored(workdir)
        chex.assert_trees_all_equal(got, state(3))
        assert steps == [1, 3]
      assert f"Checkpoint 2 is damaged: {damaged} " in caplog.text
      assert "Checkpoint 3 is used" in caplog.text
      assert (workdir / "damaged_checkpoints" / "2").is_dir()
      assert not (workdir / "checkpoints" / "2").exists()
      shutil.rmtree(workdir)


def test_the_newest_damaged_ones_are_moved_and_the_newest_intact_one_is_restored(three, tmp_path):
  workdir = shutil.copytree(three, tmp_path / "run")
  for step in (2, 3):
    flip(max(files_of(workdir / "checkpoints" / str(step)), key=lambda path: path.stat().st_size))
  got, steps = restored(workdir)
  chex.assert_trees_all_equal(got, state(1))
  assert steps == [1]
  assert sorted(os.listdir(workdir / "damaged_checkpoints")) == ["2", "3"]


def test_arrays_that_are_not_those_that_were_saved_are_damage(three, tmp_path, monkeypatch, caplog):
  """The files are intact, and yet Orbax gives back something else."""
  workdir = shutil.copytree(three, tmp_path / "run")
  restore = ocp.Checkpointer.restore

  def wrong(self, directory, **kwargs):
    found = restore(self, directory, **kwargs)
    if directory.name == "3":
      found["model"]["params"]["w"] = found["model"]["params"]["w"] + 1
    return found

  monkeypatch.setattr(ocp.Checkpointer, "restore", wrong)
  assert checkpoints_lib.load_model(workdir, "last", abstract_model()).step == 2
  assert "part 'model', are not those that were saved" in caplog.text


def test_where_nothing_can_be_read_nothing_is_moved(three, tmp_path):
  workdir = shutil.copytree(three, tmp_path / "run")
  for step in (1, 2, 3):
    (workdir / "checkpoints" / str(step) / "checkpoint.json").unlink()
  for read in (
    lambda: restored(workdir),
    lambda: checkpoints_lib.load_model(workdir, "best", abstract_model()),
  ):
    with pytest.raises(
      UserError, match=r"none of the checkpoints .*/3/checkpoint.json .* --workdir"
    ):
      read()
  assert not (workdir / "damaged_checkpoints").exists()
  assert sorted(os.listdir(workdir / "checkpoints")) == ["1", "2", "3"]


def test_another_model_is_an_error_and_no_damage(three, tmp_path):
  workdir = shutil.copytree(three, tmp_path / "run")
  with pytest.raises(UserError, match=r"another model: .*'w'.* \(3000,\), expected .* \(7,\)"):
    checkpoints_lib.load_model(workdir, "best", abstract_model(7))
  other = abstract_model() | {"params": {"kernel": abstract().params["w"]}}
  with pytest.raises(UserError, match=r"'kernel'\] is absent, expected float32 \(3000,\)"):
    checkpoints_lib.load_model(workdir, "best", other)
  assert sorted(os.listdir(workdir / "checkpoints")) == ["1", "2", "3"]


def test_a_checkpoint_that_the_run_deletes_during_reading_is_no_damage(
  three, tmp_path, monkeypatch
):
  workdir = shutil.copytree(three, tmp_path / "run")
  verify = checkpoints_lib._verify

  def deleted_meanwhile(folder, record):
    if folder.name == "2":
      shutil.rmtree(folder)
    verify(folder, record)

  monkeypatch.setattr(checkpoints_lib, "_verify", deleted_meanwhile)
  assert checkpoints_lib.load_model(workdir, "best", abstract_model()).step == 3
  assert not (workdir / "damaged_checkpoints").exists()


def test_a_full_disk_is_one_error_that_leaves_the_older_checkpoints(tmp_path, capfd):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(state(1), 0.5)
    checkpoints.wait()
    with largest_file(20_000):
      checkpoints.save(state(2), 0.6)
      with pytest.raises(
        UserError, match=r"checkpoint 2 cannot be saved .*newest is 1\. Free some"
      ):
        checkpoints.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    checkpoints.check()  # an error is told once
    checkpoints.save(state(3), 0.6)
    checkpoints.wait()
  chex.assert_trees_all_equal(restored(tmp_path)[0], state(3))
  assert not "".join(capfd.readouterr())


def test_what_fails_inside_orbax_is_told_in_the_systems_words(tmp_path, monkeypatch):
  def fail(self, directory, **kwargs):
    directory.mkdir()
    (directory / "half").write_text("half")
    raise ValueError("RESOURCE_EXHAUSTED: Error writing \"x\": Quota [os_error_code='122']\nmore")

  with opened(tmp_path) as checkpoints:
    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    checkpoints.save(state(1))
    with pytest.raises(
      UserError, match=r"\(Disk quota exceeded\); there is no earlier checkpoint\. Free"
    ):
      checkpoints.save(state(2))  # the save before has failed
  assert os.listdir(tmp_path / "checkpoints") == []


def test_a_folder_that_was_removed_is_found_out(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  for number_saved in (0, 1):
    with opened(workdir) as checkpoints:
      for step in range(number_saved):
        checkpoints.save(state(step))
      checkpoints.wait()
      checkpoints.check()
      workdir.rename(tmp_path / f"moved_{number_saved}")
      with pytest.raises(UserError, match="was removed or renamed during training"):
        checkpoints.check()
      checkpoints.save(state(9))
      with pytest.raises(UserError, match="was removed or renamed during training"):
        checkpoints.wait()
      assert not workdir.exists()
    workdir.mkdir()


def test_a_folder_that_is_removed_during_a_save_does_not_come_back(tmp_path, monkeypatch):
  workdir, save = tmp_path / "run", ocp.Checkpointer.save
  workdir.mkdir()

  def remove_first(self, directory, **kwargs):
    workdir.rename(tmp_path / "moved")
    save(self, directory, **kwargs)  # makes all folders above its own
    assert workdir.exists()

  with opened(workdir) as checkpoints:
    monkeypatch.setattr(ocp.Checkpointer, "save", remove_first)
    checkpoints.save(state(1))
    with pytest.raises(UserError, match="was removed or renamed during training"):
      checkpoints.wait()
  assert not workdir.exists()


def test_a_workdir_that_is_not_there_is_an_error(tmp_path):
  with pytest.raises(UserError, match="cannot be created"):
    checkpoints_lib.Checkpoints(tmp_path / "gone", 2)
  assert not (tmp_path / "gone").exists()


def test_five_hundred_checkpoints_leave_no_thread_and_no_handle():
  def counts():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

  seen, small = [], state(0, size=10)
  # In memory: a disk that has to sync each file makes this ten times slower.
  with tempfile.TemporaryDirectory(dir="/dev/shm") as workdir, opened(workdir) as checkpoints:
    for step in range(500):
      checkpoints.save(small.replace(step=jnp.int32(step)))
      checkpoints.wait()
      seen.append(counts())
  # TensorStore's and Python's pools have their threads after the first fifty.
  for counted in np.array(seen).T:
    assert np.median(counted[-100:]) <= np.median(counted[50:150]) + 3


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
  short = [{"a": jnp.asarray(array, jnp.bfloat16)} for array in ([1, 2], [1, 3])]
  assert len({checkpoints_lib.sha256(t) for t in short}) == 2
  assert checkpoints_lib.sha256(tree) == checkpoints_lib.sha256(jax.tree.map(jnp.copy, tree))
