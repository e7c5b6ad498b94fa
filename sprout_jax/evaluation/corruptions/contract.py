"""What every corruption has in common: from a function of one image to one of a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.attacks.attack import example_keys
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.evaluation.transformations import check_images

SEVERITIES = (1, 2, 3, 4, 5)


def corruption(function):
  """Makes (key, image, severity) -> image act on a batch: (key, images, severity, indices=None).

  It checks, gives every image the key `fold_in(key, index)`, works in float32 with full-precision
  matrix products, and clips to [0, 1]; see `corrupt` for the arguments.
  """

  @functools.wraps(function)
  def apply(key, images, severity, indices=None):
    _check(images, severity)
    indices = jnp.arange(images.shape[0]) if indices is None else indices
    one = lambda key, image: function(key, image, severity)
    with jax.default_matmul_precision("highest"):
      result = jax.vmap(one)(example_keys(key, indices), images.astype(jnp.float32))
    return jnp.clip(result, 0, 1).astype(images.dtype)

  del apply.__wrapped__  # whose arguments are others
  return apply


def at(severity, table):
  """The entry of a table [5, ...] for a severity from 1 to 5, traced or not."""
  table = np.asarray(table, np.float32)
  return table[severity - 1] if isinstance(severity, int) else jnp.asarray(table)[severity - 1]


def _check(images, severity):
  check_images(images)
  if images.shape[-1] not in (1, 3) or min(images.shape[1:3]) < 8:
    raise UserError(
      f"images have shape {images.shape}; corruptions are defined for 1 or 3 "
      "channels and at least 8x8 pixels"
    )
  if not isinstance(severity, jax.core.Tracer):
    check_choice("severity", severity, SEVERITIES)
