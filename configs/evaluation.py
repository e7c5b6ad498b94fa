"""The evaluation of a trained model: the keys of `config.evaluation`.

The functions in `sprout_jax.evaluation.EVALUATIONS` declare their options, with meaning, ranges and
defaults. Options that several evaluations share are keys of `config.evaluation`. The others are
keys of the evaluation's own section. Results are stored with their options. A changed value
therefore repeats only the evaluations that use it.
"""

import ml_collections

from sprout_jax.evaluation import table


def get_config() -> ml_collections.ConfigDict:
  """Returns the section `config.evaluation`."""
  config = ml_collections.ConfigDict()
  # Checkpoint to evaluate: "best" on the validation split, or "last". Without a validation split,
  # "best" is the last.
  config.checkpoint = "best"
  # Whether the moving average of the weights is evaluated; needs config.ema_decay above 0.
  config.use_ema = False
  config.batch_size = 256  # Images per compiled call, over all devices.
  # Evaluations at the end of a training run, rows of EVALUATIONS.
  config.after_training = ("pgd",)
  # Evaluations of --mode evaluate, rows of EVALUATIONS. "transfer" is not among the defaults,
  # because it needs transfer.sources. "extended", "union", "estimate", "corrupted_attack",
  # "probabilistic", "random_targets" and "redraws" are asked for by name.
  config.evaluations = (
    "pgd",
    "strength",
    "noise",
    "invariance",
    "corruptions",
    "calibration",
    "gradients",
    "landscape",
    "examples",
    "sanity",
    "binarization",
    "smoothing",
    "auto_attack",
  )
  # The shared keys norm, epsilon, epsilons, num_steps, step_size, ... and the sections. step_size 0
  # means epsilon / 4, for every norm and budget. If a flag changes norm or epsilon, and no flag
  # gives epsilons, they become 0, 1/2, 1, 3/2 and 2 times epsilon.
  for name, default in table.defaults().items():
    config[name] = ml_collections.ConfigDict(default) if isinstance(default, dict) else default
  return config
