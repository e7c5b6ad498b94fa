"""Accuracy under the union of threat models: robust in Linf, in L2 and in L1."""

import functools
from typing import Annotated
from typing import Any

import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import auto_attack
from sprout_jax.evaluation.options import PIXELS
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def evaluate_union(
  subject: Subject,
  *,
  num_examples: NumExamples,
  version: auto_attack.Version = "standard",
  linf: Annotated[float, Option(f"Linf budget, {PIXELS}", 1e-9, 1)] = 8 / 255,
  l2: Annotated[float, Option(f"L2 budget, {PIXELS}", 1e-9, np.inf)] = 0.5,
  l1: Annotated[float, Option(f"L1 budget, {PIXELS}", 1e-9, np.inf)] = 12.0,
  seed: Seed,
) -> Measurement:
  """Measures the share of images that are robust in Linf, L2 and L1 at once, under AutoAttack.

  An image counts as robust if no attack in any of the three balls breaks it. The norms run in this
  order, each on the images that are robust so far.
  """
  images = subject.select(num_examples)
  robust = np.array(images.correct, bool)
  numbers: list[Number] = []
  threats: list[str] = []
  specs: list[dict[str, Any]] = []
  with auto_attack.bars(subject) as on_progress:
    for norm, epsilon in (("linf", linf), ("l2", l2), ("l1", l1)):
      rows = np.flatnonzero(robust)
      if len(rows):
        found = subject.memo(
          f"{norm} {epsilon!r}",
          functools.partial(
            auto_attack.measure,
            subject,
            images.take(rows),
            functools.partial(attacks.auto_attack, version=version),
            norm,
            epsilon,
            seed,
            functools.partial(on_progress, epsilon),
            False,
            norm,
            rows,
          ),
        )
        robust[rows] = found["robust"]
        specs.append({"norm": norm, "epsilon": epsilon, "spec": found["spec"]})
      threats.append(f"{norm} {epsilon:.6g}")
      keys: dict[str, Any] = dict(attack="auto_attack", version=version, seed=seed)
      numbers.append(accuracy(robust.copy(), images.indices, threats=", ".join(threats), **keys))
  return Measurement(Numbers(reversed(numbers)), {"specs": specs})
