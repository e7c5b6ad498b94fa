"""Streamed training splits: the minibatches of images in memory, from any step, for any process."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sprout_jax import data
from sprout_jax.data import decoding
from sprout_jax.data import order
from sprout_jax.errors import UserError
from tests.data import pictures

ROOT = pathlib.Path(data.__file__).resolve().parents[2]
COUNT, BATCH = 31, 4  # of the training images; 7 steps an epoch, and 3 images left out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Images of several sizes: 31 for training, 6 for the test."""
  folder = tmp_path_factory.mktemp("streamed") / "photos"
  for split, count in (("train", COUNT), ("test", 6)):
    for number in range(count):
      path = folder / split / "abc"[number % 3] / f"{number:03d}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      size = (14 + number % 5, 12 + number % 7)
      path.write_bytes(pictures.encoded(pictures.pixels(number, *size)))
  return folder


def load(root, **options):
  options = {"image_size": (8, 8), "validation_fraction": 0, **options}
  return data.load("folder", data_dir=str(root), cache_dir=str(root.parent / "cache"), **options)


def stream(root, **options):
  return load(root, **{"in_memory_gib": 0, **options}).train


def threads():
  return {t for t in threading.enumerate() if t.name.startswith(("grain-prefetch", "sprout"))}


def are_gone(found, seconds=5):
  """Whether threads end; those that never got an example end on their own, a moment later."""
  end = time.monotonic() + seconds
  while any(thread.is_alive() for thread in found) and time.monotonic() < end:
    time.sleep(0.01)
  return not any(thread.is_alive() for thread in found)


def test_is_chosen_by_size_or_by_the_crop(root):
  size = COUNT * 8 * 8 * 3 / 2**30
  assert isinstance(load(root, in_memory_gib=size * 1.01).train, data.Split)
  assert isinstance(load(root, in_memory_gib=size * 0.99).train, data.Streamed)  # also from cache
  assert isinstance(load(root, random_resized_crop=0.5).train, data.Streamed)
  found = load(root, in_memory_gib=0)
  assert len(found.train) == COUNT
  assert found.train.image_shape == found.image_shape == (8, 8, 3)
  memory = load(root)
  np.testing.assert_array_equal(found.test.images, memory.test.images)
  held = load(root, in_memory_gib=0, validation_fraction=0.2)
  same = load(root, validation_fraction=0.2)
  np.testing.assert_array_equal(held.validation.images, same.validation.images)
  np.testing.assert_array_equal(held.validation.labels, same.validation.labels)
  assert len(held.train) == len(same.train) == 25


@pytest.mark.parametrize(
  "first, last", [(0, 16), (5, 16), (7, 8), (13, 15), (3, 3), (10**6, 10**6 + 2)]
)
def test_equals_images_in_memory(first, last, root):
  memory = load(root, validation_fraction=0.1).train
  stream_ = stream(root, validation_fraction=0.1)
  found = list(stream_.batches(5, first, last, BATCH, slice(None)))
  expected = order.batch_indices(5, first, last - first, len(memory), BATCH)
  assert len(found) == last - first
  for (images, labels), rows in zip(found, expected):
    assert type(images) is np.ndarray and images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images, memory.images[rows])
    np.testing.assert_array_equal(labels, memory.labels[rows])


@pytest.mark.parametrize("crop", [0.0, 0.3])
def test_rows_of_several_processes_are_parts_of_the_minibatch(crop, root):
  stream_ = stream(root, random_resized_crop=crop)
  whole = list(stream_.batches(1, 4, 11, BATCH, slice(0, BATCH)))
  for slices in ((slice(0, 2), slice(2, 4)), (slice(0, 1), slice(1, 4)), (slice(0, None, 2),)):
    parts = [list(stream_.batches(1, 4, 11, BATCH, rows)) for rows in slices]
    for step, (images, labels) in enumerate(whole):
      for rows, part in zip(slices, parts):
        np.testing.assert_array_equal(part[step][0], images[rows])
        np.testing.assert_array_equal(part[step][1], labels[rows])


def test_two_processes_see_every_example_once_per_epoch(root):
  stream_ = stream(root)
  keys = {stream_.decoder.centre(i)[0].tobytes(): i for i in range(COUNT)}
  assert len(keys) == COUNT
  for epoch in range(3):
    seen = []
    for rows in (slice(0, 2), slice(2, 4)):
      for images, _ in stream_.batches(0, 7 * epoch, 7 * epoch + 7, BATCH, rows):
        seen += [keys[image.tobytes()] for image in images]
    assert len(seen) == len(set(seen)) == 28  # 3 of 31 are left out
  assert sorted(seen) != list(range(28))


def test_a_run_continues_with_the_next_example(root):
  """Killed after step 9, in the second epoch: the rest is what would have come."""
  stream_ = stream(root, random_resized_crop=0.2)
  whole = list(stream_.batches(3, 0, 15, BATCH, slice(None)))
  iterator = stream_.batches(3, 0, 15, BATCH, slice(None))
  begun = list(itertools.islice(iterator, 9))
  iterator.close()
  rest = list(stream_.batches(3, 9, 15, BATCH, slice(None)))
  for found, expected in zip([*begun, *rest], whole, strict=True):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_random_crops_depend_on_seed_epoch_and_example(root):
  stream_ = stream(root, random_resized_crop=0.3)

  def crops(seed, epoch):
    rows = order.batch_indices(seed, 7 * epoch, 7, COUNT, BATCH).ravel()
    batches = stream_.batches(seed, 7 * epoch, 7 * epoch + 7, BATCH, slice(None))
    return dict(zip(rows, np.concatenate([images for images, _ in batches]), strict=True))

  first, again, later, other = crops(0, 0), crops(0, 0), crops(0, 1), crops(1, 0)
  for row, image in first.items():
    np.testing.assert_array_equal(image, again[row])
    expected, _ = stream_.decoder.training(int(row), 0, 0, int(row))
    np.testing.assert_array_equal(image, expected)
  for changed in (later, other):
    both = first.keys() & changed.keys()
    assert sum(np.array_equal(first[row], changed[row]) for row in both) < len(both) / 4


def test_fingerprint_is_of_names_and_sizes_and_test_arrays(root, tmp_path):
  first = load(root, in_memory_gib=0)
  assert first.fingerprint == load(root, random_resized_crop=0.3).fingerprint
  assert first.fingerprint != load(root).fingerprint
  assert first.fingerprint != load(root, in_memory_gib=0, image_size=(9, 8)).fingerprint
  copy = tmp_path / "copy"
  for path in root.rglob("*.png"):
    target = copy / path.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
  assert load(copy, in_memory_gib=0).fingerprint == first.fingerprint
  (copy / "train" / "a" / "000.png").rename(copy / "train" / "a" / "z.png")
  renamed = load(copy, in_memory_gib=0).fingerprint
  with (copy / "train" / "a" / "z.png").open("ab") as file:
    file.write(b"\0")
  assert len({first.fingerprint, renamed, load(copy, in_memory_gib=0).fingerprint}) == 3


def test_held_out_images_are_cached(root, monkeypatch):
  first = load(root, in_memory_gib=0, validation_fraction=0.3).validation

  def forbid(*_):
    raise AssertionError("decoded again")

  monkeypatch.setattr(decoding, "decode_all", forbid)
  second = load(root, in_memory_gib=0, validation_fraction=0.3).validation
  np.testing.assert_array_equal(first.images, second.images)
  with pytest.raises(AssertionError):
    load(root, in_memory_gib=0, validation_fraction=0.4)


def test_closing_ends_the_threads(root):
  before = threads()
  stream_ = stream(root)
  iterator = stream_.batches(0, 0, 10**6, BATCH, slice(None))
  next(iterator)
  begun = threads() - before
  assert begun
  iterator.close()
  assert are_gone(begun)
  with pytest.raises(StopIteration):
    next(iterator)
  iterator = stream_.batches(0, 0, 3, BATCH, slice(None))
  next(iterator)
  begun = threads() - before
  assert begun and len(list(iterator)) == 2  # read to its end
  assert are_gone(begun)


def test_closing_does_not_wait_for_the_minibatch(root, monkeypatch):
  stream_ = stream(root)
  slow = decoding.Decoder.training
  monkeypatch.setattr(decoding.Decoder, "training", lambda *args: time.sleep(0.02) or slow(*args))
  iterator = stream_.batches(0, 0, 1000, 30, slice(None))
  next(iterator)
  began = time.monotonic()
  iterator.close()
  assert time.monotonic() - began < 0.4  # a minibatch takes 0.6 s


def with_damage(stream_, row, path):
  """The stream with an image that cannot be decoded at a row of the split."""
  path.write_bytes(pictures.encoded(pictures.pixels(0))[:60])
  files = list(stream_.decoder.examples.files)
  files[row] = files[row]._replace(name=str(path))
  examples = dataclasses.replace(stream_.decoder.examples, files=files)
  return dataclasses.replace(
    stream_, decoder=dataclasses.replace(stream_.decoder, examples=examples)
  )


def test_an_unreadable_image_ends_the_stream(root, tmp_path):
  before = threads()
  victim = order.batch_indices(0, 2, 1, COUNT, BATCH)[0][1]
  stream_ = with_damage(stream(root), victim, tmp_path / "broken.png")
  iterator = stream_.batches(0, 0, 9, BATCH, slice(None))
  next(iterator)
  begun = threads() - before
  next(iterator)
  with pytest.raises(UserError, match=r"broken.png cannot be decoded"):
    next(iterator)
  assert begun and are_gone(begun)


def test_as_stored_images_of_several_sizes(root):
  with pytest.raises(UserError, match=r"expected one size.*--config.dataset.image_size="):
    load(root, image_size=(), in_memory_gib=0)  # the test images show it


def test_wrong_arguments(root):
  stream_ = stream(root)
  with pytest.raises(UserError, match="batch_size is 32; it must be from 1 to 31"):
    stream_.batches(0, 0, 1, 32, slice(None))
  with pytest.raises(UserError, match="num_steps is -1"):
    stream_.batches(0, 2, 1, 4, slice(None))
  with pytest.raises(
    UserError, match=r"rows slice\(4, 8, None\) select nothing from a minibatch of 4"
  ):
    stream_.batches(0, 0, 1, 4, slice(4, 8))


def test_without_grain(root, monkeypatch):
  stream_ = stream(root)
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(UserError, match=r"need Grain.*\n  pip install grain\n.*in_memory_gib=GIB"):
    stream_.batches(0, 0, 1, BATCH, slice(None))


def test_a_decoder_can_be_sent_to_another_process(root):
  decoder = stream(root, random_resized_crop=0.3).decoder
  again = pickle.loads(pickle.dumps(decoder))
  for row in range(5):
    np.testing.assert_array_equal(decoder.training(row, 1, 2)[0], again.training(row, 1, 2)[0])


def test_worker_processes_give_the_same_until_an_image_is_damaged(root, tmp_path):
  """One start of two processes takes some seconds, so this test asks for all that needs them."""
  plain = stream(root, random_resized_crop=0.3)
  rows = order.batch_indices(3, 5, 7, COUNT, BATCH)[:, 1:]
  victim = np.setdiff1d(rows[6], rows[:6])[0]  # of the seventh step, and of none before
  workers = stream(root, random_resized_crop=0.3, workers=2)
  iterator = with_damage(workers, victim, tmp_path / "broken.png").batches(
    3, 5, 500, BATCH, slice(1, 4)
  )
  found = list(itertools.islice(iterator, 6))
  assert len(multiprocessing.active_children()) == 2
  with pytest.raises(UserError, match="broken.png cannot be decoded"):
    next(iterator)
  assert not multiprocessing.active_children()
  expected = plain.batches(3, 5, 11, BATCH, slice(1, 4))
  for (images, labels), (right, right_labels) in zip(found, expected, strict=True):
    assert type(images) is np.ndarray
    np.testing.assert_array_equal(images, right)
    np.testing.assert_array_equal(labels, right_labels)


PROGRAM = """
import os, signal, sys
import numpy as np
from PIL import Image
from sprout_jax.data import array_cache, decoding, streamed

class Facts:
  channels = 1
  def __len__(self):
    return 4
  def __getitem__(self, index):
    import jax
    ignored = [signal.getsignal(s) is signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)]
    platform = os.environ["JAX_PLATFORMS"] == jax.default_backend() == "cpu"
    return Image.new("L", (2, 2), 100 * platform + sum(ignored)), os.getpid()
  def where(self, index):
    return f"photo {index}"

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "an accelerator"
  decoder = decoding.Decoder(Facts(), (2, 2), False)
  stream = streamed.Streamed(decoder, np.arange(4), array_cache.Place(None, "", ""), 1)
  images, labels = next(batches := stream.batches(0, 0, 10**6, 2, slice(None)))
  print(*images.ravel(), labels[0], flush=True)
  sys.stdin.readline()
"""


def test_a_worker_has_no_accelerator_and_ends_with_a_killed_parent(tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  with (tmp_path / "errors").open("w") as errors:
    process = subprocess.Popen(
      [sys.executable, tmp_path / "program.py"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
  with process:
    *facts, worker = map(int, process.stdout.readline().split())
    assert facts == [102] * 8 and worker != process.pid and is_alive(worker)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < end:
      time.sleep(0.01)
    assert not is_alive(worker)


def is_alive(number):
  """Whether a process is there and is no zombie."""
  try:
    return pathlib.Path(f"/proc/{number}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
  except OSError:
    return False
