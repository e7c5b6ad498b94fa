"""TFDS sets as arrays: pixels, splits, the cache, and every way a set can be unfit."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sprout_jax import data
from sprout_jax.data import array_cache
from sprout_jax.data import decoding
from sprout_jax.data import order
from sprout_jax.data import prepare
from sprout_jax.data import tfds_source
from sprout_jax.errors import UserError
from tests.data import pictures

ROOT = pathlib.Path(data.__file__).resolve().parents[2]


def _load(name, tmp_path, **options):
  options = {
    "data_dir": tmp_path,
    "cache_dir": tmp_path / "cache",
    "validation_fraction": 0,
    **options,
  }
  return data.load(name, **options)


@pytest.fixture
def no_decoding(monkeypatch):
  """A function that makes every further decoding fail."""

  def forbid(*_):
    raise AssertionError("decoded again")

  return lambda: monkeypatch.setattr(decoding, "decode_all", forbid)


def _write(tmp_path, set_name, features, examples, splits=("train", "test"), **info):
  """Prepares a TFDS set from {feature: value} examples, the same in each split."""
  with tfds.core.registered.skip_registration():

    class OwnSet(tfds.core.GeneratorBasedBuilder):
      name = set_name
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features, **info)

      def _split_generators(self, _):
        return {split: iter(enumerate(examples)) for split in splits}

      def _generate_examples(self):
        raise NotImplementedError

  OwnSet(data_dir=tmp_path, file_format="array_record").download_and_prepare()


def _png(*shape, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
  return pixels, pictures.encoded(pixels)


IMAGE, LABEL = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(num_classes=3)


def test_prepares_and_reads(cifar10, tmp_path, stock_order):
  got = _load("cifar10", tmp_path)  # nothing is there: downloads, prepares, decodes
  for split, count in (("train", 20), ("test", 4)):
    order, part = stock_order(split, count), getattr(got, split)
    np.testing.assert_array_equal(part.images, cifar10.images[split][order])
    np.testing.assert_array_equal(part.labels, cifar10.labels[split][order])
    assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
  assert got.image_shape == (32, 32, 3) and got.num_classes == 10
  assert got.class_names[:3] == ("airplane", "automobile", "bird")
  assert got.name == "cifar10" and "cifar10/3.0.2" in got.provenance
  assert "other means" not in got.provenance
  assert len(_load("cifar10", tmp_path, validation_fraction=0.25).validation.labels) == 5


def test_second_start_reads_the_cache(cifar10, tmp_path, no_decoding):
  first = _load("cifar10", tmp_path)
  no_decoding()
  second = _load("cifar10", tmp_path)
  np.testing.assert_array_equal(second.train.images, first.train.images)
  np.testing.assert_array_equal(second.test.labels, first.test.labels)
  assert (second.fingerprint, second.provenance, second.class_names) == (
    first.fingerprint,
    first.provenance,
    first.class_names,
  )
  with pytest.raises(AssertionError):  # another expression is another entry
    _load("cifar10", tmp_path, train_split="train[:50%]")
  program = (
    "import sys; from sprout_jax import data; "
    f"data.load('cifar10', data_dir={str(tmp_path)!r}, "
    f"cache_dir={str(tmp_path / 'cache')!r}); "
    "print([m for m in ('tensorflow', 'tensorflow_datasets', 'jax') if m in sys.modules])"
  )
  run = subprocess.run(
    [sys.executable, "-W", "error", "-c", program],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("fault", ["cut", "bytes", "shape", "json", "gone", "swapped"])
def test_corrupt_cache_is_rebuilt(fault, cifar10, tmp_path, no_decoding):
  first = _load("cifar10", tmp_path)
  before = np.array(first.train.images)  # mapped from the file that is damaged below
  cache = tmp_path / "cache"
  (images,) = cache.glob("cifar10-train-*.images.npy")
  content = images.read_bytes()
  if fault == "cut":
    images.write_bytes(content[:-100])
  elif fault == "bytes":
    images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  elif fault == "shape":
    np.save(images, before.reshape(20, 32, 96, 1))
  elif fault == "json":
    next(cache.glob("cifar10-train-*.json")).write_text("[]")
  elif fault == "gone":
    next(cache.glob("cifar10-train-*.labels.npy")).unlink()
  else:
    shutil.copy(next(cache.glob("cifar10-test-*.images.npy")), images)
  again = _load("cifar10", tmp_path)
  np.testing.assert_array_equal(again.train.images, before)
  assert again.fingerprint == first.fingerprint
  assert not list(cache.glob("*.tmp"))
  no_decoding()
  _load("cifar10", tmp_path)  # the entry is mended


def test_set_prepared_anew_is_read_anew(cifar10, tmp_path):
  first = _load("cifar10", tmp_path)
  shutil.rmtree(tmp_path / "cifar10")
  shutil.rmtree(tmp_path / "downloads")
  name = "cifar-10-batches-bin/data_batch_1.bin"
  cifar10.files[name] = cifar10.files[name][:-1] + b"\x80"
  cifar10.repack(cifar10.files)
  assert _load("cifar10", tmp_path).fingerprint != first.fingerprint


def test_touched_files_are_read_anew(cifar10, tmp_path, no_decoding):
  _load("cifar10", tmp_path)
  (record,) = (tmp_path / "cifar10" / "3.0.2").glob("*train.array_record*")
  os.utime(record, ns=(0, 0))
  no_decoding()
  with pytest.raises(AssertionError):
    _load("cifar10", tmp_path)


def test_directories_from_the_environment(cifar10, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  data.load("cifar10")
  assert (tmp_path / "tfds" / "cifar10" / "3.0.2").is_dir()
  assert len(list((tmp_path / "xdg" / "sprout_jax").glob("*.json"))) == 2


def test_split_expressions(cifar10, tmp_path, stock_order):
  got = _load("cifar10", tmp_path, train_split="train[:75%]", test_split="train[75%:]+test[:2]")
  order = stock_order("train", 20)
  np.testing.assert_array_equal(got.train.images, cifar10.images["train"][order[:15]])
  np.testing.assert_array_equal(
    got.test.images,
    np.concatenate(
      [cifar10.images["train"][order[15:]], cifar10.images["test"][stock_order("test", 4)[:2]]]
    ),
  )


def test_like_named_splits_have_entries_of_their_own(cifar10, tmp_path):
  for expression, count in (("train[:10%]", 2), ("train[:10]", 10), ("train[:10%]", 2)):
    assert len(_load("cifar10", tmp_path, train_split=expression).train.labels) == count


@pytest.mark.parametrize(
  "train, test", [("train", "train"), ("train[:60%]", "train[50%:]"), ("train", "test+train[:1]")]
)
def test_overlapping_splits(train, test, cifar10, tmp_path):
  for _ in range(2):  # decoded, then from the cache
    with pytest.raises(UserError, match="share images"):
      _load("cifar10", tmp_path, train_split=train, test_split=test)


@pytest.mark.parametrize("split", ["extra", "train[", "train[:0]"])
def test_bad_split_lists_the_splits(split, cifar10, tmp_path):
  with pytest.raises(UserError, match="test, train"):
    _load("cifar10", tmp_path, train_split=split)


def test_failing_preparation_says_where_and_what_to_type(cifar10, server, tmp_path):
  server.files.clear()
  with pytest.raises(UserError) as caught:
    _load("cifar10", tmp_path)
  assert f"'cifar10' is not in {tmp_path}" in str(caught.value)
  assert f"python -m sprout_jax.data.prepare cifar10 --data_dir {tmp_path}" in str(caught.value)


def test_other_version_is_named_and_can_be_asked_for(cifar10, server, tmp_path):
  prepare.prepare("cifar10", tmp_path)
  old = tmp_path / "cifar10" / "3.0.1"
  (tmp_path / "cifar10" / "3.0.2").rename(old)
  (old / "dataset_info.json").write_text(
    (old / "dataset_info.json").read_text().replace("3.0.2", "3.0.1")
  )
  shutil.rmtree(tmp_path / "downloads")
  server.files.clear()
  with pytest.raises(
    UserError, match="the folder has: 3.0.1; type 'cifar10:3.0.1' to read that version"
  ):
    _load("cifar10", tmp_path)
  assert "cifar10/3.0.1" in _load("cifar10:3.0.1", tmp_path).provenance


def test_unknown_name_lists_close_ones(tmp_path):
  with pytest.raises(UserError, match="cifar10.*Names of this package: digits, folder, npz"):
    _load("cifar01", tmp_path)
  with pytest.raises(UserError, match="Did you mean: digits"):
    _load("digit", tmp_path)
  with pytest.raises(UserError, match="cannot open 'cifar10:9.9.9'"):
    _load("cifar10:9.9.9", tmp_path)
  with pytest.raises(UserError, match="has the name 'cifar10' in TFDS; type that name"):
    _load("Cifar10", tmp_path)


def test_tfrecord_only(cifar10, tmp_path):
  info = prepare.prepare("cifar10", tmp_path) / "dataset_info.json"
  info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
  for load in (lambda: _load("cifar10", tmp_path), lambda: prepare.prepare("cifar10", tmp_path)):
    with pytest.raises(UserError, match="array_record") as caught:
      load()
    assert "python -m sprout_jax.data.prepare cifar10 --data_dir OTHER_DIR" in str(caught.value)


def test_remote_directory():
  with pytest.raises(UserError, match="expected a local folder"):
    data.load("cifar10", data_dir="gs://bucket/tfds")


def test_cache_that_cannot_be_written(cifar10, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="give another cache_dir"):
    _load("cifar10", tmp_path, cache_dir=tmp_path / "file")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_own_set_without_supervised_keys(channels, tmp_path):
  # A set TFDS has no code for: read from its files alone.
  pairs = [_png(*(5, 7, channels)[: 2 if channels == 1 else 3], seed=seed) for seed in range(3)]
  _write(
    tmp_path,
    "my_own_set",
    tfds.features.FeaturesDict(
      {
        "picture": tfds.features.Image(shape=(5, 7, channels)),
        "kind": tfds.features.ClassLabel(names=["x", "y", "z"]),
      }
    ),
    [{"picture": png, "kind": i} for i, (_, png) in enumerate(pairs)],
  )
  got = _load("my_own_set", tmp_path)
  assert got.class_names == ("x", "y", "z") and got.image_shape == (5, 7, channels)
  for image, label in zip(got.train.images, got.train.labels):
    np.testing.assert_array_equal(image, pairs[label][0].reshape(5, 7, channels))


@pytest.mark.parametrize(
  "features, example, keys, message",
  [
    (
      {"image": IMAGE, "label": tfds.features.Text()},
      {"image": _png(4, 4, 3)[1], "label": "a"},
      ("image", "label"),
      "its target 'label' is Text, not ClassLabel",
    ),
    (
      {"text": tfds.features.Text(), "label": LABEL},
      {"text": "a", "label": 0},
      ("text", "label"),
      "its input 'text' is Text, not Image",
    ),
    (
      {"a": IMAGE, "b": IMAGE, "label": LABEL},
      {"a": _png(4, 4, 3)[1], "b": _png(4, 4, 3)[1], "label": 0},
      None,
      "its input None",
    ),
    (
      {
        "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
        "label": LABEL,
      },
      {"image": _png(4, 4)[1], "label": 0},
      ("image", "label"),
      "its images are uint16",
    ),
  ],
)
def test_no_image_classification_set(features, example, keys, message, tmp_path):
  _write(tmp_path, "odd_set", tfds.features.FeaturesDict(features), [example], supervised_keys=keys)
  with pytest.raises(UserError, match=message):
    _load("odd_set", tmp_path)


def test_images_of_two_sizes(tmp_path):
  _write(
    tmp_path,
    "two_sizes",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL}),
    [{"image": _png(4, size, 3)[1], "label": 0} for size in (5, 5, 6, 5)],
    supervised_keys=("image", "label"),
  )
  with pytest.raises(
    UserError, match=r"image \d has height and width \(4, [56]\).*expected one size"
  ):
    _load("two_sizes", tmp_path)


def test_split_larger_than_the_disk(cifar10, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
  with pytest.raises(UserError, match=r"has 0\.0 GiB; give another cache_dir, or take a part"):
    _load("cifar10", tmp_path)
  assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.fixture
def several_sizes(tmp_path):
  """As ImageNet is prepared: JPEGs of several sizes, splits train and validation."""
  contents = [
    pictures.encoded(pictures.pixels(i, 20 + i % 3, 30 - i % 4), "JPEG", quality=90)
    for i in range(13)
  ]
  _write(
    tmp_path,
    "small_net",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL, "file_name": tfds.features.Text()}),
    [{"image": content, "label": i % 3, "file_name": str(i)} for i, content in enumerate(contents)],
    splits=("train", "validation"),
    supervised_keys=("image", "label"),
  )
  return contents


SMALL = {"test_split": "validation", "image_size": (16, 16), "crop_fraction": 0.875}


def test_images_of_several_sizes_are_streamed(several_sizes, tmp_path, stock_order):
  memory = _load("small_net", tmp_path, **SMALL)
  assert "resized to 16x16 (centre crop of 0.875" in memory.provenance
  for split, part in (("train", memory.train), ("validation", memory.test)):
    for image, label, number in zip(part.images, part.labels, stock_order(split, 13), strict=True):
      stored = decoding.Image.open(io.BytesIO(several_sizes[number]))
      cropped = decoding.centre_crop(stored, (16, 16), 0.875, "")
      np.testing.assert_array_equal(image, np.asarray(cropped))
      assert label == number % 3
  found = _load("small_net", tmp_path, in_memory_gib=0, validation_fraction=0.25, **SMALL)
  held = _load("small_net", tmp_path, validation_fraction=0.25, **SMALL)
  assert isinstance(found.train, data.Streamed) and found.image_shape == (16, 16, 3)
  assert found.fingerprint != memory.fingerprint and found.class_names == memory.class_names
  np.testing.assert_array_equal(found.validation.images, held.validation.images)
  np.testing.assert_array_equal(found.test.images, memory.test.images)
  rows = order.batch_indices(4, 3, 5, 10, 3)
  batches = list(found.train.batches(4, 3, 8, 3, slice(None)))
  for (images, labels), row in zip(batches, rows, strict=True):
    np.testing.assert_array_equal(images, held.train.images[row])
    np.testing.assert_array_equal(labels, held.train.labels[row])


def test_random_crops_of_a_stream_come_from_reopened_files_too(several_sizes, tmp_path):
  found = _load("small_net", tmp_path, random_resized_crop=0.2, train_split="train[:8]", **SMALL)
  assert len(found.train) == 8 and "random crops of at least 0.2" in found.provenance
  decoder = found.train.decoder
  again = pickle.loads(pickle.dumps(decoder))  # as a worker process gets it
  for row in range(8):
    expected, label = decoder.training(row, 1, 2, row)
    image, same = again.training(row, 1, 2, row)
    np.testing.assert_array_equal(image, expected)
    assert same == label
  assert decoder.training(0, 1, 3, 0)[0].shape == (16, 16, 3)


def test_fingerprint_of_a_stream_is_of_its_files(several_sizes, tmp_path):
  options = {"in_memory_gib": 0, **SMALL}
  first = _load("small_net", tmp_path, **options)
  assert first.fingerprint == _load("small_net", tmp_path, **options).fingerprint
  other = _load("small_net", tmp_path, train_split="train[:8]", **options)
  assert first.fingerprint != other.fingerprint
  files = first.train.decoder.examples
  (record,) = tmp_path.glob("small_net/*/*train.array_record*")
  assert files.records == [[record.name, record.stat().st_size, 0, 13]]
  changed = dataclasses.replace(files, records=[[record.name, record.stat().st_size + 1, 0, 13]])
  assert changed.digest() != files.digest()


def test_what_a_stream_refuses(several_sizes, tmp_path):
  options = {"in_memory_gib": 0, "image_size": (16, 16)}
  for test in ("train", "validation+train[:1]"):
    with pytest.raises(UserError, match="share images"):
      _load("small_net", tmp_path, test_split=test, **options)
  with pytest.raises(UserError, match=r"test_fraction is 0.5.*train_split=train\[:80%\]"):
    _load("small_net", tmp_path, test_fraction=0.5)
  with pytest.raises(UserError, match="expected one size.*image_size="):
    _load("small_net", tmp_path, test_split="validation")


def test_damaged_record_names_its_place(tmp_path):
  content = pictures.encoded(pictures.pixels(0, 40, 40))
  _write(
    tmp_path,
    "damaged_set",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL}),
    [{"image": content[: len(content) // 2], "label": 0}],
    supervised_keys=("image", "label"),
  )
  with pytest.raises(
    UserError, match="TFDS set damaged_set/1.0.0, split 'test': image 0 cannot be decoded"
  ):
    _load("damaged_set", tmp_path)


def test_hidden_labels_are_refused(tmp_path):
  _write(
    tmp_path,
    "hidden",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL}),
    [{"image": _png(4, 4, 3)[1], "label": -1}],
    supervised_keys=("image", "label"),
  )
  with pytest.raises(UserError, match="labels range from -1"):
    _load("hidden", tmp_path)


def test_hidden_labels_of_a_stream_are_refused(tmp_path):
  _write(
    tmp_path,
    "hidden",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL}),
    [{"image": _png(4, 4, 3)[1], "label": -1}],
    supervised_keys=("image", "label"),
  )
  builder = tfds.builder("hidden", data_dir=tmp_path)
  decoder = decoding.Decoder(tfds_source.open_split(builder, "train"), (4, 4), False)
  stream = data.Streamed(decoder, np.arange(1), array_cache.Place(tmp_path, "", ""))
  with pytest.raises(UserError, match="split 'train': image 0 has the label -1"):
    next(stream.batches(0, 0, 1, 1, slice(None)))


def test_cifar10_prepared_by_the_shared_script(tmp_path):
  script = ROOT.parent / "shared" / "tools" / "prepare_cifar10.py"
  if not (script.exists() and (script.parents[1] / "data" / "cifar10_jpeg.tar.xz").exists()):
    pytest.skip(f"no {script} or its archive: the shared workspace is not mounted")
  subprocess.run(
    [sys.executable, script, "--data_dir", tmp_path, "--limit", "5"],
    check=True,
    capture_output=True,
  )
  got = _load("cifar10", tmp_path)
  assert np.bincount(got.train.labels).tolist() == [5] * 10
  assert np.bincount(got.test.labels).tolist() == [5] * 10
  assert "prepared by other means than the stock TFDS builder (ids like 'train_" in got.provenance
  example = tfds.data_source("cifar10", split="test", data_dir=tmp_path)[3]
  np.testing.assert_array_equal(got.test.images[3], example["image"])


def test_a_set_that_has_nothing_but_a_test_split(tmp_path, no_decoding):
  """As the corrupted copies of test sets have it."""
  pairs = [_png(4, 4, 3, seed=seed) for seed in range(5)]
  _write(
    tmp_path,
    "own_corrupted",
    tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL}),
    [{"image": png, "label": i % 2} for i, (_, png) in enumerate(pairs)],
    splits=("test",),
    supervised_keys=("image", "label"),
  )
  options = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
  request = data.Request("own_corrupted", **options)
  split = data.load_test(request)
  order = [
    next(i for i, (pixels, _) in enumerate(pairs) if (pixels == image).all())
    for image in split.images
  ]
  assert sorted(order) == [0, 1, 2, 3, 4] and [i % 2 for i in order] == split.labels.tolist()
  no_decoding()
  np.testing.assert_array_equal(data.load_test(request).images, split.images)
