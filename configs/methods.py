"""The options of every method and penalty, with the defaults of their papers.

METHOD_OPTIONS and PENALTY_OPTIONS have a row for each row of the tables in `sprout_jax.methods`. A
row is a function variant -> ConfigDict. Its keys are the keyword arguments of the method or
penalty. Only SPROUT has variants other than "paper".
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice

Build = Callable[[str], ml_collections.ConfigDict]  # variant -> options
EPSILON = 8 / 255  # the usual perturbation budget in Linf on CIFAR-10


def _options(**values: Any) -> Build:
  """Makes a row without variants."""

  def build(variant: str) -> ml_collections.ConfigDict:
    if variant != "paper":
      raise UserError(
        f"variant is {variant!r}, but only method 'sprout' has variants "
        f"({', '.join(SPROUT_VARIANTS)}); leave variant out"
      )
    return ml_collections.ConfigDict(values)

  return build


def _sprout(variant: str) -> ml_collections.ConfigDict:
  """Makes SPROUT's options. "released" follows the authors' code, not the paper's Algorithm 1."""
  method = ml_collections.ConfigDict()
  method.noise_stddev = 0.1  # Standard deviation of the Gaussian noise, in pixel units.
  method.mixup_alpha = 0.2  # Parameter of mixup's Beta distribution; 0 = no mixup.
  # Form of the Dirichlet concentration: "paper", "algorithm1" or "released".
  method.concentration = "paper"
  # Weight in the concentration: of beta for "paper", of the label for "algorithm1". None = 0.01.
  # "released" has no weight and needs None.
  method.alpha = config_dict.placeholder(float)
  # Labels: "sample" draws them from the Dirichlet distribution, "mean" takes its mean.
  method.draw = "sample"
  # Draws of the label. 1: one for the mixed label. 2: one for each mixup partner, mixed afterwards.
  method.label_draws = 1
  method.steps_per_batch = 1  # Updates of the model per minibatch, at least 1.
  # Batch of beta's gradient: "same" (the model's batch) or "clean" (without noise and mixup).
  method.beta_batch = "same"
  # The optimizer of beta, SGD, and its start.
  method.beta = ml_collections.ConfigDict()
  method.beta.init = "uniform"  # Initial beta: "uniform" on (0, 1), or "ones".
  # Smallest beta; each update is projected on [minimum, inf). The released code cuts the
  # concentration at 0 instead, not beta.
  method.beta.minimum = 1e-3
  method.beta.learning_rate = 0.01  # Peak learning rate of beta, with the model's schedule.
  method.beta.momentum = 0.9  # Momentum of beta's optimizer.
  method.beta.weight_decay = 0.0  # Weight decay of beta, added to its gradient.
  check_choice("variant", variant, SPROUT_VARIANTS)
  method.update(SPROUT_VARIANTS[variant])
  return method


SPROUT_VARIANTS: dict[str, dict[str, Any]] = {
  "paper": {},
  "algorithm1": {"concentration": "algorithm1"},
  "released": {
    "concentration": "released",
    "label_draws": 2,
    "steps_per_batch": 3,
    "beta_batch": "clean",
    "beta": {"init": "ones", "weight_decay": 5e-4},
  },
}

# Perturbation budgets, step sizes and standard deviations are in pixel units. batch_norm is the
# mode of batch norm in the passes of an attack or penalty: "train" uses the statistics of the
# images in the pass, "eval" the running statistics.
METHOD_OPTIONS: dict[str, Build] = {
  "natural": _options(),
  "sprout": _sprout,
  # SPROUT's paper uses a standard deviation of 0.1 for all methods.
  "gaussian": _options(noise_stddev=0.1),
  "label_smoothing": _options(alpha=0.1),  # Szegedy et al. 2016
  "label_smoothing_gaussian": _options(noise_stddev=0.1, alpha=0.1),
  "mixup": _options(mixup_alpha=1.0),  # Zhang et al. 2018, CIFAR-10 (SPROUT: 0.2)
  # alpha as in SPROUT's paper and in Zheng et al. 2016.
  "stable": _options(noise_stddev=0.1, alpha=0.01, batch_norm="train"),
  # Madry et al. 2018 in the common form of Rice, Wong, Kolter ("Overfitting in adversarially robust
  # deep learning", ICML 2020): 10 steps of 2/255, with the attack in training mode.
  "pgd": _options(
    epsilon=EPSILON,
    step_size=2 / 255,
    num_steps=10,
    norm="linf",
    start="uniform",
    batch_norm="train",
  ),
  "fast": _options(epsilon=EPSILON, step_size=10 / 255, batch_norm="train"),  # Wong et al. 2020
  # de Jorge et al. 2022: a start of twice the radius, a step of one radius.
  "n_fgsm": _options(epsilon=EPSILON, step_size=EPSILON, noise=2.0, batch_norm="train"),
  "free": _options(epsilon=EPSILON, replays=8),  # Shafahi et al. 2019
  # Zhang et al. 2019: 1 / lambda = 6. From the authors' code: 0.031, 0.007, evaluation mode.
  "trades": _options(
    epsilon=0.031, step_size=0.007, num_steps=10, beta=6.0, start="gaussian", batch_norm="eval"
  ),
  # Wang & Zhang 2019: one step; the true class has at least 9 times the largest wrong entry.
  "bilateral": _options(
    epsilon=EPSILON, step_size=EPSILON, num_steps=1, ratio=9.0, batch_norm="eval"
  ),
}

PENALTY_OPTIONS: dict[str, Build] = {
  "none": _options(),
  # It works best with a smooth config.model.activation.
  "gradient_norm": _options(epsilon=EPSILON, norm="linf", batch_norm="train"),
  # Moosavi-Dezfooli et al. 2019: h = 1.5. In pixel units, this is about the L2 size of the Linf
  # ball. The authors' code weights the norm by 4, in evaluation mode, on images divided by about
  # 0.2. This is 0.8 in pixel units. The same conversion would give h = 0.3, but on the digits the
  # robust accuracy was then 10 points lower.
  "cure": _options(weight=0.8, h=1.5, squared=False, batch_norm="eval"),
}


def build(
  table: Mapping[str, Build], kind: str, name: str, variant: str = "paper"
) -> ml_collections.ConfigDict:
  """Builds the options of one row, with the name of the row.

  Args:
    table: METHOD_OPTIONS or PENALTY_OPTIONS.
    kind: "method" or "penalty", for messages.
    name: a key of the table.
    variant: the variant of SPROUT; "paper" for all other rows.

  Raises:
    UserError: an unknown name or variant; the choices are listed.
  """
  check_choice(kind, name, table)
  section = table[name](variant)
  section.name = name
  return section


def set_radius(config: ml_collections.ConfigDict, epsilon: float) -> None:
  """Sets the perturbation budget of the method and the penalty, and rescales their step sizes."""
  for section in (config.method, config.penalty):
    if "epsilon" in section:
      if "step_size" in section:
        section.step_size *= epsilon / section.epsilon
      section.epsilon = epsilon
