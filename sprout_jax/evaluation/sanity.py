"""Attacks for the checks: weaker, stronger and black-box attacks beside the reported PGD.

`results.checks` compares their outcomes.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.attacks import norms
from sprout_jax.evaluation import gradients
from sprout_jax.evaluation.noise import DRAWS
from sprout_jax.evaluation.noise import random_noise
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumRestarts
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import AttackFunction
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.pgd import attack_fn
from sprout_jax.evaluation.pgd import outcomes
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.strength import trace
from sprout_jax.evaluation.strength import trace_fn
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

# The radius at which every image can be made grey: in Linf; in L2 times the square root of the
# number of values.
LARGE_RADIUS = 0.5
LARGE_STEPS = 50
APGD_STEPS = 100


def fgsm(
  key: jax.Array,
  predict: Predict,
  images: jax.Array,
  labels: jax.Array,
  *,
  epsilon: float,
  norm: str = "linf",
  indices: jax.Array | None = None,
) -> jax.Array:
  """Applies `attacks.fgsm` with the arguments of `pgd.AttackFunction`; it draws nothing."""
  del key, indices
  return attacks.fgsm(predict, images, labels, epsilon=epsilon, norm=norm)


@dataclasses.dataclass(frozen=True)
class Probe:
  """One of the attacks that the checks compare.

  Attributes:
    name: the name for readers.
    chain: attacks, each on the images that those before it left robust.
    epsilon: perturbation budget, in pixel units.
    restarts: restarts of each attack.
    keys: the keys of the number.
    metric: the metric of the number.
  """

  name: str
  chain: tuple[AttackFunction, ...]
  epsilon: float
  restarts: int
  keys: dict[str, Any]
  metric: str = "accuracy"


def probes(pgd: Pgd, epsilon: float, num_classes: int, num_values: int) -> list[Probe]:
  """Returns the reported PGD, and the weaker, stronger and black-box attacks beside it.

  Args:
    pgd: the reported PGD.
    epsilon: its perturbation budget, in pixel units.
    num_classes: number of classes.
    num_values: pixels times channels of an image.
  """
  seed: dict[str, Any] = {"seed": pgd.seed}
  threat: dict[str, Any] = {"norm": pgd.norm, "epsilon": epsilon}
  more_steps = dataclasses.replace(pgd, steps=2 * pgd.steps)
  more_restarts = dataclasses.replace(pgd, restarts=10 if pgd.restarts < 10 else 2 * pgd.restarts)
  large = LARGE_RADIUS * norms.size_of_ones(pgd.norm, num_values)
  to_grey = dataclasses.replace(pgd, steps=LARGE_STEPS, step_size=large / 4, restarts=1)
  # With the cross-entropy alone, APGD misses images that PGD breaks by chance.
  second = "dlr" if num_classes > 2 else "margin"
  apgds = attacks.apgd, functools.partial(attacks.apgd, loss=second)
  apgd: dict[str, Any] = {"attack": f"apgd-ce + apgd-{second}"}
  apgd |= {"restarts": pgd.restarts, "steps": APGD_STEPS}
  noise: dict[str, Any] = {"attack": "noise", "draws": DRAWS}

  def of_pgd(name: str, other: Pgd, radius: float = epsilon, metric: str = "accuracy") -> Probe:
    keys = {**other.keys, "epsilon": radius}
    return Probe(name, (other.attack,), radius, other.restarts, keys, metric)

  return [
    Probe("noise", (random_noise,), epsilon, 1, {**noise, **seed, **threat}),
    Probe("FGSM", (fgsm,), epsilon, 1, {"attack": "fgsm", **threat}),
    of_pgd("PGD", pgd),
    Probe("APGD", apgds, epsilon, pgd.restarts, {**apgd, **seed, **threat}),
    of_pgd("twice the steps", more_steps),
    of_pgd("more restarts", more_restarts),
    of_pgd("large radius", to_grey, large, "accuracy_at_large_radius"),
  ]


def evaluate_sanity(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  norm: Norm,
  epsilon: Epsilon,
  num_steps: NumSteps,
  step_size: StepSize,
  num_restarts: NumRestarts,
  loss: Loss,
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under the attacks that the checks compare, and the input gradients."""
  images = subject.select(num_examples)
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  numbers: list[Number] = []
  compared = probes(pgd, epsilon, subject.num_classes, images.images[0].size)

  def measure(probe: Probe) -> np.ndarray:
    robust = images.correct
    for attack in probe.chain:
      fn = attack_fn(attack, norm, seed)
      robust = outcomes(
        subject,
        images,
        fn,
        probe.epsilon,
        name=probe.name,
        restarts=probe.restarts,
        still_right=robust,
      )
    return robust

  with subject.progress("sanity", len(compared) + 2, "attacks") as bar:
    for number, probe in enumerate(compared, 1):
      robust = subject.memo(probe.name, functools.partial(measure, probe))
      numbers.append(accuracy(robust, images.indices, probe.metric, **probe.keys))
      bar(number, probe.name)
    numbers += along_attack(subject, images, pgd, epsilon)
    bar(len(compared) + 1, "gradients along PGD")
    best = subject.memo("best loss", lambda: best_loss(subject, images, pgd, epsilon))
    bar(len(compared) + 2, "best loss")
  return Measurement(Numbers(numbers), {"best_loss": np.asarray(best).tolist()})


def along_attack(subject: Subject, images: Images, pgd: Pgd, epsilon: float) -> list[Number]:
  """Measures `gradients.health` at the images, at PGD's start, and halfway through its steps."""
  found: list[Number] = []
  halfway = max(pgd.steps // 2, 1)
  for place, steps in (
    ("at the images", None),
    ("at the start of PGD", 0),
    ("halfway through PGD", halfway),
  ):
    points = to_float(images.images)
    if steps is not None:
      points = subject.map(
        points_fn(pgd, steps),
        points,
        images.labels,
        np.arange(len(points), dtype=np.int32),
        shared=(float(epsilon),),
      )
    keys: dict[str, Any] = dict(place=place, norm=pgd.norm, epsilon=epsilon)
    found += gradients.health(subject, points, images.labels, **keys)
  return found


def points_fn(pgd: Pgd, steps: int) -> BatchFunction:
  """Makes the function, for `Subject.map`, that returns PGD's iterate after some steps.

  Returns:
    (predict, epsilon, images, labels, indices) -> images.
  """

  def points(
    predict: Predict,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> jax.Array:
    return attacks.pgd(
      jax.random.fold_in(root_key(pgd.seed), 0),
      predict,
      images,
      labels,
      epsilon=epsilon,
      step_size=pgd.step_size,
      num_steps=steps,
      norm=pgd.norm,
      loss=pgd.loss,
      keep="last",
      indices=indices,
    )

  return points


def best_loss(subject: Subject, images: Images, pgd: Pgd, epsilon: float) -> np.ndarray:
  """Returns the mean running best loss along PGD's first restart, [steps + 1].

  The mean is over the images that are classified correctly. Without any, the array is empty.
  """
  rows = np.flatnonzero(images.correct)
  if not len(rows):
    return np.zeros(0)
  found = trace(subject, images, rows, pgd, trace_fn(pgd), epsilon, 0)
  return found["best_loss"].mean(0, dtype=np.float64)
