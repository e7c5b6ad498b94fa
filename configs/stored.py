"""The config of a trained workdir, so that single values of its evaluation can be changed.

    python launch.py --mode evaluate --workdir DIR --config configs/stored.py:DIR --config.evaluation.num_steps=100

What the evaluation section of an earlier version lacks has its default.
"""

from configs import evaluation
from sprout_jax import configuration
from sprout_jax import workdir


def get_config(folder):
  config = workdir.read_config(folder)
  with config.unlocked():
    stored, config.evaluation = config.evaluation, evaluation.get_config()
    config.evaluation.update(configuration.known(stored, config.evaluation))
  return config.lock()
