"""AutoAttack on a trained model: entries of results.json, and the state that a kill leaves."""

import functools
import pathlib

import numpy as np

from sprout_jax import attacks
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness


def entries(model, variables, split, *, version, norm, epsilons, seed, batch_size, folder,
            on_progress=lambda epsilon, progress: None):
  """Worst-case accuracy under AutoAttack for each radius.

  Args:
    model, variables: the Flax module and its variables.
    split: the images, from `robustness.select`.
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
        robustness.root_key(seed), predict, images, split.labels, epsilon=epsilon, norm=norm,
        version=version, batch_size=batch_size, on_progress=functools.partial(on_progress, epsilon),
        state_file=pathlib.Path(folder) / f"autoattack-{version}_{norm}_{epsilon!r}_{seed}.npz")
    found.append({
        "name": f"autoattack-{version}", "norm": norm, "epsilon": float(epsilon),
        # Of the attacks with gradients, where there are any.
        "steps": min(entry["steps"] for entry in result.spec["attacks"].values()),
        "restarts": attacks.RESTARTS.get(version, 1), "seed": seed,
        **result.spec["robust"],
        "per_attack": {name: float(robust.mean()) for name, robust in result.per_attack.items()},
        "spec": result.spec})
  return found
