"""Which options the evaluations have, and whether a config's values make sense."""

import inspect
import math

from sprout_jax import attacks
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.evaluation import EVALUATIONS
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.invariance import SOURCES
from sprout_jax.evaluation.transformations import TRANSFORMATIONS

# Of every key of these names, shared or of a section: the smallest and the largest value.
RANGES = {
  "num_examples": (0, math.inf),
  "num_steps": (0, math.inf),
  "step_size": (1e-6, math.inf),
  "num_restarts": (1, math.inf),
  "seed": (0, 2**32 - 1),
  "num_draws": (1, math.inf),
  "sigma": (1e-6, 100),
  "n0": (1, 2**30),
  "n": (1, 2**30),
  "alpha": (1e-12, 0.5),
  "num_bins": (1, 10_000),
  "num_points": (2, 10_000),
  "noise_stddev": (0, 100),
  "mixup_alpha": (0, math.inf),
  "label_weight": (0, math.inf),
  "beta_weight": (0, math.inf),
  "num_inner": (2, math.inf),
}
CHOICES = {
  "norm": attacks.NORMS,
  "loss": attacks.LOSSES,
  "source": SOURCES,
  # A model that draws random numbers is not what is trained here.
  "version": [*attacks.VERSIONS.keys() - {"rand"}, *attacks.ATTACKS],
}
# Of every entry of a tuple.
ENTRIES = {"losses": attacks.LOSSES, "transformations": TRANSFORMATIONS, "corruptions": CORRUPTIONS}
COUNTS = ("steps", "restarts")  # tuples of integers that ascend


def options(name, config):
  """The options of a row, {keyword: value}, from an evaluation config: its own section, else the shared keys."""
  keywords = [
    parameter.name
    for parameter in inspect.signature(EVALUATIONS[name]).parameters.values()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  ]
  own = config[name] if name in config else ()
  return {keyword: own[keyword] if keyword in own else config[keyword] for keyword in keywords}


def validate(config):
  """Raises UserError for a value of `config.evaluation` that is unknown or out of range."""
  for key in ("after_training", "evaluations"):
    for name in config[key]:
      check_choice(f"config.evaluation.{key}: an entry", name, EVALUATIONS)
  if "transfer" in (*config.after_training, *config.evaluations) and not config.transfer.sources:
    raise UserError(
      "the evaluation 'transfer' needs other runs to transfer from: set e.g. "
      "--config.evaluation.transfer.sources=\"('runs/natural',)\""
    )
  sections = {name: config[name] for name in EVALUATIONS if name in config}
  shared = {key: value for key, value in config.items() if key not in sections}
  for where, section in [
    ("config.evaluation", shared),
    *((f"config.evaluation.{name}", section) for name, section in sections.items()),
  ]:
    for key, value in section.items():
      _check(f"{where}.{key}", key, value, config.norm)
  check_range("config.evaluation.examples.num_examples", config.examples.num_examples, 1, 100)


def _check(where, key, value, norm):
  largest = 1 if norm == "linf" else math.inf
  if key in RANGES:
    check_range(where, value, *RANGES[key])
  elif key == "epsilon":
    check_range(where, value, 1e-9, largest, unit="(pixels are in [0, 1])")
  elif key in CHOICES:
    check_choice(where, value, CHOICES[key])
  elif key in ENTRIES:
    for entry in value:
      check_choice(f"{where}: an entry", entry, ENTRIES[key])
  elif key in COUNTS:
    for entry in value:
      check_range(f"{where}: an entry", entry, 1, math.inf)
      if not isinstance(entry, int):
        raise UserError(f"{where}: an entry is {entry!r}; it must be an integer")
  elif key in ("epsilons", "radii"):
    for entry in value:
      check_range(
        f"{where}: an entry",
        entry,
        0,
        largest if key == "epsilons" else math.inf,
        unit="(pixels are in [0, 1])",
      )
  else:
    return
  if isinstance(value, (tuple, list)):
    if not value:
      raise UserError(f"{where} is empty; give at least one, e.g. {EXAMPLES[key]}")
    if key not in ENTRIES and list(value) != sorted(set(value)):
      raise UserError(f"{where} is {tuple(value)}; the values must be different and ascend")


EXAMPLES = {
  "epsilons": "(0.0, 0.03)",
  "radii": "(0.0, 0.25)",
  "steps": "(20, 100)",
  "restarts": "(1, 10)",
  "losses": "('cross_entropy',)",
  "transformations": "('rotation',)",
  "corruptions": "('fog',)",
}
