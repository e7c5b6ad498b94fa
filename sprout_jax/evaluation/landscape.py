"""The loss around images, on a plane that an attack's direction and a random one span."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import losses
from sprout_jax import sharding
from sprout_jax.attacks.attack import example_keys
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness


def surface_fn(model, seed, mesh):
  """Compiles (variables, a [A], b [B], images, labels, indices) -> losses [batch, A, B].

  Entry (i, j) is the cross-entropy at x + a_i s + b_j r, s the sign of its input gradient at x and
  r a draw of +-1 for every pixel, by the image's index. The grid is walked through in a loop, one
  forward pass at a time.
  """

  def surface(variables, a, b, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    # The log odds rise with the cross-entropy: the same signs, but no gradient that vanishes.
    sign = jnp.sign(jax.grad(lambda x: jnp.sum(losses.log_odds(predict(x), labels)))(images))
    keys = example_keys(robustness.root_key(seed), indices)
    random = jax.vmap(lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype))(keys)
    pairs = jnp.stack(jnp.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    values = jax.lax.map(
      lambda pair: losses.cross_entropy(
        predict(images + pair[0] * sign + pair[1] * random), labels
      ),
      pairs,
    )
    return values.T.reshape(len(images), len(a), len(b))

  return jax.jit(surface, out_shardings=sharding.replicated(mesh))


def landscape(surface, variables, images, labels, indices, a, b, seed, batch_size, mesh):
  """The cross-entropy on the plane x + a sign(grad) + b r around each image, and its mean.

  A robust model's is low and smooth; one that is flat at its middle and rises or jumps elsewhere
  hides its gradients. The pixels are not clipped to [0, 1]: on a plane that is bent at the edge of
  the box, that edge would look like a feature of the model.

  Args:
    surface: from `surface_fn`.
    variables: of its model.
    images: host array [n, height, width, channels], floats in [0, 1] or bytes; a few.
    labels: int array [n].
    indices: int array [n], the images' positions in the whole data set, which make their r.
    a, b: the grid along the sign of the gradient and along r, in pixel units, as
      np.linspace(-8/255, 8/255, 41).
    seed: of `surface`, for the record.
    batch_size: images per compiled call.
    mesh: the mesh of devices.

  Returns:
    {"sign_gradient": [A], "rademacher": [B], "loss": [A][B], the mean over images, in nats,
    "per_image": [n][A][B], "indices": [n], "count", "seed", "clipped": False}.
  """
  grid = np.asarray(a, np.float32), np.asarray(b, np.float32)

  def fn(images, labels, indices):
    return surface(variables, *grid, to_float(images), labels, indices)

  values = accuracy.map_batches(
    fn, (images, labels, np.asarray(indices, np.int32)), batch_size, mesh
  ).astype(np.float64)
  return {
    "sign_gradient": grid[0].tolist(),
    "rademacher": grid[1].tolist(),
    "loss": values.mean(0).tolist(),
    "per_image": values.tolist(),
    "indices": np.asarray(indices).tolist(),
    "count": len(values),
    "seed": seed,
    "clipped": False,
  }


def evaluate(subject, *, num_examples, norm, epsilon, num_points, seed):
  """Row "landscape" of `EVALUATIONS`: the mean surface, as far as perturbations of size epsilon go."""
  images = subject.select(num_examples)
  # Both directions have entries of 1: their L2 norm is the square root of the number of values.
  size = math.sqrt(images.split.images[0].size) if norm == "l2" else 1
  grid = np.linspace(-epsilon / size, epsilon / size, num_points)
  found = landscape(
    surface_fn(subject.model, seed, subject.mesh),
    subject.variables,
    images.split.images,
    images.split.labels,
    images.rows,
    grid,
    grid,
    seed,
    subject.batch_size,
    subject.mesh,
  )
  return {key: value for key, value in found.items() if key not in ("per_image", "indices")}
