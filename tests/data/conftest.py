"""A web server and tiny archives in the official layouts, so that preparing needs no network."""

import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import scipy.io

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = [f"fine{i}" for i in range(100)]
COARSE = [f"coarse{i}" for i in range(20)]


class Server:
  """Serves `files` {path: bytes}; a path in `cut` breaks off half way. Notes what was asked."""

  def __init__(self):
    self.files, self.cut, self.asked = {}, set(), []
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):  # pylint: disable=invalid-name
        outer.asked.append(self.path)
        content = outer.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content:
          self.wfile.write(content[: len(content) // 2] if self.path in outer.cut else content)

      def log_message(self, *_):
        pass

    self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.http.server_port}"
    self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
    self.thread.start()

  def stop(self):
    if not self.thread.is_alive():
      return
    self.http.shutdown()
    self.http.server_close()
    self.thread.join()


@pytest.fixture
def server(monkeypatch):
  for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(name, raising=False)
  server = Server()
  yield server
  server.stop()


def tar_gz(files):
  """Returns {member name: bytes} as a .tar.gz, in the order given."""
  packed = io.BytesIO()
  with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return packed.getvalue()


def records(seed, count, *ranges):
  """Returns (images [count, 32, 32, 3], labels [count, len(ranges)]), uint8."""
  rng = np.random.default_rng(seed)
  labels = np.stack([np.arange(count) * 7 % r for r in ranges], 1).astype(np.uint8)
  return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels


def cifar_bytes(images, labels):
  """Returns the official binary layout: label bytes, then the red, green and blue planes."""
  return b"".join(
    bytes(label) + b"".join(i[..., c].tobytes() for c in range(3))
    for i, label in zip(images, labels)
  )


class Tiny:
  """The content of an archive: {split: images} and {split: labels}, in the order of the files."""

  def __init__(self, images, labels):
    self.images, self.labels = images, labels


def _register(monkeypatch, builder_class, url, content):
  from tensorflow_datasets.core.download import checksums

  info = checksums.UrlInfo(
    size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=url.split("/")[-1]
  )
  known = dict(builder_class.__dict__.get("url_infos") or {})
  monkeypatch.setattr(builder_class, "url_infos", {**known, url: info})
  return info


@pytest.fixture
def cifar10(server, monkeypatch):
  """CIFAR-10 in the official layout with 4 images a file, at a local address."""
  from tensorflow_datasets.image_classification import cifar

  images, labels = records(0, 20, 10)
  test_images, test_labels = records(1, 4, 10)
  files = {
    "cifar-10-batches-bin/data_batch_1.bin": cifar_bytes(images[:4], labels[:4]),
    "cifar-10-batches-bin/batches.meta.txt": "\n".join((*CLASSES, "", "")).encode(),
  }
  for i in (2, 4, 3, 1):  # the official archive is not in order either
    files[f"cifar-10-batches-bin/data_batch_{i + 1}.bin"] = cifar_bytes(
      images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4]
    )
  files["cifar-10-batches-bin/readme.html"] = b"not wanted"
  files["cifar-10-batches-bin/test_batch.bin"] = cifar_bytes(test_images, test_labels)
  tiny = Tiny(
    {"train": images, "test": test_images}, {"train": labels[:, 0], "test": test_labels[:, 0]}
  )
  _serve_cifar(server, monkeypatch, cifar.Cifar10, "cifar-10-binary.tar.gz", tar_gz(files), tiny)
  tiny.files = files

  def repack(files):
    """Serves another archive, with its own checksum registered."""
    server.files[tiny.path] = tar_gz(files)
    _register(monkeypatch, cifar.Cifar10, tiny.url, server.files[tiny.path])

  tiny.repack = repack
  return tiny


@pytest.fixture
def cifar100(server, monkeypatch):
  """CIFAR-100 in the official layout, with coarse and fine labels."""
  from tensorflow_datasets.image_classification import cifar

  images, labels = records(2, 9, 20, 100)
  test_images, test_labels = records(3, 5, 20, 100)
  files = {
    "cifar-100-binary/coarse_label_names.txt": "\n".join([*COARSE, ""]).encode(),
    "cifar-100-binary/fine_label_names.txt": "\n".join([*FINE, ""]).encode(),
    "cifar-100-binary/test.bin": cifar_bytes(test_images, test_labels),
    "cifar-100-binary/train.bin": cifar_bytes(images, labels),
  }
  tiny = Tiny({"train": images, "test": test_images}, {"train": labels, "test": test_labels})
  _serve_cifar(server, monkeypatch, cifar.Cifar100, "cifar-100-binary.tar.gz", tar_gz(files), tiny)
  return tiny


def _serve_cifar(server, monkeypatch, builder_class, file_name, content, tiny):
  tiny.path, tiny.url, tiny.content = f"/{file_name}", f"{server.url}/{file_name}", content
  stock = builder_class._cifar_info.fget
  monkeypatch.setattr(
    builder_class, "_cifar_info", property(lambda self: stock(self)._replace(url=tiny.url))
  )
  tiny.info = _register(monkeypatch, builder_class, tiny.url, content)
  server.files[tiny.path] = content


@pytest.fixture
def svhn(server, monkeypatch):
  """Cropped SVHN as two .mat files; there is no "extra" to be had."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder as module

  monkeypatch.setattr(module, "URL", server.url + "/")
  builder_class = tfds.builder_cls("svhn_cropped")
  assert builder_class is module.Builder
  tiny = Tiny({}, {})
  for seed, (split, count) in enumerate([("train", 12), ("test", 5)]):
    images = records(seed + 4, count, 10)[0]
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)  # 1..10: the file's 10 is a zero
    file = io.BytesIO()
    scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    server.files[f"/{split}_32x32.mat"] = file.getvalue()
    _register(monkeypatch, builder_class, f"{server.url}/{split}_32x32.mat", file.getvalue())
    tiny.images[split], tiny.labels[split] = images, labels
  return tiny


def stock_order(split, count):
  """Returns the order TFDS stores examples in whose keys are 0..count-1: by salted md5."""
  return sorted(range(count), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())


@pytest.fixture(name="stock_order")
def stock_order_fixture():
  return stock_order
