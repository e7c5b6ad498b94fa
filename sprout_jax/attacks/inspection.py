"""Passes over all images for AutoAttack, and checks of the model's outputs."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from sprout_jax.attacks import fingerprint
from sprout_jax.attacks import inputs
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.inputs import Predict


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
  """A model without its arrays, which are the first argument of a call.

  Attributes:
    treedef: structure of the model.
    others: leaves that are not arrays; None in the place of an array.
    code: what the function computes. Captured state may have changed since an equal function was
      compiled: a compiled program is used again only where this is the same.
  """

  treedef: Any
  others: tuple[Any, ...]
  code: Any = None

  def __call__(self, arrays: Iterable[jax.Array], *args: Any) -> Any:
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else leaf for leaf in self.others]
    return jax.tree.unflatten(self.treedef, leaves)(*args)


def on_devices(
  predict: Predict, sharding: jax.sharding.NamedSharding, *shapes: jax.ShapeDtypeStruct
) -> jax.tree_util.Partial:
  """Converts `predict` to a `jax.tree_util.Partial` whose leaves are arrays on the devices.

  So the arrays of a Partial are arguments of the compiled programs, not constants in them. Its
  other leaves, such as train=False, do not change.

  Args:
    predict: the model.
    sharding: the sharding of its arrays.
    *shapes: the arguments of a call. `predict` is traced on them, so that programs compiled for an
      earlier state of the model are not used again.
  """
  leaves, treedef = [predict], jax.tree.structure(0)
  if isinstance(predict, jax.tree_util.Partial):
    leaves, treedef = jax.tree.flatten(predict)
  is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
  arrays = jax.device_put([leaf for leaf, known in zip(leaves, is_array) if known], sharding)
  others = tuple(None if known else leaf for known, leaf in zip(is_array, leaves))
  code = code_of(_Rebuilt(treedef, others), arrays, *shapes)
  return jax.tree_util.Partial(_Rebuilt(treedef, others, code), arrays)


def code_of(function: Callable[..., Any], *args: Any) -> Any:
  """Returns a value that is equal for two functions only if they compute the same.

  Args:
    function: the function.
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`; their values do not matter.
  """
  try:
    found = fingerprint.fingerprint(function, *args)
  except Exception:  # the first call raises it, where messages name the caller
    return object()
  return object() if found.calls_host else found.sha256


@functools.lru_cache(maxsize=8)
def _forward(mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
  """One compiled pass through the model, with its outputs checked."""

  def forward(predict: Predict, images: jax.Array, *keys: jax.Array) -> jax.Array:
    logits = inputs.ask("auto_attack", predict, images, *keys)
    inputs.check_logits("auto_attack", logits, len(images))
    return logits

  return jax.jit(forward, out_shardings=slots.shardings(mesh)[1])


def all_logits(
  predict: jax.tree_util.Partial,
  images: np.ndarray,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  keys: tuple[list[np.ndarray], str] | None = None,
) -> np.ndarray:
  """Computes the logits of all images, in batches of one size; of a random model the mean of draws.

  Args:
    predict: images -> logits, or (images, keys [batch]) -> logits.
    images: host array [n, height, width, channels].
    batch_size: images of a pass, a multiple of the number of devices.
    mesh: the mesh of devices.
    keys: None, or for a random model the host data of PRNG keys [draws, n, ...] and their kind.

  Returns:
    Host array [n, classes], float32.

  Raises:
    ValueError: the outputs are not logits; without `keys`, two passes over the same images differ.
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
            "random numbers, use version='rand', or any version on attacks.averaged(predict, 20)"
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


def draw_keys(
  key: jax.Array, purpose: int, indices: np.ndarray, samples: int
) -> tuple[list[np.ndarray], str]:
  """Makes the keys of a random model's passes outside the attacks, one per draw and example.

  Args:
    key: a PRNG key.
    purpose: number of the pass.
    indices: int array [n], the examples' positions in the whole data set.
    samples: number of draws.

  Returns:
    The host data of the keys, [n, ...] for each draw, and the kind of the keys.
  """
  root = jax.random.fold_in(key, purpose)
  keys = [example_keys(jax.random.fold_in(root, sample), indices) for sample in range(samples)]
  return [np.asarray(jax.random.key_data(k)) for k in keys], str(jax.random.key_impl(keys[0]))


def check_outputs(logits: np.ndarray, labels: np.ndarray, who: str = "auto_attack") -> None:
  """Raises ValueError unless the clean outputs are finite logits for these labels.

  Args:
    logits: host array [n, classes], the outputs on the clean images.
    labels: host array [n].
    who: name of the caller, which begins the message.
  """
  inputs.check_logits(who, logits, len(labels))
  inputs.check_classes(who, labels, logits.shape[-1])
  if not np.isfinite(logits).all():
    raise ValueError(
      f"{who}: `predict` gives outputs that are not finite on the clean images; expected finite "
      "logits (look for a division by zero or a logarithm of zero in the model)"
    )
  inputs.check_no_probabilities(who, logits)
