"""Attacks run only to see whether the reported one can be believed; `checks` judges what they find."""

import functools
import math

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import gradients
from sprout_jax.evaluation import probes
from sprout_jax.evaluation import robustness

LARGE_RADIUS = (
  0.5  # in Linf, and times the square root of the number of values in L2: hides any image
)
LARGE_STEPS = 50


def evaluate(
  subject, *, num_examples, norm, epsilon, num_steps, step_size, num_restarts, loss, seed
):
  """Row "sanity" of `EVALUATIONS`: PGD as it is reported, beside weaker, stronger and blind attacks."""
  images = subject.select(num_examples)
  spec = robustness.PgdSpec(norm, num_steps, step_size, num_restarts, loss, seed)
  pgd = functools.partial(attacks.pgd, step_size=step_size, num_steps=num_steps, loss=loss)
  many = 10 if num_restarts < 10 else 2 * num_restarts
  second = "dlr" if subject.num_classes > 2 else "margin"
  apgd = f"apgd-ce and apgd-{second}"
  runs = {  # name: attacks, each on what those before it left; restarts
    "noise": ([probes.noise], 1),
    "fgsm": ([probes.fgsm], 1),
    "pgd": ([pgd], num_restarts),
    # Both losses: alone, the cross-entropy misses what luck finds.
    apgd: ([attacks.apgd, functools.partial(attacks.apgd, loss=second)], num_restarts),
    "twice the steps": ([functools.partial(pgd, num_steps=2 * num_steps)], num_restarts),
    f"{many} restarts": ([pgd], many),
  }
  with subject.progress("sanity", len(runs) + 3, "attacks") as bar:

    def outcomes(name, chain, restarts, radius):
      robust = images.clean_correct
      for attack in chain:
        robust = robustness.outcomes(
          robustness.attack_fn(subject.model, attack, norm, seed, subject.mesh),
          subject.variables,
          images.split,
          robust,
          radius,
          subject.batch_size,
          subject.mesh,
          name,
          restarts,
        )
      return robust.tolist()

    robust = {}
    for name, (chain, restarts) in runs.items():
      robust[name] = np.array(
        subject.memo(
          name,
          lambda name=name, chain=chain, restarts=restarts: outcomes(
            name, chain, restarts, epsilon
          ),
        )
      )
      bar(len(robust), name)
    size = images.split.images[0].size
    large = LARGE_RADIUS * (math.sqrt(size) if norm == "l2" else 1)
    left = np.array(
      subject.memo(
        "large radius",
        lambda: outcomes(
          "PGD",
          [functools.partial(attacks.pgd, step_size=large / 4, num_steps=LARGE_STEPS, loss=loss)],
          1,
          large,
        ),
      )
    )
    bar(len(robust) + 1, "large radius")
    health = subject.memo("health", lambda: health_along(subject, images.split, spec, epsilon))
    bar(len(robust) + 2, "health of gradients")
    best = subject.memo("best loss", lambda: best_loss(subject, images, spec, epsilon))
    bar(len(robust) + 3, "best loss")

  shares = {name: statistics.proportion(mask.sum(), len(mask)) for name, mask in robust.items()}
  accuracies = {name: share["accuracy"] for name, share in shares.items()}
  findings = [
    checks.order({name: robust[name] for name in ("fgsm", "pgd", apgd)}),
    checks.black_box(robust["pgd"] & robust[apgd], {"random noise": robust["noise"]}),
    checks.effort(
      accuracies["pgd"],
      {name: accuracies[name] for name in ("twice the steps", f"{many} restarts")},
    ),
    checks.large_radius(large, float(left.mean())),
    *([checks.converged(best, f"PGD-{num_steps}")] if best and num_steps >= 10 else []),
  ]
  findings = [checks.at(finding, epsilon, "pgd") for finding in findings] + [
    checks.at(checks.gradients(found, where), epsilon, "pgd", where)
    for where, found in health.items()
    if found["count"]
  ]  # PGD may have left no image to look at
  return {
    "epsilon": epsilon,
    "norm": norm,
    "count": len(images.rows),
    "robust": shares,
    "health": health,
    "large_radius": {"epsilon": large, **statistics.proportion(left.sum(), len(left))},
    "best_loss": best,
    "findings": findings,
  }


def health_along(subject, split, spec, epsilon):
  """{where: `gradients.health`} at the images, at PGD's start, and halfway through its steps."""
  compiled = gradients.health_fn(subject.model, subject.mesh)
  found = {}
  for where, steps in (
    ("at the images", None),
    ("at the start of PGD", 0),
    ("halfway through PGD", max(spec.num_steps // 2, 1)),
  ):
    points = to_float(split.images)
    if steps is not None:
      points = accuracy.map_batches(
        functools.partial(
          _points_fn(subject.model, spec, steps, subject.mesh),
          subject.variables,
          np.float32(epsilon),
        ),
        (points, split.labels, np.arange(len(points), dtype=np.int32)),
        subject.batch_size,
        subject.mesh,
      )
    found[where] = gradients.health(
      compiled,
      subject.variables,
      points,
      split.labels,
      subject.num_classes,
      subject.batch_size,
      subject.mesh,
    )
  return found


def _points_fn(model, spec, steps, mesh):
  """Compiles (variables, epsilon, images, labels, indices) -> where PGD is after some steps."""

  def run(variables, epsilon, images, labels, indices):
    return attacks.pgd(
      jax.random.fold_in(robustness.root_key(spec.seed), 0),
      accuracy.predict_fn(model, variables),
      images,
      labels,
      epsilon=epsilon,
      step_size=spec.step_size,
      num_steps=steps,
      norm=spec.norm,
      loss=spec.loss,
      keep="last",
      indices=indices,
    )

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def best_loss(subject, images, spec, epsilon):
  """Mean running best loss of PGD's first start over the images classified correctly; [] without any."""
  rows = np.flatnonzero(images.clean_correct)
  if not len(rows):
    return []
  trace = probes.trace_fn(subject.model, spec, subject.mesh)
  found = accuracy.map_batches(
    lambda x, labels, indices: trace(
      subject.variables, np.float32(epsilon), 0, to_float(x), labels, indices
    ),
    (images.split.images[rows], images.split.labels[rows], rows.astype(np.int32)),
    subject.batch_size,
    subject.mesh,
  )
  return found[..., 0].mean(0, dtype=np.float64).tolist()
