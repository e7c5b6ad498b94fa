"""Options of evaluations, declared in the signatures of the functions that take them.

Every keyword argument of an evaluation is an option. Its annotation is `Annotated[type,
Option(...)]`, with a range or choices and a line of help. Its default decides where a config has
the option:

- An option without a default is one of `SHARED`: a key of `config.evaluation` that several
  evaluations read (`epsilon`, `num_steps`, ...).
- An option with a default is a key of the evaluation's own section, `config.evaluation.NAME.KEY`.

The config sections, their validation and the list in the documentation are generated from these.
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Annotated
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range


@dataclasses.dataclass(frozen=True)
class Option:
  """The meaning and the valid values of an option. Limits and choices apply to a tuple's entries.

  Attributes:
    help: one line, the meaning with the unit.
    low: the smallest number.
    high: the largest number.
    choices: the valid names.
    ascends: whether the entries of a tuple must be distinct and ascending.
    example: an example of a tuple, for messages.
  """

  help: str
  low: float = -math.inf
  high: float = math.inf
  choices: Collection[str] | None = None
  ascends: bool = False
  example: str = ""


PIXELS = "in pixel units (images in [0, 1])"
NumExamples = Annotated[
  int, Option("number of test images, a fixed random choice; 0 = all", 0, 2**31)
]
Norm = Annotated[str, Option("norm of the perturbation", choices=tuple(attacks.NORMS))]
Epsilon = Annotated[float, Option(f"perturbation budget, {PIXELS}", 1e-9, math.inf)]
Epsilons = Annotated[
  tuple[float, ...],
  Option(
    f"perturbation budgets of the accuracy curve besides epsilon, {PIXELS}",
    0,
    math.inf,
    ascends=True,
  ),
]
NumSteps = Annotated[int, Option("gradient steps of PGD", 0, 2**31)]
StepSize = Annotated[float, Option(f"step size of PGD, {PIXELS}; 0 = epsilon / 4", 0, math.inf)]
NumRestarts = Annotated[int, Option("random restarts of PGD; the worst counts", 1, 2**31)]
Loss = Annotated[str, Option("loss that PGD maximises", choices=tuple(attacks.LOSSES))]
Seed = Annotated[int, Option("seed of all random draws of the evaluation", 0, 2**32 - 1)]

# The keys of config.evaluation that several evaluations read: {name: (annotation, default)}.
SHARED: dict[str, tuple[Any, Any]] = {
  "num_examples": (NumExamples, 0),
  "norm": (Norm, "linf"),
  "epsilon": (Epsilon, 8 / 255),
  "epsilons": (Epsilons, tuple(round(0.005 * k, 3) for k in range(15))),  # the paper's grid
  "num_steps": (NumSteps, 20),
  "step_size": (StepSize, 0.0),
  "num_restarts": (NumRestarts, 1),
  "loss": (Loss, "cross_entropy"),
  "seed": (Seed, 0),
}


def declared(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
  """Returns the options of an evaluation's function: {name: (annotation, default)}.

  The default of a shared option is `inspect.Parameter.empty`.

  Raises:
    TypeError: a defect of the function: an argument without an `Option`, or one without a default
      that is not in `SHARED`.
  """
  hints = typing.get_type_hints(function, include_extras=True)
  where = getattr(function, "__name__", repr(function))
  found: dict[str, tuple[Any, Any]] = {}
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
      continue
    annotation, default = hints.get(name), parameter.default
    if not isinstance((getattr(annotation, "__metadata__", None) or [None])[0], Option):
      raise TypeError(f"{where}: option {name} must be annotated Annotated[type, Option(...)]")
    if default is inspect.Parameter.empty and name not in SHARED:
      raise TypeError(f"{where}: option {name} has no default and is not in SHARED; give it one")
    found[name] = (annotation, default)
  return found


def own(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns the defaults of an evaluation's own options: its section of a config."""
  return {
    name: default
    for name, (_, default) in declared(function).items()
    if default is not inspect.Parameter.empty
  }


def choose(
  function: Callable[..., Any], shared: Mapping[str, Any], section: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns an evaluation's keyword arguments, from its own section or else the shared keys.

  They have the declared types: 1 and 1.0 are the same epsilon, see `convert`. The step size 0
  becomes epsilon / 4, so that it fits the norm and the budget.
  """
  chosen = {
    name: convert(section[name] if name in section else shared[name], annotation)
    for name, (annotation, _) in declared(function).items()
  }
  if chosen.get("step_size") == 0:
    chosen["step_size"] = usual_step(chosen["epsilon"])
  return chosen


def convert(value: Any, annotation: Any) -> Any:
  """Converts a value of an option to its declared type, where that changes no value.

  Integers become floats where floats are declared. NumPy and JAX scalars become Python numbers
  (float32 the shortest decimal, which attacks round to the same float32); lists and arrays become
  tuples. Everything else is returned unchanged, for `check` to refuse.
  """
  kind = typing.get_args(annotation)[0]
  if typing.get_origin(kind) is tuple:
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 1
    if not (is_array or isinstance(value, (tuple, list))):
      return value
    return tuple(_convert_entry(entry, typing.get_args(kind)[0]) for entry in value)
  return _convert_entry(value, kind)


def _convert_entry(value: Any, kind: type) -> Any:
  if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
    return value
  if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0:
    value = np.asarray(value)[()]
    value = float(str(value)) if value.dtype == np.float32 else value.item()
  is_integer = isinstance(value, int) and not isinstance(value, bool)
  return float(value) if kind is float and is_integer else value


def describe(annotation: Any) -> str:
  """Returns an option's help with its range or choices, for documentation."""
  option = annotation.__metadata__[0]
  if option.choices is not None:
    listed = ", ".join(map(str, option.choices))
    return f"{option.help}: one of {listed}"
  if option.low == -math.inf:
    return option.help
  bounds = (
    f"at least {option.low:g}" if option.high >= 2**31 else f"{option.low:g} to {option.high:g}"
  )
  return f"{option.help} ({bounds})"


def check(where: str, value: Any, annotation: Any) -> None:
  """Checks a value of an option.

  Args:
    where: the name that the user knows, such as "config.evaluation.seed".
    value: the value, which is converted first.
    annotation: `Annotated[type, Option(...)]`.

  Raises:
    UserError: the value has another type or is out of range.
  """
  value = convert(value, annotation)
  kind, option = typing.get_args(annotation)[:2]
  is_tuple = typing.get_origin(kind) is tuple
  entries = value if is_tuple else (value,)
  example = f", e.g. {where}={option.example}" if option.example else ""
  if is_tuple and not isinstance(value, (tuple, list)):
    raise UserError(f"{where} is {value!r}; expected a tuple of values{example}")
  if is_tuple and not value and option.example:
    raise UserError(f"{where} is empty; give at least one value{example}")
  what = f"{where}: an entry" if is_tuple else where
  kind = typing.get_args(kind)[0] if is_tuple else kind
  for entry in entries:
    if option.choices is not None:
      check_choice(what, entry, option.choices)
    elif kind in (int, float):
      check_range(what, entry, option.low, option.high)
      if kind is int and not isinstance(entry, int):
        raise UserError(f"{what} is {entry!r}; it must be an integer")
    elif not isinstance(entry, kind):
      raise UserError(f"{what} is {entry!r}; it must be a {kind.__name__}")
  if is_tuple and option.choices is not None and len(set(entries)) < len(entries):
    raise UserError(f"{where} is {tuple(entries)}; name each value once")
  if option.ascends and list(entries) != sorted(set(entries)):
    raise UserError(f"{where} is {tuple(entries)}; the values must be distinct and ascending")


def with_epsilon(epsilons: Collection[float], epsilon: float) -> tuple[float, ...]:
  """Returns the perturbation budgets of a curve with epsilon among them, ascending."""
  return tuple(sorted({*epsilons, epsilon}))


def usual_step(epsilon: float) -> float:
  """Returns the step size that stands for 0: a quarter of the perturbation budget."""
  return epsilon / 4


def around(epsilon: float, norm: str) -> tuple[float, ...]:
  """Returns 0, 1/2, 1, 3/2 and 2 times epsilon, the default curve of a budget.

  Linf budgets end at 1, the whole range of pixels.
  """
  limit = max(1.0, epsilon) if norm == "linf" else math.inf  # an epsilon above 1 is refused later
  return tuple(sorted({min(k * epsilon / 2, limit) for k in range(5)}))


def check_budgets(where: str, norm: str, epsilons: Collection[float]) -> None:
  """Raises UserError for a Linf budget above 1, the whole range of pixels."""
  for epsilon in epsilons:
    if norm == "linf" and epsilon > 1:
      raise UserError(
        f"{where} is {epsilon:g}, but pixels are in [0, 1]; did you mean {epsilon:g}/255?"
      )
