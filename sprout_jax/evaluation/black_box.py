"""Perturbations that do not use the model's gradients: random noise, and those of another model."""

import functools

import numpy as np

from sprout_jax import statistics
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import probes
from sprout_jax.evaluation import robustness


def evaluate_noise(subject, *, num_examples, norm, epsilons, num_draws, seed):
  """Row "noise" of `EVALUATIONS`: the worst of random perturbations as large as an attack's."""
  images = subject.select(num_examples)
  attack = robustness.attack_fn(
    subject.model, functools.partial(probes.noise, num_draws=num_draws), norm, seed, subject.mesh
  )

  def entry(epsilon):
    robust = robustness.outcomes(
      attack,
      subject.variables,
      images.split,
      images.clean_correct,
      epsilon,
      subject.batch_size,
      subject.mesh,
      "noise",
    )
    return {
      "name": f"noise-{num_draws}",
      "norm": norm,
      "epsilon": float(epsilon),
      "draws": num_draws,
      "seed": seed,
      **statistics.proportion(robust.sum(), len(robust)),
    }

  with subject.progress("noise", len(epsilons), "radii") as bar:
    entries = []
    for epsilon in epsilons:
      entries.append(subject.memo(f"epsilon {epsilon!r}", lambda epsilon=epsilon: entry(epsilon)))
      bar(len(entries), f"epsilon {epsilon:g}")
  return {"entries": entries}


def evaluate_transfer(
  subject, *, num_examples, norm, epsilon, num_steps, step_size, num_restarts, loss, sources, seed
):
  """Row "transfer" of `EVALUATIONS`: PGD on the models of other workdirs, tried on this one.

  Beside them, what PGD on the model itself leaves: a transfer must not break more. `sources` are pairs of a
  workdir and the SHA-256 of its weights.
  """
  spec = robustness.PgdSpec(norm, num_steps, step_size, num_restarts, loss, seed)
  images = subject.select(num_examples)

  def outcomes(attack, variables, name):
    return robustness.outcomes(
      attack,
      variables,
      images.split,
      images.clean_correct,
      epsilon,
      subject.batch_size,
      subject.mesh,
      name,
      num_restarts,
    )

  white_box = np.array(
    subject.memo(
      "white box",
      lambda: outcomes(
        robustness.pgd_fn(subject.model, spec, subject.mesh), subject.variables, "PGD"
      ).tolist(),
    )
  )
  found, robust = [], {}
  with subject.progress("transfer", len(sources), "models") as bar:
    for workdir, sha256 in sources:
      source = subject.load(workdir)
      robust[f"transfer from {source.label} ({sha256[:12]})"] = mask = np.array(
        subject.memo(
          f"{workdir} {sha256}",
          lambda source=source: outcomes(
            robustness.pgd_fn(subject.model, spec, subject.mesh, source.model),
            (subject.variables, source.variables),
            "transfer",
          ).tolist(),
        )
      )
      entry = spec.entry(float(epsilon), mask)
      found.append(
        {
          "workdir": workdir,
          "label": source.label,
          "parameters_sha256": source.sha256,
          "entries": [entry | {"name": f"transfer-{entry['name']}"}],
        }
      )
      bar(len(found), source.label)
  return {
    "sources": found,
    "white_box": spec.entry(float(epsilon), white_box),
    "findings": [checks.black_box(white_box, robust)],
  }
