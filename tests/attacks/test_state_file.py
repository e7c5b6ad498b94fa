"""The state file of auto_attack: damaged, of another call, or on a full disk."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.attacks import resume

KEY = jax.random.key(1)
RNG = np.random.RandomState(0)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
IMAGES = RNG.uniform(size=(5, 4, 4, 1)).astype(np.float32)


def predict(images):
  return (images - 0.5).reshape(len(images), -1) @ WEIGHTS


LABELS = np.asarray(predict(IMAGES)).argmax(-1)


def attack(path):
  return attacks.auto_attack(
    KEY, predict, IMAGES, LABELS, epsilon=0.05, version="apgd-ce", batch_size=8, state_file=path
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The file that a finished call left, and the result of that call."""
  path = tmp_path_factory.mktemp("state") / "finished.npz"
  result = attack(path)
  assert 0 < result.robust.sum() < 5
  return path, result


def test_a_file_that_is_no_state_is_named_with_what_to_do(finished, tmp_path):
  whole = finished[0].read_bytes()
  foreign, other_array = tmp_path / "foreign.npz", tmp_path / "array.npy"
  np.savez(foreign, robust=np.ones(5, bool))
  np.save(other_array, np.ones(5))
  path = tmp_path / "damaged.npz"
  for content in (
    b"",
    b"no state",
    whole[: len(whole) // 2],
    whole[:-1],
    whole[10:],
    foreign.read_bytes(),
    other_array.read_bytes(),
  ):
    path.write_bytes(content)
    with pytest.raises(
      resume.StateError, match=r"^auto_attack: .*damaged.npz .*delete it to start again"
    ):
      attack(path)
    assert path.read_bytes() == content  # it is the user's to delete
  with pytest.raises(ValueError, match="IsADirectoryError.*give another state_file"):
    attack(tmp_path)


def test_a_whole_file_is_gone_on_with(finished, tmp_path):
  path = tmp_path / "copy.npz"
  shutil.copy(finished[0], path)
  np.testing.assert_array_equal(attack(path).images, finished[1].images)


def test_a_newer_jax_continues(finished, tmp_path, monkeypatch):
  """Versions are provenance. Options and the precision of products decide."""
  path = tmp_path / "copy.npz"
  shutil.copy(finished[0], path)
  monkeypatch.setattr(jax, "__version__", "99.0")
  monkeypatch.setattr(
    "sprout_jax.attacks.slots.attack_examples", lambda *args: pytest.fail("attacked again")
  )
  np.testing.assert_array_equal(attack(path).robust, finished[1].robust)
  with jax.default_matmul_precision("bfloat16"), pytest.raises(resume.StateError, match="another"):
    attack(path)


def test_a_changed_outcome_is_found_out(finished, tmp_path):
  """The checksums of the zip file are valid, but one image has become robust."""
  with np.load(finished[0]) as stored:
    arrays = dict(stored)
  arrays["robust"] = np.ones(5, bool)
  path = tmp_path / "changed.npz"
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=r"changed.npz is damaged: its digest differs"):
    attack(path)


def test_no_flipped_bit_is_taken_for_a_result(finished, tmp_path):
  """A flipped bit raises, or is outside of the content (a time, a file mode)."""
  whole, path = finished[0].read_bytes(), tmp_path / "flipped.npz"
  right, refused = resume._read(finished[0]), 0
  for bit in np.random.RandomState(1).permutation(8 * len(whole))[:400].tolist():
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
      found = resume._read(path)
    except ValueError as error:
      assert str(path) in str(error) and "give another state_file" in str(error)
      refused += 1
      continue
    assert found.keys() == right.keys()
    for name, array in found.items():
      np.testing.assert_array_equal(array, right[name])
  assert refused > 300


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path):
  path = tmp_path / "state.npz"
  resume._write(path, {"a": np.arange(3)})
  before = path.read_bytes()
  path.with_name("state.npz.tmp").symlink_to("/dev/full")
  with pytest.raises(OSError, match=r"auto_attack: .*state.npz .No space left on device.; free"):
    resume._write(path, {"a": np.arange(100_000)})
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
