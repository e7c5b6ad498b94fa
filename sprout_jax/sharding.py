"""Placement of arrays: a mesh of all devices with one axis, "data".

Training and evaluation use it. The state and data sets that fit are replicated, and batches are
split. The same code serves one CPU, eight devices, and several processes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax.errors import UserError

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """Makes a mesh of all (or the given) devices with one axis, "data"."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds in full: the state, the data set."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch(key: str, batch_size: int, mesh: jax.sharding.Mesh) -> None:
  """Raises UserError unless every device gets the same number of examples."""
  if batch_size % mesh.size:
    near = [
      size
      for size in (batch_size // mesh.size * mesh.size, (batch_size // mesh.size + 1) * mesh.size)
      if size
    ]
    raise UserError(
      f"{key} is {batch_size}, which is not a multiple of the {mesh.size} devices; set e.g. "
      f"--{key}={near[0]}"
    )


def put(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Puts host arrays, which are the same in every process, on the devices as global arrays."""

  def put_leaf(leaf: Any) -> jax.Array:
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put_leaf, tree)
