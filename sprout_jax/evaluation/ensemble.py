"""AutoAttack on a trained model: entries of results.json, and the state that a kill leaves."""

import contextlib
import functools
import pathlib

import numpy as np

from sprout_jax import attacks
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import robustness


def entries(
  model,
  variables,
  split,
  *,
  version,
  norm,
  epsilons,
  seed,
  batch_size,
  folder,
  on_progress=lambda epsilon, progress: None,
):
  """Worst-case accuracy under AutoAttack for each radius.

  Args:
    model, variables: the Flax module and its variables.
    split: the images, from `Subject.select`.
    version, norm, batch_size: as in `attacks.auto_attack`.
    epsilons: radii in pixel units.
    seed: of the attacks' random numbers.
    folder: where the state is kept, so that the same call continues after a kill; for these weights,
      images and versions alone.
    on_progress: called with the radius and an `auto_attack.Progress`.

  Returns:
    List of entries of results.json's "attacks".
  """
  predict = accuracy.predict_fn(model, variables)
  images = np.asarray(to_float(split.images))
  found = []
  for epsilon in epsilons:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    result = attacks.auto_attack(
      robustness.root_key(seed),
      predict,
      images,
      split.labels,
      epsilon=epsilon,
      norm=norm,
      version=version,
      batch_size=batch_size,
      on_progress=functools.partial(on_progress, epsilon),
      state_file=pathlib.Path(folder) / f"autoattack-{version}_{norm}_{epsilon!r}_{seed}.npz",
    )
    found.append(
      {
        "name": f"autoattack-{version}",
        "norm": norm,
        "epsilon": float(epsilon),
        # Of the attacks with gradients, where there are any.
        "steps": min(entry["steps"] for entry in result.spec["attacks"].values()),
        "restarts": attacks.RESTARTS.get(version, 1),
        "seed": seed,
        **result.spec["robust"],
        "per_attack": {name: float(robust.mean()) for name, robust in result.per_attack.items()},
        "spec": result.spec,
      }
    )
  return found


def evaluate(subject, *, num_examples, norm, version, epsilons, seed):
  """Row "auto_attack" of `EVALUATIONS`; each radius continues within an attack after a kill."""
  split = subject.select(num_examples).split
  with contextlib.ExitStack() as stack:
    bars = {}

    def on_progress(epsilon, now):
      name = f"{now.attack}, epsilon {epsilon:g}"
      if name not in bars:
        bars[name] = stack.enter_context(subject.progress(name, now.total))
      bars[name](
        int(now.work), f"run {now.run} of {now.runs}, {now.robust} of {now.examples} robust"
      )

    found = [
      entry
      for epsilon in epsilons
      for entry in subject.memo(
        f"epsilon {epsilon!r}",
        lambda epsilon=epsilon: entries(
          subject.model,
          subject.variables,
          split,
          version=version,
          norm=norm,
          epsilons=[epsilon],
          seed=seed,
          batch_size=subject.batch_size,
          folder=subject.memo.folder,
          on_progress=on_progress,
        ),
      )
    ]
  return {
    "entries": found,
    "findings": [
      checks.at(checks.square(entry["per_attack"]), entry["epsilon"], "auto_attack")
      for entry in found
      if "square" in list(entry["per_attack"])[1:]
    ],
  }
