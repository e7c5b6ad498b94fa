"""The binarisation test: does an attack find adversarial examples that exist by construction?

(Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness
Evaluations", NeurIPS 2022.)
"""

import functools
from typing import Annotated
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import intervals
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.noise import inside_box
from sprout_jax.evaluation.noise import random_noise
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import AttackFunction
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import rows_per_call
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement

INNER_RADIUS = 0.95  # radius of the inner points, as a share of epsilon
NUM_INNER = 999  # inner points of an image, the image itself included
NUM_RANDOM = 200  # draws of the random baseline
IMAGES_PER_DEVICE = 16  # bounds the memory: all points of a call's images are held at once
# The ridge per point of the read-out, for features with a mean square of 1. At 1e-6 the Cholesky
# decomposition in float32 failed on some processors.
RIDGE = 1e-5
NEWTON_STEPS = 20
INNER, EDGE, BASELINE, ATTACK = range(4)  # purposes of random draws


class ReadOut(NamedTuple):
  """A linear function of features: s(x) = (x - center) . weights - threshold.

  Attributes:
    center: float array [features].
    weights: float array [features].
    threshold: scalar.
    separates: bool scalar, whether s is positive on the last point and negative on all others.
  """

  center: jax.Array
  weights: jax.Array
  threshold: jax.Array
  separates: jax.Array


def read_out(points: jax.Array) -> ReadOut:
  """Fits a linear read-out that separates the last point from all others.

  Minimises sum_i c_i max(0, 1 - y_i w . x_i)^2 + ridge |w|^2 by Newton's method, where c is 1 for
  the last point and 1 / n for each of the n others. This is close to the separation of widest
  margin. The threshold is halfway between the score of the last point and the highest score of the
  others. The scale makes the logits -s and s of all points span 1. (Chapelle, "Training a Support
  Vector Machine in the Primal", Neural Computation 2007.)

  Args:
    points: float array [points, features]; the last point is class 1, the others are class 0.

  Returns:
    A `ReadOut`.
  """
  count = len(points)
  center = points.mean(0)
  x = points - center[None]
  size = jnp.sqrt(jnp.mean(jnp.sum(x**2, -1)))
  x = x / jnp.maximum(size, jnp.finfo(x.dtype).tiny)
  x = jnp.concatenate([x, jnp.ones((count, 1))], axis=-1)
  y = jnp.where(jnp.arange(count) == count - 1, 1.0, -1.0)
  share = jnp.where(y > 0, 1.0, 1 / (count - 1))

  def newton(_: jax.Array, w: jax.Array) -> jax.Array:
    active = share * (y * (x @ w) < 1)
    hessian = (x.T * active[None]) @ x + RIDGE * jnp.eye(x.shape[1])
    return jax.scipy.linalg.solve(hessian, x.T @ (active * y), assume_a="pos")

  with jax.default_matmul_precision("highest"):
    weights = jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.zeros(x.shape[1]))[:-1]
    scores = x[:, :-1] @ weights
  highest = jnp.max(scores[:-1])
  threshold = (highest + scores[-1]) / 2
  span = 2 * jnp.max(jnp.abs(scores - threshold))
  separates = scores[-1] > highest  # False for NaN
  return ReadOut(center, weights / (size * span), threshold / span, separates)


def search_fn(
  attack: AttackFunction, norm: str, seed: int, num_inner: int = NUM_INNER
) -> BatchFunction:
  """Makes the binarisation test, for `Subject.map`.

  The test replaces the model's last layer by a linear read-out of its features, one per image. The
  read-out assigns class 0 to the image and to random points within 0.95 epsilon of it, and class 1
  to one random point at distance epsilon. So an adversarial example exists within the ball. An
  attack on this binary model that misses it is too weak. Random noise of size epsilon (200 draws)
  is the baseline: it shows how easy the test is.

  Each device holds the features of all points of its images at once: [num_inner + 1, batch,
  features].

  Args:
    attack: (key, predict, images, labels, *, epsilon, norm, indices) -> images, such as
      `attacks.apgd` or a `functools.partial` of `attacks.pgd`. Its loss must work with two classes.
    norm: a key of `attacks.NORMS`.
    seed: the seed of all draws.
    num_inner: number of points of class 0, the image included.

  Returns:
    (predict, features, epsilon, images, indices) -> {"built", "found", "found_by_noise": bool
    [batch], "excess": [batch]}: whether the read-out separates the image's points, whether the
    attack and random noise find the adversarial example, and `threat.excess` of the attack.
  """
  geometry = attacks.NORMS[norm]

  def search(
    predict: Predict,
    features: Predict,
    epsilon: jax.Array,
    images: jax.Array,
    indices: jax.Array,
  ) -> dict[str, jax.Array]:
    del predict
    keys = [jax.random.fold_in(root_key(seed), purpose) for purpose in range(4)]
    radius = jnp.full(len(images), epsilon, images.dtype)

    def inner(number: jax.Array) -> jax.Array:
      draws = example_keys(jax.random.fold_in(keys[INNER], number), indices)
      return features(inside_box(images, geometry.start(draws, images, INNER_RADIUS * radius)))

    draws = example_keys(keys[EDGE], indices)
    edge = inside_box(images, geometry.surface(draws, images, radius))
    points = jnp.concatenate(
      [
        features(images)[None],
        jax.lax.map(inner, jnp.arange(num_inner - 1)),
        features(edge)[None],
      ]
    ).astype(jnp.float32)
    found = jax.vmap(read_out, in_axes=1)(points)

    def binary(images: jax.Array) -> jax.Array:
      x = features(images).astype(jnp.float32) - found.center
      score = jnp.einsum("bf,bf->b", x, found.weights, precision="highest") - found.threshold
      return jnp.stack([-score, score], axis=-1)

    labels = jnp.zeros(len(images), jnp.int32)
    is_broken = lambda x: jnp.argmax(binary(x), -1) == 1
    rest: dict[str, Any] = dict(epsilon=epsilon, norm=norm, indices=indices)
    adversarial = attack(keys[ATTACK], binary, images, labels, **rest)
    random = random_noise(keys[BASELINE], binary, images, labels, num_draws=NUM_RANDOM, **rest)
    return {
      "built": found.separates & ~attacks.is_wrong(binary(images), labels) & is_broken(edge),
      "found": is_broken(adversarial),
      "found_by_noise": is_broken(random),
      "excess": threat.excess(images, adversarial, epsilon, norm),
    }

  return search


def features_digest(subject: Subject, options: dict[str, Any]) -> str | None:
  """Returns the digest of given features, on which the numbers depend."""
  del options
  return subject.features_sha256


def evaluate_binarization(
  subject: Subject,
  *,
  num_examples: NumExamples = 64,
  norm: Norm,
  epsilon: Epsilon,
  num_steps: NumSteps,
  step_size: StepSize,
  loss: Loss,
  num_inner: Annotated[
    int, Option("points of class 0 within the ball, the image included", 2, 2**31)
  ] = NUM_INNER,
  seed: Seed,
) -> Measurement:
  """Measures the share of planted adversarial examples that PGD with one restart finds.

  Images whose points no read-out separates are left out.
  """
  loss = "margin" if loss == "dlr" else loss  # DLR needs three classes
  pgd, images = Pgd(norm, num_steps, step_size, 1, loss, seed), subject.select(num_examples)
  fn = search_fn(pgd.attack, norm, seed, num_inner)
  features = subject.predict if subject.features is None else subject.features
  per_slice = rows_per_call(IMAGES_PER_DEVICE, subject.batch_size)

  def measure(rows: slice) -> dict[str, np.ndarray]:
    return subject.map(
      fn,
      images.images[rows],
      images.indices[rows].astype(np.int32),
      shared=(features, float(epsilon)),
      batch_size=per_slice,
    )

  parts = [
    subject.memo(
      f"images from {start}, {per_slice}",
      functools.partial(measure, slice(start, start + per_slice)),
    )
    for start in range(0, len(images.labels), per_slice)
  ]
  found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  built = found["built"]
  threat.refuse(f"{pgd.name} in the binarisation test", found["excess"][built], epsilon)
  keys, count = {**pgd.keys, "epsilon": epsilon}, int(built.sum())
  share: float | None = None
  noise_share: float | None = None
  interval: tuple[float, float] | None = None
  if count:
    rate = intervals.proportion(found["found"][built].sum(), count)
    low, high = rate["interval"]
    share, interval = rate["accuracy"], (low, high)
    noise_share = float(found["found_by_noise"][built].mean(dtype=np.float64))
  return Measurement(
    Numbers(
      [
        Number("planted_found", share, keys, count=count, interval=interval),
        Number("planted_found_by_noise", noise_share, keys, count=count),
      ]
    ),
    {"built": count, "images": len(built)},
  )
