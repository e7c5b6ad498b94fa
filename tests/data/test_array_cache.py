"""The cache of decoded arrays: files that are mapped, digests in pieces, parts of large splits."""

import mmap
import threading
import time
import tracemalloc

import numpy as np
import pytest

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.errors import UserError


def images_of(count, shape=(8, 8, 3)):
  return np.random.RandomState(0).randint(0, 256, (count, *shape), np.uint8)


def write(tmp_path, images, labels, key="key"):
  place = array_cache.Place(tmp_path / "cache", "photos", key)
  return place, array_cache.write(place, zip(images, labels), len(images), {"more": [1]})


def backing(array):
  """The object at the end of the chain of views."""
  while isinstance(array, np.ndarray):
    array = array.base
  return array


def test_an_entry_is_mapped_from_its_file(tmp_path, monkeypatch):
  monkeypatch.setattr(array_cache, "PIECE", 100)
  images, labels = images_of(7), np.arange(7, dtype=np.int32)
  place, written = write(tmp_path, images, labels)
  for split, digests, extra in (written, array_cache.read(place)):
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int32 and extra == {"more": [1]}
    assert isinstance(backing(split.images), mmap.mmap) and not split.images.flags.writeable
    assert digests == [dataset.digest(images), dataset.digest(labels)]  # of the whole arrays
  np.testing.assert_array_equal(np.load(tmp_path / "cache" / "photos.images.npy"), images)
  assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
    "photos.images.npy",
    "photos.json",
    "photos.labels.npy",
  ]


def test_another_key_and_a_replaced_file(tmp_path):
  place, (first, _, _) = write(tmp_path, images_of(5), np.zeros(5, np.int32))
  assert array_cache.read(array_cache.Place(place.folder, place.stem, "other")) is None
  _, (second, _, _) = write(tmp_path, 255 - images_of(5), np.zeros(5, np.int32), "other")
  np.testing.assert_array_equal(first.images, images_of(5))  # its file lives on without a name
  np.testing.assert_array_equal(second.images, 255 - images_of(5))
  assert array_cache.read(place) is None


def test_what_a_killed_writer_left_is_removed(tmp_path):
  folder = tmp_path / "cache"
  folder.mkdir()
  left, other = folder / "photos.images.npy.1-ab.tmp", folder / "another.images.npy.1-ab.tmp"
  alive = folder / "photos.labels.npy.2-cd.tmp"
  for path in (left, other, alive):
    path.write_bytes(b"incomplete")
  with alive.open("r+b") as file:
    array_cache.lock(file, wait=True)
    write(tmp_path, images_of(2), np.zeros(2, np.int32))
    assert not left.exists() and other.exists() and alive.exists()


def test_one_writer_at_a_time(tmp_path):
  """The second finds what the first has stored."""
  place = array_cache.Place(tmp_path / "cache", "photos", "key")
  images, labels = images_of(3), np.arange(3, dtype=np.int32)
  made, inside, found = [], threading.Event(), []

  def make(name):
    made.append(name)
    inside.set()
    time.sleep(0.2)
    return zip(images, labels)

  def second():
    inside.wait()
    found.append(array_cache.read_or_write(place, lambda: make("second"), 3, None))

  thread = threading.Thread(target=second)
  thread.start()
  found.append(array_cache.read_or_write(place, lambda: make("first"), 3, None))
  thread.join()
  assert made == ["first"]
  for split, _, _ in found:
    np.testing.assert_array_equal(split.images, images)


def test_floats(tmp_path):
  images = images_of(3).astype(np.float32) / 255
  place, _ = write(tmp_path, images, np.zeros(3, np.int32))
  np.testing.assert_array_equal(array_cache.read(place)[0].images, images)


@pytest.mark.parametrize("fault", ["objects", "fortran", "longer", "version"])
def test_files_of_another_form_are_no_entry(fault, tmp_path):
  images = images_of(5)
  place, _ = write(tmp_path, images, np.zeros(5, np.int32))
  path = place.path("images.npy")
  if fault == "objects":
    np.save(path, np.array([print], object), allow_pickle=True)
  elif fault == "fortran":
    np.save(path, np.asfortranarray(images))
  elif fault == "longer":
    path.write_bytes(path.read_bytes() + b"\0")
  else:
    with path.open("wb") as file:
      np.lib.format.write_array(file, images, version=(2, 0))
  assert array_cache.read(place) is None


def test_a_writer_that_fails_leaves_nothing(tmp_path):
  def examples():
    yield images_of(1)[0], 0
    raise UserError("the second image is damaged")

  place = array_cache.Place(tmp_path / "cache", "photos", 0)
  with pytest.raises(UserError, match="second image is damaged"):
    array_cache.write(place, examples(), 2, None)
  assert not list((tmp_path / "cache").iterdir())


def test_nothing_large_is_held_in_memory(tmp_path, monkeypatch):
  """64 MB are written, read, checked, and split; NumPy's memory is traced, mapped files are not."""
  monkeypatch.setattr(array_cache, "PIECE", 2**20)
  monkeypatch.setattr(array_cache, "IN_MEMORY", 2**20)
  count, shape = 256, (256, 344, 3)
  place = array_cache.Place(tmp_path / "cache", "photos", 0)
  image = images_of(1, shape)[0]
  tracemalloc.start()
  try:
    made = ((image + np.uint8(i), i % 5) for i in range(count))
    array_cache.write(place, made, count, None)
    split, digests, _ = array_cache.read(place)
    found = dataset.Dataset("photos", split, split, split, 5, tuple("abcde"), "", "")
    parts = dataset.hold_out(
      found, 0.5, lambda array, rows: array_cache.take(array, rows, str(place.folder))
    )
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert split.images.nbytes > 6e7 and peak < 8e6
  for part in (parts.train, parts.validation):
    assert isinstance(backing(part.images), mmap.mmap) and len(part) == 128
  numbers = [part.images[:, 0, 0, 0] - image[0, 0, 0] for part in (parts.train, parts.validation)]
  assert sorted(np.concatenate(numbers).tolist()) == list(range(256))
  assert len(list(place.folder.iterdir())) == 3  # the parts have no names


def test_small_parts_are_copied_and_large_ones_are_the_same(tmp_path, monkeypatch):
  images, rows = images_of(9), np.array([8, 0, 3])
  small = array_cache.take(images, rows, str(tmp_path))
  assert not isinstance(backing(small), mmap.mmap)
  monkeypatch.setattr(array_cache, "IN_MEMORY", 0)
  monkeypatch.setattr(array_cache, "PIECE", 1)
  large = array_cache.take(images, rows, str(tmp_path))
  for found in (small, large):
    np.testing.assert_array_equal(found, images[[8, 0, 3]])
    assert found.dtype == np.uint8
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="give another cache_dir"):
    array_cache.take(images, rows, str(tmp_path / "file"))
