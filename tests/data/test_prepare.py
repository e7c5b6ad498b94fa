"""Preparing against a local server: layout, order, checksums, failures."""

import fcntl
import hashlib
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sprout_jax.data import prepare
from sprout_jax.errors import UserError


def _read(name, directory, split):
  """Returns the examples through TFDS's own reader, decoding included."""
  return list(tfds.data_source(name, split=split, data_dir=directory))


def _nothing_prepared(directory, name):
  return not list((directory / name).glob("*/*.json")) and not list(directory.rglob("*.tmp.*"))


def test_stock_order_is_tfds_order(stock_order):
  # The stock CIFAR-10 famously begins with train_16399: the keys must be plain running numbers.
  assert stock_order("train", 50_000)[0] == 16399


def test_cifar10_is_what_the_stock_builder_writes(cifar10, tmp_path, stock_order, capsys):
  assert prepare.main(["cifar10", "--data_dir", str(tmp_path)]) == 0
  assert str(tmp_path / "cifar10" / "3.0.2") in capsys.readouterr().out
  for split, count in (("train", 20), ("test", 4)):
    examples, order = _read("cifar10", tmp_path, split), stock_order(split, count)
    assert [e["id"].decode() for e in examples] == [f"{split}_{i:05d}" for i in order]
    assert [e["label"] for e in examples] == cifar10.labels[split][order].tolist()
    np.testing.assert_array_equal([e["image"] for e in examples], cifar10.images[split][order])
  info = tfds.builder("cifar10", data_dir=tmp_path).info
  assert info.features["label"].names[:2] == ["airplane", "automobile"]
  assert info.features["label"].num_classes == 10


def test_cifar100_has_both_labels(cifar100, tmp_path, stock_order):
  prepare.prepare("cifar100", tmp_path)
  for split, count in (("train", 9), ("test", 5)):
    examples, order = _read("cifar100", tmp_path, split), stock_order(split, count)
    np.testing.assert_array_equal(
      [[e["coarse_label"], e["label"]] for e in examples], cifar100.labels[split][order]
    )
    np.testing.assert_array_equal([e["image"] for e in examples], cifar100.images[split][order])
    assert [e["id"].decode() for e in examples] == [f"{split}_{i:05d}" for i in order]
  features = tfds.builder("cifar100", data_dir=tmp_path).info.features
  assert features["label"].names[99] == "fine99"
  assert features["coarse_label"].names[19] == "coarse19"


def test_svhn_has_train_and_test_with_ten_as_zero(svhn, server, tmp_path, stock_order):
  prepare.prepare("svhn_cropped", tmp_path)
  for split, count in (("train", 12), ("test", 5)):
    examples, order = _read("svhn_cropped", tmp_path, split), stock_order(split, count)
    assert [e["id"].decode() for e in examples] == [f"{split}_{i:06d}" for i in order]
    assert [e["label"] for e in examples] == [(i + 1) % 10 for i in order]
    np.testing.assert_array_equal([e["image"] for e in examples], svhn.images[split][order])
  assert sorted(tfds.builder("svhn_cropped", data_dir=tmp_path).info.splits) == ["test", "train"]
  assert not [path for path in server.asked if "extra" in path]


def test_prepared_set_is_left_alone(cifar10, server, tmp_path):
  first = prepare.prepare("cifar10", tmp_path)
  before = {p: p.stat().st_mtime_ns for p in first.iterdir()}
  assert prepare.prepare("cifar10", tmp_path) == first
  assert {p: p.stat().st_mtime_ns for p in first.iterdir()} == before
  assert len(server.asked) == 1


def test_environment_names_the_directory(cifar10, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
  assert prepare.prepare("cifar10") == tmp_path / "here" / "cifar10" / "3.0.2"


def test_wrong_checksum_names_both_sums(cifar10, server, tmp_path, capsys):
  changed = cifar10.content[:-1] + b"?"
  server.files[cifar10.path] = changed
  assert prepare.main(["cifar10", "--data_dir", str(tmp_path)]) == 1
  message = capsys.readouterr().err
  assert cifar10.info.checksum in message and hashlib.sha256(changed).hexdigest() in message
  assert f"python -m sprout_jax.data.prepare cifar10 --data_dir {tmp_path}" in message
  assert _nothing_prepared(tmp_path, "cifar10")
  server.files[cifar10.path] = cifar10.content  # and nothing stands in the way of the next try
  prepare.prepare("cifar10", tmp_path)


@pytest.mark.parametrize("fault", ["cut off", "absent", "no server", "no checksum"])
def test_failed_download_leaves_nothing(fault, cifar10, server, tmp_path, monkeypatch):
  if fault == "cut off":
    server.cut.add(cifar10.path)
  elif fault == "absent":
    del server.files[cifar10.path]
  elif fault == "no server":
    server.stop()
  else:
    monkeypatch.setattr(tfds.builder_cls("cifar10"), "url_infos", {})
    from tensorflow_datasets.core.download import checksums

    monkeypatch.delitem(checksums.get_all_url_infos(), cifar10.url, raising=False)
  expected = {
    "cut off": "IncompleteRead",
    "absent": "HTTP code: 404",
    "no server": "Max retries exceeded",
    "no checksum": "Missing checksums",
  }[fault]
  with pytest.raises(UserError, match=expected) as caught:
    prepare.prepare("cifar10", tmp_path)
  assert f"python -m sprout_jax.data.prepare cifar10 --data_dir {tmp_path}" in str(caught.value)
  assert _nothing_prepared(tmp_path, "cifar10")


@pytest.mark.parametrize(
  "fault, expected",
  [("file", "lacks data_batch_3.bin"), ("record", "cannot reshape"), ("label", "label")],
)
def test_broken_archive_leaves_nothing(fault, expected, cifar10, tmp_path):
  name = "cifar-10-batches-bin/data_batch_3.bin"
  content = cifar10.files.pop(name)
  if fault != "file":
    cifar10.files[name] = content[:-5] if fault == "record" else b"\x0b" + content[1:]
  cifar10.repack(cifar10.files)
  with pytest.raises(UserError, match=expected):
    prepare.prepare("cifar10", tmp_path)
  assert _nothing_prepared(tmp_path, "cifar10")


def test_without_network_the_archive_is_taken_from_manual(cifar10, server, tmp_path):
  server.files.clear()
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  (manual / "cifar-10-binary.tar.gz").write_bytes(cifar10.content[:-1])
  with pytest.raises(UserError, match="checksum"):
    prepare.prepare("cifar10", tmp_path)
  (manual / "cifar-10-binary.tar.gz").write_bytes(cifar10.content)
  prepare.prepare("cifar10", tmp_path)
  assert not server.asked


def test_other_sets_need_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install tensorflow\n") as caught:
    prepare.prepare("mnist", tmp_path)
  assert f"python -m sprout_jax.data.prepare mnist --data_dir {tmp_path}" in str(caught.value)
  assert "cifar10, cifar100, svhn_cropped" in str(caught.value)


def test_directory_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="give a writable folder as data_dir"):
    prepare.prepare("cifar10", tmp_path / "file" / "below")


def test_processes_wait_for_each_other(cifar10, tmp_path):
  prepare.prepare("cifar10", tmp_path)
  with (tmp_path / ".cifar10.prepare.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiting = threading.Thread(target=prepare.prepare, args=("cifar10", tmp_path))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
  waiting.join(10)
  assert not waiting.is_alive()


def test_tensorflow_is_never_imported(tmp_path):
  # A package of that name which breaks whoever imports it, and two tests in a new process.
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TF was imported')")
  root = pathlib.Path(prepare.__file__).resolve().parents[2]
  run = subprocess.run(
    [
      sys.executable,
      "-m",
      "pytest",
      "-q",
      "-o",
      "addopts=",
      "-p",
      "no:cacheprovider",
      "-k",
      "stock_builder_writes or prepares_and_reads",
      pathlib.Path(__file__).parent,
    ],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
  )
  assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr
