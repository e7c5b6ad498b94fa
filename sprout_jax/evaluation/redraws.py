"""Randomised models: what an attack on fixed draws finds, judged by other draws of the model."""

import functools
from typing import Annotated
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumRestarts
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.randomness import named_key
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

FITTED_POINTS = 5.0  # accuracy that other draws may give back before a note says so


def right(predict: Predict, model: Predict, images: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns which images another model classifies correctly, for `Subject.map`."""
  del predict
  return ~attacks.is_wrong(model(images), labels)


def attack_fn(pgd: Pgd) -> BatchFunction:
  """Makes the function, for `Subject.map`, that attacks a batch by PGD with all restarts.

  Returns:
    (predict, epsilon, images, labels, indices) -> (adversarial images, excess [batch]).
  """

  def attack_batch(
    predict: Predict,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    attack = functools.partial(pgd.attack, num_restarts=pgd.restarts)
    key = jax.random.fold_in(root_key(pgd.seed), 0)
    found = attack(key, predict, images, labels, epsilon=epsilon, norm=pgd.norm, indices=indices)
    return found, threat.excess(images, found, epsilon, pgd.norm)

  return attack_batch


def evaluate_redraws(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  norm: Norm,
  epsilon: Epsilon,
  num_steps: NumSteps,
  step_size: StepSize,
  num_restarts: NumRestarts,
  loss: Loss,
  repeats: Annotated[int, Option("fresh sets of draws of the model", 2, 10_000)] = 10,
  seed: Seed,
) -> Measurement:
  """Measures the spread of a randomised model's accuracy over its own draws.

  PGD attacks the mean of fixed draws (`attacks.averaged`). Fresh draws then classify the clean and
  the adversarial images, `repeats` times. A model without random numbers has no spread.
  """
  images = subject.select(num_examples)
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  adversarial = subject.memo(
    "adversarial images", functools.partial(_attack, subject, images, pgd, epsilon)
  )
  clean = to_float(images.images)
  outcomes: list[tuple[np.ndarray, np.ndarray]] = []
  with subject.progress("redraws", repeats, "repeats") as bar:
    for repeat in range(repeats):

      def judge(repeat: int = repeat) -> tuple[np.ndarray, np.ndarray]:
        model = subject.redrawn(named_key(root_key(seed), f"redraw {repeat}"))
        ask = functools.partial(subject.map, right, shared=(model,))
        return ask(clean, images.labels), ask(adversarial, images.labels)

      outcomes.append(tuple(subject.memo(f"repeat {repeat}", judge)))
      bar(repeat + 1, "")
  fixed = subject.map(right, adversarial, images.labels, shared=(subject.predict,))
  return _measurement(subject, images, pgd, epsilon, fixed, outcomes)


def _attack(subject: Subject, images: Images, pgd: Pgd, epsilon: float) -> np.ndarray:
  """The adversarial images of all chosen images."""
  found, excess = subject.map(
    attack_fn(pgd),
    images.images,
    images.labels,
    np.arange(len(images.labels), dtype=np.int32),
    shared=(float(epsilon),),
  )
  threat.refuse(f"{pgd.name} at epsilon {epsilon:g}", excess, epsilon)
  return found


def _measurement(
  subject: Subject,
  images: Images,
  pgd: Pgd,
  epsilon: float,
  fixed: np.ndarray,
  outcomes: list[tuple[np.ndarray, np.ndarray]],
) -> Measurement:
  """The accuracy for each set of draws, and its mean and standard deviation over them.

  The interval of the mean is that of Student's t over the sets of draws; the images are fixed.
  """
  import scipy.stats  # slow to import

  attacked: dict[str, Any] = {**pgd.keys, "epsilon": epsilon}
  count = len(images.labels)
  numbers = [accuracy(fixed, images.indices, **attacked)]
  quantile = float(scipy.stats.t.ppf(0.975, len(outcomes) - 1))
  for place, keys in enumerate(({"seed": pgd.seed}, attacked)):
    rows = np.array([outcome[place] for outcome in outcomes], bool)
    shares = rows.mean(1)
    size = quantile * shares.std(ddof=1) / len(shares) ** 0.5
    mean = float(shares.mean())
    limits = max(mean - size, 0.0), min(mean + size, 1.0)
    several = {**keys, "redraws": len(rows)}
    numbers += [
      Number("mean_accuracy", mean, several, count=count, interval=limits),
      Number("accuracy_stddev", float(shares.std(ddof=1)), several, count=count),
      *(accuracy(row, images.indices, redraw=n, **keys) for n, row in enumerate(rows)),
    ]
  points = 100 * (np.mean([row[1] for row in outcomes]) - fixed.mean())
  notes = []
  if not subject.is_random:
    notes.append("The model draws no random numbers, so that the accuracy has no spread.")
  if points > FITTED_POINTS:
    notes.append(
      f"Fresh draws classify {points:.1f} points more of the adversarial images correctly than the "
      "draws that were attacked. The attack has fitted them: average over more draws."
    )
  return Measurement(Numbers(numbers), {}, tuple(notes))
