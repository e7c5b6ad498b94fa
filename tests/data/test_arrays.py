"""Files of NumPy arrays: what is read, and what is refused."""

import io
import os
import zipfile

import numpy as np
import pytest

from sprout_jax import data
from sprout_jax.errors import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (20, 4, 5, 3), np.uint8)
LABELS = np.arange(20) % 4


def load(path, **options):
  return data.load("npz", data_dir=str(path), validation_fraction=0, **options)


@pytest.fixture
def saved(tmp_path):
  def save(compressed=False, **arrays):
    path = tmp_path / "photos.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path

  return save


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels(compressed, saved):
  found = load(saved(compressed, images=IMAGES, labels=LABELS))
  assert found.name == "photos.npz" and found.class_names == ("0", "1", "2", "3")
  assert np.bincount(found.test.labels).tolist() == [1, 1, 1, 1]  # a fifth of each class
  images = np.concatenate([found.train.images, found.test.images])
  labels = np.concatenate([found.train.labels, found.test.labels])
  assert sorted(zip(map(bytes, images), labels)) == sorted(zip(map(bytes, IMAGES), LABELS))
  assert images.dtype == np.uint8 and labels.dtype == np.int32
  assert os.sep not in found.provenance and "'photos.npz'" in found.provenance


def test_a_test_split_and_class_names(saved, capsys):
  path = saved(
    images=IMAGES[:16],
    labels=LABELS[:16].astype(np.uint8),
    test_images=IMAGES[16:],
    test_labels=LABELS[16:],
    class_names=np.array(["ant", "bee", "cat", "dog"]),
    notes=np.zeros(3),
  )
  found = load(path)
  np.testing.assert_array_equal(found.train.images, IMAGES[:16])
  np.testing.assert_array_equal(found.test.images, IMAGES[16:])
  np.testing.assert_array_equal(found.test.labels, LABELS[16:])
  assert found.class_names == ("ant", "bee", "cat", "dog")
  assert capsys.readouterr().err == f"{path}: ignored arrays: notes\n"
  with pytest.raises(UserError, match="test_fraction is 0.5, but .* has test images of its own"):
    load(path, test_fraction=0.5)


def test_grey_floats(saved):
  grey = (IMAGES[..., 0] / 255).astype(np.float64)
  found = load(saved(images=grey, labels=LABELS), test_fraction=0.5)
  assert found.image_shape == (4, 5, 1) and found.train.images.dtype == np.float32
  total = found.train.images.sum() + found.test.images.sum()
  np.testing.assert_allclose(total, grey.sum(), rtol=1e-6)


BIG = np.zeros((1, 1, 1, 1), np.float32) + 2


@pytest.mark.parametrize(
  "arrays, message",
  [
    (dict(x_train=IMAGES, y_train=LABELS), "has the arrays x_train, y_train; expected the arrays"),
    (dict(images=IMAGES), "has the arrays images; expected"),
    (dict(images=IMAGES, labels=LABELS, test_images=IMAGES), "has the arrays images, labels, test"),
    (dict(images=IMAGES[0, 0], labels=LABELS), r"'images' has the shape \(5, 3\)"),
    (dict(images=IMAGES.astype(np.int32), labels=LABELS), "'images' has the type int32"),
    (dict(images=IMAGES, labels=LABELS[:, None]), r"'labels' has the type .* shape \(20, 1\)"),
    (dict(images=IMAGES, labels=LABELS / 1), "'labels' has the type float64"),
    (dict(images=IMAGES, labels=LABELS - 1), "'labels' ranges from -1 to 2"),
    (dict(images=IMAGES, labels=LABELS + 2**40), "'labels' ranges from"),
    (dict(images=IMAGES, labels=LABELS + 1), "class 0 has no training images"),
    (dict(images=IMAGES[:5], labels=LABELS), "has 5 entries of 'images' and 20 of 'labels'"),
    (dict(images=IMAGES[:0], labels=LABELS[:0]), "at least one image"),
    (dict(images=IMAGES[:3], labels=LABELS[:3]), "class '0' has a single image"),
    (dict(images=IMAGES, labels=LABELS, class_names=np.array(["a"])), "expected at least 4 texts"),
    (
      dict(images=IMAGES, labels=LABELS, class_names=np.arange(4)),
      "'class_names' has the type int",
    ),
    (dict(images=IMAGES / 1.0, labels=LABELS), "pixels range from 0.0 to 255.0"),
    (dict(images=IMAGES, labels=0 * LABELS), "has 1 classes"),
    (
      dict(images=IMAGES, labels=LABELS, test_images=IMAGES[:, :3], test_labels=LABELS),
      r"images have shape \(3, 5, 3\), but training images have \(4, 5, 3\)",
    ),
  ],
)
def test_wrong_arrays(arrays, message, saved):
  with pytest.raises(UserError, match=message):
    load(saved(**arrays))


def test_objects_are_not_unpickled(saved, tmp_path):
  class Trap:
    def __reduce__(self):
      return (os.mkdir, (str(tmp_path / "sprung"),))

  path = saved(images=np.array([Trap()], object), labels=LABELS)
  with pytest.raises(UserError, match="images.npy has Python objects"):
    load(path)
  assert not (tmp_path / "sprung").exists()


def header(shape):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {"descr": "|u1", "fortran_order": False, "shape": shape}
  )
  return file.getvalue()


def test_sizes_are_bounded_before_anything_is_read(saved, tmp_path):
  path = tmp_path / "bomb.npz"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("images.npy", header((2**20, 2**10, 2**10, 3)))  # 3 TiB, it says
    archive.writestr("labels.npy", header((2**20,)))
  with pytest.raises(UserError, match="images.npy has another size than its header says"):
    load(path)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("images.npy", header((2000, 32, 32, 3)) + bytes(2000 * 32 * 32 * 3))
    archive.writestr("labels.npy", header((2000,)) + bytes(2000))
  assert path.stat().st_size < 20_000
  with pytest.raises(UserError, match=r"have 0.00572 GiB, but in_memory_gib is 0.001.*=1, or"):
    load(path, in_memory_gib=0.001)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_no_npz_file(content, tmp_path):
  path = tmp_path / "photos.npz"
  path.write_bytes(content)
  with pytest.raises(UserError, match="photos.npz cannot be read as an .npz file"):
    load(path)


def test_damaged_file(saved):
  path = saved(True, images=IMAGES, labels=LABELS)
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 255
  path.write_bytes(content)
  with pytest.raises(UserError, match="photos.npz cannot be read"):
    load(path)


def test_no_such_file_and_options_without_effect(saved):
  with pytest.raises(UserError, match="which does not exist; .* needs the path of an .npz file"):
    load("nowhere.npz")
  path = saved(images=IMAGES, labels=LABELS)
  for options in ({"image_size": (8, 8)}, {"train_split": "train[:5]"}, {"workers": 2}):
    with pytest.raises(UserError, match="an .npz file is used as it is, in memory; leave"):
      load(path, **options)
