"""PGD from weak to strong: more steps, more restarts, other losses, at one radius."""

import dataclasses

import numpy as np

from sprout_jax import statistics
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import probes
from sprout_jax.evaluation import robustness


def outcomes(
  compiled,
  variables,
  split,
  clean_correct,
  epsilon,
  steps,
  restarts,
  batch_size,
  mesh,
  on_restart=lambda number: None,
):
  """Outcomes of PGD after each number of steps and of restarts, from one run of the most steps.

  Args:
    compiled: from `probes.trace_fn`, with as many steps as the largest of `steps`.
    variables, split, clean_correct, epsilon, batch_size, mesh: as in `robustness.outcomes`.
    steps, restarts: ints, ascending.
    on_restart: called after each restart with its number from 1.

  Returns:
    {(steps, restarts): bool [n]}, and the mean over the attacked images of the running best loss of
    the first start, [largest steps + 1] (None where no image is classified correctly).
  """
  robust = {count: np.array(clean_correct, bool) for count in steps}
  found, best = {}, None
  for restart in range(restarts[-1]):
    rows = np.flatnonzero(np.any(list(robust.values()), axis=0))  # fewer steps leave more
    if len(rows):
      traces = accuracy.map_batches(
        lambda images, labels, indices, restart=restart: compiled(
          variables, np.float32(epsilon), restart, to_float(images), labels, indices
        ),
        (split.images[rows], split.labels[rows], rows.astype(np.int32)),
        batch_size,
        mesh,
      )
      robustness.refuse_excess(f"PGD at epsilon {epsilon:g}", traces[..., 2])
      if restart == 0:
        best = traces[..., 0].mean(0, dtype=np.float64)
      for count, mask in robust.items():
        mask[rows] &= traces[:, count, 1] < 0.5
    if restart + 1 in restarts:
      found |= {(count, restart + 1): mask.copy() for count, mask in robust.items()}
    on_restart(restart + 1)
  return found, best


def evaluate(subject, *, num_examples, norm, epsilon, steps, restarts, losses, step_size, seed):
  """Row "strength" of `EVALUATIONS`: every combination of `steps`, `restarts` and `losses`."""
  images, entries, curves, notes = subject.select(num_examples), [], {}, []
  with subject.progress("strength", len(losses) * restarts[-1], "runs") as bar:
    for number, loss in enumerate(losses):
      if loss == "dlr" and subject.num_classes < 3:
        notes.append(f"the DLR loss needs 3 classes; there are {subject.num_classes}")
        continue
      spec = robustness.PgdSpec(norm, steps[-1], step_size, restarts[-1], loss, seed)

      def compute(spec=spec, number=number):
        found, best = outcomes(
          probes.trace_fn(subject.model, spec, subject.mesh),
          subject.variables,
          images.split,
          images.clean_correct,
          epsilon,
          steps,
          restarts,
          subject.batch_size,
          subject.mesh,
          lambda restart: bar(number * restarts[-1] + restart, f"PGD, {spec.loss}"),
        )
        return {
          "accuracies": [
            [count, runs, statistics.proportion(mask.sum(), len(mask))]
            for (count, runs), mask in found.items()
          ],
          "best": None if best is None else best.tolist(),
        }

      piece = subject.memo(loss, compute)
      curves[loss] = piece["best"]
      entries += [
        dataclasses.replace(spec, num_steps=count, num_restarts=runs).header(epsilon) | accuracy_of
        for count, runs, accuracy_of in piece["accuracies"]
      ]
  return {"epsilon": epsilon, "norm": norm, "entries": entries, "best_loss": curves, "notes": notes}
