"""The config of a run that is there, to start another from it.

python launch.py --config configs/stored.py:runs/a --workdir runs/b --config.seed=1
"""

import pathlib

from sprout_jax.launcher import trained


def get_config(folder):
  return trained.read_config(pathlib.Path(folder).expanduser()).copy_and_resolve_references().lock()
