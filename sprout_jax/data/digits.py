"""The embedded data set: handwritten digits, without a download.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://archive.ics.uci.edu/dataset/80, doi 10.24432/C50P49, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). `digits.npz` holds the 1,797 images of its test
file, in the order of the file, taken from scikit-learn's digits.csv.gz: 8x8 pixels, 17 grey levels.
The only change is the file format: levels and labels are stored as uint8.
"""

import importlib.resources
import io

import numpy as np

from sprout_jax.data import dataset
from sprout_jax.data import loading

NUM_TEST = 300
SPLIT_SEED = 0
PROVENANCE = (
  "Optical Recognition of Handwritten Digits (1,797 images), E. Alpaydin and C. Kaynak, "
  "UCI Machine Learning Repository, 1998, https://archive.ics.uci.edu/dataset/80, CC BY 4.0; "
  "fixed random split of 1,497 / 300 images."
)


def load(request: loading.Request) -> dataset.Dataset:
  """Loads the digits: float32 images [n, 8, 8, 1], exactly level / 16, with 10 classes.

  The source has no splits, so they are fixed here. With
  `order = np.random.RandomState(0).permutation(1797)`, the images `order[:300]` are the test split
  and the others the training split. Both keep the order of the source. All 13 writers are in both.

  Raises:
    UserError: the request has other splits, or another size of the images.
  """
  request.refuse("the embedded set 'digits' has fixed splits and images, in memory")
  # importlib.resources also works in a zipped package.
  packed = importlib.resources.files("sprout_jax.data").joinpath("digits.npz").read_bytes()
  with np.load(io.BytesIO(packed)) as arrays:
    levels, labels = arrays["levels"], arrays["labels"]
  images = (levels.astype(np.float32) / 16)[..., None]
  labels = labels.astype(np.int32)
  order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))  # a stream that never changes
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
