"""Downloads and prepares CIFAR-10, CIFAR-100 and cropped SVHN for TFDS, without TensorFlow.

    python -m sprout_jax.data.prepare NAME --data_dir DIR

The stock TFDS builder writes the set, so version, features, ids and order are its own. TFDS's
download manager downloads the archives, shows a progress bar, and verifies sizes and SHA-256
digests. Only the reading of the archives is done here, because the stock code needs TensorFlow for
it. Images are passed as PNG, so that writing needs no TensorFlow either. Of SVHN, "train" and
"test" are prepared, but not "extra" (1.3 GB). Any other TFDS set is prepared by its stock builder,
which usually needs TensorFlow.

Processes that prepare the same set at the same time wait for each other (a lock file in DIR).
Without a network, put the archive into DIR/downloads/manual; it is verified in the same way.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import pathlib
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

import numpy as np
from PIL import Image

from sprout_jax.data import array_cache
from sprout_jax.data import tfds_source
from sprout_jax.errors import UserError

MAX_RETRIES = 3  # TFDS's 10 retries take minutes without a network
Examples = Iterator[tuple[int, dict[str, Any]]]


def cifar_examples(builder: Any, downloads: Any) -> dict[str, Examples]:
  """Reads CIFAR-10 or CIFAR-100 as {split: examples}, in the order of the stock builder."""
  about = builder._cifar_info  # pylint: disable=protected-access
  wanted = {
    about.prefix + name: name
    for name in (*about.train_files, *about.test_files, *about.label_files)
  }
  with tarfile.open(downloads.download(about.url)) as archive:  # read in place, nothing extracted
    files = {
      wanted[member.name]: content.read()
      for member in archive
      if member.name in wanted and (content := archive.extractfile(member)) is not None
    }
  missing = sorted(set(wanted.values()) - set(files))
  if missing:
    raise ValueError(f"{about.url} lacks {', '.join(missing)}")
  for key, name in zip(about.label_keys, about.label_files):
    builder.info.features[key].names = [line for line in files[name].decode().split("\n") if line]

  def examples(split: str, names: Sequence[str]) -> Examples:
    index = 0  # counts over all files: it is the key, which determines the order on disk
    for name in names:
      data = np.frombuffer(files[name], np.uint8)
      # A record is the label bytes, then a 32x32 image, channel by channel.
      for record in data.reshape(-1, len(about.label_keys) + 3072):
        labels, pixels = np.split(record, [len(about.label_keys)])
        yield (
          index,
          {
            "id": f"{split}_{index:05d}",
            "image": _png(pixels.reshape(3, 32, 32).transpose(1, 2, 0)),
            **dict(zip(about.label_keys, map(int, labels))),
          },
        )
        index += 1

  return {"train": examples("train", about.train_files), "test": examples("test", about.test_files)}


def svhn_examples(builder: Any, downloads: Any) -> dict[str, Examples]:
  """Reads cropped SVHN as {split: examples}, in the order of the stock builder, without "extra"."""
  import scipy.io  # pylint: disable=g-import-not-at-top

  base = importlib.import_module(type(builder).__module__).URL
  paths = downloads.download({s: urljoin(base, f"{s}_32x32.mat") for s in ("train", "test")})

  def examples(split: str) -> Examples:
    data = scipy.io.loadmat(paths[split])
    for index, label in enumerate(data["y"].reshape(-1)):
      if not 1 <= label <= 10:
        raise ValueError(f"{split}_32x32.mat: label {label} of image {index} is not in 1..10")
      yield (
        index,
        {
          "id": f"{split}_{index:06d}",
          "image": _png(data["X"][..., index]),
          "label": int(label) % 10,
        },
      )  # the file writes digit 0 as 10

  return {split: examples(split) for split in paths}


PREPARERS: dict[str, Callable[[Any, Any], dict[str, Examples]]] = {
  "cifar10": cifar_examples,
  "cifar100": cifar_examples,
  "svhn_cropped": svhn_examples,
}


def prepare(name: str, data_dir: str | pathlib.Path = "") -> pathlib.Path:
  """Downloads, verifies and writes a TFDS set as array_record.

  A set that is already prepared is not prepared again. An incomplete set is not left behind.

  Args:
    name: a TFDS name.
    data_dir: as in `sprout_jax.data.load`.

  Returns:
    The folder of the set.

  Raises:
    UserError: an unknown name, no network, a wrong checksum, a set whose preparation or present
      format needs TensorFlow; the message says what to type.
  """
  directory = tfds_source.data_directory(data_dir)
  tfds = tfds_source.import_tfds()
  base = re.split("[:/]", name)[0]
  command = tfds_source.prepare_command(name, directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / f".{base}.prepare.lock").open("w")
  except OSError as error:
    raise UserError(
      f"{name!r} is not in {directory}, and cannot be prepared there ({error}); give a writable "
      "folder as data_dir, or set TFDS_DATA_DIR"
    ) from error
  with lock:
    # Without locks, as on Windows, TFDS's atomic move of the finished set is the only protection.
    array_cache.lock(lock, wait=True)
    builder = tfds_source.find_builder(name, directory)
    if builder.is_prepared():
      formats = builder.info.available_file_formats()
      if not formats & tfds.core.FileFormat.with_random_access():
        other = tfds_source.prepare_command(name, "OTHER_DIR")
        raise UserError(
          f"{builder.data_path} holds {name!r} in a format that needs TensorFlow; "
          f"expected array_record. Prepare it in another folder:\n  {other}"
        )
      return pathlib.Path(builder.data_path)
    if base not in PREPARERS and importlib.util.find_spec("tensorflow") is None:
      raise UserError(
        f"{name!r} is not in {directory}{_other_versions(builder, name)}, and its preparation "
        f"needs TensorFlow (only {', '.join(sorted(PREPARERS))} need none). Type once, on this or "
        f"another machine:\n  pip install tensorflow\n  {command}\n"
        "Reading the prepared set needs no TensorFlow"
      )
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    if base in PREPARERS:  # replaces only the reading of the archive
      builder._split_generators = functools.partial(PREPARERS[base], builder)
    config = tfds.download.DownloadConfig(
      try_download_gcs=False, force_checksums_validation=base in PREPARERS
    )
    try:
      with _download_manners(directory / "downloads"):
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # network, disk, archive, checksum
      raise UserError(
        f"{name!r} is not in {directory}{_other_versions(builder, name)}, and its preparation "
        f"failed ({type(error).__name__}: {error}). No incomplete set was left. With a network, "
        f"type\n  {command}\n"
        f"Without a network, first put the archive, under its original name, into "
        f"{directory}/downloads/manual"
      ) from error
  return pathlib.Path(builder.data_path)


def _png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [height, width, 3] as PNG, which is lossless and which TFDS stores unchanged."""
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
  return file.getvalue()


def _other_versions(builder: Any, name: str) -> str:
  """Returns a hint if the folder has the set in other versions than TFDS's current one."""
  there = sorted(
    p.parent.name for p in pathlib.Path(builder.data_path).parent.glob("[0-9]*/dataset_info.json")
  )
  return (
    (
      f" in version {builder.version} (the folder has: {', '.join(there)}; type "
      f"'{name.split(':')[0]}:{there[-1]}' to read that version)"
    )
    if there
    else ""
  )


@contextlib.contextmanager
def _download_manners(downloads: pathlib.Path) -> Iterator[None]:
  """Makes downloads retry less often, and removes the partial files of failed downloads."""
  downloader: Any = importlib.import_module("tensorflow_datasets.core.download.downloader")
  retries, before = downloader.MAX_RETRIES, set(downloads.glob("**/*.tmp.*"))
  downloader.MAX_RETRIES = MAX_RETRIES
  try:
    yield
  finally:
    downloader.MAX_RETRIES = retries
    for leftover in set(downloads.glob("**/*.tmp.*")) - before:
      shutil.rmtree(leftover, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
  """Executes the command line and returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m sprout_jax.data.prepare",
    description="Download and prepare a TFDS data set as array_record, which needs no TensorFlow "
    "to read.",
  )
  parser.add_argument(
    "name", help=f"the data set: {', '.join(sorted(PREPARERS))}, or any TFDS name"
  )
  parser.add_argument(
    "--data_dir",
    default="",
    help="the folder of TFDS sets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
  )
  args = parser.parse_args(argv)
  try:
    print(f"prepared: {prepare(args.name, args.data_dir)}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
