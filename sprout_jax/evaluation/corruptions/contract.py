"""The common part of all corruptions: makes a function of one image a function of a batch."""

import functools
from collections.abc import Callable
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.attacks.attack import example_keys
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.evaluation.transformations import check_images

SEVERITIES = (1, 2, 3, 4, 5)
Severity = int | jax.Array
ImageCorruption = Callable[[jax.Array, jax.Array, Severity], jax.Array]


class BatchCorruption(Protocol):
  """A corruption of a batch; see `corruptions.corrupt` for the arguments."""

  def __call__(
    self,
    key: jax.Array,
    images: jax.Array,
    severity: Severity,
    indices: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the corrupted images, like `images`."""


def corruption(function: ImageCorruption) -> BatchCorruption:
  """Makes a corruption of one image, (key, image, severity) -> image, act on a batch.

  The result checks its arguments, gives every image the key `fold_in(key, index)`, computes in
  float32 with full-precision matrix products, and clips to [0, 1].
  """

  @functools.wraps(function)
  def apply(
    key: jax.Array, images: jax.Array, severity: Severity, indices: jax.Array | None = None
  ) -> jax.Array:
    _check(images, severity)
    indices = jnp.arange(images.shape[0]) if indices is None else indices
    one = lambda key, image: function(key, image, severity)
    with jax.default_matmul_precision("highest"):
      result = jax.vmap(one)(example_keys(key, indices), images.astype(jnp.float32))
    return jnp.clip(result, 0, 1).astype(images.dtype)

  del apply.__wrapped__  # its signature differs
  return apply


def at(severity: Severity, table: Any) -> Any:
  """Returns the entry of a table [5, ...] for a severity from 1 to 5, traced or not."""
  table = np.asarray(table, np.float32)
  return table[severity - 1] if isinstance(severity, int) else jnp.asarray(table)[severity - 1]


def _check(images: jax.Array, severity: Severity) -> None:
  check_images(images)
  if images.shape[-1] not in (1, 3) or min(images.shape[1:3]) < 8:
    raise UserError(
      f"images have shape {images.shape}; corruptions need 1 or 3 channels and at least 8x8 pixels"
    )
  if not isinstance(severity, jax.core.Tracer):
    check_choice("severity", severity, SEVERITIES)
