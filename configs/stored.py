"""The config of a trained workdir, so that single values of its evaluation can be changed.

    python launch.py --mode evaluate --workdir DIR --config configs/stored.py:DIR --config.evaluation.num_steps=100
"""

from sprout_jax import workdir


def get_config(folder):
  return workdir.read_config(folder)
