"""Accuracy under PGD with more steps, more restarts and other losses, at one epsilon."""

import dataclasses
from collections.abc import Callable
from typing import Annotated
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

Counts = tuple[int, ...]


def trace_fn(pgd: Pgd) -> BatchFunction:
  """Makes the function, for `Subject.map`, that records one restart of PGD step by step.

  One attack of many steps gives the outcomes of all smaller numbers of steps.

  Returns:
    (predict, epsilon, restart, images, labels, indices) -> {"best_loss", "broken" (bool), "size"},
    each [batch, steps + 1]; see `attacks.pgd_trace`.
  """

  def record(
    predict: Predict,
    epsilon: jax.Array,
    restart: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> dict[str, jax.Array]:
    found = attacks.pgd_trace(
      jax.random.fold_in(root_key(pgd.seed), restart),
      predict,
      images,
      labels,
      epsilon=epsilon,
      step_size=pgd.step_size,
      num_steps=pgd.steps,
      norm=pgd.norm,
      loss=pgd.loss,
      indices=indices,
    )
    return {"best_loss": found.best_loss, "broken": found.broken, "size": found.size}

  return record


def trace(
  subject: Subject,
  images: Images,
  rows: np.ndarray,
  pgd: Pgd,
  fn: BatchFunction,
  epsilon: float,
  restart: int,
) -> dict[str, np.ndarray]:
  """Records one restart of PGD on some of the images; `fn` is from `trace_fn`.

  Returns:
    {"best_loss", "broken", "size"}, each [rows, steps + 1].

  Raises:
    RuntimeError: a perturbation left the ball.
  """
  found = subject.map(
    fn,
    images.images[rows],
    images.labels[rows],
    rows.astype(np.int32),
    shared=(float(epsilon), restart),
  )
  threat.refuse(f"{pgd.name} at epsilon {epsilon:g}", found["size"] - epsilon, epsilon)
  return found


def combinations(
  subject: Subject,
  images: Images,
  pgd: Pgd,
  epsilon: float,
  steps: Counts,
  restarts: Counts,
  on_restart: Callable[[int], None] = lambda number: None,
) -> tuple[dict[tuple[int, int], np.ndarray], np.ndarray | None]:
  """Measures PGD for each combination of steps and restarts, from one attack with most of both.

  Args:
    subject: the model.
    images: the choice of test images.
    pgd: the attack with the largest number of steps and of restarts.
    epsilon: perturbation budget, in pixel units.
    steps: numbers of steps, ascending.
    restarts: numbers of restarts, ascending.
    on_restart: called after each restart with its number, from 1.

  Returns:
    {(steps, restarts): outcomes, bool [n]}, and the running best loss of the first restart, the
    mean over the attacked images, [most steps + 1]; None where no image is classified correctly.
  """
  fn = trace_fn(pgd)
  best: np.ndarray | None = None
  found: dict[tuple[int, int], np.ndarray] = {}
  robust = {count: np.array(images.correct, bool) for count in steps}
  for restart in range(restarts[-1]):
    rows = np.flatnonzero(np.any(list(robust.values()), axis=0))  # robust to fewer steps at least
    if len(rows):
      traces = trace(subject, images, rows, pgd, fn, epsilon, restart)
      if restart == 0:
        best = traces["best_loss"].mean(0, dtype=np.float64)
      for count, mask in robust.items():
        mask[rows] &= ~traces["broken"][:, count]
    if restart + 1 in restarts:
      found |= {(count, restart + 1): mask.copy() for count, mask in robust.items()}
    on_restart(restart + 1)
  return found, best


def evaluate_strength(
  subject: Subject,
  *,
  num_examples: NumExamples = 1000,
  norm: Norm,
  epsilon: Epsilon,
  steps: Annotated[Counts, Option("numbers of steps", 1, 2**31, ascends=True, example="20,100")] = (
    20,
    100,
    200,
  ),
  restarts: Annotated[
    Counts, Option("numbers of random restarts", 1, 2**31, ascends=True, example="1,10")
  ] = (1, 10),
  losses: Annotated[
    tuple[str, ...],
    Option("losses that PGD maximises", choices=tuple(attacks.LOSSES), example="cross_entropy"),
  ] = ("cross_entropy", "margin", "dlr"),
  step_size: StepSize,
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under PGD for every combination of steps, restarts and losses."""
  images = subject.select(num_examples)
  numbers: list[Number] = []
  curves: dict[str, Any] = {}
  notes: list[str] = []
  with subject.progress("strength", len(losses) * restarts[-1], "restarts") as bar:
    for number, loss in enumerate(losses):
      if loss == "dlr" and subject.num_classes < 3:
        notes.append(
          f"PGD with the DLR loss was not measured: it needs 3 classes, there are "
          f"{subject.num_classes}."
        )
        continue
      pgd = Pgd(norm, steps[-1], step_size, restarts[-1], loss, seed)

      def compute(pgd: Pgd = pgd, number: int = number) -> dict[str, Any]:
        found, best = combinations(
          subject,
          images,
          pgd,
          epsilon,
          steps,
          restarts,
          lambda restart: bar(number * restarts[-1] + restart, f"PGD, {pgd.loss}"),
        )
        return {"found": [[*counts, mask] for counts, mask in found.items()], "best": best}

      piece = subject.memo(loss, compute)
      curves[loss] = None if piece["best"] is None else np.asarray(piece["best"]).tolist()
      for count, runs, mask in piece["found"]:
        keys = dataclasses.replace(pgd, steps=count, restarts=runs).keys
        numbers.append(accuracy(mask, images.indices, epsilon=epsilon, **keys))
  return Measurement(Numbers(numbers), {"best_loss": curves}, tuple(notes))
