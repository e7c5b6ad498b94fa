"""Robust-training methods: METHODS, the paper's Table 1 as code, and PENALTIES for any of them.

A method draws images and labels from a vicinity of each example, may probe the model (an attack),
and has a loss, see `Method`. To add one, write a function that takes its options as keyword
arguments and returns a `Method`. Give it a row in `METHODS`, and its options a row in
`configs/methods.py`.
"""

import inspect
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.methods import adversarial
from sprout_jax.methods import penalties
from sprout_jax.methods import sprout
from sprout_jax.methods import vicinal
from sprout_jax.methods.method import Adversary
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import Network
from sprout_jax.methods.method import Penalty

METHODS: dict[str, Callable[..., Method]] = {
  "natural": vicinal.natural,
  "gaussian": vicinal.gaussian,
  "label_smoothing": vicinal.label_smoothing,
  "label_smoothing_gaussian": vicinal.label_smoothing_gaussian,
  "mixup": vicinal.mixup,
  "stable": vicinal.stable,
  "sprout": sprout.sprout,
  "pgd": adversarial.pgd,
  "fast": adversarial.fast,
  "n_fgsm": adversarial.n_fgsm,
  "free": adversarial.free,
  "trades": adversarial.trades,
  "bilateral": adversarial.bilateral,
}

PENALTIES: dict[str, Callable[..., Penalty | None]] = {
  "none": penalties.none,
  "gradient_norm": penalties.gradient_norm,
  "cure": penalties.cure,
}


def create(name: str, options: Mapping[str, Any]) -> Method:
  """Creates a method from its name and its options.

  Args:
    name: a key of `METHODS`.
    options: option name -> value; exactly the keyword arguments of the row's function.

  Raises:
    UserError: an unknown method (the choices are listed), or options that are missing or unknown or
      have a wrong value. It is a ValueError.
  """
  _check("method", METHODS, name, options)
  return METHODS[name](**options)


def create_penalty(name: str, options: Mapping[str, Any]) -> Penalty | None:
  """Creates a penalty from its name and its options, as `create` does a method; None for "none".

  Args:
    name: a key of `PENALTIES`.
    options: option name -> value; exactly the keyword arguments of the row's function.

  Raises:
    UserError: an unknown penalty (the choices are listed), or options that are missing or unknown
      or have a wrong value. It is a ValueError.
  """
  _check("penalty", PENALTIES, name, options)
  return PENALTIES[name](**options)


def _check(
  kind: str, table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]
) -> None:
  """Raises UserError unless the table has the name, and its function takes these options."""
  check_choice(f"config.{kind}.name", name, table)
  expected = set(inspect.signature(table[name]).parameters)
  if expected != set(options):
    raise UserError(
      f"{kind} {name!r} takes the options {sorted(expected)}, not {sorted(options)}; choose the "
      f"{kind} with the config file's argument, which sets its options too: "
      f"--config configs/digits.py:{kind}={name}"
    )


__all__ = [
  "METHODS",
  "PENALTIES",
  "Adversary",
  "Method",
  "Network",
  "Penalty",
  "create",
  "create_penalty",
]
