"""random_crop and random_flip against NumPy, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.data import augmentation
from sprout_jax.errors import UserError

TYPES = [np.uint8, np.float32, jnp.bfloat16]


def _images(count=40, height=6, width=5, channels=2, dtype=np.uint8):
  # No two pixels of an image are alike, and none is zero, so a window tells its own place.
  one = np.arange(1, height * width * channels + 1).reshape(height, width, channels)
  return jnp.asarray(np.tile(one, (count, 1, 1, 1)), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_crop_is_a_window_of_the_padded_image(dtype):
  images, padding = _images(dtype=dtype), 2
  crops = jax.jit(augmentation.random_crop, static_argnums=2)(jax.random.key(0), images, padding)
  assert crops.shape == images.shape and crops.dtype == images.dtype
  padded = np.pad(np.asarray(images[0]), ((2, 2), (2, 2), (0, 0)))
  windows = {padded[i : i + 6, j : j + 5].tobytes(): (i, j) for i in range(5) for j in range(5)}
  places = [windows[np.asarray(crop).tobytes()] for crop in crops]  # KeyError: no such window
  assert len(set(places)) > 10  # per example, not one offset for the batch


def test_crop_offsets_are_uniform():
  images = _images(count=5000, height=3, width=3, channels=1)
  crops = np.asarray(augmentation.random_crop(jax.random.key(1), images, 1))
  # The centre pixel 5 moves to each of 3 x 3 places; where it lands names the offset.
  counts = np.bincount(np.argmax((crops == 5).reshape(5000, 9), 1), minlength=9)
  assert abs(counts - 5000 / 9).max() < 5 * np.sqrt(5000 / 9)  # five standard deviations


def test_crop_without_padding_changes_nothing():
  images = _images()
  assert augmentation.random_crop(jax.random.key(0), images, 0) is images


@pytest.mark.parametrize("dtype", TYPES)
def test_flip_mirrors_about_half(dtype):
  images = _images(count=400, dtype=dtype)
  flipped = np.asarray(jax.jit(augmentation.random_flip)(jax.random.key(0), images))
  assert flipped.shape == images.shape and flipped.dtype == images.dtype
  same = (flipped == np.asarray(images)).all((1, 2, 3))
  mirrored = (flipped == np.flip(np.asarray(images), 2)).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert abs(mirrored.sum() - 200) < 50  # five standard deviations of 10


@pytest.mark.parametrize(
  "augment",
  [lambda key, images: augmentation.random_crop(key, images, 1), augmentation.random_flip],
)
def test_depends_on_the_key_only(augment):
  images = _images()
  first, again, other = [np.asarray(augment(jax.random.key(s), images)) for s in (0, 0, 1)]
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  keys = jax.random.split(jax.random.key(2), 3)
  mapped = jax.vmap(augment, (0, None))(keys, images)
  np.testing.assert_array_equal(mapped[1], augment(keys[1], images))


def test_errors():
  key, images = jax.random.key(0), _images()
  with pytest.raises(UserError, match=r"expected \[batch, height, width, channels\]"):
    augmentation.random_flip(key, images[0])
  with pytest.raises(UserError, match=r"expected \[batch, height, width, channels\]"):
    augmentation.random_crop(key, images[..., 0], 1)
  for padding in (-1, 1.5, True):
    with pytest.raises(UserError, match="padding is"):
      augmentation.random_crop(key, images, padding)
