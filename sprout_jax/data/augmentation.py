"""Random crops and flips, as pure JAX functions: they run inside the compiled step, on the device.

Images in, images of the same shape and type out, per example, jit- and vmap-able.
"""

import jax
import jax.numpy as jnp

from sprout_jax.errors import UserError


def random_crop(key, images, padding):
  """Shifts each image by its own random offset, filling with zeros.

  Pads by `padding` zeros on each side and cuts a window of the original size, whose corner is
  uniform over the (2 * padding + 1)^2 places, as is usual on CIFAR with padding 4 (He et al.,
  2016, https://arxiv.org/abs/1512.03385, section 4.2).

  Args:
    key: a JAX random key.
    images: [batch, height, width, channels], any type.
    padding: pixels, a Python integer >= 0; 0 returns the images as they are.

  Returns:
    [batch, height, width, channels], of the images' type.

  Raises:
    UserError: images not of rank 4, or padding not an integer >= 0.
  """
  _check_rank(images)
  if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
    raise UserError(f"padding is {padding!r}; it must be an integer >= 0, in pixels (4 for CIFAR)")
  if padding == 0:
    return images
  corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
  padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  # Becomes one gather of whole windows. On 2 CPU cores, 128 32x32x3 float images in a fori_loop:
  # 0.11 ms; take_along_axis over rows, then columns 0.38 ms; a select over all shifts 3.5 ms.
  shape = images.shape[1:]
  crop = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)
  return jax.vmap(crop)(padded, corners)


def random_flip(key, images):
  """Mirrors each image left to right with probability 1/2.

  Args:
    key: a JAX random key.
    images: [batch, height, width, channels], any type.

  Returns:
    [batch, height, width, channels], of the images' type.

  Raises:
    UserError: images not of rank 4.
  """
  _check_rank(images)
  mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1, :], images)


def _check_rank(images):
  if images.ndim != 4:
    raise UserError(
      f"images have shape {images.shape}; expected [batch, height, width, channels]: "
      "add the missing axis"
    )
