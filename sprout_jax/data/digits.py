"""The embedded data set: real images that need no download.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://archive.ics.uci.edu/dataset/80, doi 10.24432/C50P49, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). `digits.npz` holds the 1,797 images of its test
file, in the file's order, by way of scikit-learn's digits.csv.gz: 8x8 pixels, 17 grey levels. The
only change is the container: levels and labels are stored as uint8.
"""

import importlib.resources
import io

import numpy as np

from sprout_jax.data import dataset

NUM_TEST = 300
SPLIT_SEED = 0
PROVENANCE = (
  "Optical Recognition of Handwritten Digits (1,797 images), E. Alpaydin and C. Kaynak, "
  "UCI Machine Learning Repository, 1998, https://archive.ics.uci.edu/dataset/80, CC BY 4.0; "
  "fixed random split of 1,497 / 300 images."
)


def load():
  """Returns the digits: images float32 [n, 8, 8, 1], exactly level / 16, 10 classes.

  The source has no split of its own, so one is fixed here: with
  `order = np.random.RandomState(0).permutation(1797)`, image `order[i]` is in the test split for
  i < 300 and in the training split for the rest; both keep the source's order. All 13 writers
  are in both.
  """
  # Through importlib.resources and not __file__: works from an installed or zipped package.
  packed = importlib.resources.files(__package__).joinpath("digits.npz").read_bytes()
  with np.load(io.BytesIO(packed)) as arrays:
    levels, labels = arrays["levels"], arrays["labels"]
  images = (levels.astype(np.float32) / 16)[..., None]
  labels = labels.astype(np.int32)
  order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))  # a stream NumPy has frozen
  parts = [np.sort(order[NUM_TEST:]), np.sort(order[:NUM_TEST])]
  train, test = [dataset.Split(images[part], labels[part]) for part in parts]
  return dataset.Dataset(
    name="digits",
    train=train,
    validation=dataset.empty_like(train),
    test=test,
    num_classes=10,
    class_names=tuple("0123456789"),
    provenance=PROVENANCE,
    fingerprint=dataset.fingerprint(
      [dataset.digest(a) for s in (train, test) for a in (s.images, s.labels)]
    ),
  )
