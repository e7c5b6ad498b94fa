"""TFDS image-classification sets, read without TensorFlow.

Images are decoded with Pillow: once, and stored as arrays (see `array_cache`), or while they are
trained on, if they do not fit in memory (see `streamed`). The key of the cache has the name, size
and time of every prepared file, so a set that is prepared again is decoded again. If the cache has
the set, `tensorflow_datasets` is not imported.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import io
import os
import pathlib
import re
import threading
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np
from PIL import Image

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.data import decoding
from sprout_jax.data import loading
from sprout_jax.errors import UserError

CACHE_FORMAT = 2  # to be raised when the decoding changes
STOCK_ID = re.compile(r"(train|test)_\d{5}")  # the ids of the stock CIFAR builders


class DataSource(Protocol):
  """A prepared split with random access, as TFDS gives it."""

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitem__(self, index: int, /) -> Mapping[str, Any]:
    """Returns an example by its position."""
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


def load(request: loading.Request, *, others: Sequence[str] = ()) -> dataset.Dataset:
  """Loads a TFDS set, unchecked and with an empty validation split, and prepares it if necessary.

  Args:
    request: what is asked; `name` is a TFDS name.
    others: names of other data sets, for the message about an unknown name.

  Returns:
    The `Dataset`, with uint8 images [n, height, width, channels] in the order of the files.

  Raises:
    UserError: the set is unknown, cannot be prepared or read, or its splits share images.
  """
  if request.test_fraction != loading.Request.test_fraction:
    raise UserError(
      f"test_fraction is {request.test_fraction:g}, but TFDS sets are split by expressions; type "
      "e.g. --config.dataset.train_split=train[:80%] --config.dataset.test_split=train[80%:]"
    )
  name = request.name
  prepared = _Prepared(request, others)
  test, test_digests, test_about = loading.evaluated(request, prepared.part(request.test_split))
  train, train_digests, about = loading.trained_on(request, prepared.part(request.train_split))
  if _overlap(about["records"], test_about["records"]):
    raise UserError(
      f"train_split {request.train_split!r} and test_split {request.test_split!r} of {name!r} "
      "share images; choose disjoint splits, e.g. 'train[:80%]' and 'train[80%:]'"
    )
  note = about["note"] or test_about["note"]
  how = f", {loading.described(request)}" if request.image_size else ""
  return dataset.Dataset(
    name=name,
    train=train,
    validation=dataset.empty_like(test),
    test=test,
    num_classes=len(about["class_names"]),
    class_names=tuple(about["class_names"]),
    fingerprint=dataset.fingerprint([*train_digests, *test_digests]),
    provenance=f"{about['source']}, splits {request.train_split!r} and {request.test_split!r}{how}"
    f"{note}.",
  )


def load_split(request: loading.Request) -> dataset.Split:
  """Loads the test split of a set, which needs no other split.

  Raises:
    UserError: the set is unknown, or cannot be prepared or read.
  """
  found, _, _ = loading.evaluated(request, _Prepared(request).part(request.test_split))
  return found


class _Prepared:
  """The splits of a set that is prepared if necessary."""

  def __init__(self, request: loading.Request, others: Sequence[str] = ()) -> None:
    self._request, self._others = request, others
    self._directory = data_directory(request.data_dir)

  @functools.cached_property
  def _builder(self) -> Any:
    return open_builder(self._request.name, self._directory, self._others)

  def part(self, split: str) -> loading.Part:
    """Returns a split expression."""
    opened = functools.cache(lambda: open_split(self._builder, split))
    return loading.Part(
      f"{self._request.name} {split}",
      functools.partial(self._place, split),
      opened,
      lambda: _about(self._builder, opened()),
    )

  def _place(self, split: str) -> array_cache.Place:
    """Returns the place of a split in the cache, with all that its arrays depend on."""
    request = self._request
    how = [list(request.image_size), request.crop_fraction]
    return array_cache.Place(
      array_cache.directory(request.cache_dir),
      _stem(request.name, split, self._directory, how),
      [*_identity(self._directory, request.name), *how],
    )


@dataclasses.dataclass
class Images:
  """The images of a split; implements `loading.Files`.

  The files are opened when the first example is read, also in another process.

  Attributes:
    folder: the folder of the prepared set.
    split: the split expression.
    name: the full name of the set, for messages.
    keys: the names of the image and the label feature.
    channels: channels of an image.
    count: the number of examples.
    records: [file, its size, first record, end] of the files that are read.
  """

  folder: str
  split: str
  name: str
  keys: tuple[str, str]
  channels: int
  count: int
  records: list[list[Any]]

  def __post_init__(self) -> None:
    self._source: DataSource | None = None
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self.__post_init__()

  def __len__(self) -> int:
    return self.count

  def example(self, index: int) -> Mapping[str, Any]:
    """Returns an example with its images encoded.

    Raises:
      UserError: the record cannot be read.
    """
    try:
      if self._source is None:
        with self._lock:
          if self._source is None:
            builder = import_tfds().builder_from_directory(self.folder)
            self._source = builder.as_data_source(self.split, decoders=_undecoded(builder.info))
      return self._source[index]
    except Exception as error:  # TFDS and array_record raise many types
      raise UserError(
        f"{self.where(index)} cannot be read ({type(error).__name__}: {error}); prepare the set "
        "again"
      ) from error

  def __getitem__(self, index: int) -> tuple[Image.Image, int]:
    image_key, label_key = self.keys
    example = self.example(index)
    mode = decoding.MODES[self.channels]
    try:
      image: Image.Image = Image.open(io.BytesIO(example[image_key]))
      image.load()
      if image.mode.startswith(decoding.DEEP):
        raise ValueError(f"pixels of the type {image.mode}; expected 8 bits per channel")
      return image if image.mode == mode else image.convert(mode), int(example[label_key])
    except Exception as error:  # decoders raise many types
      raise UserError(
        f"{self.where(index)} cannot be decoded ({type(error).__name__}: {error}); prepare the set "
        "again"
      ) from error

  def where(self, index: int) -> str:
    """Returns the name of an example, for messages."""
    return f"TFDS set {self.name}, split {self.split!r}: image {index}"

  def digest(self) -> str:
    """Returns the SHA-256 (hex) of the names, sizes and records of the files."""
    return hashlib.sha256(repr(self.records).encode()).hexdigest()


def open_builder(name: str, directory: pathlib.Path, others: Sequence[str] = ()) -> Any:
  """Returns a TFDS builder whose files can be read, and prepares them if necessary.

  Raises:
    UserError: the set is unknown, cannot be prepared, or has a format that needs TensorFlow.
  """
  tfds = import_tfds()
  builder = find_builder(name, directory, others)
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


def find_builder(name: str, directory: pathlib.Path, others: Sequence[str] = ()) -> Any:
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
      base, [*others, *tfds.list_builders(with_community_datasets=False)], n=5
    )
    raise UserError(
      f"data set {name!r} is neither in this package nor in TFDS nor in {directory}. "
      + (f"Did you mean: {', '.join(close)}? " if close else "")
      + f"Names of this package: {', '.join(others) or 'none'}. All TFDS names: "
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


def _stem(name: str, split: str, directory: pathlib.Path | str, how: Sequence[Any]) -> str:
  """Returns a readable file name for the cache entry of a split, unique for the arguments."""
  asked = repr((name, split, os.path.abspath(directory), *how))
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
    elif kinds[0].np_dtype != np.uint8 or kinds[0].shape[-1] not in decoding.MODES:
      problem = f"its images are {kinds[0].np_dtype} with {kinds[0].shape[-1]} channels"
  if problem:
    raise UserError(
      f"TFDS set {info.full_name} is not a supported image-classification set: {problem}; expected "
      "uint8 images of 1, 3 or 4 channels and one class label: choose another set"
    )
  return str(image), str(label)


def open_split(builder: Any, split: str) -> Images:
  """Opens one TFDS split expression.

  Raises:
    UserError: the expression is wrong, or the set is no image-classification set.
  """
  info = builder.info
  image_key, label_key = _keys(info)
  try:
    instructions = info.splits[split].file_instructions
    source: DataSource = builder.as_data_source(split, decoders=_undecoded(info))
    count = len(source)  # raises for an empty split
  except Exception as error:  # TFDS raises many types for a bad expression
    raise UserError(
      f"split {split!r} of {info.full_name} cannot be read ({error}); the splits are: "
      f"{', '.join(sorted(info.splits))}, and expressions such as 'train[:80%]' or 'train+test'"
    ) from error
  if not count:
    raise UserError(f"split {split!r} of {info.full_name} is empty; choose another split")
  return Images(
    folder=str(builder.data_path),
    split=split,
    name=info.full_name,
    keys=(image_key, label_key),
    channels=info.features[image_key].shape[-1],
    count=count,
    records=[_record_range(instruction) for instruction in instructions],
  )


def _undecoded(info: Any) -> dict[str, Any]:
  """Returns decoders that leave images encoded: Pillow decodes, also where OpenCV is installed."""
  tfds = import_tfds()
  return {
    key: tfds.decode.SkipDecoding()
    for key, feature in info.features.items()
    if isinstance(feature, tfds.features.Image)
  }


def _about(builder: Any, images: Images) -> dict[str, Any]:
  """Returns further facts about a split."""
  info = builder.info
  licence = info.redistribution_info and info.redistribution_info.license
  return {
    "class_names": list(info.features[images.keys[1]].names),
    "records": images.records,
    "source": f"TFDS {info.full_name} ({info.homepage or 'no homepage given'}), "
    + (f"licence: {licence}" if licence else "licence: see its source"),
    "note": _note(info.name, images.example(0).get("id", b"")),
  }


def _record_range(instruction: Any) -> list[Any]:
  """Returns [file, its size, first record, end] of what a TFDS FileInstruction reads."""
  end = (
    instruction.examples_in_shard if instruction.take < 0 else instruction.skip + instruction.take
  )
  path = instruction.filename
  return [os.path.basename(path), os.path.getsize(path), instruction.skip, end]


def _overlap(first: Sequence[Sequence[Any]], second: Sequence[Sequence[Any]]) -> bool:
  """Returns whether two lists of [file, size, start, end] share a record."""
  return any(a[0] == b[0] and max(a[2], b[2]) < min(a[3], b[3]) for a in first for b in second)


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
