"""Accuracy under PGD over a grid of perturbation budgets, and the application of attacks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from typing import Protocol

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
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

OnProgress = Callable[[int, str], None]


def _silent(done: int, text: str) -> None:
  """Shows no progress."""


class AttackFunction(Protocol):
  """An attack: (key, predict, images, labels, *, epsilon, norm, indices) -> adversarial images.

  `attacks.apgd` is one, and so is a `functools.partial` of `attacks.pgd`.
  """

  def __call__(
    self,
    key: jax.Array,
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    /,
    *args: Any,
    **options: Any,
  ) -> jax.Array:
    """Returns the adversarial images, like `images`."""


@dataclasses.dataclass(frozen=True)
class Pgd:
  """The specification of PGD without its perturbation budget; see `attacks.pgd`.

  Attributes:
    norm: a key of `attacks.NORMS`.
    steps: gradient steps.
    step_size: in pixel units.
    restarts: random restarts; an image is robust if it withstands all of them.
    loss: a key of `attacks.LOSSES`.
    seed: the seed of the random starts.
  """

  norm: str
  steps: int
  step_size: float
  restarts: int
  loss: str
  seed: int

  @property
  def keys(self) -> dict[str, Any]:
    """The keys of a number that describe the attack."""
    return {"attack": "pgd", **dataclasses.asdict(self)}

  @property
  def name(self) -> str:
    """The name for readers, such as "PGD-20"."""
    return f"PGD-{self.steps}"

  @property
  def attack(self) -> AttackFunction:
    """One restart, as `attack_fn` takes it."""
    return functools.partial(
      attacks.pgd, step_size=self.step_size, num_steps=self.steps, loss=self.loss
    )


def attack_fn(attack: AttackFunction, norm: str, seed: int) -> BatchFunction:
  """Makes the function, for `Subject.map`, that attacks a batch in one restart.

  Args:
    attack: the attack.
    norm: a key of `attacks.NORMS`.
    seed: the seed of the attack's random numbers.

  Returns:
    (predict, attacked, epsilon, restart, images, labels, indices) -> {"right": [batch] bool,
    "excess": [batch]}. The images are attacked on the model `attacked`. "right" tells whether
    `predict` classifies the attacked image correctly. "excess" is `threat.excess`.
  """

  def attack_batch(
    predict: Predict,
    attacked: Predict,
    epsilon: jax.Array,
    restart: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> dict[str, jax.Array]:
    key = jax.random.fold_in(root_key(seed), restart)
    adversarial = attack(key, attacked, images, labels, epsilon=epsilon, norm=norm, indices=indices)
    return {
      "right": ~attacks.is_wrong(predict(adversarial), labels),
      "excess": threat.excess(images, adversarial, epsilon, norm),
    }

  return attack_batch


def outcomes(
  subject: Subject,
  images: Images,
  fn: BatchFunction,
  epsilon: float,
  *,
  name: str,
  restarts: int = 1,
  still_right: np.ndarray | None = None,
  attacked: Predict | None = None,
  on_progress: OnProgress = _silent,
) -> np.ndarray:
  """Attacks images and returns which of them are still classified correctly.

  Misclassified images count as broken and are not attacked. A restart attacks the images that the
  restarts before it left robust. An image's random numbers depend only on its position in `images`.

  Args:
    subject: the model.
    images: the choice of test images, n of them.
    fn: from `attack_fn`.
    epsilon: perturbation budget, in pixel units.
    name: the attack's name, for messages.
    restarts: number of restarts.
    still_right: bool [n], the images that another attack left robust; default: the images that are
      classified correctly.
    attacked: another model to attack; default: the subject's.
    on_progress: called with (images done, text), of n times restarts.

  Returns:
    Bool array [n].

  Raises:
    RuntimeError: a perturbation left the ball or the box, so the accuracy would be invalid.
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
        on_batch=functools.partial(_shifted, on_progress, skipped, text=text),
      )
      threat.refuse(f"{name} at epsilon {epsilon:g}", found["excess"], epsilon)
      robust[rows] = found["right"]
  return robust


def curve(
  subject: Subject,
  images: Images,
  pgd: Pgd,
  epsilons: tuple[float, ...],
  on_progress: OnProgress = _silent,
) -> list[Number]:
  """Measures the accuracy under PGD for each epsilon; see `outcomes`.

  Raises:
    RuntimeError: the accuracy at epsilon 0 is not the clean accuracy, a defect of the evaluation.
  """
  fn, work = attack_fn(pgd.attack, pgd.norm, pgd.seed), len(images.labels) * pgd.restarts
  found: list[Number] = []
  for number, epsilon in enumerate(epsilons):
    robust = subject.memo(
      f"epsilon {epsilon!r}",
      functools.partial(
        outcomes,
        subject,
        images,
        fn,
        epsilon,
        name=pgd.name,
        restarts=pgd.restarts,
        on_progress=functools.partial(_shifted, on_progress, number * work),
      ),
    )
    if epsilon == 0 and (robust != images.correct).any():
      raise RuntimeError(
        f"PGD at epsilon 0 changes the outcome of {(robust != images.correct).sum()} of "
        f"{len(robust)} images. This is a defect of the evaluation: report it with your model"
      )
    found.append(accuracy(robust, images.indices, epsilon=epsilon, **pgd.keys))
  return found


def _shifted(on_progress: OnProgress, before: int, done: int, text: str) -> None:
  on_progress(before + done, text)


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
  """Measures the accuracy under PGD over a grid of epsilons."""
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  images, epsilons = subject.select(num_examples), with_epsilon(epsilons, epsilon)
  with subject.progress(pgd.name, len(images.labels) * len(epsilons) * num_restarts) as bar:
    return Measurement(Numbers(curve(subject, images, pgd, epsilons, bar)))
