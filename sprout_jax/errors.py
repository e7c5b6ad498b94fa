"""The exceptions that are meant for the user: one message, no traceback."""


class UserError(ValueError):
  """Wrong input. The message says what was wrong, what was expected, and what to type next."""


class TrainingDiverged(RuntimeError):
  """The loss or the gradient is not finite. The message names the step and what is kept."""


def check_choice(what, value, choices):
  """Raises UserError, listing the choices, unless `value` is one of them."""
  if value not in choices:
    raise UserError(f"{what} is {value!r}; choose one of: {', '.join(map(str, sorted(choices)))}")


def check_range(what, value, low, high, *, unit=""):
  """Raises UserError unless `value` is a finite number with low <= value <= high."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
    raise UserError(f"{what} is {value!r}; it must be a number from {low} to {high}{unit and ' ' + unit}")
