"""Whether what an ensemble of attacks is given, and what the model answers, make sense."""

import jax
import numpy as np

from sprout_jax.attacks import norms


def clean_logits(key, predict, images, batch_size, mesh, samples):
  """Logits of all images, in batches of one size; of a random model, of one draw."""
  predict, found = jax.tree_util.Partial(predict), []
  fn = jax.jit(lambda predict, *args: predict(*args), out_shardings=jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec()))
  for start in range(0, len(images), batch_size):
    rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
    extra = () if samples == 1 else (jax.random.split(jax.random.fold_in(key, 2**32 - 1), batch_size),)
    logits = np.asarray(fn(predict, images[rows], *extra))
    again = np.asarray(fn(predict, images[rows])) if start == 0 and samples == 1 else logits
    if np.abs(logits - again).max() > 1e-4:
      raise ValueError("auto_attack: two passes over the same images differ by more than 1e-4; for a "
                       "model that draws random numbers, use version='rand'")
    found.append(logits[:len(images) - start])
  return np.concatenate(found)


def check_arguments(names, choices, norm, epsilon, images, labels):
  """Raises ValueError for wrong arguments of `auto_attack`, naming what is expected."""
  for what, values, table in (("version or attack", names, choices), ("norm", [norm], norms.NORMS)):
    for value in values:
      if value not in table:
        raise ValueError(f"auto_attack: {what} {value!r}; choose from: {', '.join(sorted(table))}")
  images, labels = np.asarray(images), np.asarray(labels)
  if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
    raise ValueError(f"auto_attack: images have shape {images.shape} and labels {labels.shape}; "
                     "expected [n, height, width, channels] and [n], n at least 1")
  if not np.issubdtype(images.dtype, np.floating) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"auto_attack: images are {images.dtype} and labels {labels.dtype}; expected "
                     "floats in [0, 1] (bytes: divide by 255) and integers")
  if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
    raise ValueError(f"auto_attack: pixels range from {images.min():g} to {images.max():g}; they must be "
                     "finite and in [0, 1], with normalisation inside `predict`")
  if not (np.isfinite(epsilon) and epsilon >= 0):
    raise ValueError(f"auto_attack: epsilon is {epsilon!r}; it must be finite and at least 0")


def check_outputs(logits, labels):
  """Raises ValueError where the clean outputs cannot be logits of these labels."""
  if not np.isfinite(logits).all():
    raise ValueError("auto_attack: `predict` gives outputs that are not finite on the clean images")
  if logits.shape[-1] < 2:
    raise ValueError("auto_attack: `predict` gives one output per image; it needs at least 2 classes")
  if labels.min() < 0 or labels.max() >= logits.shape[-1]:
    raise ValueError(f"auto_attack: labels range from {labels.min()} to {labels.max()}, but "
                     f"`predict` has {logits.shape[-1]} classes")
  if (logits >= 0).all() and np.abs(logits.sum(-1) - 1).max() < 1e-5:
    raise ValueError("auto_attack: the outputs of `predict` are probabilities (they sum to 1); give the "
                     "logits before the softmax, or their gradients vanish and the model looks robust")
