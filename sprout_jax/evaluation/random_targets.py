"""Accuracy under PGD towards random classes, the protocol of papers on ImageNet."""

import functools
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax import intervals
from sprout_jax import losses
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Epsilons
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.options import with_epsilon
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def random_targets(
  key: jax.Array, labels: jax.Array, indices: jax.Array, num_classes: int
) -> jax.Array:
  """Draws a wrong class for each image, uniformly: t = (y + u) mod K, u ~ U{1, ..., K - 1}.

  Args:
    key: a PRNG key.
    labels: int array [batch].
    indices: int array [batch], the images' positions, on which their draws depend.
    num_classes: K.

  Returns:
    Int array [batch].
  """
  draw = lambda key: jax.random.randint(key, (), 1, num_classes)
  return (labels + jax.vmap(draw)(example_keys(key, indices))) % num_classes


def towards(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Minus the cross-entropy of the target: what a targeted attack maximises."""
  return -losses.cross_entropy(logits, targets)


def attack_fn(
  norm: str, num_steps: int, step_size: float, seed: int, num_classes: int
) -> BatchFunction:
  """Makes the function, for `Subject.map`, that attacks a batch towards random classes.

  Returns:
    (predict, epsilon, images, labels, indices) -> {"right": [batch] bool, "reached": [batch] bool,
    "excess": [batch]}. "reached" tells whether the image is classified as its target.
  """

  def attack_batch(
    predict: Predict,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> dict[str, jax.Array]:
    key_target, key_start = jax.random.split(root_key(seed))
    targets = random_targets(key_target, labels, indices, num_classes)
    adversarial = attacks.pgd(
      key_start,
      predict,
      images,
      targets,
      epsilon=epsilon,
      step_size=step_size,
      num_steps=num_steps,
      norm=norm,
      loss=towards,
      keep="last",
      indices=indices,
    )
    logits = predict(adversarial)
    return {
      "right": ~attacks.is_wrong(logits, labels),
      "reached": ~attacks.is_wrong(logits, targets),
      "excess": threat.excess(images, adversarial, epsilon, norm),
    }

  return attack_batch


def evaluate_random_targets(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  epsilons: Epsilons,
  num_steps: NumSteps,
  step_size: StepSize,
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under PGD towards a random wrong class.

  It also measures the share of images that reach that class. Each image has one target and one
  random start. The last iterate counts. PGD on the loss of the true class is stronger and gives a
  lower accuracy. Use this evaluation to compare with papers that report it.
  """
  images = subject.select(num_examples)
  fn = attack_fn(norm, num_steps, step_size, seed, subject.num_classes)
  found: list[Number] = []
  radii = with_epsilon(epsilons, epsilon)

  def attacked(radius: float) -> dict[str, np.ndarray]:
    rows = np.arange(len(images.labels), dtype=np.int32)
    outcome = subject.map(fn, images.images, images.labels, rows, shared=(float(radius),))
    threat.refuse(f"PGD towards random classes at epsilon {radius:g}", outcome["excess"], radius)
    return {name: outcome[name] for name in ("right", "reached")}

  with subject.progress("random_targets", len(radii), "radii") as bar:
    for number, radius in enumerate(radii, 1):
      outcome = subject.memo(f"epsilon {radius!r}", functools.partial(attacked, radius))
      keys: dict[str, Any] = dict(attack="pgd_random_targets", norm=norm, epsilon=radius)
      keys |= dict(steps=num_steps, step_size=step_size, restarts=1, seed=seed)
      found.append(accuracy(outcome["right"], images.indices, **keys))
      if radius:
        share = intervals.proportion(outcome["reached"].sum(), len(images.labels))
        low, high = share["interval"]
        found.append(
          Number(
            "target_share", share["accuracy"], keys, count=share["count"], interval=(low, high)
          )
        )
      bar(number, f"epsilon {radius:g}")
  return Measurement(Numbers(found))
