"""A folder of images, with a folder for each class.

The layouts, under the folder that `data_dir` names:

- `train/CLASS/*.png` and `test/CLASS/*.png`; `val` or `validation` may stand for `test`.
- `CLASS/*.png`. A fixed random share of each class, `test_fraction`, becomes the test split.

Folders within a class are searched as well. Names that begin with a dot are ignored. Links are
followed to regular files and folders, wherever they lead, but not to a folder that contains the
link. Pipes and devices are never opened. All images are grey if every file stores grey, else RGB.
`decoding` has the treatment of each kind of image.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
import re
import stat
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.data import decoding
from sprout_jax.data import loading
from sprout_jax.errors import UserError

CACHE_FORMAT = 1  # to be raised when the decoding changes
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TEST_FOLDERS = ("test", "val", "validation")
NO_NAME = re.compile(r"[^\w.-]+")  # what the name of a cache entry does not have
# Names of folders that are splits, besides 'train' and `TEST_FOLDERS`.
SPLIT_NAME = r"(train|test|val|valid|eval|dev)(ing|idation|uation)?([_-]?set|[_-]?\d+)?"
LISTED = 5  # names in a message


class Found(NamedTuple):
  """An image file.

  Attributes:
    name: its path relative to the data folder, with "/".
    label: the index of its class.
    size: in bytes.
    changed: the time of its last change, in nanoseconds.
  """

  name: str
  label: int
  size: int
  changed: int


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of a split; implements `loading.Files`.

  Attributes:
    root: the data folder.
    files: the images.
    channels: 1 or 3.
  """

  root: str
  files: Sequence[Found]
  channels: int

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> tuple[Image.Image, int]:
    where = self.where(index)
    image = decoding.open_image(io.BytesIO(_read(where)), where)
    return decoding.to_channels(image, self.channels, where), self.files[index].label

  def where(self, index: int) -> str:
    """Returns the path of an image."""
    return os.path.join(self.root, self.files[index].name)

  def digest(self) -> str:
    """Returns the SHA-256 (hex) of the names and sizes of the files."""
    return _digest([[(file.name, file.size) for file in self.files]])


def _digest(parts: Sequence[Sequence[tuple[str | int, ...]]]) -> str:
  """Returns the SHA-256 (hex) of lists of facts about files."""
  sha = hashlib.sha256()
  for files in parts:
    sha.update(f"{len(files)}\n".encode())
    for facts in files:
      sha.update("\0".join(map(str, facts)).encode(errors="surrogateescape") + b"\n")
  return sha.hexdigest()


def _read(path: str) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({error}); correct its permissions, or remove it"
    ) from error


def load(request: loading.Request) -> dataset.Dataset:
  """Loads a folder of images, unchecked and with an empty validation split.

  The classes are the names of the class folders, sorted. The order of the images is that of their
  names, class by class.

  Raises:
    UserError: there is no such folder, its layout is another one, or an image cannot be read.
  """
  root = _root(request)
  classes, parts, layout, others = _scan(root, request)
  if others:
    more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
    print(
      f"{root}: {len(others)} entries are no images in a class folder and were ignored: "
      f"{', '.join(others[:LISTED])}{more}",
      file=sys.stderr,
      flush=True,
    )
  train_files, test_files = parts
  identity = [CACHE_FORMAT, _digest(parts), list(request.image_size), request.crop_fraction]
  stem = hashlib.sha256(repr((str(root), *identity[2:])).encode(errors="surrogateescape"))

  def part(split: str, files: Sequence[Found], channels: int | None = None) -> loading.Part:
    place = array_cache.Place(
      array_cache.directory(request.cache_dir),
      f"folder-{re.sub(NO_NAME, '_', root.name)[:60]}-{split}-{stem.hexdigest()[:12]}",
      [split, *identity],
    )
    opened = lambda: Images(
      str(root), files, channels or _channels(root, (*train_files, *test_files))
    )
    return loading.Part(f"{root.name} {split}", lambda: place, opened)

  test, test_digests, _ = loading.evaluated(request, part("test", test_files))
  channels = test.images.shape[-1]  # of both splits
  train, train_digests, _ = loading.trained_on(request, part("train", train_files, channels))
  return dataset.Dataset(
    name=root.name,
    train=train,
    validation=dataset.empty_like(test),
    test=test,
    num_classes=len(classes),
    class_names=tuple(classes),
    fingerprint=dataset.fingerprint([*train_digests, *test_digests]),
    provenance=f"folder of images {root.name!r}, {len(train_files):,} training and "
    f"{len(test_files):,} test images, {layout}, {loading.described(request)}.",
  )


def _root(request: loading.Request) -> pathlib.Path:
  if not request.data_dir:
    raise UserError(
      "data_dir is '', but the data set 'folder' needs the folder of the images; type e.g. "
      "--config configs/images.py:dir=PHOTOS"
    )
  root = pathlib.Path(request.data_dir).expanduser()
  if not root.is_dir():
    kind = "is no folder" if root.exists() else "does not exist"
    raise UserError(f"data_dir {str(root)!r} {kind}; name the folder of the images")
  return root.resolve()


def _scan(
  root: pathlib.Path, request: loading.Request
) -> tuple[list[str], tuple[list[Found], list[Found]], str, list[str]]:
  """Returns (classes, (training files, test files), the layout in words, names of other files)."""
  folders = [entry.name for entry in _entries(root) if entry.is_dir()]
  default = loading.Request(request.name)
  wanted = [request.test_split]
  if request.test_split == default.test_split:
    wanted = list(TEST_FOLDERS)
  tests = [name for name in wanted if name in folders]
  has_train = request.train_split in folders
  if has_train and tests:
    _refuse_fraction(request, f"{root} has test images of its own, in {tests[0]}")
    others = [
      entry.name for entry in _entries(root) if entry.name not in (request.train_split, tests[0])
    ]
    classes, train, train_inodes = _class_folders(root, request.train_split, others)
    test_classes, test, test_inodes = _class_folders(root, tests[0], others)
    if both := sorted(train_inodes[inode] for inode in train_inodes.keys() & test_inodes.keys()):
      raise UserError(
        f"{root} has {len(both)} files in both splits, by links to the same content, such as "
        f"{both[0]}; remove them from one split"
      )
    if classes != test_classes:
      only = [
        sorted(set(a) - set(b)) for a, b in ((classes, test_classes), (test_classes, classes))
      ]
      raise UserError(
        f"{root} has other classes in {request.train_split} than in {tests[0]} (only in "
        f"{request.train_split}: {_listed(only[0])}; only in {tests[0]}: {_listed(only[1])}); "
        "expected the same class folders in both"
      )
    return classes, (train, test), f"folders {request.train_split!r} and {tests[0]!r}", others
  asked = (request.train_split, request.test_split)
  if asked != (default.train_split, default.test_split):
    raise UserError(
      f"{root} has no folders {asked[0]!r} and {asked[1]!r} (train_split and test_split); its "
      f"folders are: {_listed(folders)}"
    )
  if tests:
    raise UserError(
      f"{root} has the folder {tests[0]!r}, but no folder 'train'; expected both, or one folder "
      "for each class"
    )
  _refuse_splits(root, folders)
  others = []
  classes, files, _ = _class_folders(root, "", others)
  labels = np.array([file.label for file in files])
  rows = dataset.stratified(labels, request.test_fraction, classes)
  train, test = ([files[row] for row in part] for part in rows)
  share = f"{request.test_fraction:g} of each class as test images"
  return classes, (train, test), share, others


def _refuse_splits(root: pathlib.Path, folders: Sequence[str]) -> None:
  """Refuses folders that look like splits under other names: else they would become the classes."""
  inner = []
  for name in folders:
    entries = _entries(root / name)
    if any(not entry.is_dir() for entry in entries):
      return
    inner.append([entry.name for entry in entries])
  is_split = all(re.fullmatch(SPLIT_NAME, name.lower()) for name in folders)
  if is_split and len(folders) > 1 and len(inner[0]) > 1 and inner.count(inner[0]) == len(inner):
    raise UserError(
      f"{root} has the folders {_listed(folders)}, and each has the folders {_listed(inner[0])}; "
      "they look like splits. Name them 'train' and 'test', or add "
      "--config.dataset.train_split=NAME --config.dataset.test_split=NAME"
    )


def _refuse_fraction(request: loading.Request, why: str) -> None:
  if request.test_fraction != loading.Request.test_fraction:
    raise UserError(f"test_fraction is {request.test_fraction:g}, but {why}; leave it out")


def _class_folders(
  root: pathlib.Path, split: str, others: list[str]
) -> tuple[list[str], list[Found], dict[tuple[int, int], str]]:
  """Returns (classes, files, {inode: file}) of a folder of class folders.

  It adds other names to `others`, and links to folders that contain the link.
  """
  folder = root / split
  entries = _entries(folder)
  above = {_inode(folder), *map(_inode, folder.parents)}
  is_class = [e.is_dir() and _inode(folder / e.name) not in above for e in entries]
  classes = [e.name for e, good in zip(entries, is_class, strict=True) if good]
  others += [
    f"{split}/{e.name}".lstrip("/") for e, good in zip(entries, is_class, strict=True) if not good
  ]
  if not classes:
    raise UserError(
      f"{folder} has no class folders; expected {folder / 'CLASS' / '*.png'} (or "
      f"{', '.join(SUFFIXES[1:])}) with a folder for each class"
    )
  if len(classes) == 1:
    inner = folder / classes[0]
    hint = f"; to use the folders in {inner} as classes, give {inner}" if not split else ""
    raise UserError(
      f"{folder} has one class folder, {classes[0]!r}; expected at least 2 classes{hint}"
    )
  found: list[Found] = []
  inodes: dict[tuple[int, int], str] = {}
  for label, name in enumerate(classes):
    before = len(found)
    for path, status in _files(folder / name, others, root):
      relative = path.relative_to(root).as_posix()
      if not status.st_size:
        raise UserError(f"{path} is empty (0 bytes); expected an image: replace or remove it")
      found.append(Found(relative, label, status.st_size, status.st_mtime_ns))
      if status.st_ino:  # Windows has no inodes here
        inodes[status.st_dev, status.st_ino] = relative
    if len(found) == before:
      raise UserError(
        f"the class folder {folder / name} has no images ({', '.join(SUFFIXES)}); add images, or "
        "remove the folder"
      )
  return classes, found, inodes


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
  """Returns the entries of a folder by name, without those whose name begins with a dot."""
  try:
    with os.scandir(folder) as entries:
      return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
  except OSError as error:
    raise UserError(f"{folder} cannot be read ({error}); correct its permissions") from error


def _files(
  folder: pathlib.Path,
  others: list[str],
  root: pathlib.Path,
  above: frozenset[tuple[int, int]] | None = None,
) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
  """Yields the image files of a folder and its subfolders, and adds other names to `others`.

  Args:
    folder: the folder.
    others: the list of other names.
    root: the folder to which the names are relative.
    above: device and inode of the folders that contain it; a link to one of them is not followed.
  """
  if above is None:
    above = frozenset(map(_inode, folder.parents))
  above |= {_inode(folder)}
  for entry in _entries(folder):
    path = folder / entry.name
    try:
      status = entry.stat()  # of what a link leads to
    except OSError:  # a link that leads nowhere
      others.append(path.relative_to(root).as_posix())
      continue
    if stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in above:
      yield from _files(path, others, root, above)
    elif stat.S_ISREG(status.st_mode) and path.suffix.lower() in SUFFIXES:
      yield path, status
    else:
      others.append(path.relative_to(root).as_posix())


def _inode(folder: pathlib.Path) -> tuple[int, int]:
  status = folder.stat()
  return status.st_dev, status.st_ino


def _channels(root: pathlib.Path, files: Sequence[Found]) -> int:
  """Returns 1 if every file stores a grey image, else 3. The first coloured one ends the search."""
  for file in files:
    where = os.path.join(root, file.name)
    try:
      with open(where, "rb") as content:
        if not decoding.is_grey(decoding.open_image(content, where)):
          return 3
    except OSError as error:
      raise UserError(f"{where} cannot be read ({error}); correct its permissions") from error
  return 1


def _listed(names: Sequence[str]) -> str:
  more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
  return ", ".join(names[:LISTED]) + more if names else "none"
