"""Whether what an ensemble of attacks is given, and what the model answers, make sense."""

import functools

import jax
import numpy as np

from sprout_jax.attacks import norms
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import example_keys


@functools.lru_cache(maxsize=8)
def _forward(mesh):
  return jax.jit(lambda predict, *args: predict(*args), out_shardings=slots.shardings(mesh)[1])


def all_logits(predict, images, batch_size, mesh, keys=None):
  """Logits of all images, in batches of one size; of a random model the mean over draws.

  Args:
    predict: a `jax.tree_util.Partial`, images -> logits, or (images, keys [batch]) -> logits.
    images: host array [n, height, width, channels].
    batch_size: images of a pass, a multiple of the number of devices.
    mesh: the mesh of devices.
    keys: None, or for a random model host data of PRNG keys [draws, n, ...], and their implementation.

  Returns:
    Host array [n, classes], float32.

  Raises:
    ValueError: two passes over the same images differ (without `keys`).
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
  return [np.asarray(jax.random.key_data(k)) for k in keys], str(jax.random.key_impl(key))


def check_arguments(names, known, choices, norm, epsilon, images, labels, batch_size):
  """Raises ValueError for wrong arguments of `auto_attack`, naming what is expected."""
  for what, values, table, listed in (
    ("version or attack", names, known, choices),
    ("norm", [norm], norms.NORMS, norms.NORMS),
  ):
    for value in values:
      if value not in table:
        raise ValueError(f"auto_attack: {what} {value!r}; choose from: {', '.join(sorted(listed))}")
  if not names or len(set(names)) < len(names):
    raise ValueError(f"auto_attack: version is {names!r}; give at least one attack, each once")
  if batch_size < 1:
    raise ValueError(f"auto_attack: batch_size is {batch_size}; it must be at least 1")
  images, labels = np.asarray(images), np.asarray(labels)
  if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
    raise ValueError(
      f"auto_attack: images have shape {images.shape} and labels {labels.shape}; "
      "expected [n, height, width, channels] and [n], n at least 1"
    )
  if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
    raise ValueError(
      f"auto_attack: images have shape {images.shape}, channels first; give channels last "
      "(and transpose inside `predict`)"
    )
  if not np.issubdtype(images.dtype, np.floating) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"auto_attack: images are {images.dtype} and labels {labels.dtype}; expected "
      "floats in [0, 1] (bytes: divide by 255) and integers"
    )
  if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
    raise ValueError(
      f"auto_attack: pixels range from {images.min():g} to {images.max():g}; they must be "
      "finite and in [0, 1], with normalisation inside `predict`"
    )
  if not (np.isfinite(epsilon) and epsilon >= 0):
    raise ValueError(f"auto_attack: epsilon is {epsilon!r}; it must be finite and at least 0")


def check_outputs(logits, labels, who="auto_attack"):
  """Raises ValueError where the clean outputs cannot be logits of these labels."""
  if not np.isfinite(logits).all():
    raise ValueError(f"{who}: `predict` gives outputs that are not finite on the clean images")
  if logits.shape[-1] < 2:
    raise ValueError(f"{who}: `predict` gives one output per image; it needs at least 2 classes")
  if labels.min() < 0 or labels.max() >= logits.shape[-1]:
    raise ValueError(
      f"{who}: labels range from {labels.min()} to {labels.max()}, but "
      f"`predict` has {logits.shape[-1]} classes"
    )
  if (logits >= 0).all() and np.abs(logits.sum(-1) - 1).max() < 0.01:
    raise ValueError(
      f"{who}: the outputs of `predict` are probabilities (they sum to 1); give the "
      "logits before the softmax, or their gradients vanish and the model looks robust"
    )
