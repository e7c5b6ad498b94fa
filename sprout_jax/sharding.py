"""Placement of arrays: the mesh of devices, and what is split over which of its axes.

The mesh has two axes, ("data", "parameters"). A batch is split over both: every device has its own
examples. The training state is replicated, or its parameters are split over the axis "parameters"
(fully-sharded data parallel). The same code serves one CPU, eight devices, and several processes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax.errors import UserError

AXES = ("data", "parameters")
SMALLEST_SPLIT = 2**12  # elements; smaller arrays are replicated, because a transfer has a latency


def make_mesh(
  devices: Sequence[jax.Device] | None = None, parameter_shards: int = 1
) -> jax.sharding.Mesh:
  """Makes a mesh of all (or the given) devices with the axes "data" and "parameters".

  Args:
    devices: the devices; None for all devices of all processes.
    parameter_shards: the size of the axis "parameters".

  Raises:
    UserError: `parameter_shards` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if len(devices) % parameter_shards:
    raise UserError(
      f"config.parameter_shards is {parameter_shards}, which does not divide the {len(devices)} "
      "devices; set --config.parameter_shards=1 (each device has all parameters), or a divisor"
    )
  shape = (len(devices) // parameter_shards, parameter_shards)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds in full: the state, the data set."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def of_state(mesh: jax.sharding.Mesh, abstract: Any) -> Any:
  """Returns the shardings of a training state, one for each array.

  An array of at least `SMALLEST_SPLIT` elements is split along its longest axis that the size of
  the mesh axis "parameters" divides. Other arrays are replicated. An optimizer's moments have the
  shapes of the parameters, so they are split in the same way.

  Args:
    mesh: from `make_mesh`.
    abstract: a pytree of arrays or `jax.ShapeDtypeStruct`.
  """
  shards = mesh.shape[AXES[1]]

  def choose(leaf: Any) -> NamedSharding:
    lengths = [length if length % shards == 0 else 0 for length in leaf.shape]
    if shards == 1 or np.prod(leaf.shape) < SMALLEST_SPLIT or not any(lengths):
      return replicated(mesh)
    spec: list[str | None] = [None] * len(leaf.shape)
    spec[int(np.argmax(lengths))] = AXES[1]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(choose, abstract)


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


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a batch that the devices of this process hold, ascending.

  Args:
    mesh: from `make_mesh`.
    batch_size: rows of the batch, over all devices.
  """
  indices = batch(mesh).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([np.arange(batch_size)[index] for index in indices.values()]))


def put_local(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Puts this process's rows of a batch, in the order of `local_rows`, on its devices."""
  split = batch(mesh)
  return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, leaf), tree)


def gather(tree: Any) -> Any:
  """Copies the arrays that are split over several processes to the host, whole.

  Other arrays stay as they are. All processes make this call.
  """

  def whole(leaf: jax.Array) -> jax.Array | np.ndarray:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

  return jax.tree.map(whole, tree)
