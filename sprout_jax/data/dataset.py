"""The data set: its splits, their checks and their fingerprint."""

import dataclasses
import hashlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from sprout_jax.errors import UserError

if TYPE_CHECKING:
  from sprout_jax.data import streamed

HOLD_OUT_SEED = 20200701  # fixed, so that every run holds out the same images, whatever its seed
TEST_SEED = 20200702  # fixed for the same reason: of the test split of a set that has none


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and their labels, in a fixed order.

  Attributes:
    images: [n, height, width, channels], uint8 in 0..255 or float32 in [0, 1]. They can be mapped
      from a file, and must not be written to.
    labels: [n], int32 in 0..num_classes-1.
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def image_shape(self) -> tuple[int, ...]:
    """The shape of an image, (height, width, channels)."""
    return tuple(self.images.shape[1:])


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A classification data set.

  Attributes:
    name: the name with which it was loaded.
    train: the training split: arrays, or a stream of minibatches where the images do not fit in
      memory.
    validation: the held-out split; it can be empty.
    test: the test split.
    num_classes: number of classes.
    class_names: a name for each class.
    fingerprint: SHA-256 (hex) of the training and test arrays before the validation split is held
      out, so it does not depend on `validation_fraction`. Of a streamed training split, the names
      and sizes of the files stand in the place of the arrays.
    provenance: one sentence about the source of the images, with their licence where it is known.
  """

  name: str
  train: "Split | streamed.Streamed"
  validation: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  fingerprint: str
  provenance: str

  @property
  def image_shape(self) -> tuple[int, ...]:
    """The shape of an image, (height, width, channels)."""
    return self.train.image_shape


def empty_like(split: Split) -> Split:
  """Returns an empty split with the shapes and types of `split`."""
  return Split(split.images[:0], split.labels[:0])


def digest(array: np.ndarray) -> str:
  """Returns the SHA-256 (hex) of an array's type, shape and bytes."""
  sha = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
  sha.update(np.ascontiguousarray(array).data)
  return sha.hexdigest()


def fingerprint(digests: Iterable[str]) -> str:
  """Returns the SHA-256 (hex) of the digests of train images and labels, test images and labels.

  Of a streamed training split, one digest of its files stands in the place of the first two.
  """
  return hashlib.sha256("".join(digests).encode()).hexdigest()


def hold_out(
  dataset: Dataset,
  fraction: float,
  take: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda array, indices: array[indices],
) -> Dataset:
  """Moves round(fraction * n) of the n training images to the validation split.

  The choice is the beginning of a fixed permutation. It depends only on n and `fraction`, and a
  larger fraction holds out a superset. Both parts keep their order. Of a streamed split, the
  validation images are decoded as test images are, and stored.

  Args:
    dataset: the data set, with an empty validation split.
    fraction: share of the training images, in [0, 1); 0 keeps every training image.
    take: (images, indices) -> the images at the indices.

  Raises:
    UserError: the fraction is out of range, a part would be empty, or an image cannot be read.
  """
  if not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
    raise UserError(
      f"validation_fraction is {fraction!r}; it must be a number of at least 0 and below 1 (0 "
      "keeps every training image; 0.1 is usual)"
    )
  train = dataset.train
  count = round(fraction * len(train))
  if fraction and not 0 < count < len(train):
    raise UserError(
      f"validation_fraction is {fraction}: of {len(train)} training images this leaves {count} "
      f"for validation and {len(train) - count} for training. Both need at least one: choose "
      "another fraction, or 0 for no validation split"
    )
  if not count:
    return dataclasses.replace(dataset, validation=empty_like(dataset.test))
  # RandomState, because NumPy promises that its stream never changes; that of default_rng can.
  order = np.random.RandomState(HOLD_OUT_SEED).permutation(len(train))
  held, kept = np.sort(order[:count]), np.sort(order[count:])
  if not isinstance(train, Split):
    return dataclasses.replace(dataset, train=train.select(kept), validation=train.held_out(held))
  parts = [Split(take(train.images, rows), train.labels[rows]) for rows in (kept, held)]
  return dataclasses.replace(dataset, train=parts[0], validation=parts[1])


def stratified(
  labels: np.ndarray, fraction: float, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples into training and test, with the same share of each class.

  Of the n examples of a class, round(fraction * n) are test examples, but at least one, and at most
  n - 1. The choice depends only on the labels and the fraction: it is the same in every run. Both
  parts keep their order.

  Args:
    labels: int [n].
    fraction: share of the test examples, in (0, 1).
    class_names: the names of the classes, for messages.

  Returns:
    The indices of the training examples and those of the test examples.

  Raises:
    UserError: a class has a single example.
  """
  is_test = np.zeros(len(labels), bool)
  random = np.random.RandomState(TEST_SEED)  # NumPy promises that its stream never changes
  for label in np.unique(labels):
    members = random.permutation(np.flatnonzero(labels == label))
    if len(members) < 2:
      raise UserError(
        f"class {class_names[label]!r} has a single image; expected at least 2 images in each "
        "class, one for training and one for the test: add images, or give a test split"
      )
    is_test[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
  return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def check(dataset: Dataset) -> None:
  """Checks a data set.

  The checks of every split: ranks, types, as many labels as images, one image shape, float images
  finite and in [0, 1], labels in 0..num_classes-1. The training and test splits must not be empty.
  Every class must have a name.

  Raises:
    UserError: a check fails; the message says what was found, what was expected and what to do.
  """
  if dataset.num_classes < 2 or len(dataset.class_names) != dataset.num_classes:
    raise UserError(
      f"data set {dataset.name!r} has {dataset.num_classes} classes and "
      f"{len(dataset.class_names)} class names; expected at least 2 classes and one name for each: "
      "correct num_classes or class_names"
    )
  for part in ("train", "validation", "test"):
    split = getattr(dataset, part)
    if not isinstance(split, Split):  # a stream checks each image when it is decoded
      continue
    problem = _problem(split, dataset, may_be_empty=part == "validation")
    if problem:
      raise UserError(f"data set {dataset.name!r}, {part} split: {problem}")


def _problem(split: Split, dataset: Dataset, may_be_empty: bool) -> str:
  """Returns the problem of a split, or an empty string."""
  images, labels = split.images, split.labels
  if images.ndim != 4:
    return (
      f"images have shape {images.shape}; expected [n, height, width, channels]: "
      "add or remove an axis (grey images have channels = 1)"
    )
  if images.dtype not in (np.uint8, np.float32):
    return (
      f"images are {images.dtype}; expected uint8 (0..255) or float32 (in [0, 1]): convert them"
    )
  if labels.ndim != 1 or labels.dtype != np.int32:
    return (
      f"labels are {labels.dtype} of shape {labels.shape}; expected int32 [n]: "
      "convert them, one class index for each image"
    )
  if len(images) != len(labels):
    return f"{len(images)} images but {len(labels)} labels; expected one label for each image"
  if not len(labels):
    return "" if may_be_empty else "it is empty; expected at least one image: choose another split"
  if images.shape[1:] != dataset.image_shape:
    return (
      f"images have shape {images.shape[1:]}, but training images have {dataset.image_shape}; "
      "expected one shape: resize them"
    )
  if images.dtype == np.float32:
    low, high = images.min(), images.max()  # NaN if any pixel is NaN
    if not (low >= 0 and high <= 1):
      return (
        f"pixels range from {low} to {high}; expected float32 in [0, 1], without NaN: divide by "
        "the largest level, or give uint8"
      )
  low, high = labels.min(), labels.max()
  if low < 0 or high >= dataset.num_classes:
    return (
      f"labels range from {low} to {high}; expected 0..{dataset.num_classes - 1}: choose a "
      "split with labels (-1 marks a hidden label), or correct num_classes"
    )
  return ""


def to_float(images: Any) -> Any:
  """Returns uint8 pixels as float32 in [0, 1] (x / 255), and other arrays unchanged.

  Args:
    images: a NumPy or JAX array.
  """
  return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
