"""A file of NumPy arrays, .npz: `images` and `labels`, and optionally a test split.

- `images`: [n, height, width, channels], or [n, height, width] for grey images; uint8, or floats in
  [0, 1].
- `labels`: [n], integers 0..classes-1.
- `test_images` and `test_labels`: the test split. Without them, a fixed random share of each class,
  `test_fraction`, becomes the test split.
- `class_names`: texts, one for each class. Without them, the names are "0", "1", ...

The arrays are read as they are, into memory. Nothing is unpickled.
"""

import pathlib
import sys
import zipfile
from collections.abc import Mapping

import numpy as np

from sprout_jax.data import dataset
from sprout_jax.data import loading
from sprout_jax.errors import UserError

NAMES = ("images", "labels", "test_images", "test_labels", "class_names")
MAX_CLASSES = 2**20  # a larger label is a mistake
EXPECTED = (
  "expected the arrays 'images' and 'labels', and optionally 'test_images', 'test_labels' and "
  "'class_names'"
)


def load(request: loading.Request) -> dataset.Dataset:
  """Loads an .npz file, unchecked and with an empty validation split.

  Raises:
    UserError: there is no such file, or its arrays are not those of an image-classification set.
  """
  request.refuse("an .npz file is used as it is, in memory", "test_fraction", "in_memory_gib")
  path = _path(request)
  arrays = _read(path, request.in_memory_gib)
  images, labels = _images(path, arrays, "images"), _labels(path, arrays, "labels")
  parts = [(images, labels)]
  if "test_images" in arrays:
    if request.test_fraction != loading.Request.test_fraction:
      raise UserError(
        f"test_fraction is {request.test_fraction:g}, but {path} has test images of its own; leave "
        "it out"
      )
    parts.append((_images(path, arrays, "test_images"), _labels(path, arrays, "test_labels")))
  for (images, labels), prefix in zip(parts, ("", "test_")):
    if len(images) != len(labels) or not len(labels):
      raise UserError(
        f"{path} has {len(images)} entries of {prefix + 'images'!r} and {len(labels)} of "
        f"{prefix + 'labels'!r}; expected one label for each image, and at least one image"
      )
  names = _class_names(path, arrays, [labels for _, labels in parts])
  if len(parts) == 2:
    train, test = (dataset.Split(*part) for part in parts)
    share = "test split in the file"
  else:
    (images, labels), *_ = parts
    rows = dataset.stratified(labels, request.test_fraction, names)
    train, test = (dataset.Split(images[part], labels[part]) for part in rows)
    share = f"{request.test_fraction:g} of each class as test images"
  digests = [dataset.digest(a) for split in (train, test) for a in (split.images, split.labels)]
  return dataset.Dataset(
    name=path.name,
    train=train,
    validation=dataset.empty_like(train),
    test=test,
    num_classes=len(names),
    class_names=names,
    fingerprint=dataset.fingerprint(digests),
    provenance=f"arrays of the file {path.name!r}, {len(train):,} training and {len(test):,} test "
    f"images, {share}.",
  )


def _path(request: loading.Request) -> pathlib.Path:
  path = pathlib.Path(request.data_dir).expanduser()
  if not request.data_dir or not path.is_file():
    missing = ", which does not exist" * bool(request.data_dir and not path.exists())
    raise UserError(
      f"data_dir is {request.data_dir!r}{missing}; the data set 'npz' needs the path of an .npz "
      "file: type e.g. --config configs/images.py:dir=PHOTOS.npz"
    )
  return path


def _read(path: pathlib.Path, limit_gib: float) -> dict[str, np.ndarray]:
  """Reads the arrays of a file whose sizes are within the limit.

  A compressed file can claim to be much larger than it is. So each header is read first, and the
  sizes are added up before any array is read.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = {name.removesuffix(".npy"): name for name in archive.namelist()}
      sizes = {name: _size(archive, members[name]) for name in NAMES if name in members}
      others = sorted(set(members) - set(NAMES))
      missing = [name for name in ("images", "labels") if name not in sizes]
      if missing or ("test_images" in sizes) != ("test_labels" in sizes):
        raise UserError(f"{path} has the arrays {', '.join(sorted(members)) or 'none'}; {EXPECTED}")
      total = sum(sizes.values())
      if total > limit_gib * 2**30:
        raise UserError(
          f"the arrays of {path} have {total / 2**30:.3g} GiB, but in_memory_gib is {limit_gib:g}, "
          "and an .npz file is not streamed; type e.g. --config.dataset.in_memory_gib="
          f"{int(total / 2**30) + 1}, or store the images in a folder"
        )
      arrays = {}
      for name in sizes:
        with archive.open(members[name]) as file:
          arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
  except UserError:
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many types
    raise UserError(
      f"{path} cannot be read as an .npz file ({type(error).__name__}: {error}); write it with "
      "np.savez(path, images=..., labels=...)"
    ) from error
  if others:
    print(f"{path}: ignored arrays: {', '.join(others)}", file=sys.stderr, flush=True)
  return arrays


def _size(archive: zipfile.ZipFile, member: str) -> int:
  """Returns the size of an array in bytes, from its header.

  Raises:
    ValueError: the array has objects, or another size than its file.
  """
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
      raise ValueError(f"{member} has version {version} of the .npy format")
    shape, _, dtype = read(file)
    if dtype.hasobject:
      raise ValueError(f"{member} has Python objects; only numbers and texts are read")
    size = dtype.itemsize
    for length in shape:  # Python's integers do not overflow
      size *= length
    if archive.getinfo(member).file_size != file.tell() + size:
      raise ValueError(f"{member} has another size than its header says")
  return size


def _images(path: pathlib.Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  images = arrays[name]
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4:
    raise UserError(
      f"{path}: {name!r} has the shape {images.shape}; expected [n, height, width, channels], or "
      "[n, height, width] for grey images"
    )
  if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
    raise UserError(
      f"{path}: {name!r} has the shape {images.shape}, which is channels first; expected "
      f"[n, height, width, channels]: store {name}.transpose(0, 2, 3, 1)"
    )
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise UserError(
      f"{path}: {name!r} has the type {images.dtype}; expected uint8 (0..255), or floats in [0, 1]"
    )
  return images.astype(np.float32)


def _labels(path: pathlib.Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  labels = arrays[name]
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{path}: {name!r} has the type {labels.dtype} and the shape {labels.shape}; expected "
      "integers [n], one class index for each image"
    )
  if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
    raise UserError(
      f"{path}: {name!r} ranges from {labels.min()} to {labels.max()}; expected 0..classes-1"
    )
  return labels.astype(np.int32)


def _class_names(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], labels: list[np.ndarray]
) -> tuple[str, ...]:
  """Returns the names of the classes; checks that every class has training images."""
  found = np.unique(labels[0])
  count = 1 + max(int(part.max()) for part in labels)
  given = arrays.get("class_names")
  if given is not None:
    if given.ndim != 1 or given.dtype.kind not in "US" or len(given) < count:
      raise UserError(
        f"{path}: 'class_names' has the type {given.dtype} and the shape {given.shape}; expected "
        f"at least {count} texts, because the labels go up to {count - 1}"
      )
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in given.tolist())
  else:
    names = tuple(map(str, range(count)))
  if len(found) < len(names):
    absent = np.setdiff1d(np.arange(len(names)), found)
    raise UserError(
      f"{path}: class {absent[0]} has no training images (of {len(names)} classes); expected "
      "labels that count from 0, and images of every class"
    )
  return names
