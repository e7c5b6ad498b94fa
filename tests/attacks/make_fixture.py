"""Makes auto_attack.npz: a small network, images, and the outcome of each attack on each image.

    python tests/attacks/make_fixture.py

The file is a small version of the reference's files in `benchmarks/auto_attack.py`: a two-layer
network trained on the digits for some seconds, 60 test images, and the images that are robust after
each attack alone and after all of them. It was made when the attacks had been found equal to the
reference. Make it again only where an attack is meant to change.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sprout_jax import attacks  # noqa: E402, after the path
from sprout_jax import data  # noqa: E402
from sprout_jax import losses  # noqa: E402

PATH = pathlib.Path(__file__).with_name("auto_attack.npz")
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
EPSILON = 0.05
SEED = 0


def predict(weights, images):
  hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights["first"] + weights["bias"][None])
  return hidden @ weights["second"]


def train():
  dataset = data.load("digits").train
  images, labels = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
  keys = jax.random.split(jax.random.key(SEED), 2)
  weights = {
    "first": jax.random.normal(keys[0], (64, 48)) / 8,
    "bias": jnp.zeros(48),
    "second": jax.random.normal(keys[1], (48, 10)) / 7,
  }
  optimizer = optax.adam(3e-3)

  def step(carry, _):
    weights, state = carry
    grads = jax.grad(lambda w: losses.cross_entropy(predict(w, images), labels).mean())(weights)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(weights, updates), state), None

  (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=400)
  return weights


def outcomes(weights, images, labels, **options):
  """Robust images, bool [n], after each attack alone and after "standard"."""

  def run(version):
    return attacks.auto_attack(
      jax.random.key(SEED),
      jax.tree_util.Partial(predict, weights),
      images,
      labels,
      epsilon=EPSILON,
      version=version,
      **options,
    ).robust

  found = {name: run(name) for name in ATTACKS}
  return found | {"standard": np.logical_and.reduce(list(found.values()))}


def main():
  weights, test = train(), data.load("digits").test
  images, labels = test.images[:60], test.labels[:60]
  found = outcomes(weights, images, labels)
  np.savez_compressed(
    PATH,
    images=np.round(images * 16).astype(np.uint8),
    labels=labels.astype(np.int32),
    logits=predict(weights, images),
    **{f"weight_{name}": value for name, value in weights.items()},
    **{f"robust_{name}": robust for name, robust in found.items()},
  )
  print({name: int(robust.sum()) for name, robust in found.items()})


if __name__ == "__main__":
  main()
