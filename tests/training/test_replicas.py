"""Every flipped bit in one device's copy of the state is found, and the device is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.training import replicas


def placed(mesh, flip=None):
  """A state, and its shardings; `flip` is (leaf, device, byte, bit) of a fault in one copy."""
  rng = np.random.default_rng(0)
  values = {
    "float": rng.normal(size=(64, 64)).astype(np.float32),
    "half": jnp.asarray(rng.normal(size=(3,)), jnp.bfloat16),
    "step": np.int32(7),
    "empty": {},
  }
  places = sharding.of_state(mesh, values)

  def put(path, value, place):
    value = np.asarray(value)
    parts = []
    for device, index in place.devices_indices_map(value.shape).items():
      part = np.array(value[index])
      if flip and flip[0] in jax.tree_util.keystr(path) and device == flip[1]:
        raw = np.frombuffer(part.tobytes(), np.uint8).copy()
        raw[flip[2]] ^= 1 << flip[3]
        part = np.frombuffer(raw.tobytes(), part.dtype).reshape(part.shape)
      parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays(value.shape, place, parts)

  return jax.tree_util.tree_map_with_path(put, values, places), places


@pytest.mark.parametrize("shards", [1, 2])
def test_flipped_bits_are_found(shards):
  mesh = sharding.make_mesh(jax.devices()[:4], shards)
  state, places = placed(mesh)
  if shards == 2:
    assert places["float"].spec == PartitionSpec("parameters", None)
  found = replicas.Replicas(mesh, places)
  found.check(state, 3)
  for number, flip in enumerate(
    [("float", 100, 0), ("float", 0, 7), ("half", 5, 7), ("step", 0, 0)]
  ):
    # Three copies agree on a mesh of four devices; of two copies, either can be the wrong one.
    device = mesh.devices.flat[number % 4]
    faulty, _ = placed(mesh, (flip[0], device, *flip[1:]))
    with pytest.raises(UserError, match="after step 3, .*faulty") as error:
      found.check(faulty, 3)
    if shards == 1:
      assert f"after step 3, {device} holds" in str(error.value)


def test_one_device_has_no_replica():
  mesh = sharding.make_mesh(jax.devices()[:1])
  state, places = placed(mesh)
  replicas.Replicas(mesh, places).check(state, 1)
