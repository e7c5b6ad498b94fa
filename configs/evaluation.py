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
  # because it needs transfer.sources.
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
  for name, default in table.defaults().items():
    config[name] = ml_collections.ConfigDict(default) if isinstance(default, dict) else default
  return config
