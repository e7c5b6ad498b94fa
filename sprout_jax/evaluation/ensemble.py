"""AutoAttack on a trained model: entries of results.json, and the state that a kill leaves."""

import pathlib

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import statistics


def entries(model, variables, split, *, version, norm, epsilons, seed, batch_size, folder,
            on_progress=lambda progress: None):
  """Worst-case accuracy under AutoAttack for each radius.

  Args:
    model, variables: the Flax module and its variables.
    split: the images, from `robustness.select`.
    version, norm, batch_size: as in `attacks.auto_attack`.
    epsilons: radii in pixel units.
    seed: of the attacks' random numbers.
    folder: of these weights alone: the state is kept there, and the same call continues from it.
    on_progress: called with an `auto_attack.Progress`.

  Returns:
    List of entries of results.json's "attacks".
  """
  predict = accuracy.predict_fn(model, variables)
  images = np.asarray(to_float(split.images))
  found = []
  for epsilon in epsilons:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    result = attacks.auto_attack(
        jax.random.key(seed), predict, images, split.labels, epsilon=epsilon, norm=norm,
        version=version, batch_size=batch_size, on_progress=on_progress,
        # Whose weights these are is the folder's name.
        state_file=pathlib.Path(folder) / f"autoattack-{version}_{norm}_{epsilon:g}_{seed}.npz")
    found.append({
        "name": f"autoattack-{version}", "norm": norm, "epsilon": float(epsilon),
        "steps": 100, "restarts": 1, "seed": seed,
        **statistics.proportion(result.robust.sum(), len(result.robust)),
        "per_attack": {name: float(robust.mean()) for name, robust in result.per_attack.items()},
        "spec": result.spec})
  return found
