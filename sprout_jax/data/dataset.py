"""What a data set is here: arrays in memory, checked once, with a fingerprint."""

import dataclasses
import hashlib

import numpy as np

from sprout_jax.errors import UserError

HOLD_OUT_SEED = 20200701  # fixed: every run, whatever its seed, holds out the same images


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and their labels, in a fixed order.

  images: [n, height, width, channels], uint8 in 0..255 or float32 in [0, 1].
  labels: [n], int32 in 0..num_classes-1.
  """

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A whole classification data set.

  validation may be empty (n = 0). fingerprint: sha256, hex, of the training and test arrays as
  read, before validation images are held out: the same for every validation_fraction.
  provenance: one sentence, where the images come from and their licence where known.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  fingerprint: str
  provenance: str

  @property
  def image_shape(self):
    """(height, width, channels)."""
    return tuple(self.train.images.shape[1:])


def empty_like(split):
  """Returns a Split of no images, with the shapes and types of `split`."""
  return Split(split.images[:0], split.labels[:0])


def digest(array):
  """Returns the sha256 (hex) of an array's type, shape and bytes."""
  sha = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
  sha.update(np.ascontiguousarray(array).data)
  return sha.hexdigest()


def fingerprint(digests):
  """Returns one sha256 (hex) for the digests of: train images, labels, test images, labels."""
  return hashlib.sha256("".join(digests).encode()).hexdigest()


def hold_out(dataset, fraction):
  """Returns `dataset` with round(fraction * n) training images moved to validation.

  Which images is a fixed permutation of the n: it depends on n and `fraction` only, and a larger
  fraction holds out a superset. Both parts keep the order they had. `fraction` is in [0, 1); 0
  keeps every training image. Raises UserError when a part would be empty.
  """
  if not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
    raise UserError(
      f"validation_fraction is {fraction!r}; it must be a number with 0 <= f < 1 "
      "(0 keeps every training image; 0.1 is usual)"
    )
  images, labels = dataset.train.images, dataset.train.labels
  count = round(fraction * len(labels))
  if fraction and not 0 < count < len(labels):
    raise UserError(
      f"validation_fraction={fraction} of {len(labels)} training images leaves "
      f"{count} for validation and {len(labels) - count} for training; both must "
      "have some: choose another fraction, or 0 for no validation set"
    )
  if not count:
    return dataclasses.replace(dataset, validation=empty_like(dataset.train))
  # RandomState: NumPy promises its stream never changes, which it does not for default_rng.
  order = np.random.RandomState(HOLD_OUT_SEED).permutation(len(labels))
  held, kept = np.sort(order[:count]), np.sort(order[count:])
  return dataclasses.replace(
    dataset, train=Split(images[kept], labels[kept]), validation=Split(images[held], labels[held])
  )


def check(dataset):
  """Raises UserError, saying what was found, expected and what to do, unless the data are sound.

  Checked in every split: ranks, types, equal counts of images and labels, one image shape, float
  images finite and in [0, 1], labels in 0..num_classes-1; train and test not empty; one name for
  each class.
  """
  if dataset.num_classes < 2 or len(dataset.class_names) != dataset.num_classes:
    raise UserError(
      f"data set {dataset.name!r}: {dataset.num_classes} classes with "
      f"{len(dataset.class_names)} names; expected at least 2 classes and one name "
      "each: mend num_classes or class_names"
    )
  for part in ("train", "validation", "test"):
    problem = _problem(getattr(dataset, part), dataset, may_be_empty=part == "validation")
    if problem:
      raise UserError(f"data set {dataset.name!r}, {part} split: {problem}")


def _problem(split, dataset, may_be_empty):
  """Returns what is wrong with one split, or an empty string."""
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
    return f"{len(images)} images but {len(labels)} labels; expected as many: mend the source"
  if not len(labels):
    return "" if may_be_empty else "it is empty; expected some images: choose another split"
  if images.shape[1:] != dataset.image_shape:
    return (
      f"images are {images.shape[1:]} but those of train are {dataset.image_shape}; expected "
      "one shape: resize them"
    )
  if images.dtype == np.float32:
    low, high = images.min(), images.max()  # NaN if any pixel is NaN
    if not (low >= 0 and high <= 1):
      return (
        f"pixels range from {low} to {high}; expected float32 images in [0, 1], without NaN: "
        "divide by the largest level, or keep them uint8"
      )
  low, high = labels.min(), labels.max()
  if low < 0 or high >= dataset.num_classes:
    return (
      f"labels range from {low} to {high}; expected 0..{dataset.num_classes - 1}: choose a "
      "split that has labels (-1 marks a hidden one), or mend num_classes"
    )
  return ""


def to_float(images):
  """Returns pixels as float32 in [0, 1]: uint8 / 255, float as it is. NumPy or JAX arrays."""
  return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
