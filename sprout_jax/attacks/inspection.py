"""What a model answers on all images, and whether the answers make sense."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from sprout_jax.attacks import inputs
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import example_keys


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
  """A `jax.tree_util.Partial` without its arrays, which are the first argument of a call."""

  treedef: Any
  others: tuple  # the leaves that are no arrays; None in the place of an array

  def __call__(self, arrays, *args):
    arrays = iter(arrays)
    leaves = [next(arrays) if leaf is None else leaf for leaf in self.others]
    return jax.tree.unflatten(self.treedef, leaves)(*args)


def on_devices(predict, sharding):
  """`predict` as a `jax.tree_util.Partial` whose leaves are arrays on the devices.

  So the arrays of a Partial are arguments of the compiled programs, not constants in them. Its
  other leaves, such as train=False, stay what they are.
  """
  if not isinstance(predict, jax.tree_util.Partial):
    return jax.tree_util.Partial(predict)
  leaves, treedef = jax.tree.flatten(predict)
  is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
  arrays = [leaf for leaf, known in zip(leaves, is_array) if known]
  others = tuple(None if known else leaf for leaf, known in zip(leaves, is_array))
  return jax.tree_util.Partial(_Rebuilt(treedef, others), jax.device_put(arrays, sharding))


@functools.lru_cache(maxsize=8)
def _forward(mesh):
  def forward(predict, images, *keys):
    logits = predict(images, *keys)
    inputs.check_logits("auto_attack", logits, len(images))
    return logits

  return jax.jit(forward, out_shardings=slots.shardings(mesh)[1])


def all_logits(predict, images, batch_size, mesh, keys=None):
  """Logits of all images, in batches of one size; of a random model the mean over draws.

  Args:
    predict: a `jax.tree_util.Partial`, images -> logits, or (images, keys [batch]) -> logits.
    images: host array [n, height, width, channels].
    batch_size: images of a pass, a multiple of the number of devices.
    mesh: the mesh of devices.
    keys: None, or for a random model the host data of PRNG keys [draws, n, ...] and their kind.

  Returns:
    Host array [n, classes], float32.

  Raises:
    ValueError: the outputs are no logits; without `keys`, two passes over the same images differ.
  """
  split, found = slots.shardings(mesh)[0], []
  for start in range(0, len(images), batch_size):
    rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
    batch = slots.put(images[rows], split)
    if keys is None:
      logits = np.asarray(_forward(mesh)(predict, batch), np.float32)
      if start == 0 and np.isfinite(logits).all():
        again = np.asarray(_forward(mesh)(predict, batch), np.float32)
        if np.abs(logits - again).max() > 1e-4 * max(1, np.abs(logits).max()):
          raise ValueError(
            "auto_attack: two passes over the same images differ; for a model that draws "
            "random numbers, use version='rand'"
          )
    else:
      data, impl = keys
      logits = np.mean(
        [
          np.asarray(
            _forward(mesh)(
              predict, batch, jax.random.wrap_key_data(slots.put(draw[rows], split), impl=impl)
            ),
            np.float32,
          )
          for draw in data
        ],
        axis=0,
      )
    found.append(logits[: len(images) - start])
  return np.concatenate(found)


def draw_keys(key, purpose, indices, samples):
  """Keys of a random model's passes outside the attacks: per draw and example, by its index."""
  root = jax.random.fold_in(key, purpose)
  keys = [example_keys(jax.random.fold_in(root, sample), indices) for sample in range(samples)]
  return [np.asarray(jax.random.key_data(k)) for k in keys], str(jax.random.key_impl(keys[0]))


def check_outputs(logits, labels, who="auto_attack"):
  """Raises ValueError where the clean outputs, host arrays, cannot be logits of these labels."""
  inputs.check_logits(who, logits, len(labels))
  inputs.check_classes(who, labels, logits.shape[-1])
  if not np.isfinite(logits).all():
    raise ValueError(
      f"{who}: `predict` gives outputs that are not finite on the clean images; expected finite "
      "logits (look for a division by zero or a logarithm of zero in the model)"
    )
  if (logits >= 0).all() and np.abs(logits.sum(-1) - 1).max() < 0.01:
    raise ValueError(
      f"{who}: the outputs of `predict` are probabilities (they sum to 1); give the "
      "logits before the softmax, or their gradients vanish and the model looks robust"
    )
