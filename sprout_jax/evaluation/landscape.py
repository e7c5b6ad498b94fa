"""The loss landscape: the loss around images, along the gradient's sign and a random direction."""

from typing import Annotated
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import losses
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement


def surface_fn(seed: int) -> BatchFunction:
  """Makes the function, for `Subject.map`, of the cross-entropy at x + a sign(grad) + b r.

  grad is the input gradient of the loss with the image's label. r is a Rademacher direction, drawn
  from the image's index. The points of the grid are computed one after the other.

  Args:
    seed: the seed of r.

  Returns:
    (predict, a [A], b [B], images, labels, indices) -> float [batch, A, B], in nats.
  """

  def surface(
    predict: Predict,
    a: jax.Array,
    b: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> jax.Array:
    # The log odds rise with the cross-entropy: the signs agree, but the gradient does not vanish.
    sign = jnp.sign(jax.grad(lambda x: jnp.sum(losses.log_odds(predict(x), labels)))(images))
    keys = example_keys(root_key(seed), indices)
    random = jax.vmap(lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype))(keys)
    pairs = jnp.stack(jnp.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)

    def loss(pair: jax.Array) -> jax.Array:
      return losses.cross_entropy(predict(images + pair[0] * sign + pair[1] * random), labels)

    return jax.lax.map(loss, pairs).T.reshape(len(images), len(a), len(b))

  return surface


def surfaces(
  subject: Subject, images: Images, a: np.ndarray, b: np.ndarray, seed: int
) -> np.ndarray:
  """Computes the cross-entropy on the plane x + a sign(grad) + b r around each image.

  The surface of a robust model is low and smooth. A surface that is flat in the middle and rises or
  jumps elsewhere is a sign of masked gradients. The pixels are not clipped to [0, 1]: clipping
  would bend the plane at the edge of the box, and the bend would look like a feature of the model.

  Args:
    subject: the model.
    images: the images.
    a: float [A], the grid along the sign of the gradient, in pixel units.
    b: float [B], the grid along r, in pixel units.
    seed: the seed of r.

  Returns:
    float64 [n, A, B], in nats.
  """
  grid = np.asarray(a, np.float32), np.asarray(b, np.float32)
  indices = images.indices.astype(np.int32)
  found = subject.map(surface_fn(seed), images.images, images.labels, indices, shared=grid)
  return found.astype(np.float64)


def evaluate_landscape(
  subject: Subject,
  *,
  num_examples: NumExamples = 64,
  norm: Norm,
  epsilon: Epsilon,
  num_points: Annotated[int, Option("points of the grid along each direction", 2, 10_000)] = 21,
  seed: Seed,
) -> Measurement:
  """Measures the mean loss around images, up to perturbations of size epsilon."""
  images = subject.select(num_examples)
  size = norms.size_of_ones(norm, images.images[0].size)  # both directions have entries of +-1
  grid = np.linspace(-epsilon / size, epsilon / size, num_points).astype(np.float32)
  mean = subject.memo("surface", lambda: surfaces(subject, images, grid, grid, seed).mean(0))
  keys: dict[str, Any] = dict(norm=norm, epsilon=epsilon, seed=seed)
  highest = float(mean.max()) if np.isfinite(mean).all() else None
  return Measurement(
    Numbers([Number("highest_loss", highest, keys, "nats", len(images.labels))]),
    {"sign_gradient": grid.tolist(), "rademacher": grid.tolist(), "loss": mean.tolist()},
  )
