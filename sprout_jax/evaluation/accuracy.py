"""Running a model over many images on all devices."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax.data import to_float


def map_batches(fn, arrays, batch_size, mesh, on_batch=lambda done: None):
  """Applies a compiled function to batches of fixed size, split over the devices.

  The last batch is filled up by repeating its first row; what that gives is dropped.

  Args:
    fn: compiled function of one global array [batch, ...] for each of `arrays`, which returns a
      replicated array [batch, ...].
    arrays: host arrays [n, ...].
    batch_size: rows of a batch, a multiple of the number of devices.
    mesh: the mesh of devices.
    on_batch: called with the number of rows done, after each batch.

  Returns:
    Host array [n, ...].
  """
  count = len(arrays[0])
  # Small sets get a small batch, of few sizes: each is compiled once, and below 32 gains nothing.
  while batch_size // 2 >= max(count, 32) and batch_size % (2 * mesh.size) == 0:
    batch_size //= 2
  results = []
  for start in range(0, count, batch_size):
    rows = np.arange(start, start + batch_size)
    rows[rows >= count] = start
    batch = sharding.put([array[rows] for array in arrays], sharding.batch(mesh))
    results.append(np.asarray(fn(*batch))[: count - start])
    on_batch(min(count, start + batch_size))
  return np.concatenate(results)


def predict_fn(model, variables):
  """Returns images -> logits in evaluation mode, in full float32 precision, as a pytree.

  GPUs and TPUs round the factors of a float32 product by default; an attack that finds its gradient
  in that noise would flatter the model.
  """

  def predict(variables, images):
    with jax.default_matmul_precision("highest"):
      return model.apply(variables, images, train=False)

  return jax.tree_util.Partial(predict, variables)


def logits_fn(model, mesh):
  """Compiles (variables, images) -> logits [batch, classes], for `map_batches`."""
  return jax.jit(
    lambda variables, images: predict_fn(model, variables)(images),
    out_shardings=sharding.replicated(mesh),
  )


def correct_fn(model, mesh):
  """Compiles (variables, images, labels) -> [batch] bool, whether the largest logit is the label's."""

  def correct(variables, images, labels):
    logits = predict_fn(model, variables)(images)
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)

  return jax.jit(correct, out_shardings=sharding.replicated(mesh))


def evaluate(correct, variables, split, batch_size, mesh):
  """Which images of a `data.Split` the model classifies correctly: host array [n] bool."""

  def fn(images, labels):
    return correct(variables, to_float(images), labels)

  return map_batches(fn, (split.images, split.labels), batch_size, mesh)
