"""The config of a stored run, as the start of another run.

python launch.py --config configs/stored.py:runs/a --workdir runs/b --config.seed=1
"""

import pathlib

import ml_collections

from sprout_jax.launcher import trained


def get_config(folder: str) -> ml_collections.ConfigDict:
  """Returns the config of the run in `folder`."""
  return trained.read_config(pathlib.Path(folder).expanduser()).copy_and_resolve_references().lock()
