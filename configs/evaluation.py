"""How a trained model is evaluated: the keys of `config.evaluation`.

The options of the evaluations, with their meaning, ranges and defaults, are declared where they are
used: `sprout_jax.evaluation.EVALUATIONS`. Options that several evaluations share are keys of
`config.evaluation`; the others are keys of the evaluation's section. A result is kept with the
options that it was made with: another value measures anew what it concerns, and nothing else.
"""

import ml_collections

from sprout_jax.evaluation import table


def get_config():
  config = ml_collections.ConfigDict()
  config.checkpoint = "best"  # "best" on the validation split (without one: last) | "last"
  config.use_ema = False  # the moving average of the weights
  config.batch_size = 256  # images per compiled call, over all devices together
  # Rows of EVALUATIONS that end a training run.
  config.after_training = ("pgd",)
  # Rows of EVALUATIONS that `--mode evaluate` measures. "transfer" is not among them: it needs
  # transfer.sources.
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
