"""Where arrays live: a mesh of all devices with one axis, "data".

Training and evaluation both stand on it. The state and data sets that fit are replicated, batches
are split. The same code serves one CPU, eight devices, and several processes.
"""

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax.errors import UserError

AXIS = "data"


def make_mesh(devices=None):
  """A mesh of all (or the given) devices with the one axis "data"."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
  """The sharding of what every device holds in full: the state, the data set."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh):
  """The sharding of a batch: its first axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch(key, batch_size, mesh):
  """Raises UserError unless every device gets the same number of examples."""
  if batch_size % mesh.size:
    near = [
      size
      for size in (batch_size // mesh.size * mesh.size, (batch_size // mesh.size + 1) * mesh.size)
      if size
    ]
    raise UserError(
      f"{key} is {batch_size}, which {mesh.size} devices don't divide; set e.g. --{key}={near[0]}"
    )


def put(tree, sharding):
  """Puts host arrays, the same in every process, on the devices as global arrays."""

  def put_leaf(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put_leaf, tree)
