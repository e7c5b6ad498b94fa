"""Attacks under `jax.set_mesh` find the same images as without a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax import attacks

KEY = jax.random.key(2)
RNG = np.random.RandomState(0)
WEIGHTS = RNG.normal(size=(16, 5)).astype(np.float32)
IMAGES = RNG.uniform(size=(4, 4, 4, 1)).astype(np.float32)
LABELS = ((IMAGES - 0.5).reshape(4, -1) @ WEIGHTS).argmax(-1)


def logits(weights, images):
  return (images - 0.5).reshape(len(images), -1) @ weights


ATTACKS = {
  "pgd": lambda p, x, y: attacks.pgd(
    KEY, p, x, y, epsilon=0.3, step_size=0.1, num_steps=3, norm="l2", momentum=0.9
  ),
  "pgd_trace": lambda p, x, y: attacks.pgd_trace(
    KEY, p, x, y, epsilon=0.1, step_size=0.02, num_steps=3
  ),
  "apgd": lambda p, x, y: attacks.apgd(
    KEY, p, x, y, epsilon=0.1, loss="dlr", targeted=True, num_steps=3, num_runs=2
  ),
  "fab": lambda p, x, y: attacks.fab(
    KEY, p, x, y, epsilon=0.1, targeted=False, num_steps=3, num_runs=2
  ),
  "square": lambda p, x, y: attacks.square(KEY, p, x, y, epsilon=0.3, norm="l2", num_steps=3),
  "carlini_wagner": lambda p, x, y: attacks.carlini_wagner(p, x, y, num_steps=3, num_searches=2),
  "auto_attack": lambda p, x, y: (
    attacks.auto_attack(KEY, p, x, y, epsilon=0.1, version="apgd-ce", batch_size=8).images
  ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_mesh_that_is_set_changes_nothing(name):
  """Weights are on the mesh, images split over it or on the host; axes are of either kind."""
  right = ATTACKS[name](jax.tree_util.Partial(logits, WEIGHTS), IMAGES, LABELS)
  for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
      weights = jax.device_put(WEIGHTS, NamedSharding(mesh, PartitionSpec()))
      split = NamedSharding(mesh, PartitionSpec("data"))
      predict = jax.tree_util.Partial(logits, weights)
      images = jax.device_put(IMAGES, split) if kind == AxisType.Explicit else IMAGES
      found = ATTACKS[name](predict, images, LABELS)
      if kind == AxisType.Explicit and name != "auto_attack":
        assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(found))
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5),
        found,
        right,
      )
