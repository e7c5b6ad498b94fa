"""The options of every method and penalty, with the defaults of the papers they come from.

METHOD_OPTIONS and PENALTY_OPTIONS have a row for each row of `sprout_jax.methods`' tables: a
function variant -> ConfigDict, whose keys are the keyword arguments there. Only SPROUT has variants
other than "paper".
"""

import ml_collections
from ml_collections import config_dict

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice

EPSILON = 8 / 255  # the radius in Linf that CIFAR-10 is usually attacked with


def _options(**values):
  """A row without variants."""

  def build(variant):
    if variant != "paper":
      raise UserError(
        f"variant is {variant!r}, but only method 'sprout' has variants: "
        f"{', '.join(SPROUT_VARIANTS)}"
      )
    return ml_collections.ConfigDict(values)

  return build


def _sprout(variant):
  """SPROUT's options; "released" differs from Algorithm 1 as its code does."""
  method = ml_collections.ConfigDict()
  method.noise_stddev = 0.1  # of the Gaussian noise, in pixel units
  method.mixup_alpha = 0.2  # parameter of mixup's Beta distribution; 0 = no mixup
  method.concentration = "paper"  # "paper" | "algorithm1" | "released"
  # Weight of beta in the concentration ("algorithm1": of the label); None = 0.01; "released" has
  # none.
  method.alpha = config_dict.placeholder(float)
  method.draw = "sample"  # of the labels: "sample" | "mean" (closed form)
  method.label_draws = 1  # 1: one Dirichlet of the mixed label; 2: one per partner, then mixed
  method.steps_per_batch = 1  # model updates per minibatch
  method.beta_batch = "same"  # what beta ascends on: the model's batch ("same") or the "clean" one
  method.beta = ml_collections.ConfigDict()
  method.beta.init = "uniform"  # "uniform" on (0, 1) | "ones"
  method.beta.minimum = 1e-3  # beta is projected on [minimum, infinity) after every update
  method.beta.learning_rate = 0.01  # peak; follows the model's schedule
  method.beta.momentum = 0.9
  method.beta.weight_decay = 0.0
  check_choice("variant", variant, SPROUT_VARIANTS)
  method.update(SPROUT_VARIANTS[variant])
  return method


SPROUT_VARIANTS = {
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

# Radii, step sizes and standard deviations are in pixel units. batch_norm says how the passes of an
# attack (or penalty) treat batch norm: "train": with the statistics of the images in the pass,
# "eval": with the running ones.
METHOD_OPTIONS = {
  "natural": _options(),
  "sprout": _sprout,
  # SPROUT's paper has a standard deviation of 0.1 throughout.
  "gaussian": _options(noise_stddev=0.1),
  "label_smoothing": _options(alpha=0.1),  # Szegedy et al. 2016
  "label_smoothing_gaussian": _options(noise_stddev=0.1, alpha=0.1),
  "mixup": _options(mixup_alpha=1.0),  # Zhang et al. 2018, CIFAR-10 (SPROUT: 0.2)
  # alpha as in SPROUT's paper and in Zheng et al. 2016.
  "stable": _options(noise_stddev=0.1, alpha=0.01, batch_norm="train"),
  # Madry et al. 2018 in the form that Rice, Wong, Kolter ("Overfitting in adversarially robust deep
  # learning", ICML 2020) made common: 10 steps of 2/255, the attack in training mode.
  "pgd": _options(
    epsilon=EPSILON,
    step_size=2 / 255,
    num_steps=10,
    norm="linf",
    start="uniform",
    batch_norm="train",
  ),
  "fast": _options(epsilon=EPSILON, step_size=10 / 255, batch_norm="train"),  # Wong et al. 2020
  "free": _options(epsilon=EPSILON, replays=8),  # Shafahi et al. 2019
  # Zhang et al. 2019: 1 / lambda = 6, and the authors' code: 0.031, 0.007, evaluation mode.
  "trades": _options(
    epsilon=0.031, step_size=0.007, num_steps=10, beta=6.0, start="gaussian", batch_norm="eval"
  ),
  # Wang & Zhang 2019: one step; the true class keeps 9 times the largest wrong entry.
  "bilateral": _options(
    epsilon=EPSILON, step_size=EPSILON, num_steps=1, ratio=9.0, batch_norm="eval"
  ),
}

PENALTY_OPTIONS = {
  "none": _options(),
  # Best with a smooth config.model.activation.
  "gradient_norm": _options(epsilon=EPSILON, norm="linf", batch_norm="train"),
  # Moosavi-Dezfooli et al. 2019: h = 1.5, in pixel units about the L2 size of the Linf ball. Their
  # code has 4 times the norm, in evaluation mode, of images divided by about 0.2: 0.8 in pixel
  # units. (Read in the same way, its h would be 0.3; on the digits that was 10 points less robust.)
  "cure": _options(weight=0.8, h=1.5, squared=False, batch_norm="eval"),
}


def build(table, kind, name, variant="paper"):
  """The options of one row, with its name.

  Raises:
    UserError: unknown name or variant; the choices are listed.
  """
  check_choice(kind, name, table)
  section = table[name](variant)
  section.name = name
  return section


def set_radius(config, epsilon):
  """Rescales the radius and the step size of whatever the method and the penalty attack with."""
  for section in (config.method, config.penalty):
    if "epsilon" in section:
      if "step_size" in section:
        section.step_size *= epsilon / section.epsilon
      section.epsilon = epsilon
