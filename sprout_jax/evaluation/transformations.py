"""Image transformations with a strength, under which a classifier should keep its prediction.

The invariance tests of SPROUT's paper are single strengths: `TRANSFORMATIONS[name].named`. (Cheng
et al., "Self-Progressing Robust Training", AAAI 2021.)

Images are float arrays [batch, height, width, channels] in [0, 1], and so are the results. A
strength is a number or a traced scalar; use vmap for one strength per image. The functions are
deterministic and can be jitted and differentiated. Points outside the image are black. Geometric
transformations interpolate bilinearly (`jax.scipy.ndimage.map_coordinates`), about the centre
((height - 1) / 2, (width - 1) / 2).
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.errors import UserError

Strength = float | jax.Array
GREY_OR_COLOUR = (1, 3)  # the channels of images that have a luma
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green, blue (ITU-R BT.601)


def luma(images: jax.Array) -> jax.Array:
  """Computes the grey image 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). One channel is unchanged.

  Args:
    images: float array [..., channels], 1 or 3 channels.

  Returns:
    Float array [..., 1].

  Raises:
    UserError: another number of channels.
  """
  if images.shape[-1] == 1:
    return images
  if images.shape[-1] not in GREY_OR_COLOUR:
    raise UserError(f"images have {images.shape[-1]} channels; expected 1 or 3 for colours")
  weights = jnp.asarray(LUMA, images.dtype).reshape((1,) * (images.ndim - 1) + (3,))
  return jnp.sum(images * weights, axis=-1, keepdims=True)


def brightness(images: jax.Array, factor: Strength) -> jax.Array:
  """Changes the brightness: clip(factor * x, 0, 1).

  Args:
    images: float array [batch, height, width, channels].
    factor: >= 0; 1 changes nothing, 0 is black.

  Returns:
    An array like `images`.

  Raises:
    UserError: the images are not floats of rank 4, as for all functions of this module.
  """
  check_images(images)
  return jnp.clip(images * _scalar(factor, images), 0, 1)


def contrast(images: jax.Array, factor: Strength) -> jax.Array:
  """Changes the contrast: clip(factor * (x - m) + m, 0, 1).

  m is the mean luma of the image, as in PIL's ImageEnhance.Contrast (which rounds m to an 8-bit
  level) and torchvision's adjust_contrast.

  Args:
    images: float array [batch, height, width, channels], 1 or 3 channels.
    factor: >= 0; 1 changes nothing, 0 is a uniform grey.

  Returns:
    An array like `images`.
  """
  check_images(images)
  mean = jnp.mean(luma(images), axis=(1, 2, 3), keepdims=True)
  factor = _scalar(factor, images)
  return jnp.clip(factor * images + (1 - factor) * mean, 0, 1)


def saturation(images: jax.Array, factor: Strength) -> jax.Array:
  """Changes the saturation: clip(factor * x + (1 - factor) * luma(x), 0, 1).

  The same as PIL's ImageEnhance.Color and torchvision's adjust_saturation. Images of one channel
  are unchanged.

  Args:
    images: float array [batch, height, width, channels], 1 or 3 channels.
    factor: >= 0; 1 changes nothing, 0 is grey.

  Returns:
    An array like `images`.
  """
  check_images(images)
  factor = _scalar(factor, images)
  return jnp.clip(factor * images + (1 - factor) * luma(images), 0, 1)


def grayscale(images: jax.Array, amount: Strength) -> jax.Array:
  """Blends an image with its luma: (1 - amount) * x + amount * luma(x).

  Args:
    images: float array [batch, height, width, channels], 1 or 3 channels.
    amount: in [0, 1]; 0 changes nothing, 1 is grey.

  Returns:
    An array like `images`, with the same number of channels.
  """
  return saturation(images, 1 - amount)


def rotate(images: jax.Array, degrees: Strength) -> jax.Array:
  """Rotates each image counter-clockwise about its centre.

  Multiples of 90 degrees are exact: on square images they equal `numpy.rot90`.

  Args:
    images: float array [batch, height, width, channels].
    degrees: the angle in degrees; 0 changes nothing.

  Returns:
    An array like `images`: the canvas keeps its size.
  """
  check_images(images)
  quarters = jnp.round(jnp.asarray(degrees, jnp.float32) / 90)
  rest = jnp.deg2rad(degrees - 90 * quarters)
  cos, sin = jnp.cos(rest), jnp.sin(rest)
  quarter = quarters.astype(jnp.int32) % 4
  cos, sin = jnp.stack([cos, -sin, -cos, sin])[quarter], jnp.stack([sin, cos, -sin, -cos])[quarter]
  y, x = _centred(images)
  return _resample(images, x * sin + y * cos, x * cos - y * sin)


def translate(images: jax.Array, dx: Strength, dy: Strength) -> jax.Array:
  """Shifts each image by `dx` pixels to the right and `dy` pixels down.

  Args:
    images: float array [batch, height, width, channels].
    dx: shift to the right in pixels; can be fractional or negative.
    dy: shift down in pixels; can be fractional or negative.

  Returns:
    An array like `images`.
  """
  check_images(images)
  y, x = _centred(images)
  return _resample(images, y - dy, x - dx)


def scale(images: jax.Array, factor: Strength) -> jax.Array:
  """Zooms about the centre c: the pixel at c + d takes the value at c + d / factor.

  The interpolation is bilinear without a low-pass filter, so strong shrinking causes aliasing.

  Args:
    images: float array [batch, height, width, channels].
    factor: > 0; 1 changes nothing, 2 shows the middle half, 0.5 a small image on a black ground.

  Returns:
    An array like `images`.
  """
  check_images(images)
  y, x = _centred(images)
  return _resample(images, y / factor, x / factor)


def blur(images: jax.Array, stddev: Strength) -> jax.Array:
  """Blurs with a sampled Gaussian, exp(-d^2 / (2 stddev^2)) / sum; edges are mirrored.

  The same as `scipy.ndimage.gaussian_filter` with mode "reflect", except that the filter is cut off
  only beyond one side length of the image. Each axis is filtered by a matrix product, so `stddev`
  can be traced.

  Args:
    images: float array [batch, height, width, channels].
    stddev: standard deviation in pixels, >= 0; 0 changes nothing.

  Returns:
    An array like `images`.
  """
  check_images(images)
  rows, columns = (_gaussian_matrix(size, stddev) for size in images.shape[1:3])
  return jnp.clip(
    jnp.einsum("yi,bijc,xj->byxc", rows, images, columns, precision="highest"), 0, 1
  ).astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class Transformation:
  """A row of `TRANSFORMATIONS`.

  Attributes:
    apply: (images, strength) -> images.
    identity: the strength that changes nothing.
    unit: the unit of the strength, as an axis label.
    grid: the strengths that are measured, ascending; `identity` is one of them.
    named: {label: strength} of the strengths that SPROUT's paper reports.
    channels: the numbers of channels of images to which it applies; None is any.
  """

  apply: Callable[[jax.Array, Strength], jax.Array]
  identity: float
  unit: str
  grid: tuple[float, ...]
  named: Mapping[str, float] = dataclasses.field(default_factory=dict)
  channels: tuple[int, ...] | None = None


TRANSFORMATIONS = {
  "rotation": Transformation(
    rotate,
    0.0,
    "degrees",
    (-30.0, -20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 20.0, 30.0),
    {"rotation by 10 degrees": 10.0},
  ),
  "brightness": Transformation(
    brightness, 1.0, "factor", (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0), {"brightness x1.5": 1.5}
  ),
  "contrast": Transformation(
    contrast,
    1.0,
    "factor",
    (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    {"contrast x2": 2.0},
    GREY_OR_COLOUR,
  ),
  "grayscale": Transformation(
    grayscale, 0.0, "amount", (0.0, 0.25, 0.5, 0.75, 1.0), {"grayscale": 1.0}, GREY_OR_COLOUR
  ),
  "saturation": Transformation(
    saturation,
    1.0,
    "factor",
    (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    channels=GREY_OR_COLOUR,
  ),
  "blur": Transformation(
    blur, 0.0, "standard deviation in pixels", (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
  ),
  "translation_x": Transformation(
    lambda images, strength: translate(images, strength, 0),
    0.0,
    "pixels to the right",
    (-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0),
  ),
  "translation_y": Transformation(
    lambda images, strength: translate(images, 0, strength),
    0.0,
    "pixels down",
    (-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0),
  ),
  "scale": Transformation(scale, 1.0, "factor", (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)),
}


def check_images(images: jax.Array) -> None:
  """Raises UserError unless images are floats of rank 4."""
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f"images are {images.dtype} of shape {images.shape}; expected floats in "
      "[0, 1], [batch, height, width, channels]"
    )


def _scalar(strength: Strength, images: jax.Array) -> jax.Array:
  return jnp.asarray(strength, images.dtype)


def _centred(images: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns row coordinates [height, 1] and column coordinates [1, width] from the centre."""
  height, width = images.shape[1:3]
  return (
    jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2,
    jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2,
  )


def _resample(images: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
  """Samples images at the points (y, x) from the centre, which broadcast to [height, width]."""
  height, width = images.shape[1:3]
  points = jnp.broadcast_arrays(y + (height - 1) / 2, x + (width - 1) / 2)
  sample = lambda plane: jax.scipy.ndimage.map_coordinates(plane, points, order=1)
  return jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(images)


def _gaussian_matrix(size: int, stddev: Strength) -> jax.Array:
  """Returns the filter matrix [size, size]. Pixel j is mirrored to -1 - j and 2 size - 1 - j."""
  i = jnp.arange(size, dtype=jnp.float32)
  difference, total = i[:, None] - i[None, :], i[:, None] + i[None, :] + 1
  width = jnp.maximum(stddev, 1e-3)  # at 0 it is the identity, without a division 0 / 0
  near = lambda distance: jnp.exp(-0.5 * (distance / width) ** 2)
  weights = near(difference) + near(total) + near(2 * size - total)
  return weights / jnp.sum(weights, axis=1, keepdims=True)
