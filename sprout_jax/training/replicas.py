"""A check that the devices hold the same training state.

A device that computes or stores a wrong value is silent. Arrays that several devices hold must be
equal bit for bit, because all of them compute the same updates. So a difference is a fault.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sprout_jax import sharding
from sprout_jax.errors import UserError


class Replicas:
  """The check of one training run. Its program is compiled once."""

  def __init__(self, mesh: jax.sharding.Mesh, state_sharding: Any) -> None:
    """Prepares the check.

    Args:
      mesh: the mesh of devices, from `sharding.make_mesh`.
      state_sharding: the shardings of the state, a pytree of NamedSharding.
    """
    self._mesh = mesh
    specs = jax.tree.map(lambda place: place.spec, state_sharding)
    # What a device holds is the same for all places on the axis "data".
    self._program: Callable[[Any], jax.Array] = jax.jit(
      jax.shard_map(
        lambda state: jax.lax.all_gather(_checksum(state)[None], sharding.AXES, tiled=True),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=PartitionSpec(),
        check_vma=False,
      )
    )

  def check(self, state: Any, step: int) -> None:
    """Checks that all replicas of a state are equal. All processes make this call.

    Args:
      state: the training state.
      step: its step, for the message.

    Raises:
      UserError: a device holds other values than the rest.
    """
    if self._mesh.shape[sharding.AXES[0]] == 1:
      return
    sums = np.asarray(self._program(state)).reshape(self._mesh.devices.shape)
    values = [np.unique(column, return_counts=True) for column in sums.T]
    common = np.array([found[np.argmax(counts)] for found, counts in values])
    if np.array_equal(sums, np.broadcast_to(common, sums.shape)):
      return
    wrong = [str(device) for device in self._mesh.devices[sums != common]]
    raise UserError(
      f"after step {step}, {', '.join(wrong)} holds other values than the other devices, which "
      "must be equal: its memory or its arithmetic is faulty. Nothing was saved after this step. "
      "Replace the device, then type the same command: it continues from the newest checkpoint"
    )


def _checksum(state: Any) -> jax.Array:
  """Returns a uint32 that every single flipped bit changes: the sum of all words, modulo 2^32."""

  def words(leaf: jax.Array) -> jax.Array:
    kind = jnp.dtype(f"uint{8 * min(4, leaf.dtype.itemsize)}")  # 8 bytes become two words
    bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, kind)
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

  return functools.reduce(jnp.add, map(words, jax.tree.leaves(state)))
