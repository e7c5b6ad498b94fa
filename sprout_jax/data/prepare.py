"""Downloads and prepares CIFAR-10, CIFAR-100 and cropped SVHN for TFDS, without TensorFlow.

    python -m sprout_jax.data.prepare NAME --data_dir DIR

The stock TFDS builder does the work (its version, features, ids, keys, hence its order), and TFDS's
own download manager downloads, with a progress bar, and verifies size and sha256 against TFDS's
register. Only reading the archives is done here, because the stock code does that with TensorFlow;
images are handed over as PNG, so writing needs none either. Of SVHN, "train" and "test" are
prepared: "extra" (1.3 GB) is left out, and asking for it raises an error that lists the splits.
Any other TFDS set is left to its stock builder, which usually needs TensorFlow.

Processes that prepare the same set at once wait for each other (a lock file in DIR). Without a
network, put the archive into DIR/downloads/manual; it is verified in the same way.
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
from urllib.parse import urljoin

import numpy as np
from PIL import Image

from sprout_jax.data import tfds_source
from sprout_jax.errors import UserError

MAX_RETRIES = 3  # TFDS's 10 keep someone without a network waiting for minutes


def cifar_examples(builder, downloads):
  """Returns {split: examples} of CIFAR-10 or CIFAR-100 in the stock builder's order."""
  about = builder._cifar_info  # pylint: disable=protected-access
  wanted = {
    about.prefix + name: name
    for name in (*about.train_files, *about.test_files, *about.label_files)
  }
  with tarfile.open(downloads.download(about.url)) as archive:  # read in place, nothing extracted
    files = {
      wanted[member.name]: archive.extractfile(member).read()
      for member in archive
      if member.name in wanted
    }
  missing = sorted(set(wanted.values()) - set(files))
  if missing:
    raise ValueError(f"{about.url} lacks {', '.join(missing)}")
  for key, name in zip(about.label_keys, about.label_files):
    builder.info.features[key].names = [line for line in files[name].decode().split("\n") if line]

  def examples(split, names):
    index = 0  # runs on over the files: it is the key, and decides the order on disk
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


def svhn_examples(builder, downloads):
  """Returns {split: examples} of cropped SVHN in the stock builder's order, without "extra"."""
  import scipy.io  # pylint: disable=g-import-not-at-top

  base = importlib.import_module(type(builder).__module__).URL
  paths = downloads.download({s: urljoin(base, f"{s}_32x32.mat") for s in ("train", "test")})

  def examples(split):
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


PREPARERS = {"cifar10": cifar_examples, "cifar100": cifar_examples, "svhn_cropped": svhn_examples}


def prepare(name, data_dir=""):
  """Downloads, verifies and writes the TFDS set `name` as array_record; returns its directory.

  Does nothing when it is there already. Nothing half-made is left behind.

  Args:
    name: a TFDS name.
    data_dir: as in `sprout_jax.data.load`.

  Raises:
    UserError: unknown name, no network, wrong checksum, no TensorFlow for a set that needs it, or
      the set is there in a format that needs TensorFlow; the message says what to type.
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
      f"{name!r} is not in {directory}, and cannot be prepared there: {error}; give "
      "a directory to write in as data_dir, or set TFDS_DATA_DIR"
    ) from error
  with lock, _locked(lock):
    builder = tfds_source.find_builder(name, directory)
    if builder.is_prepared():
      formats = builder.info.available_file_formats()
      if not formats & tfds.core.FileFormat.with_random_access():
        other = tfds_source.prepare_command(name, "OTHER_DIR")
        raise UserError(
          f"{builder.data_path} holds {name!r} in a format that needs TensorFlow; "
          f"expected array_record. Choose another directory:\n  {other}"
        )
      return pathlib.Path(builder.data_path)
    if base not in PREPARERS and importlib.util.find_spec("tensorflow") is None:
      raise UserError(
        f"{name!r} is not in {directory}{_other_versions(builder, name)}, and preparing it "
        f"needs TensorFlow (without it: {', '.join(sorted(PREPARERS))}). Type\n"
        f"  pip install tensorflow\n  {command}\n"
        "once, here or on another machine; reading the result needs no TensorFlow"
      )
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    if base in PREPARERS:  # of the stock builder, only the reading of the archive is replaced
      builder._split_generators = functools.partial(PREPARERS[base], builder)
    config = tfds.download.DownloadConfig(
      try_download_gcs=False, force_checksums_validation=base in PREPARERS
    )
    try:
      with _download_manners(directory / "downloads"):
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # network, disk, archive, checksum: whatever it was, say what next
      raise UserError(
        f"{name!r} is not in {directory}{_other_versions(builder, name)}, and preparing it "
        f"failed ({type(error).__name__}: {error}). Nothing half-made was kept. With a network, "
        f"type\n  {command}\n"
        f"or first put the archive, under its own name, into {directory}/downloads/manual"
      ) from error
  return pathlib.Path(builder.data_path)


def _png(pixels):
  """Returns uint8 [h, w, 3] as PNG bytes: exact, and TFDS stores them as they are."""
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
  return file.getvalue()


def _other_versions(builder, name):
  """Returns a hint when the directory has the set in other versions than TFDS's current one."""
  there = sorted(
    p.parent.name for p in pathlib.Path(builder.data_path).parent.glob("[0-9]*/dataset_info.json")
  )
  return (
    (
      f" in version {builder.version} (versions there: {', '.join(there)}; ask for "
      f"'{name.split(':')[0]}:{there[-1]}' to read it)"
    )
    if there
    else ""
  )


@contextlib.contextmanager
def _locked(file):
  """Lets one process at a time through."""
  try:
    import fcntl  # pylint: disable=g-import-not-at-top
  except ImportError:  # Windows: TFDS's own move into place is then the only guard
    yield
    return
  fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, or the process dies
  yield


@contextlib.contextmanager
def _download_manners(downloads):
  """Fewer retries, and a download that fails does not leave its partial file behind."""
  downloader = importlib.import_module("tensorflow_datasets.core.download.downloader")
  retries, before = downloader.MAX_RETRIES, set(downloads.glob("**/*.tmp.*"))
  downloader.MAX_RETRIES = MAX_RETRIES
  try:
    yield
  finally:
    downloader.MAX_RETRIES = retries
    for leftover in set(downloads.glob("**/*.tmp.*")) - before:
      shutil.rmtree(leftover, ignore_errors=True)


def main(argv=None):
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m sprout_jax.data.prepare", description=__doc__.splitlines()[0]
  )
  parser.add_argument("name", help=f"{', '.join(sorted(PREPARERS))}, or any TFDS name")
  parser.add_argument(
    "--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
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
