"""Folders of images: layouts, links, splits, the cache, and every way a folder can be wrong."""

import hashlib
import os

import numpy as np
import pytest

from sprout_jax import data
from sprout_jax.data import decoding
from sprout_jax.errors import UserError
from tests.data import pictures


def load(root, tmp_path, **options):
  options = {"cache_dir": str(tmp_path / "cache"), "validation_fraction": 0, **options}
  return data.load("folder", data_dir=str(root), **options)


def by_name(written, split, names):
  """Stacks the pixels of the files below a folder, sorted by name, class by class."""
  paths = sorted(path for path in written if path.startswith(split))
  assert [path.split("/")[-2] for path in paths] == names
  return np.stack([written[path] for path in paths])


def test_two_hundred_pngs_of_two_classes(tmp_path):
  written = pictures.folder(tmp_path / "photos", {"dog": 120, "cat": 80})
  found = load(tmp_path / "photos", tmp_path, validation_fraction=0.1)
  assert found.name == "photos" and found.class_names == ("cat", "dog")
  assert (len(found.train), len(found.validation), len(found.test)) == (144, 16, 40)
  assert np.bincount(found.test.labels).tolist() == [16, 24]  # a fifth of each class
  images = np.concatenate([found.train.images, found.validation.images, found.test.images])
  labels = np.concatenate([found.train.labels, found.validation.labels, found.test.labels])
  there = {images[i].tobytes(): labels[i] for i in range(200)}
  assert there == {array.tobytes(): int("dog" in path) for path, array in written.items()}
  assert found.image_shape == (12, 16, 3) and images.dtype == np.uint8
  assert str(tmp_path) not in found.provenance and "'photos'" in found.provenance


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_folders_for_training_and_test(test, tmp_path):
  root = tmp_path / "photos"
  written = {
    f"{split}/{path}": array
    for split, counts in (("train", {"b": 3, "a": 2}), (test, {"a": 1, "b": 2}))
    for path, array in pictures.folder(root / split, counts).items()
  }
  found = load(root, tmp_path)
  np.testing.assert_array_equal(found.train.images, by_name(written, "train", list("aabbb")))
  np.testing.assert_array_equal(found.test.images, by_name(written, test, list("abb")))
  assert found.train.labels.tolist() == [0, 0, 1, 1, 1] and found.test.labels.tolist() == [0, 1, 1]
  assert found.train.labels.dtype == np.int32
  again = load(root, tmp_path, train_split=test, test_split="train")  # the names can be given
  np.testing.assert_array_equal(again.train.images, found.test.images)


def test_a_folder_test_comes_before_val(tmp_path, capsys):
  for split in ("train", "val", "test"):
    pictures.folder(tmp_path / "photos" / split, {"a": 1, "b": 1 + (split == "test")})
  assert len(load(tmp_path / "photos", tmp_path).test) == 3
  assert "ignored: val" in capsys.readouterr().err
  assert len(load(tmp_path / "photos", tmp_path, test_split="val").test) == 2


def test_a_class_can_be_named_train(tmp_path):
  pictures.folder(tmp_path / "photos", {"bus": 2, "car": 2, "train": 2})
  assert load(tmp_path / "photos", tmp_path).class_names == ("bus", "car", "train")


@pytest.mark.parametrize("splits", [("Train", "Test"), ("training", "testing"), ("train", "eval")])
def test_splits_under_other_names_are_no_classes(splits, tmp_path):
  for split in splits:
    pictures.folder(tmp_path / "photos" / split, {"cat": 2, "dog": 2})
  with pytest.raises(UserError, match=f"{splits[0]}.*each has the folders.*cat.*look like splits"):
    load(tmp_path / "photos", tmp_path)
  found = load(tmp_path / "photos", tmp_path, train_split=splits[0], test_split=splits[1])
  assert found.class_names == ("cat", "dog")


def test_classes_with_equal_subfolders_are_classes(tmp_path):
  pictures.folder(tmp_path / "photos", {"cat/day": 2, "cat/night": 1, "dog/day": 2, "dog/night": 1})
  assert load(tmp_path / "photos", tmp_path).class_names == ("cat", "dog")
  pictures.folder(tmp_path / "parts", {f"{a}/{b}": 2 for a in ("valve", "contest") for b in "xy"})
  assert load(tmp_path / "parts", tmp_path).class_names == ("contest", "valve")


def test_a_file_in_both_splits_is_refused(tmp_path):
  for split in ("train", "test"):
    pictures.folder(tmp_path / "photos" / split, {"a": 2, "b": 2})
  os.link(tmp_path / "photos/test/a/000.png", tmp_path / "photos/train/a/copy.png")
  with pytest.raises(UserError, match="1 files in both splits, by links .* train/a/copy.png"):
    load(tmp_path / "photos", tmp_path)


def test_subfolders_hidden_and_other_files(tmp_path, capsys):
  root = tmp_path / "photos"
  pictures.folder(root, {"a": 2, "b": 2, "b/deeper/still": 1, ".git": 1, "a/.thumbnails": 1})
  (root / "a" / "notes.txt").write_text("")
  (root / "a" / ".DS_Store").write_text("")
  (root / "a" / "000.png").rename(root / "a" / "UPPER.PNG")
  (root / "read.me").write_text("")
  os.mkfifo(root / "b" / "pipe.png")  # would block whoever opens it
  os.symlink(tmp_path / "nowhere.png", root / "b" / "broken.png")
  found = load(root, tmp_path)
  assert len(found.train) + len(found.test) == 5 and found.class_names == ("a", "b")
  message = capsys.readouterr().err
  assert message.count("\n") == 1 and "4 entries" in message
  for name in ("read.me", "a/notes.txt", "b/pipe.png", "b/broken.png"):
    assert name in message


def test_links_are_followed_but_not_in_circles(tmp_path):
  root = tmp_path / "photos"
  written = pictures.folder(root, {"a": 2, "b": 2})
  elsewhere = pictures.folder(tmp_path / "elsewhere", {"more": 3}, (12, 16))
  os.symlink(tmp_path / "elsewhere" / "more", root / "b" / "linked")
  os.symlink(root / "b", root / "b" / "itself")
  os.symlink(root, root / "a" / "above")
  os.symlink(root, root / "loop")  # beside the classes
  found = load(root, tmp_path)
  images = [*found.train.images, *found.test.images]
  expected = {a.tobytes() for a in (*written.values(), *elsewhere.values())}
  assert {image.tobytes() for image in images} == expected
  # The folder above leads from a to the images of both classes; that is not followed either.
  assert len(images) == 7


def test_grey_sets_have_one_channel(tmp_path):
  written = pictures.folder(tmp_path / "photos", {"a": 2, "b": 2}, channels=1)
  found = load(tmp_path / "photos", tmp_path)
  assert found.image_shape == (12, 16, 1)
  found = {image.tobytes() for image in (*found.train.images, *found.test.images)}
  assert found == {array.tobytes() for array in written.values()}
  colour = pictures.pixels(9)
  (tmp_path / "photos" / "b" / "z.png").write_bytes(pictures.encoded(colour))
  assert load(tmp_path / "photos", tmp_path).image_shape == (12, 16, 3)


def test_the_test_split_is_fixed_and_stratified(tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 10, "b": 30, "c": 2})
  half = load(tmp_path / "photos", tmp_path, test_fraction=0.5)
  assert np.bincount(half.test.labels).tolist() == [5, 15, 1]
  few = load(tmp_path / "photos", tmp_path, test_fraction=0.01)
  assert np.bincount(few.test.labels).tolist() == [1, 1, 1]  # at least one of each class
  most = load(tmp_path / "photos", tmp_path, test_fraction=0.99)
  assert np.bincount(most.train.labels).tolist() == [1, 1, 1]
  # Frozen: whoever changes the permutation changes what earlier runs were tested on.
  random = np.random.RandomState(20200702)
  members = [random.permutation(part) for part in np.split(np.arange(42), [10, 40])]
  names = sorted((tmp_path / "photos").rglob("*.png"))
  expected = [names[i] for i in sorted([*members[0][:5], *members[1][:15], *members[2][:1]])]
  for image, path in zip(half.test.images, expected, strict=True):
    np.testing.assert_array_equal(image, np.asarray(decoding.Image.open(path)))


def test_fingerprint_is_of_the_arrays(tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 3, "b": 3})
  found = load(tmp_path / "photos", tmp_path)
  arrays = [a for split in (found.train, found.test) for a in (split.images, split.labels)]
  by_hand = "".join(
    hashlib.sha256((a.dtype.str + str(a.shape)).encode() + a.tobytes()).hexdigest() for a in arrays
  )
  assert found.fingerprint == hashlib.sha256(by_hand.encode()).hexdigest()


def test_second_start_reads_the_cache(tmp_path, monkeypatch):
  root = tmp_path / "photos"
  pictures.folder(root, {"a": 3, "b": 3})
  first = load(root, tmp_path, image_size=(8, 8))

  def forbid(*_):
    raise AssertionError("decoded again")

  with monkeypatch.context() as patch:
    patch.setattr(decoding, "decode_all", forbid)
    second = load(root, tmp_path, image_size=(8, 8))
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.test.images, first.test.images)
    for change in ({"image_size": (8, 9)}, {"image_size": (8, 8), "crop_fraction": 0.5}):
      with pytest.raises(AssertionError):
        load(root, tmp_path, **change)
    os.utime(root / "a" / "000.png", ns=(0, 0))
    with pytest.raises(AssertionError):
      load(root, tmp_path, image_size=(8, 8))
  np.testing.assert_array_equal(
    load(root, tmp_path, image_size=(8, 8)).test.images, first.test.images
  )


def test_images_of_several_sizes_are_resized(tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 2, "b": 2})
  (tmp_path / "photos" / "a" / "z.png").write_bytes(pictures.encoded(pictures.pixels(5, 30, 20)))
  with pytest.raises(UserError, match=r"\(30, 20\).*type --config.dataset.image_size=HEIGHT,WIDTH"):
    load(tmp_path / "photos", tmp_path)
  found = load(tmp_path / "photos", tmp_path, image_size=(10, 10), crop_fraction=0.8)
  assert found.image_shape == (10, 10, 3)
  assert "resized to 10x10 (centre crop of 0.8 of the shorter side)" in found.provenance


def break_(fault, root):
  """Puts one fault into a folder of classes a and b."""
  if fault == "no classes":
    for path in sorted(root.rglob("*"), reverse=True):
      path.unlink() if path.is_file() else path.rmdir()
    (root / "x.png").write_bytes(pictures.encoded(pictures.pixels(0)))
  elif fault == "one class":
    for path in (root / "b").iterdir():
      path.unlink()
    (root / "b").rmdir()
  elif fault == "empty class":
    (root / "c").mkdir()
  elif fault == "single image":
    pictures.folder(root, {"c": 1})
  elif fault == "zero bytes":
    (root / "b" / "001.png").write_bytes(b"")
  elif fault == "truncated":
    content = (root / "b" / "001.png").read_bytes()
    (root / "b" / "001.png").write_bytes(content[: len(content) // 2])
  elif fault == "no image":
    (root / "b" / "001.png").write_bytes(b"not an image")
  elif fault == "16-bit":
    (root / "b" / "001.png").write_bytes(pictures.png(16, 12, 16, 0, bytes(12 * 33)))
  elif fault == "huge":
    (root / "b" / "001.png").write_bytes(pictures.png(60_000, 60_000, 8, 2, b"\0"))
  elif fault == "no train":
    pictures.folder(root / "test", {"a": 1, "b": 1})
  elif fault == "other classes":
    pictures.folder(root / "train", {"a": 1, "b": 1})
    pictures.folder(root / "test", {"a": 1, "c": 1})
  elif fault == "test without classes":
    pictures.folder(root / "train", {"a": 1, "b": 1})
    (root / "test").mkdir()


@pytest.mark.parametrize(
  "fault, message",
  [
    ("no classes", r"photos has no class folders; expected .*CLASS.*png"),
    ("one class", r"photos has one class folder, 'a'; expected at least 2"),
    ("empty class", r"the class folder .*photos/c has no images \(.png, .jpg"),
    ("single image", r"class 'c' has a single image"),
    ("zero bytes", r"b/001.png is empty \(0 bytes\)"),
    ("truncated", r"b/001.png cannot be decoded"),
    ("no image", r"b/001.png is no PNG, JPEG, BMP or WebP image"),
    ("16-bit", r"b/001.png has 16 bits per channel"),
    ("huge", r"b/001.png has 60000 x 60000 pixels"),
    ("no train", r"photos has the folder 'test', but no folder 'train'"),
    ("other classes", r"only in train: b; only in test: c"),
    ("test without classes", r"photos/test has no class folders"),
  ],
)
def test_every_fault_has_one_error(fault, message, tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 3, "b": 3})
  break_(fault, tmp_path / "photos")
  with pytest.raises(UserError, match=message):
    load(tmp_path / "photos", tmp_path)
  leftovers = list((tmp_path / "cache").glob("*.tmp")) if (tmp_path / "cache").exists() else []
  assert not leftovers


@pytest.mark.parametrize(
  "options, message",
  [
    ({"data_dir": ""}, "data_dir is '', but the data set 'folder' needs.*images.py:dir=PHOTOS"),
    ({"data_dir": "/nowhere/photos"}, "'/nowhere/photos' does not exist"),
    ({"test_split": "extra"}, "no folders 'train' and 'extra'.*its folders are: a, b"),
    ({"crop_fraction": 0.5}, r"crop_fraction is 0.5.*image_size=224,224"),
    ({"random_resized_crop": 0.5}, r"random_resized_crop is 0.5.*image_size=224,224"),
    ({"image_size": (8,)}, r"image_size is \(8,\); expected height and width"),
    ({"image_size": (8, 0)}, r"image_size is \(8, 0\)"),
    ({"image_size": (8, 8.5)}, r"image_size is \(8, 8.5\)"),
    ({"test_fraction": 1.0}, "test_fraction is 1.0"),
    ({"workers": -1}, "workers is -1"),
    ({"in_memory_gib": -1}, "in_memory_gib is -1"),
  ],
)
def test_wrong_requests(options, message, tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 2, "b": 2})
  options = {"data_dir": str(tmp_path / "photos"), "cache_dir": str(tmp_path / "cache"), **options}
  with pytest.raises(UserError, match=message):
    data.load("folder", **options)


def test_empty_files_of_a_stream_are_found_before_the_training(tmp_path):
  for split in ("train", "val"):
    pictures.folder(tmp_path / "photos" / split, {"a": 1, "b": 2})
  (tmp_path / "photos" / "train" / "b" / "001.png").write_bytes(b"")
  with pytest.raises(UserError, match="train/b/001.png is empty"):
    load(tmp_path / "photos", tmp_path, in_memory_gib=0)


def test_a_fraction_beside_a_test_folder(tmp_path):
  for split in ("train", "val"):
    pictures.folder(tmp_path / "photos" / split, {"a": 1, "b": 1})
  with pytest.raises(UserError, match="has test images of its own, in val; leave it out"):
    load(tmp_path / "photos", tmp_path, test_fraction=0.3)
