"""Data sets as arrays in memory, read without TensorFlow.

    dataset = data.load("digits")                             # embedded, offline
    dataset = data.load("cifar10", data_dir="~/tensorflow_datasets")
    dataset.train.images, dataset.train.labels                # NumPy arrays

The files: `dataset` (Split, Dataset, check, the held-out validation split), `digits` (the embedded
set), `tfds_source` (any TFDS image-classification set that fits in memory), `array_cache` (its
decoded arrays on disk), `prepare` (downloads and writes the CIFARs and SVHN; also
`python -m sprout_jax.data.prepare NAME --data_dir DIR`), `order` (which examples a step sees),
`augmentation` (crops and flips; the only file here that needs JAX).
"""

from sprout_jax.data import digits
from sprout_jax.data import tfds_source
from sprout_jax.data.dataset import Dataset
from sprout_jax.data.dataset import Split
from sprout_jax.data.dataset import check
from sprout_jax.data.dataset import hold_out
from sprout_jax.data.dataset import to_float
from sprout_jax.errors import UserError

__all__ = ["DATASETS", "Dataset", "Split", "check", "hold_out", "load", "load_test", "to_float"]

DATASETS = {"digits": digits.load}  # embedded sets; any other name is a TFDS name


def load(
  name,
  *,
  data_dir="",
  cache_dir="",
  train_split="train",
  test_split="test",
  validation_fraction=0.1,
):
  """Returns the checked Dataset `name`.

  Args:
    name: a key of DATASETS, or a TFDS name ("cifar10", "mnist_corrupted/spatter", "cifar10:3.0.2").
    data_dir: where TFDS sets lie; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    cache_dir: where decoded arrays are kept; empty: $XDG_CACHE_HOME or ~/.cache, in sprout_jax.
    train_split, test_split: TFDS split expressions ("train[:80%]"), which must not overlap.
      An embedded set has "train" and "test" only; it uses no directory.
    validation_fraction: part of the training images held out as `validation`, in [0, 1), the same
      images in every run; 0 keeps every training image.

  Raises:
    UserError: unknown name, set not found, or unsound data; the message says what to type.
  """
  if name in DATASETS:
    if (train_split, test_split) != ("train", "test"):
      raise UserError(
        f"train_split={train_split!r}, test_split={test_split!r}: the embedded set "
        f"{name!r} has one fixed split; leave them at 'train' and 'test'"
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
  check(dataset)  # before holding out: a wrong set is named, not a wrong fraction
  return hold_out(dataset, validation_fraction)


def load_test(name, *, data_dir="", cache_dir=""):
  """Returns the Split "test" of a TFDS set that may have no other; arguments as in `load`.

  Raises:
    UserError: set not found, or of another kind.
  """
  return tfds_source.load_split(name, "test", data_dir=data_dir, cache_dir=cache_dir)
