"""The exceptions for users, which are shown as one message without a traceback."""

import difflib
import math
from collections.abc import Collection
from typing import Any


class UserError(ValueError):
  """Wrong input. The message says what is wrong, what was expected, and what to type."""


class ProcessLost(UserError):
  """Another process does not answer. End with `os._exit`: JAX's shutdown would wait for it."""


class EvaluationFailed(RuntimeError):
  """Evaluations ended in errors that are no `UserError`. All others were measured."""


class TrainingDiverged(RuntimeError):
  """The loss or the gradient is not finite. The message names the step and the kept checkpoint."""


def did_you_mean(name: str, names: Collection[str]) -> str:
  """Returns " Did you mean 'OTHER'?" for the nearest of the names, or "" if none is near."""
  nearest = difflib.get_close_matches(name, names, n=1)
  return f" Did you mean {nearest[0]!r}?" if nearest else ""


def check_choice(what: str, value: Any, choices: Collection[Any]) -> None:
  """Raises UserError, which lists the choices, unless `value` is one of them."""
  if value not in choices:
    raise UserError(f"{what} is {value!r}; choose one of: {', '.join(map(str, sorted(choices)))}")


def check_range(what: str, value: Any, low: float, high: float, *, unit: str = "") -> None:
  """Raises UserError unless `value` is a finite number with low <= value <= high."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not (is_number and math.isfinite(value) and low <= value <= high):
    span = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
    raise UserError(f"{what} is {value!r}; it must be a number {span}{unit and ' ' + unit}")
