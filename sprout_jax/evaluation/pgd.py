"""Accuracy under PGD over a grid of perturbation budgets, and how attacks run on a subject."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Epsilons
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumRestarts
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.options import with_epsilon
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


@dataclasses.dataclass(frozen=True)
class Pgd:
  """All that defines PGD but its perturbation budget; see `attacks.pgd`.

  Attributes:
    step_size: in pixel units.
    restarts: random starts; an image is robust if it withstands all of them.
  """

  norm: str
  steps: int
  step_size: float
  restarts: int
  loss: str
  seed: int

  @property
  def keys(self) -> dict:
    """What a number says of the attack."""
    return {"attack": "pgd", **dataclasses.asdict(self)}

  @property
  def name(self) -> str:
    """PGD-20."""
    return f"PGD-{self.steps}"

  @property
  def attack(self) -> Callable:
    """One start, as `broken_fn` takes it."""
    return functools.partial(
      attacks.pgd, step_size=self.step_size, num_steps=self.steps, loss=self.loss
    )


def attack_fn(attack: Callable, norm: str, seed: int) -> Callable:
  """An attack for `Subject.map`, with the epsilon and the number of the restart as arguments.

  Args:
    attack: function (key, predict, images, labels, *, epsilon, norm, indices) -> images, as
      `attacks.apgd`, or a `functools.partial` of `attacks.pgd`.
    norm: a key of `attacks.NORMS`.
    seed: of the attack's random numbers.

  Returns:
    (predict, attacked, epsilon, restart, images, labels, indices) -> {"right": [batch] bool,
    "excess": [batch]}: whether `predict` still classifies the image correctly, attacked on the
    model `attacked`, and `threat.excess`.
  """

  def run(predict, attacked, epsilon, restart, images, labels, indices):
    key = jax.random.fold_in(root_key(seed), restart)
    adversarial = attack(key, attacked, images, labels, epsilon=epsilon, norm=norm, indices=indices)
    return {
      "right": ~attacks.is_wrong(predict(adversarial), labels),
      "excess": threat.excess(images, adversarial, epsilon, norm),
    }

  return run


def outcomes(
  subject: Subject,
  images: Images,
  fn: Callable,
  epsilon: float,
  *,
  name: str,
  restarts: int = 1,
  still_right: np.ndarray | None = None,
  attacked: Callable | None = None,
  on_progress: Callable[[int, str], None] = lambda done, text: None,
) -> np.ndarray:
  """Which images are still classified correctly after an attack: bool [n].

  Misclassified images count as broken and are not attacked. A restart attacks what the ones before
  it left robust. An image's random numbers depend on its place in `images` only.

  Args:
    subject: the model.
    images: the choice of test images.
    fn: from `attack_fn`.
    epsilon: perturbation budget in pixel units.
    name: of the attack, for messages.
    restarts: number of runs.
    still_right: bool [n], what another attack left robust; default: the images that are classified
      correctly.
    attacked: the model that is attacked in place of the subject's.
    on_progress: called with (images done, text), out of n times restarts.

  Raises:
    RuntimeError: a perturbation left the ball or the box: the numbers would be worth nothing.
  """
  robust = np.array(images.correct if still_right is None else still_right, bool)
  model = subject.predict if attacked is None else attacked
  for restart in range(restarts):
    rows = np.flatnonzero(robust)
    skipped = (restart + 1) * len(robust) - len(rows)
    text = f"epsilon {epsilon:g}, restart {restart + 1} of {restarts}"
    if len(rows):
      found = subject.map(
        fn,
        images.images[rows],
        images.labels[rows],
        rows.astype(np.int32),
        shared=(model, float(epsilon), restart),
        on_batch=lambda done, skipped=skipped, text=text: on_progress(skipped + done, text),
      )
      threat.refuse(f"{name} at epsilon {epsilon:g}", found["excess"], epsilon)
      robust[rows] = found["right"]
  return robust


def curve(
  subject: Subject,
  images: Images,
  pgd: Pgd,
  epsilons: tuple[float, ...],
  on_progress: Callable[[int, str], None] = lambda done, text: None,
) -> list[Number]:
  """Accuracy under PGD for each epsilon; see `outcomes`.

  Raises:
    RuntimeError: the accuracy at epsilon 0 is not the clean accuracy: a defect of the evaluation.
  """
  fn, work, found = attack_fn(pgd.attack, pgd.norm, pgd.seed), len(images.labels) * pgd.restarts, []
  for number, epsilon in enumerate(epsilons):
    robust = subject.memo(
      f"epsilon {epsilon!r}",
      lambda number=number, epsilon=epsilon: outcomes(
        subject,
        images,
        fn,
        epsilon,
        name=pgd.name,
        restarts=pgd.restarts,
        on_progress=lambda done, text: on_progress(number * work + done, text),
      ),
    )
    if epsilon == 0 and (robust != images.correct).any():
      raise RuntimeError(
        f"{(robust != images.correct).sum()} of {len(robust)} images are classified otherwise "
        "under "
        "PGD at epsilon 0 than without it. This is a defect: report it with your model"
      )
    found.append(accuracy(robust, images.indices, epsilon=epsilon, **pgd.keys))
  return found


def evaluate_pgd(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  epsilons: Epsilons,
  num_steps: NumSteps,
  step_size: StepSize,
  num_restarts: NumRestarts,
  loss: Loss,
  seed: Seed,
) -> Measurement:
  """Measures accuracy under PGD over a grid of epsilons."""
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  images, epsilons = subject.select(num_examples), with_epsilon(epsilons, epsilon)
  with subject.progress(pgd.name, len(images.labels) * len(epsilons) * num_restarts) as bar:
    return Measurement(Numbers(curve(subject, images, pgd, epsilons, bar)))
