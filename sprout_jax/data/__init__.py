"""Data sets as arrays in memory, read without TensorFlow.

    dataset = data.load("digits")                             # embedded, offline
    dataset = data.load("cifar10", data_dir="~/tensorflow_datasets")
    dataset.train.images, dataset.train.labels                # NumPy arrays

The files: `dataset` (splits and data sets, their checks, the held-out validation split), `digits`
(the embedded set), `tfds_source` (TFDS image-classification sets that fit in memory), `array_cache`
(their decoded arrays on disk), `prepare` (downloads and writes the CIFARs and SVHN; also a command,
`python -m sprout_jax.data.prepare NAME --data_dir DIR`), `order` (the examples of a training step),
`augmentation` (random crops and flips).
"""

from collections.abc import Callable

from sprout_jax.data import digits
from sprout_jax.data import tfds_source
from sprout_jax.data.dataset import Dataset
from sprout_jax.data.dataset import Split
from sprout_jax.data.dataset import check
from sprout_jax.data.dataset import hold_out
from sprout_jax.data.dataset import to_float
from sprout_jax.errors import UserError

__all__ = ["DATASETS", "Dataset", "Split", "check", "hold_out", "load", "load_test", "to_float"]

# The embedded sets. Any other name is that of a TFDS set.
DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits.load}


def load(
  name: str,
  *,
  data_dir: str = "",
  cache_dir: str = "",
  train_split: str = "train",
  test_split: str = "test",
  validation_fraction: float = 0.1,
) -> Dataset:
  """Loads a data set and checks it.

  Args:
    name: a key of `DATASETS`, or a TFDS name ("cifar10", "mnist_corrupted/spatter",
      "cifar10:3.0.2").
    data_dir: folder of TFDS sets; "": $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    cache_dir: folder for decoded arrays; "": sprout_jax in $XDG_CACHE_HOME or ~/.cache.
    train_split: a TFDS split expression, such as "train[:80%]". An embedded set has only "train"
      and "test", and uses no folder.
    test_split: a TFDS split expression that shares no image with `train_split`.
    validation_fraction: share of the training images that is held out as `validation`, in [0, 1).
      The images are the same in every run. 0 keeps every training image.

  Returns:
    The `Dataset`.

  Raises:
    UserError: an unknown name, a set that cannot be found, or invalid data; the message says what
      to type.
  """
  if name in DATASETS:
    if (train_split, test_split) != ("train", "test"):
      raise UserError(
        f"train_split is {train_split!r} and test_split is {test_split!r}, but the embedded set "
        f"{name!r} has fixed splits; give 'train' and 'test'"
      )
    dataset = DATASETS[name]()
  else:
    dataset = tfds_source.load(
      name,
      data_dir=data_dir,
      cache_dir=cache_dir,
      train_split=train_split,
      test_split=test_split,
      embedded=tuple(DATASETS),
    )
  check(dataset)  # first, so that invalid data are not reported as a wrong fraction
  return hold_out(dataset, validation_fraction)


def load_test(name: str, *, data_dir: str = "", cache_dir: str = "") -> Split:
  """Loads the split "test" of a TFDS set, which needs no other split; arguments as in `load`.

  Raises:
    UserError: the set cannot be found, or is not a set of images with labels.
  """
  return tfds_source.load_split(name, "test", data_dir=data_dir, cache_dir=cache_dir)
