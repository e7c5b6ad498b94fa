"""Data sets: arrays, folders of images and TFDS sets, read without TensorFlow.

    dataset = data.load("digits")                             # embedded, offline
    dataset = data.load("cifar10", data_dir="~/tensorflow_datasets")
    dataset = data.load("folder", data_dir="photos", image_size=(64, 64))
    dataset.test.images, dataset.test.labels                  # NumPy arrays

The files: `dataset` (splits and data sets, their checks, the held-out validation split), `loading`
(what is asked of a data set; arrays or a stream), `digits` (the embedded set), `folder` (a folder
of images), `arrays` (an .npz file), `tfds_source` (TFDS image-classification sets), `decoding`
(from encoded images to arrays of one shape), `streamed` (training images that do not fit in
memory), `array_cache` (decoded arrays on disk), `prepare` (downloads and writes the CIFARs and
SVHN; also a command, `python -m sprout_jax.data.prepare NAME --data_dir DIR`), `order` (the
examples of a training step), `augmentation` (random crops and flips on the device).
"""

import functools
from collections.abc import Callable
from typing import Any

from sprout_jax.data import array_cache
from sprout_jax.data import arrays
from sprout_jax.data import digits
from sprout_jax.data import folder
from sprout_jax.data import tfds_source
from sprout_jax.data.dataset import Dataset
from sprout_jax.data.dataset import Split
from sprout_jax.data.dataset import check
from sprout_jax.data.dataset import hold_out
from sprout_jax.data.dataset import to_float
from sprout_jax.data.loading import Request
from sprout_jax.data.streamed import Streamed

__all__ = [
  "DATASETS",
  "Dataset",
  "Request",
  "Split",
  "Streamed",
  "check",
  "hold_out",
  "load",
  "load_as",
  "load_test",
  "to_float",
]

# The names of this package. Any other name is that of a TFDS set.
DATASETS: dict[str, Callable[[Request], Dataset]] = {
  "digits": digits.load,
  "folder": folder.load,
  "npz": arrays.load,
}


def load(name: str, *, validation_fraction: float = 0.1, **options: Any) -> Dataset:
  """Loads a data set and checks it.

  Args:
    name: a key of `DATASETS`, or a TFDS name ("cifar10", "mnist_corrupted/spatter",
      "cifar10:3.0.2").
    validation_fraction: share of the training images that is held out as `validation`, in [0, 1).
      The images are the same in every run. 0 keeps every training image.
    **options: the other fields of `Request`, such as `data_dir` and `image_size`.

  Returns:
    The `Dataset`. Its training split is a `Streamed` where the images do not fit in memory.

  Raises:
    UserError: an unknown name, a set that cannot be found, an option that it does not take, or
      invalid data; the message says what to type.
  """
  return load_as(Request(name, **options), validation_fraction)


def load_as(request: Request, validation_fraction: float) -> Dataset:
  """Loads a data set and checks it, as `load`."""
  make = DATASETS.get(request.name, functools.partial(tfds_source.load, others=tuple(DATASETS)))
  dataset = make(request)
  check(dataset)  # first, so that invalid data are not reported as a wrong fraction
  take = functools.partial(array_cache.take, cache_dir=request.cache_dir)
  found = hold_out(dataset, validation_fraction, take)
  if isinstance(found.train, Streamed):  # the labels of what was held out are known only now
    check(found)
  return found


def load_test(request: Request) -> Split:
  """Loads the test split of a TFDS set, which needs no other split.

  Raises:
    UserError: the set cannot be found, or is not a set of images with labels.
  """
  return tfds_source.load_split(request)
