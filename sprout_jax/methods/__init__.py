"""Robust-training methods: METHODS, the paper's Table 1 as code, and PENALTIES to add to any.

A method draws images and labels from a vicinity of each example, may probe the model (an attack),
and has a loss: see `methods.method.Method`. To add one: write a function that takes
its options as keyword arguments and returns a `Method`, give it a row in `METHODS`, and its options
a row in `configs/methods.py`.
"""

import inspect

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.methods import adversarial
from sprout_jax.methods import penalties
from sprout_jax.methods import sprout
from sprout_jax.methods import vicinal
from sprout_jax.methods.method import Adversary
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import Network

METHODS = {
  "natural": vicinal.natural,
  "gaussian": vicinal.gaussian,
  "label_smoothing": vicinal.label_smoothing,
  "label_smoothing_gaussian": vicinal.label_smoothing_gaussian,
  "mixup": vicinal.mixup,
  "stable": vicinal.stable,
  "sprout": sprout.sprout,
  "pgd": adversarial.pgd,
  "fast": adversarial.fast,
  "free": adversarial.free,
  "trades": adversarial.trades,
  "bilateral": adversarial.bilateral,
}

PENALTIES = {
  "none": penalties.none,
  "gradient_norm": penalties.gradient_norm,
  "cure": penalties.cure,
}


def create(name, options):
  """Builds a method from its name and a dictionary of options.

  Raises:
    UserError: unknown method (the choices are listed), or options that it does not take or misses.
  """
  return _create("method", METHODS, name, options)


def create_penalty(name, options):
  """Builds a penalty, (network, x, y) -> [batch], as `create` does a method."""
  return _create("penalty", PENALTIES, name, options)


def _create(kind, table, name, options):
  check_choice(f"config.{kind}.name", name, table)
  expected = set(inspect.signature(table[name]).parameters)
  if expected != set(options):
    raise UserError(
      f"{kind} {name!r} takes the options {sorted(expected)}, not {sorted(options)}; choose the "
      f"{kind} with the config file's argument, which brings its options along: "
      f"--config configs/digits.py:{kind}={name}"
    )
  return table[name](**options)


__all__ = ["METHODS", "PENALTIES", "Adversary", "Method", "Network", "create", "create_penalty"]
