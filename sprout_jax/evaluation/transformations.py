"""Harmless changes of an image that a classifier should not mind, with a strength.

The invariance tests of SPROUT (Cheng et al., "Self-Progressing Robust Training", AAAI 2021) are
single points of such curves: `TRANSFORMATIONS[name].named`.

Conventions: `images` are float [batch, height, width, channels] in [0, 1] and stay so; a strength
is a number or a traced scalar (vmap for one strength per image); everything is deterministic and
can be jitted and differentiated. Points outside the image are black. Geometry is bilinear, by
`jax.scipy.ndimage.map_coordinates`, about the centre ((height - 1) / 2, (width - 1) / 2).
"""

import collections.abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.errors import UserError

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601: the weights of red, green and blue


def luma(images):
  """The grayscale image: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601); one channel is its own luma.

  Args:
    images: float array [..., channels], 1 or 3 channels.

  Returns:
    Float array [..., 1].

  Raises:
    UserError: another number of channels.
  """
  if images.shape[-1] == 1:
    return images
  if images.shape[-1] != 3:
    raise UserError(f"images have {images.shape[-1]} channels; colour is defined for 1 or 3")
  weights = jnp.asarray(LUMA, images.dtype).reshape((1,) * (images.ndim - 1) + (3,))
  return jnp.sum(images * weights, axis=-1, keepdims=True)


def brightness(images, factor):
  """Scales every pixel: clip(factor * x, 0, 1).

  Args:
    images: float array [batch, height, width, channels].
    factor: >= 0; 1 changes nothing, 0 is black.

  Returns:
    An array like `images`.

  Raises:
    UserError: images that are not float or not of rank 4 (all functions of this module).
  """
  check_images(images)
  return jnp.clip(images * _scalar(factor, images), 0, 1)


def contrast(images, factor):
  """Scales the distance from the mean grey: clip(factor * (x - m) + m, 0, 1).

  m is the mean over the pixels of the image's luma, as in PIL's ImageEnhance.Contrast (which rounds
  m to an 8-bit level) and torchvision's adjust_contrast.

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


def saturation(images, factor):
  """Scales the distance from grey: clip(factor * x + (1 - factor) * luma(x), 0, 1).

  As PIL's ImageEnhance.Color and torchvision's adjust_saturation; nothing happens to one channel.

  Args:
    images: float array [batch, height, width, channels], 1 or 3 channels.
    factor: >= 0; 1 changes nothing, 0 is grey.

  Returns:
    An array like `images`.
  """
  check_images(images)
  factor = _scalar(factor, images)
  return jnp.clip(factor * images + (1 - factor) * luma(images), 0, 1)


def grayscale(images, amount):
  """Blends with the luma: (1 - amount) * x + amount * luma(x).

  Args:
    images: float array [batch, height, width, channels], 1 or 3 channels.
    amount: in [0, 1]; 0 changes nothing, 1 is grey.

  Returns:
    An array like `images`, the same number of channels.
  """
  return saturation(images, 1 - amount)


def rotate(images, degrees):
  """Turns each image counter-clockwise about its centre; what comes from outside is black.

  A multiple of 90 degrees is exact: on a square image it equals `numpy.rot90`.

  Args:
    images: float array [batch, height, width, channels].
    degrees: the angle; 0 changes nothing.

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


def translate(images, dx, dy):
  """Shifts each image by `dx` pixels to the right and `dy` pixels down; zeros follow.

  Args:
    images: float array [batch, height, width, channels].
    dx, dy: in pixels, fractions and negative numbers allowed; 0, 0 changes nothing.

  Returns:
    An array like `images`.
  """
  check_images(images)
  y, x = _centred(images)
  return _resample(images, y - dy, x - dx)


def scale(images, factor):
  """Zooms about the centre: the pixel at c + d shows what was at c + d / factor.

  Bilinear without a low-pass filter, so that shrinking by much aliases.

  Args:
    images: float array [batch, height, width, channels].
    factor: > 0; 1 changes nothing, 2 shows the middle half, 0.5 a small image on black.

  Returns:
    An array like `images`.
  """
  check_images(images)
  y, x = _centred(images)
  return _resample(images, y / factor, x / factor)


def blur(images, stddev):
  """Convolves with a sampled Gaussian, exp(-d^2 / (2 stddev^2)) / sum; edges are mirrored.

  As `scipy.ndimage.gaussian_filter` with mode "reflect", save for the truncation: every pixel of
  the image and of its mirror image beyond each edge counts, so that no pixel within one image side
  is left out. Each axis is a multiplication with a matrix, which lets `stddev` be traced.

  Args:
    images: float array [batch, height, width, channels].
    stddev: in pixels, >= 0; 0 changes nothing.

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
    apply: images, strength -> images.
    identity: the strength that changes nothing.
    unit: of the strength, as an axis label names it.
    grid: strengths for a robustness curve, ascending; `identity` is one of them.
    named: {label: strength} of the points that SPROUT's paper reports.
  """

  apply: collections.abc.Callable
  identity: float
  unit: str
  grid: tuple[float, ...]
  named: collections.abc.Mapping[str, float] = dataclasses.field(default_factory=dict)


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
    contrast, 1.0, "factor", (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0), {"contrast x2": 2.0}
  ),
  "grayscale": Transformation(
    grayscale, 0.0, "amount", (0.0, 0.25, 0.5, 0.75, 1.0), {"grayscale": 1.0}
  ),
  "saturation": Transformation(saturation, 1.0, "factor", (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)),
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


def check_images(images):
  """Raises UserError unless they are floats of rank 4."""
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f"images are {images.dtype} of shape {images.shape}; expected floats in "
      "[0, 1], [batch, height, width, channels]"
    )


def _scalar(strength, images):
  return jnp.asarray(strength, images.dtype)


def _centred(images):
  """Rows [height, 1] and columns [1, width], counted from the centre."""
  height, width = images.shape[1:3]
  return (
    jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2,
    jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2,
  )


def _resample(images, y, x):
  """The images at the points (y, x), counted from the centre; they broadcast to [height, width]."""
  height, width = images.shape[1:3]
  points = jnp.broadcast_arrays(y + (height - 1) / 2, x + (width - 1) / 2)
  sample = lambda plane: jax.scipy.ndimage.map_coordinates(plane, points, order=1)
  return jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(images)


def _gaussian_matrix(size, stddev):
  """[size, size], a row's weights of the pixels; pixel j is also at -1 - j and 2 size - 1 - j."""
  i = jnp.arange(size, dtype=jnp.float32)
  difference, total = i[:, None] - i[None, :], i[:, None] + i[None, :] + 1
  stddev = jnp.maximum(stddev, 1e-3)  # narrower than any pixel: the identity, without 0 / 0
  weights = sum(
    jnp.exp(-0.5 * (distance / stddev) ** 2) for distance in (difference, total, 2 * size - total)
  )
  return weights / jnp.sum(weights, axis=1, keepdims=True)
