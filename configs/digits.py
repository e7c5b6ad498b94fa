"""SPROUT on the embedded handwritten digits: offline, on a CPU.

    python launch.py --config configs/digits.py --workdir runs/digits
    python launch.py --config configs/digits.py:method=natural --workdir runs/digits_natural

A run takes half a minute on 2 CPU cores. With 3 seeds (benchmarks/results/digits_*), SPROUT has
98.2 % clean accuracy and 77.8 % accuracy under PGD-20 at epsilon 0.1. Natural training has 97.9 %
and 58.2 %.

The arguments are method and penalty (rows of configs/methods.py), variant (of SPROUT: paper |
algorithm1 | released), model, and epochs (the warm-up keeps its share). Attacks in training have a
perturbation budget of 0.1. Method "free" replays each minibatch 8 times, and its authors use an
eighth of the epochs: epochs=8.
"""

import ml_collections

from sprout_jax.configs import default
from sprout_jax.configs import methods
from sprout_jax.launcher.configuration import parse_arguments
from sprout_jax.launcher.configuration import positive_integer


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
  """Returns the config of the digits; the text at the top of this file lists the arguments."""
  given = parse_arguments(
    arguments, model="small_cnn", method="sprout", variant="paper", penalty="none", epochs="60"
  )
  config = default.get_config(given["method"], given["variant"], given["penalty"])
  methods.set_radius(config, 0.1)
  if "h" in config.penalty:
    config.penalty.h = 0.7  # same share of the ball's L2 size (0.8) as on CIFAR-10 at 8/255
  config.model.name = given["model"]
  config.num_epochs = positive_integer("epochs", given["epochs"])
  config.batch_size = 64
  config.log_every = 21
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_epochs = config.num_epochs / 30
  config.dataset.name = "digits"
  config.checkpoint.every_epochs = 10
  config.evaluation.epsilons = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
  # PGD with 20 steps of 0.03 and one restart is too weak: it fails the check "effort".
  config.evaluation.num_steps = 50
  config.evaluation.step_size = (
    0.01  # for Linf at 0.1; 0 fits other norms and budgets (epsilon / 4)
  )
  config.evaluation.num_restarts = 5
  config.evaluation.epsilon = 0.1
  config.evaluation.strength.num_examples = 100
  config.evaluation.smoothing.update(num_examples=100, n=10_000)
  return config
