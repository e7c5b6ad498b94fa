"""The configs of own images, ImageNet and Imagenette: their values fit data, models and methods."""

import pytest

from sprout_jax import data
from sprout_jax import methods
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.launcher import trained
from tests.data import pictures


def load(text, *changes):
  config = configuration.load(text)
  configuration.override(config, changes)
  configuration.validate(config)
  methods.create(config.method.name, configuration.options(config.method))
  return config


@pytest.mark.parametrize(
  "arguments, size",
  [("", (64, 64)), (",size=48", (48, 48)), (",size=48x64", (48, 64)), (",size=stored", ())],
)
def test_folder(arguments, size, tmp_path):
  pictures.folder(tmp_path / "photos", {"a": 4, "b": 6}, (40, 40))
  config = load(
    f"images:dir={tmp_path / 'photos'}{arguments},test_fraction=0.5",
    ("dataset.cache_dir", str(tmp_path / "cache")),
  )
  found = data.load_as(configuration.data_request(config), 0.0)
  assert found.name == "photos" and len(found.test) == 5
  assert found.image_shape == (*(size or (40, 40)), 3)
  assert trained.create_model(config, 2, found.image_shape).num_classes == 2


def test_file_is_used_as_it_is():
  config = load("images:dir=some/photos.npz")
  assert (config.dataset.name, config.dataset.data_dir) == ("npz", "some/photos.npz")
  assert config.dataset.image_size == ()


def test_sizes_of_the_command_line_are_integers():
  config = load("images:dir=photos,size=stored", ("dataset.image_size", "48,64"))
  assert configuration.data_request(config).image_size == (48, 64)
  config = load("images:dir=photos", ("dataset.image_size", "()"))
  assert configuration.data_request(config).image_size == ()


@pytest.mark.parametrize(
  "text, changes, message",
  [
    ("images:size=large", (), "size is 'large'; expected a number of pixels"),
    ("images:test_fraction=some", (), "test_fraction is 'some'"),
    ("images:folder=photos", (), r"dir \(default \)"),
    ("images", (("dataset.image_size", "48"),), r"config.dataset.image_size is \(48,\)"),
    (
      "images:size=stored",
      (("dataset.image_size", "48,a"),),
      r"config.dataset.image_size is \('48', 'a'\)",
    ),
    (
      "images:size=stored",
      (("dataset.image_size", "48.5,48"),),
      r"config.dataset.image_size is \(48.5, 48\)",
    ),
    ("images", (("dataset.workers", "-1"),), "config.dataset.workers is -1"),
    ("images", (("dataset.crop_fraction", "0"),), "config.dataset.crop_fraction is 0"),
    (
      "digits",
      (("dataset.random_resized_crop", "0.5"),),
      "config.dataset.random_resized_crop is 0.5, but images are not resized",
    ),
  ],
)
def test_wrong_values(text, changes, message):
  with pytest.raises(UserError, match=message):
    load(text, *changes)


def test_digits_take_no_other_images():
  config = load("digits", ("dataset.image_size", "16,16"))
  with pytest.raises(UserError, match=r"image_size is \(16, 16\), but the embedded set 'digits'"):
    data.load_as(configuration.data_request(config), 0.1)


@pytest.mark.parametrize("name, classes, side", [("imagenet", 1000, 224), ("imagenette", 10, 160)])
def test_imagenet(name, classes, side):
  for arguments in ("", ":method=natural", ":method=pgd,model=resnet152", ":dir=folder"):
    config = load(f"{name}{arguments}")
    request = configuration.data_request(config)
    assert request.image_size == (side, side) and request.crop_fraction == 0.875
    assert request.random_resized_crop > 0 and config.dataset.flip
    trained.create_model(config, classes, (side, side, 3))
    if "dir" in arguments:
      assert (request.name, request.data_dir, request.test_split) == ("folder", "folder", "val")
    else:
      assert request.name.startswith(name) and request.test_split == "validation"
  assert configuration.load(f"{name}:method=natural").optimizer.learning_rate > 0.02
  assert configuration.load(f"{name}:epochs=7").num_epochs == 7


def test_workers_can_change_between_calls_and_streaming_cannot():
  one = load("imagenet")
  other = load("imagenet", ("dataset.workers", "4"), ("dataset.data_dir", "elsewhere"))
  assert configuration.differences(one, other) == []
  other = load("imagenet", ("dataset.in_memory_gib", "100"))
  assert len(configuration.differences(one, other)) == 1
