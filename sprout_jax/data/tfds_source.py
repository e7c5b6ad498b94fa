"""TFDS image-classification sets that fit in memory, read without TensorFlow.

Images are decoded once, with Pillow, and stored as arrays (see `array_cache`). The key of the cache
has the name, size and time of every prepared file, so a set that is prepared again is decoded
again. If the cache has the set, `tensorflow_datasets` is not imported.
"""

import difflib
import hashlib
import importlib.metadata
import io
import os
import pathlib
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.errors import UserError

CACHE_FORMAT = 1  # to be raised when the decoding below changes
BATCH = 512  # records per read
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by number of channels
STOCK_ID = re.compile(r"(train|test)_\d{5}")  # the ids of the stock CIFAR builders


class DataSource(Protocol):
  """A prepared split with random access, as TFDS gives it."""

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitems__(self, indices: Sequence[int], /) -> Sequence[Mapping[str, Any]]:
    """Returns examples by their positions."""
    ...


def data_directory(data_dir: str | pathlib.Path = "") -> pathlib.Path:
  """Returns `data_dir`, or by default $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    UserError: it is not a local folder.
  """
  chosen = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  if "://" in chosen:
    raise UserError(
      f"data_dir is {chosen!r}; expected a local folder: copy the prepared set to this machine's "
      "disk and give that path"
    )
  return pathlib.Path(chosen).expanduser()


def prepare_command(name: str, directory: pathlib.Path | str) -> str:
  """Returns the command that downloads and prepares a set."""
  return f"python -m sprout_jax.data.prepare {name} --data_dir {directory}"


def import_tfds() -> Any:
  """Imports tensorflow_datasets. The import takes longer than reading the cache, so it is late."""
  try:
    import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise UserError(
      f"TFDS data sets need packages that are not installed ({error}); type\n"
      "  pip install tensorflow-datasets array_record importlib_resources"
    ) from error
  return tfds


def load(
  name: str,
  *,
  data_dir: str | pathlib.Path,
  cache_dir: str,
  train_split: str,
  test_split: str,
  embedded: Sequence[str] = (),
) -> dataset.Dataset:
  """Loads a TFDS set, unchecked and with an empty validation split, and prepares it if necessary.

  Args:
    name: a TFDS name.
    data_dir: as in `sprout_jax.data.load`.
    cache_dir: as in `sprout_jax.data.load`.
    train_split: as in `sprout_jax.data.load`.
    test_split: as in `sprout_jax.data.load`.
    embedded: names of other data sets, for the message about an unknown name.

  Returns:
    The `Dataset`, with uint8 images [n, height, width, channels] in the order of the files.

  Raises:
    UserError: the set is unknown, cannot be prepared or read, or its splits share images.
  """
  parts = _read(name, (train_split, test_split), data_dir, cache_dir, embedded)
  (train, train_digests, about), (test, test_digests, test_about) = parts
  if _overlap(about["records"], test_about["records"]):
    raise UserError(
      f"train_split {train_split!r} and test_split {test_split!r} of {name!r} share images; choose "
      "disjoint splits, e.g. 'train[:80%]' and 'train[80%:]'"
    )
  note = about["note"] or test_about["note"]
  return dataset.Dataset(
    name=name,
    train=train,
    validation=dataset.empty_like(train),
    test=test,
    num_classes=len(about["class_names"]),
    class_names=tuple(about["class_names"]),
    fingerprint=dataset.fingerprint(train_digests + test_digests),
    provenance=f"{about['source']}, splits {train_split!r} and {test_split!r}{note}.",
  )


def load_split(
  name: str, split: str, *, data_dir: str | pathlib.Path, cache_dir: str
) -> dataset.Split:
  """Loads one split of a set; arguments as in `load`.

  Raises:
    UserError: the set is unknown, or cannot be prepared or read.
  """
  ((found, _, _),) = _read(name, (split,), data_dir, cache_dir, ())
  return found


def _read(
  name: str,
  splits: Sequence[str],
  data_dir: str | pathlib.Path,
  cache_dir: str,
  embedded: Sequence[str],
) -> list[array_cache.Entry]:
  """Returns (split, digests, facts) for each split expression, from the cache or decoded."""
  directory = data_directory(data_dir)
  folder = array_cache.directory(cache_dir)
  stems = [_stem(name, split, directory) for split in splits]
  identity = _identity(directory, name)
  cached = [array_cache.read(folder, stem, identity) for stem in stems]
  found = [part for part in cached if part is not None]
  if len(found) == len(splits):
    return found
  builder = open_builder(name, directory, embedded)
  identity = _identity(directory, name)  # after the preparation, before the reading
  return [
    array_cache.write(folder, stem, identity, *_decode_split(builder, split))
    if part is None
    else part
    for part, stem, split in zip(cached, stems, splits)
  ]


def open_builder(name: str, directory: pathlib.Path, embedded: Sequence[str] = ()) -> Any:
  """Returns a TFDS builder whose files can be read, and prepares them if necessary.

  Raises:
    UserError: the set is unknown, cannot be prepared, or has a format that needs TensorFlow.
  """
  tfds = import_tfds()
  builder = find_builder(name, directory, embedded)
  if not builder.is_prepared():
    from sprout_jax.data import prepare  # imported late, because it is also a program

    prepare.prepare(name, directory)
    builder = tfds.builder(name, data_dir=directory)
  formats = builder.info.available_file_formats()
  if not formats & tfds.core.FileFormat.with_random_access():
    raise UserError(
      f"{name!r} in {directory} is prepared as {', '.join(sorted(f.value for f in formats))}; "
      "expected array_record, which is read without TensorFlow. Prepare it in another folder:\n"
      f"  {prepare_command(name, 'OTHER_DIR')}"
    )
  return builder


def find_builder(name: str, directory: pathlib.Path, embedded: Sequence[str] = ()) -> Any:
  """Returns the TFDS builder of a set, prepared or not.

  Raises:
    UserError: the set is unknown, or TFDS cannot open it.
  """
  tfds = import_tfds()
  try:
    builder = tfds.builder(name, data_dir=directory)
  except tfds.core.registered.DatasetNotFoundError as error:
    base = re.split("[:/]", name)[0]
    close = difflib.get_close_matches(
      base, [*embedded, *tfds.list_builders(with_community_datasets=False)], n=5
    )
    raise UserError(
      f"data set {name!r} is neither embedded nor in TFDS nor in {directory}. "
      + (f"Did you mean: {', '.join(close)}? " if close else "")
      + f"Embedded sets: {', '.join(embedded) or 'none'}. All TFDS names: "
      "https://www.tensorflow.org/datasets/catalog/overview"
    ) from error
  except Exception as error:  # builders raise many types
    raise UserError(
      f"TFDS cannot open {name!r} ({type(error).__name__}: {error}); expected NAME, "
      "NAME/CONFIG or NAME:VERSION"
    ) from error
  # "Cifar10", or a name space: `_identity` needs the name of the folder.
  if builder.name != re.split("[:/]", name)[0]:
    raise UserError(f"data set {name!r} has the name {builder.name!r} in TFDS; type that name")
  return builder


def _stem(name: str, split: str, directory: pathlib.Path | str) -> str:
  """Returns a readable file name for the cache entry of a split, unique for the arguments."""
  asked = repr((name, split, os.path.abspath(directory)))
  return (
    re.sub(r"[^\w.-]+", "_", f"{name}-{split}")[:80]
    + "-"
    + hashlib.sha256(asked.encode()).hexdigest()[:12]
  )


def _identity(directory: pathlib.Path, name: str) -> list[Any]:
  """Returns the key of the cache: the TFDS release and all files of all versions of the set.

  All versions enter it, because the version of a bare name depends on those that are there.
  """
  root = directory / re.split("[:/]", name)[0]
  files = [
    [str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns]
    for path in sorted(root.rglob("*"))
    if path.is_file()
    # TFDS's folder while it writes; another process may be writing.
    and not any(part.startswith("incomplete.") for part in path.relative_to(root).parts)
    for stat in [path.stat()]
  ]
  releases: list[str | None] = []
  for package in ("tensorflow-datasets", "tfds-nightly"):
    try:
      releases.append(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
      releases.append(None)
  return [CACHE_FORMAT, releases, files]


def _keys(info: Any) -> tuple[str, str]:
  """Returns the names of the image and the label feature; raises UserError for other sets."""
  tfds = import_tfds()
  features = info.features
  problem, image, label = "its examples are not dictionaries", None, None
  if isinstance(features, tfds.features.FeaturesDict):
    if info.supervised_keys:
      image, label = (*info.supervised_keys, None)[:2]
    else:
      found = [
        [k for k, f in features.items() if isinstance(f, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
      ]
      image, label = [keys[0] if len(keys) == 1 else None for keys in found]
    kinds = [features[k] if isinstance(k, str) and k in features else None for k in (image, label)]
    problem = ""
    if not isinstance(kinds[0], tfds.features.Image):
      problem = f"its input {image!r} is {type(kinds[0]).__name__}, not Image"
    elif not isinstance(kinds[1], tfds.features.ClassLabel) or not kinds[1].num_classes:
      problem = f"its target {label!r} is {type(kinds[1]).__name__}, not ClassLabel"
    elif kinds[0].np_dtype != np.uint8 or kinds[0].shape[-1] not in MODES:
      problem = f"its images are {kinds[0].np_dtype} with {kinds[0].shape[-1]} channels"
  if problem:
    raise UserError(
      f"TFDS set {info.full_name} is not a supported image-classification set: {problem}; expected "
      "uint8 images of 1, 3 or 4 channels and one class label: choose another set"
    )
  return str(image), str(label)


def _decode_split(builder: Any, split: str) -> tuple[dataset.Split, dict[str, Any]]:
  """Decodes one TFDS split expression; returns the split and further facts."""
  tfds, info = import_tfds(), builder.info
  image_key, label_key = _keys(info)
  skip = {
    key: tfds.decode.SkipDecoding()
    for key, feature in info.features.items()
    if isinstance(feature, tfds.features.Image)
  }  # Pillow decodes below, whether OpenCV is installed or not
  try:
    instructions = info.splits[split].file_instructions
    source: DataSource = builder.as_data_source(split, decoders=skip)  # raises for an empty split
  except Exception as error:  # TFDS raises many types for a bad expression
    raise UserError(
      f"split {split!r} of {info.full_name} cannot be read ({error}); the splits are: "
      f"{', '.join(sorted(info.splits))}, and expressions such as 'train[:80%]' or 'train+test'"
    ) from error
  mode, count = MODES[info.features[image_key].shape[-1]], len(source)
  images: np.ndarray | None = None
  labels, first_id = np.empty(count, np.int32), b""
  with tqdm(total=count, desc=f"decoding {info.name} {split}", unit="image", disable=None) as bar:
    for start in range(0, count, BATCH):
      for i, example in enumerate(
        source.__getitems__(range(start, min(start + BATCH, count))), start
      ):
        with Image.open(io.BytesIO(example[image_key])) as image:
          pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        if images is None:
          first_id = example.get("id", b"")
          images = _allocate(info.full_name, (count, *pixels.shape[:2], len(mode)))
        if pixels.shape[:2] != images.shape[1:3]:
          raise UserError(
            f"TFDS set {info.full_name}, split {split!r}: image {i} has height and width "
            f"{pixels.shape[:2]}, but image 0 has {images.shape[1:3]}; expected one size, because "
            "the set is one array: choose a set of one size"
          )
        images[i] = pixels.reshape(images.shape[1:])
        labels[i] = example[label_key]
      bar.update(min(BATCH, count - start))
  if images is None:
    raise UserError(f"split {split!r} of {info.full_name} is empty; choose another split")
  licence = info.redistribution_info and info.redistribution_info.license
  return dataset.Split(images, labels), {
    "class_names": list(info.features[label_key].names),
    "records": [_record_range(f) for f in instructions],
    "source": f"TFDS {info.full_name} ({info.homepage or 'no homepage given'}), "
    + (f"licence: {licence}" if licence else "licence: see its source"),
    "note": _note(info.name, first_id),
  }


def _record_range(instruction: Any) -> list[Any]:
  """Returns [file, first record, end] of the records that a TFDS FileInstruction reads."""
  end = (
    instruction.examples_in_shard if instruction.take < 0 else instruction.skip + instruction.take
  )
  return [os.path.basename(instruction.filename), instruction.skip, end]


def _overlap(first: Sequence[Sequence[Any]], second: Sequence[Sequence[Any]]) -> bool:
  """Returns whether two lists of [file, start, end] share a record."""
  return any(a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a in first for b in second)


def _allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Allocates a uint8 array; raises UserError if memory cannot hold it."""
  needed = int(np.prod(shape, dtype=np.int64))
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if needed > memory:
    raise UserError(
      f"TFDS set {name} has {needed / 2**30:.1f} GiB of pixels, but this machine has "
      f"{memory / 2**30:.1f} GiB of memory; take a part of the set, e.g. 'train[:10%]'"
    )
  return np.empty(shape, np.uint8)


def _note(name: str, first_id: bytes | str) -> str:
  """Returns a warning for a CIFAR whose files the stock builder did not write; else "".

  Re-encoded images differ from the official pixels, and numbers measured on them must say so.
  """
  text = first_id.decode() if isinstance(first_id, bytes) else str(first_id)
  if name not in ("cifar10", "cifar100") or STOCK_ID.fullmatch(text):
    return ""
  return (
    f"; prepared by other means than the stock TFDS builder (ids like {text!r}): pixels may "
    "differ from the official set"
  )
