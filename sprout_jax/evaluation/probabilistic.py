"""Probabilistic robustness: the share of random perturbations that fool the model on an image."""

import functools
from typing import Annotated
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

ALPHA = 0.05  # probability that an image's bound is wrong
BLOCK = 100  # draws of one compiled call


def perturbed(keys: jax.Array, images: jax.Array, epsilon: jax.Array, norm: str) -> jax.Array:
  """Draws one random perturbation per image, in the ball and the box.

  In Linf it is uniform in the intersection of ball and box. In L2 and L1 it is uniform in the ball
  and then clipped to the box.

  Args:
    keys: PRNG keys [batch].
    images: float array [batch, height, width, channels] in [0, 1].
    epsilon: radius in pixel units.
    norm: a key of `attacks.NORMS`.

  Returns:
    An array like `images`.
  """
  if norm == "linf":
    low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)
    shares = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype))(keys)
    return jnp.clip(low + shares * (high - low), low, high)
  away = attacks.NORMS[norm].start(keys, images, epsilon)
  return jnp.clip(images + away, 0, 1)


def count_fn(norm: str, seed: int, block: int) -> BatchFunction:
  """Makes the function, for `Subject.map`, that counts the draws that are misclassified.

  Returns:
    (predict, epsilon, first, images, labels, indices) -> int [batch]: of the draws first,
    first + 1, ..., first + block - 1.
  """

  def count(
    predict: Predict,
    epsilon: jax.Array,
    first: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> jax.Array:
    radius = jnp.asarray(epsilon, images.dtype)

    def body(draw: jax.Array, wrong: jax.Array) -> jax.Array:
      keys = example_keys(jax.random.fold_in(root_key(seed), first + draw), indices)
      moved = perturbed(keys, images, radius, norm)
      return wrong + attacks.is_wrong(predict(moved), labels).astype(wrong.dtype)

    return jax.lax.fori_loop(0, block, body, jnp.zeros(labels.shape, jnp.int32))

  return count


def upper_bounds(wrong: np.ndarray, draws: int, alpha: float = ALPHA) -> np.ndarray:
  """One-sided Clopper-Pearson bounds from above of probabilities, [n].

  The probability is below the bound with confidence 1 - alpha: the (1 - alpha)-quantile of
  Beta(wrong + 1, draws - wrong), and 1 where every draw was wrong.

  Args:
    wrong: int [n], misclassified draws of each image.
    draws: draws of each image.
    alpha: probability that a bound is wrong.
  """
  import scipy.stats  # slow to import

  wrong = np.asarray(wrong)
  found = scipy.stats.beta.ppf(1 - alpha, wrong + 1, np.maximum(draws - wrong, 1e-9))
  return np.where(wrong >= draws, 1.0, found)


def evaluate_probabilistic(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  norm: Norm,
  epsilon: Epsilon,
  num_draws: Annotated[int, Option("random perturbations of each image", 1, 2**31)] = 1000,
  tolerances: Annotated[
    tuple[float, ...],
    Option(
      "largest shares of perturbations that may change the class",
      0,
      1,
      ascends=True,
      example="0.01,0.1",
    ),
  ] = (0.01, 0.05, 0.1),
  seed: Seed,
) -> Measurement:
  """Measures the share of random perturbations in the ball that fool the model, for each image.

  An image is robust with tolerance t if the Clopper-Pearson bound of its share is below t, with 95
  % confidence per image. That says nothing about the worst perturbation.
  """
  images = subject.select(num_examples)
  wrong = np.zeros(len(images.labels), int)
  with subject.progress("probabilistic", num_draws, "draws") as bar:
    for first in range(0, num_draws, BLOCK):
      block = min(BLOCK, num_draws - first)
      fn = subject.known(
        f"probabilistic {norm} {seed} {block}", functools.partial(count_fn, norm, seed, block)
      )
      measure = functools.partial(
        subject.map,
        fn,
        images.images,
        images.labels,
        images.indices.astype(np.int32),
        shared=(float(epsilon), first),
      )
      wrong += subject.memo(f"draws from {first}", measure)
      bar(first + block, "")
  bounds = upper_bounds(wrong, num_draws)
  keys: dict[str, Any] = dict(attack="noise", norm=norm, epsilon=epsilon, seed=seed)
  keys |= dict(draws=num_draws)
  numbers = [Number("fooling_share", float(wrong.mean()) / num_draws, keys, count=len(wrong))]
  numbers += [
    accuracy(bounds < limit, images.indices, "probabilistic_accuracy", tolerance=limit, **keys)
    for limit in tolerances
  ]
  details = {"wrong": wrong.tolist(), "bounds": bounds.tolist()}
  return Measurement(Numbers(numbers), details)
