"""The embedded set, the held-out split, and check()."""

import dataclasses
import hashlib

import numpy as np
import pytest

from sprout_jax import data
from sprout_jax.errors import UserError

COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of each digit, as published
HELD_OUT = [2, 2, 0, 5, 0, 7, 3, 3, 2, 8, 0, 7, 9, 7, 9, 4, 3, 7, 5, 4]  # labels, at 0.1
# The first image of the source's file, a zero, as published (levels 0..16).
FIRST = [
  [0, 0, 5, 13, 9, 1, 0, 0],
  [0, 0, 13, 15, 10, 15, 5, 0],
  [0, 3, 15, 2, 0, 11, 8, 0],
  [0, 4, 12, 0, 0, 8, 8, 0],
  [0, 5, 8, 0, 0, 9, 8, 0],
  [0, 4, 11, 0, 1, 12, 7, 0],
  [0, 2, 14, 5, 10, 12, 0, 0],
  [0, 0, 6, 13, 10, 0, 0, 0],
]


@pytest.fixture(scope="module")
def digits():
  return data.load("digits", validation_fraction=0)


def _rows(*splits):
  """Every image with its label as bytes, sorted: a multiset."""
  return sorted(
    image.tobytes() + bytes([label])
    for split in splits
    for image, label in zip(split.images, split.labels)
  )


def test_images_and_labels(digits):
  assert (len(digits.train.labels), len(digits.test.labels)) == (1497, 300)
  assert digits.image_shape == (8, 8, 1) and digits.num_classes == 10
  assert digits.class_names == tuple("0123456789")
  assert len(digits.validation.labels) == 0
  labels = np.concatenate([digits.train.labels, digits.test.labels])
  assert np.bincount(labels).tolist() == COUNTS
  images = np.concatenate([digits.train.images, digits.test.images])
  assert images.dtype == np.float32 and labels.dtype == np.int32
  levels = images * 16  # exact in float32
  np.testing.assert_array_equal(levels, np.round(levels))
  assert set(np.unique(levels)) == set(range(17))
  assert len(np.unique(digits.test.labels)) == 10


def test_first_image_and_the_documented_split(digits):
  order = np.random.RandomState(0).permutation(1797)
  split, place = (
    (digits.test, (order[:300] < 0).sum()) if 0 in order[:300] else (digits.train, 0)
  )  # both splits keep the source's order
  np.testing.assert_array_equal(split.images[place, :, :, 0], np.array(FIRST) / 16)
  assert split.labels[place] == 0


def test_provenance_and_fingerprint(digits):
  for words in ("Alpaydin", "Kaynak", "CC BY 4.0", "https://archive.ics.uci.edu/dataset/80"):
    assert words in digits.provenance
  parts = [array for split in (digits.train, digits.test) for array in (split.images, split.labels)]
  by_hand = "".join(
    hashlib.sha256((a.dtype.str + str(a.shape)).encode() + a.tobytes()).hexdigest() for a in parts
  )
  assert digits.fingerprint == hashlib.sha256(by_hand.encode()).hexdigest()
  assert data.load("digits", validation_fraction=0.5).fingerprint == digits.fingerprint


def test_held_out_images_come_from_training_and_never_change(digits):
  tenth, half = [data.load("digits", validation_fraction=f) for f in (0.1, 0.5)]
  assert (len(tenth.train.labels), len(tenth.validation.labels)) == (1347, 150)
  for held in (tenth, half):
    assert _rows(held.train, held.validation) == _rows(digits.train)
    np.testing.assert_array_equal(held.test.images, digits.test.images)
  assert set(_rows(tenth.validation)) <= set(_rows(half.validation))
  # Frozen: whoever changes the permutation changes what earlier runs were selected on.
  assert tenth.validation.labels[:20].tolist() == HELD_OUT


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.0, float("nan"), "0.1", True])
def test_fraction_out_of_range(fraction):
  with pytest.raises(UserError, match="validation_fraction is"):
    data.load("digits", validation_fraction=fraction)


def test_fraction_that_leaves_nothing(digits):
  with pytest.raises(UserError, match="0 for validation and 1497 for training"):
    data.hold_out(digits, 1e-4)
  with pytest.raises(UserError, match="1497 for validation and 0 for training"):
    data.hold_out(digits, 0.9999)


def test_embedded_set_has_one_split():
  with pytest.raises(UserError, match="has fixed splits"):
    data.load("digits", train_split="train[:50%]")


def _split(images, labels):
  return data.Split(np.asarray(images), np.asarray(labels))


GOOD = _split(np.zeros((4, 3, 3, 1), np.float32), np.arange(4, dtype=np.int32))


def _with(**changes):
  return dataclasses.replace(
    data.Dataset(
      name="toy",
      train=GOOD,
      validation=data.Split(GOOD.images[:0], GOOD.labels[:0]),
      test=GOOD,
      num_classes=4,
      class_names=tuple("abcd"),
      fingerprint="",
      provenance="",
    ),
    **changes,
  )


def test_check_accepts_sound_data():
  data.check(_with())
  levels = _split(np.full((4, 3, 3, 1), 255, np.uint8), GOOD.labels)
  data.check(_with(train=levels, test=levels))


def _pixel(value):
  images = GOOD.images.copy()
  images[1, 2, 0, 0] = value
  return images


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(train=_split(GOOD.images, np.int32([0, 1, 2, 4]))), "train split: labels range.*to 4"),
    (dict(test=_split(GOOD.images, np.int32([0, -1, 2, 3]))), "test split: labels range from -1"),
    (dict(train=_split(GOOD.images, GOOD.labels.astype(np.int64))), "labels are int64"),
    (dict(train=_split(GOOD.images, GOOD.labels[:, None])), r"shape \(4, 1\)"),
    (dict(train=_split(GOOD.images.astype(np.float64), GOOD.labels)), "images are float64"),
    (dict(train=_split(GOOD.images[..., 0], GOOD.labels)), r"shape \(4, 3, 3\)"),
    (dict(train=_split(_pixel(1.5), GOOD.labels)), "range from 0.0 to 1.5"),
    (dict(train=_split(_pixel(-0.5), GOOD.labels)), "range from -0.5"),
    (dict(train=_split(_pixel(np.nan), GOOD.labels)), "without NaN"),
    (dict(validation=_split(_pixel(np.inf), GOOD.labels)), "validation split: pixels range"),
    (dict(train=_split(GOOD.images[:3], GOOD.labels)), "3 images but 4 labels"),
    (dict(train=_split(GOOD.images[:0], GOOD.labels[:0])), "train split: it is empty"),
    (dict(test=_split(GOOD.images[:0], GOOD.labels[:0])), "test split: it is empty"),
    (dict(test=_split(GOOD.images[:, :2], GOOD.labels)), r"\(2, 3, 1\), but training images have"),
    (dict(class_names=("a", "b")), "4 classes and 2 class names"),
    (dict(num_classes=1, class_names=("a",)), "expected at least 2 classes"),
  ],
)
def test_check_names_the_fault(changes, message):
  with pytest.raises(UserError, match=message):
    data.check(_with(**changes))
