"""Any TFDS image-classification set that fits in memory, read without TensorFlow.

Pixels are decoded once, with Pillow, and kept as arrays (see `array_cache`), keyed by every
prepared file's name, size and time: a set prepared anew is read anew. When the cache has the set,
`tensorflow_datasets` is not even imported.
"""

import difflib
import hashlib
import importlib.metadata
import io
import os
import pathlib
import re

import numpy as np
from PIL import Image
from tqdm import tqdm

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.errors import UserError

CACHE_FORMAT = 1  # raise when the decoding below changes
BATCH = 512  # records fetched in one read
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for a number of channels
STOCK_ID = re.compile(r"(train|test)_\d{5}")  # what the stock CIFAR builders write


def data_directory(data_dir=""):
  """Returns `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  chosen = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  if "://" in chosen:
    raise UserError(
      f"data_dir is {chosen!r}; expected a local directory: copy the prepared set to "
      "this machine's disk and give that path"
    )
  return pathlib.Path(chosen).expanduser()


def prepare_command(name, directory):
  """Returns what the user types to download and prepare a set."""
  return f"python -m sprout_jax.data.prepare {name} --data_dir {directory}"


def import_tfds():
  """Returns the module; imported late, because it takes longer than reading the cache."""
  try:
    import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise UserError(
      f"TFDS data sets need packages that are not here ({error}): type\n"
      "  pip install tensorflow-datasets array_record importlib_resources"
    ) from error
  return tfds


def load(name, *, data_dir, cache_dir, train_split, test_split, embedded=()):
  """Returns the Dataset, unchecked and with an empty validation split; prepares it if need be.

  Arguments as in `sprout_jax.data.load`. Images are uint8 [n, h, w, c], in the order of the
  prepared files. `embedded` are further names to mention when `name` is unknown. Raises UserError.
  """
  parts = _read(name, (train_split, test_split), data_dir, cache_dir, embedded)
  (train, train_digests, about), (test, test_digests, test_about) = parts
  if _overlap(about["records"], test_about["records"]):
    raise UserError(
      f"train_split={train_split!r} and test_split={test_split!r} of {name!r} share "
      "images; expected none: choose others, e.g. 'train[:80%]' and 'train[80%:]'"
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


def load_split(name, split, *, data_dir, cache_dir):
  """Returns one Split of a set; arguments as in `load`. Raises UserError."""
  ((found, _, _),) = _read(name, (split,), data_dir, cache_dir, ())
  return found


def _read(name, splits, data_dir, cache_dir, embedded):
  """Returns (Split, digests, about) per split expression, from the cache or decoded."""
  directory = data_directory(data_dir)
  folder = array_cache.directory(cache_dir)
  stems = [_stem(name, split, directory) for split in splits]
  identity = _identity(directory, name)
  parts = [array_cache.read(folder, stem, identity) for stem in stems]
  if None in parts:
    builder = open_builder(name, directory, embedded)
    identity = _identity(directory, name)  # after preparing, before reading
    for i, split in enumerate(splits):
      if parts[i] is None:
        parts[i] = array_cache.write(folder, stems[i], identity, *_decode_split(builder, split))
  return parts


def open_builder(name, directory, embedded=()):
  """Returns a TFDS builder whose files are there to be read, preparing them if they are not."""
  tfds = import_tfds()
  builder = find_builder(name, directory, embedded)
  if not builder.is_prepared():
    from sprout_jax.data import prepare  # late: it is also run as a program

    prepare.prepare(name, directory)
    builder = tfds.builder(name, data_dir=directory)
  formats = builder.info.available_file_formats()
  if not formats & tfds.core.FileFormat.with_random_access():
    raise UserError(
      f"{name!r} in {directory} is prepared as {', '.join(sorted(f.value for f in formats))}; "
      "expected array_record, which is read without TensorFlow. Prepare it in a directory of its "
      f"own:\n  {prepare_command(name, 'OTHER_DIR')}"
    )
  return builder


def find_builder(name, directory, embedded=()):
  """Returns the TFDS builder called `name`, prepared or not."""
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
      + (f"Close: {', '.join(close)}. " if close else "")
      + f"Embedded: {', '.join(embedded) or 'none'}. All TFDS names: "
      "https://www.tensorflow.org/datasets/catalog/overview"
    ) from error
  except Exception as error:  # a builder may raise anything: bad config, bad version, bad import
    raise UserError(
      f"TFDS cannot open {name!r} ({type(error).__name__}: {error}); expected NAME, "
      "NAME/CONFIG or NAME:VERSION"
    ) from error
  if builder.name != re.split("[:/]", name)[0]:  # "Cifar10", or a name space: see _identity
    raise UserError(f"data set {name!r} is {builder.name!r} to TFDS; use that name")
  return builder


def _stem(name, split, directory):
  """Returns a file name for one split's cache entry: readable, and one for each argument."""
  asked = repr((name, split, os.path.abspath(directory)))
  return (
    re.sub(r"[^\w.-]+", "_", f"{name}-{split}")[:80]
    + "-"
    + hashlib.sha256(asked.encode()).hexdigest()[:12]
  )


def _identity(directory, name):
  """Returns what the arrays depend on: the TFDS release and all files of all versions of the set.

  All versions, because which one a bare name means depends on which there are.
  """
  root = directory / re.split("[:/]", name)[0]
  files = [
    [str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns]
    for path in sorted(root.rglob("*"))
    if path.is_file()
    # TFDS's folder while it writes; another process may be at it right now.
    and not any(part.startswith("incomplete.") for part in path.relative_to(root).parts)
    for stat in [path.stat()]
  ]
  releases = []
  for package in ("tensorflow-datasets", "tfds-nightly"):
    try:
      releases.append(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
      releases.append(None)
  return [CACHE_FORMAT, releases, files]


def _keys(info):
  """Returns the names of the image and the label feature, or raises UserError."""
  tfds = import_tfds()
  features = info.features
  problem = "its examples are no dictionary"
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
      f"TFDS {info.full_name} is no image-classification set that can be read here: {problem}; "
      "expected uint8 images of 1, 3 or 4 channels and one class label: choose another set"
    )
  return image, label


def _decode_split(builder, split):
  """Returns (Split, extra) for one TFDS split expression."""
  tfds, info = import_tfds(), builder.info
  image_key, label_key = _keys(info)
  skip = {
    key: tfds.decode.SkipDecoding()
    for key, feature in info.features.items()
    if isinstance(feature, tfds.features.Image)
  }  # by Pillow below, OpenCV or not
  try:
    instructions = info.splits[split].file_instructions
    source = builder.as_data_source(split, decoders=skip)  # an empty split is an error, too
  except Exception as error:  # TFDS raises many types for a bad expression
    raise UserError(
      f"split {split!r} of {info.full_name}: {error}; it has the splits "
      f"{', '.join(sorted(info.splits))}, and expressions like 'train[:80%]' or "
      "'train+test'"
    ) from error
  mode, count = MODES[info.features[image_key].shape[-1]], len(source)
  images, labels, first_id = None, np.empty(count, np.int32), ""
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
            f"TFDS {info.full_name}, split {split!r}: image {i} is {pixels.shape[:2]} (height, "
            f"width) and image 0 is {images.shape[1:3]}; expected one size, as the set is kept "
            "as one array: choose a set of one size"
          )
        images[i] = pixels.reshape(images.shape[1:])
        labels[i] = example[label_key]
      bar.update(min(BATCH, count - start))
  licence = info.redistribution_info and info.redistribution_info.license
  return dataset.Split(images, labels), {
    "class_names": list(info.features[label_key].names),
    "records": [_record_range(f) for f in instructions],
    "source": f"TFDS {info.full_name} ({info.homepage or 'no homepage given'}), "
    + (f"licence: {licence}" if licence else "licence: see its source"),
    "note": _note(info.name, first_id),
  }


def _record_range(instruction):
  """Returns [file, first record, end] of what one TFDS FileInstruction reads."""
  end = (
    instruction.examples_in_shard if instruction.take < 0 else instruction.skip + instruction.take
  )
  return [os.path.basename(instruction.filename), instruction.skip, end]


def _overlap(first, second):
  """Whether two lists of [file, start, end] share a record."""
  return any(a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a in first for b in second)


def _allocate(name, shape):
  """Returns an empty uint8 array, or raises UserError when memory cannot hold the set."""
  needed = int(np.prod(shape, dtype=np.int64))
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if needed > memory:
    raise UserError(
      f"TFDS {name}: {needed / 2**30:.1f} GiB of pixels, {memory / 2**30:.1f} GiB of "
      "memory; expected a set that fits: take part of it, e.g. 'train[:10%]'"
    )
  return np.empty(shape, np.uint8)


def _note(name, first_id):
  """Returns a warning for a CIFAR whose files the stock builder did not write, or nothing.

  Re-encoded images are not the official pixels, and numbers measured on them must say so.
  """
  text = first_id.decode() if isinstance(first_id, bytes) else str(first_id)
  if name not in ("cifar10", "cifar100") or STOCK_ID.fullmatch(text):
    return ""
  return (
    f"; prepared by other means than the stock TFDS builder (ids like {text!r}): pixels may "
    "differ from the official set"
  )
