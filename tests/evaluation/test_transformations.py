"""transformations: against NumPy, SciPy, PIL and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.ndimage

from sprout_jax import data
from sprout_jax.errors import UserError
from sprout_jax.evaluation import transformations
from sprout_jax.evaluation.transformations import TRANSFORMATIONS

COLOUR = jnp.asarray(np.random.default_rng(0).random((2, 12, 12, 3)), jnp.float32)


@functools.cache
def compiled(name):
  """One compilation of (images, strength) for all tests of a row of the table."""
  return jax.jit(TRANSFORMATIONS[name].apply)


def apply(name, strength, images=COLOUR):
  return np.asarray(compiled(name)(images, strength))


def per_channel(function, images=COLOUR):
  """The SciPy `function` of a plane, of every channel of every image."""
  planes = np.moveaxis(np.asarray(images, np.float64), -1, 1)
  return np.moveaxis(np.array([[function(plane) for plane in image] for image in planes]), 1, -1)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_table_is_sound_and_its_identity_is_one(name):
  row = TRANSFORMATIONS[name]
  np.testing.assert_allclose(apply(name, row.identity), COLOUR, atol=1e-6)
  assert row.identity in row.grid and list(row.grid) == sorted(set(row.grid)) and row.unit
  for strength in [*row.grid, *row.named.values()]:
    result = apply(name, strength)
    assert result.shape == COLOUR.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1 + 1e-6
    changed = np.abs(result - COLOUR).mean()
    assert changed < 1e-6 if strength == row.identity else changed > 1e-3


def test_the_points_of_the_paper():
  assert {name: list(row.named.values()) for name, row in TRANSFORMATIONS.items() if row.named} == {
    "rotation": [10.0],
    "brightness": [1.5],
    "contrast": [2.0],
    "grayscale": [1.0],
  }


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3, 4])
def test_quarter_turns_are_exact(quarters):
  np.testing.assert_array_equal(
    apply("rotation", 90.0 * quarters), np.rot90(COLOUR, quarters, axes=(1, 2))
  )


def test_quarter_turn_of_an_oblong_image():
  image = np.arange(1.0, 16).reshape(1, 3, 5, 1) / 16
  expected = np.zeros((1, 3, 5, 1))
  expected[0, :, 1:4] = np.rot90(image[0, :, 1:4])  # the middle square turns, the rest leaves
  np.testing.assert_array_equal(apply("rotation", 90.0, jnp.asarray(image, jnp.float32)), expected)


@pytest.mark.parametrize("degrees", [10.0, -37.5, 70.0, 160.0, 250.0])  # every quarter
def test_rotation_equals_scipy(degrees):
  # SciPy turns the other way: from its first axis to its second.
  expected = per_channel(
    lambda plane: scipy.ndimage.rotate(plane, degrees, reshape=False, order=1, mode="grid-constant")
  )
  np.testing.assert_allclose(apply("rotation", degrees), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_scale_equals_scipy(factor):
  centre = (12 - 1) / 2
  expected = per_channel(
    lambda plane: scipy.ndimage.affine_transform(
      plane, np.eye(2) / factor, centre - centre / factor, order=1, mode="grid-constant"
    )
  )
  np.testing.assert_allclose(apply("scale", factor), expected, atol=1e-5)


@pytest.mark.parametrize("pixels", [-3, 1, 4])
def test_whole_pixels_are_a_roll_with_zeros(pixels):
  outside = slice(0, pixels) if pixels > 0 else slice(pixels, None)
  right, down = np.roll(COLOUR, pixels, 2), np.roll(COLOUR, pixels, 1)
  right[:, :, outside] = down[:, outside] = 0
  np.testing.assert_array_equal(apply("translation_x", pixels), right)
  np.testing.assert_array_equal(apply("translation_y", pixels), down)


def test_a_fraction_of_a_pixel_is_a_mean_of_neighbours():
  expected = 0.75 * np.asarray(COLOUR)
  expected[:, :, 1:] += 0.25 * COLOUR[:, :, :-1]
  np.testing.assert_allclose(apply("translation_x", 0.25), expected, atol=1e-6)


@pytest.mark.parametrize("stddev", [0.3, 1.0, 2.5])
def test_blur_equals_scipy(stddev):
  expected = per_channel(
    lambda plane: scipy.ndimage.gaussian_filter(plane, stddev, truncate=12 / stddev)
  )
  np.testing.assert_allclose(apply("blur", stddev), expected, atol=3e-5)


def test_blur_of_an_oblong_image():
  images = COLOUR[:, :9, :, :1]
  expected = per_channel(
    lambda plane: scipy.ndimage.gaussian_filter(plane, 1.0, truncate=9), images
  )
  np.testing.assert_allclose(apply("blur", 1.0, images), expected, atol=1e-5)


def test_constant_images_in_closed_form():
  grey = jnp.full((1, 12, 12, 3), 0.4)
  for factor, expected in [(0.5, 0.2), (1.5, 0.6), (3.0, 1.0)]:
    np.testing.assert_allclose(
      apply("brightness", factor, grey), np.full(grey.shape, expected), rtol=1e-6
    )
  for name in ("contrast", "saturation", "grayscale", "blur"):
    np.testing.assert_allclose(apply(name, 0.7, grey), grey, rtol=1e-5)


def test_contrast_of_two_values_in_closed_form():
  image = jnp.full((1, 12, 12, 3), 0.5).at[0, :6, :, 0].set(0.9)  # the mean luma: 0.5 + 0.2 * 0.299
  mean = 0.5 + 0.2 * 0.299
  result = apply("contrast", 2.0, image)
  np.testing.assert_allclose(result[0, 0, 0], [1, 1 - mean, 1 - mean], rtol=1e-5)
  np.testing.assert_allclose(result[0, -1, 0], np.full(3, 1 - mean), rtol=1e-5)


@pytest.mark.parametrize(
  "name, enhance",
  [
    ("brightness", PIL.ImageEnhance.Brightness),
    ("contrast", PIL.ImageEnhance.Contrast),
    ("saturation", PIL.ImageEnhance.Color),
  ],
)
@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_colour_equals_pil_up_to_its_rounding(name, enhance, factor):
  levels = np.asarray(COLOUR * 255).astype(np.uint8)
  expected = [np.asarray(enhance(PIL.Image.fromarray(image)).enhance(factor)) for image in levels]
  result = apply(name, factor, jnp.asarray(levels, jnp.float32) / 255) * 255
  # PIL truncates, and rounds the grey before it is scaled.
  assert np.abs(result - np.array(expected)).max() < 1 + factor


def test_grayscale_is_the_luma_and_leaves_one_channel():
  grey = np.asarray(COLOUR) @ [0.299, 0.587, 0.114]
  for channel in range(3):
    np.testing.assert_allclose(apply("grayscale", 1.0)[..., channel], grey, atol=1e-6)
  np.testing.assert_allclose(
    apply("grayscale", 0.25), 0.75 * COLOUR + 0.25 * grey[..., None], atol=1e-6
  )
  digits = data.load("digits").test.images[:2]
  np.testing.assert_allclose(apply("grayscale", 1.0, digits), digits, atol=1e-6)


def test_one_strength_per_image_by_vmap():
  angles = jnp.array([30.0, 90.0])
  each = jax.jit(jax.vmap(lambda image, angle: transformations.rotate(image[None], angle)[0]))(
    COLOUR, angles
  )
  for i, angle in enumerate(angles):
    np.testing.assert_allclose(each[i], apply("rotation", angle)[i], atol=1e-6)


def test_gradients_are_finite_at_the_identity():
  def total(strengths):
    return sum(
      jnp.sum(row.apply(COLOUR[:1, :8, :8], s) ** 2)
      for row, s in zip(TRANSFORMATIONS.values(), strengths, strict=True)
    )

  gradient = jax.jit(jax.grad(total))(jnp.array([row.identity for row in TRANSFORMATIONS.values()]))
  assert jnp.isfinite(gradient).all()


def test_half_precision_stays():
  images = COLOUR.astype(jnp.bfloat16)
  for row in TRANSFORMATIONS.values():
    assert jax.eval_shape(row.apply, images, jnp.float32(0.5)).dtype == jnp.bfloat16


def test_wrong_images_are_errors():
  for images in (COLOUR[0], jnp.zeros((1, 8, 8, 3), jnp.uint8)):
    with pytest.raises(UserError, match="expected floats"):
      transformations.rotate(images, 10)
  with pytest.raises(UserError, match="2 channels"):
    transformations.grayscale(COLOUR[..., :2], 1.0)
