"""The loss around images: on the plane of the input gradient's sign and a random direction."""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import losses
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement


def surface_fn(seed: int) -> Callable:
  """The cross-entropy at x + a sign(grad) + b r, for `Subject.map`.

  grad is the gradient of the loss of the image's own label, r a Rademacher direction from the
  image's index. The grid is passed through in a loop, one forward pass at a time.

  Returns:
    (predict, a [A], b [B], images, labels, indices) -> float [batch, A, B].
  """

  def run(predict, a, b, images, labels, indices):
    # The log odds rise with the cross-entropy: the same signs, but no gradient that vanishes.
    sign = jnp.sign(jax.grad(lambda x: jnp.sum(losses.log_odds(predict(x), labels)))(images))
    keys = example_keys(root_key(seed), indices)
    random = jax.vmap(lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype))(keys)
    pairs = jnp.stack(jnp.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)

    def loss(pair):
      return losses.cross_entropy(predict(images + pair[0] * sign + pair[1] * random), labels)

    return jax.lax.map(loss, pairs).T.reshape(len(images), len(a), len(b))

  return run


def surfaces(
  subject: Subject, images: Images, a: np.ndarray, b: np.ndarray, seed: int
) -> np.ndarray:
  """The cross-entropy on the plane x + a sign(grad) + b r around each image: float [n, A, B], nats.

  A robust model's is low and smooth; one that is flat in its middle and rises or jumps elsewhere
  hides its gradients. The pixels are not clipped to [0, 1]: on a plane that is bent at the edge of
  the box, that edge would look like a feature of the model.

  Args:
    subject: the model.
    images: a few.
    a, b: the grid along the sign of the gradient and along r, in pixel units.
    seed: of r.
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
  """Measures the mean loss around images, as far as perturbations of size epsilon go."""
  images = subject.select(num_examples)
  # Both directions have entries of 1: their L2 norm is the square root of the number of values.
  size = math.sqrt(images.images[0].size) if norm == "l2" else 1
  grid = np.linspace(-epsilon / size, epsilon / size, num_points).astype(np.float32)
  mean = subject.memo("surface", lambda: surfaces(subject, images, grid, grid, seed).mean(0))
  keys = dict(norm=norm, epsilon=epsilon, seed=seed)
  highest = float(mean.max()) if np.isfinite(mean).all() else None
  return Measurement(
    Numbers([Number("highest_loss", highest, keys, "nats", len(images.labels))]),
    {"sign_gradient": grid.tolist(), "rademacher": grid.tolist(), "loss": mean.tolist()},
  )
