"""Configs: loading, changing single values, checking, comparing.

All of it happens before any compilation. Errors are `UserError`.
"""

import ast
import fractions
import functools
import importlib
import importlib.util
import inspect
import math
import pathlib
import traceback
import types
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import ml_collections

from sprout_jax import attacks
from sprout_jax import data
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.errors import did_you_mean
from sprout_jax.evaluation import options as options_lib
from sprout_jax.evaluation import table
from sprout_jax.training import optimizers
from sprout_jax.training import parallel

# Keys that do not change the trained parameters. They can change between calls for one workdir.
FREE_KEYS = (
  "evaluation.",
  "dataset.data_dir",
  "dataset.cache_dir",
  "dataset.workers",
  "parameter_shards",
)
RANGES: dict[str, tuple[float, float]] = {
  "seed": (0, 2**32 - 1),
  "num_epochs": (1, 10**6),
  "batch_size": (1, 10**7),
  "log_every": (1, 10**6),
  "parameter_shards": (1, 10**6),
  "ema_decay": (0, 0.999999),
  "awp_gamma": (0, 1),
  "validation.epsilon": (0, 1),
  "validation.step_size": (1e-6, math.inf),
  "validation.num_steps": (1, 10**6),
  "dataset.validation_fraction": (0, 0.9),
  "dataset.crop_padding": (0, 1000),
  "optimizer.learning_rate": (0, 1000),
  "optimizer.momentum": (0, 0.9999),
  "optimizer.weight_decay": (0, 1),
  "optimizer.gradient_clip": (0, math.inf),
  "optimizer.decay_factor": (0, 1),
  "optimizer.accumulate_steps": (1, 10**6),
  "checkpoint.every_epochs": (1, 10**6),
  "checkpoint.every_steps": (0, 10**9),
  "checkpoint.keep": (1, 10**6),
  "evaluation.batch_size": (1, 10**7),
}
TRUTH = {"true": True, "1": True, "false": False, "0": False}
# Types of values, in words for messages.
KINDS = {
  tuple: "values separated by commas, e.g. 1,2",
  bool: "true or false",
  int: "an integer",
  float: "a number",
}
CHOICES: dict[str, Collection[str]] = {
  "parallelism": parallel.PARALLELISM,
  "optimizer.name": optimizers.OPTIMIZERS,
  "optimizer.schedule": optimizers.SCHEDULES,
  "evaluation.checkpoint": ("best", "last"),
}


def load(text: str) -> ml_collections.ConfigDict:
  """Loads a config, FILE or NAME, with arguments after a colon.

  Args:
    text: such as "configs/digits.py:method=natural", a file, or "digits:method=natural", a config
      of this package.

  Raises:
    UserError: there is no such file or name, or its code fails.
  """
  where, _, arguments = text.partition(":")
  path = pathlib.Path(where).expanduser()
  if path.suffix == ".py":
    if not path.exists():
      raise UserError(f"there is no config file {path}; name one, e.g. configs/digits.py")
    get = functools.partial(_from_file, path)
  else:
    known = sorted(p.stem for p in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
    known = [name for name in known if not name.startswith("_")]
    check_choice("--config", where, known)
    get = functools.partial(importlib.import_module, f"sprout_jax.configs.{where}")
  try:
    function = get().get_config
    takes = bool(inspect.signature(function).parameters)
    if arguments and not takes:
      raise UserError(f"the config {where} takes no arguments, but {arguments!r} was given")
    config = function(arguments) if takes else function()
  except UserError:
    raise
  except Exception as error:  # a config file can raise anything
    last = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(
      f"the config {where} fails at {last.filename}, line {last.lineno}: {type(error).__name__}: "
      f"{error}"
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"get_config of {where} returns {type(config).__name__}; expected a ConfigDict")
  return config


def _from_file(path: pathlib.Path) -> types.ModuleType:
  """Imports a Python file as a module."""
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path} cannot be imported; expected a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def parse_arguments(text: str, **defaults: str) -> dict[str, str]:
  """Parses the arguments of a config file, such as "model=vgg16,method=sprout".

  Args:
    text: the arguments.
    **defaults: the names that the config has, with their default values.

  Returns:
    {name: value}.

  Raises:
    UserError: an argument is not NAME=VALUE, or its name is unknown; the known names are listed.
  """
  arguments = dict(defaults)
  for part in filter(None, (text or "").split(",")):
    name, separator, value = part.partition("=")
    if not separator or name not in defaults:
      listed = ", ".join(f"{key} (default {value})" for key, value in defaults.items())
      raise UserError(
        f"the config argument is {part!r}; expected NAME=VALUE with a name from: {listed}. "
        "Other values are flags, e.g. --config.num_epochs=5"
      )
    arguments[name] = value
  return arguments


def positive_integer(name: str, text: str) -> int:
  """Reads an argument of a config file as an integer of at least 1.

  Raises:
    UserError: the text is not an integer of at least 1.
  """
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"the config argument {name} is {text!r}; expected an integer of at least 1")
  return int(text)


def override(config: ml_collections.ConfigDict, changes: Iterable[tuple[str, str]]) -> None:
  """Changes single values of a config, such as ("optimizer.learning_rate", "0.1").

  A text is read with the type of the present value: "8/255" as a number, "0.1,0.2" or "(0.1, 0.2)"
  as a tuple, "true" or "false" as a truth value.

  Args:
    config: the config; it is changed.
    changes: (key, text) of each change.

  Raises:
    UserError: the config has no such key, the text has another type, or a change of the
      evaluation's norm or budget leaves other keys that do not fit it (`_fit_attack`).
  """
  before = config.to_dict()
  changes = list(changes)
  for key, text in changes:
    section = _section(config, key)
    last = key.rpartition(".")[2]
    present = section[last]
    if isinstance(present, ml_collections.ConfigDict):
      hint = ""
      if "name" in present and key in ("method", "penalty"):
        hint = (
          f", or choose another {key} with an argument of the config: --config FILE:{key}={text}"
        )
      raise UserError(
        f"--config.{key} is a section, not a value; give one of its keys "
        f"({', '.join(sorted(present))}){hint}"
      )
    kind = section.get_type(last)
    try:
      section[last] = _read(text, present, kind)
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError) as error:
      raise UserError(
        f"--config.{key} is {text!r}; expected {KINDS.get(kind, kind.__name__)}"
      ) from error
  prefix = "evaluation."
  given = {key.removeprefix(prefix) for key, _ in changes if key.startswith(prefix)}
  if given & {"norm", "epsilon", "epsilons"}:
    _fit_attack(config.evaluation, before["evaluation"], given)


def _fit_attack(
  evaluation: ml_collections.ConfigDict, before: Mapping[str, Any], given: Collection[str]
) -> None:
  """Fits the attack of the evaluation to a norm and budget from the command line.

  PGD with steps for another norm or budget stays near the image, and the model looks robust.

  - Another norm needs its own epsilon.
  - With another norm or epsilon, `epsilons` become 0, 1/2, 1, 3/2 and 2 times epsilon, as in
    `evaluate`, unless they are given.
  - The steps must be able to reach the budgets, unless the step size is given.

  Args:
    evaluation: `config.evaluation` with the changes; it is changed.
    before: `config.evaluation` without the changes.
    given: the keys of the changes.

  Raises:
    UserError: epsilon or the step size does not fit; the message says what to type.
  """
  norm, epsilon = evaluation.norm, evaluation.epsilon
  if norm not in attacks.NORMS:
    return  # `validate` names the norms
  is_other_norm = norm != before["norm"]
  if is_other_norm and "epsilon" not in given:
    raise UserError(
      f"--config.evaluation.norm={norm} needs its own epsilon. The present epsilon {epsilon:g} is "
      f"a budget in {before['norm']}: add --config.evaluation.epsilon=VALUE"
    )
  is_other = is_other_norm or epsilon != before["epsilon"]
  if is_other and "epsilons" not in given:
    evaluation.epsilons = options_lib.around(epsilon, norm)
  if is_other_norm and evaluation.auto_attack.epsilons and "auto_attack.epsilons" not in given:
    raise UserError(
      f"config.evaluation.auto_attack.epsilons {tuple(evaluation.auto_attack.epsilons)} are "
      f"budgets of {before['norm']}: add --config.evaluation.auto_attack.epsilons=VALUES "
      "(or () for none)"
    )
  changed = (epsilon, *evaluation.epsilons) if is_other else evaluation.epsilons
  largest = max(changed, default=0.0)
  reach = evaluation.num_steps * (evaluation.step_size or options_lib.usual_step(epsilon))
  if reach < largest * (1 - 1e-6) and "step_size" not in given:
    advice = "--config.evaluation.step_size=0 (epsilon / 4)"
    if not evaluation.step_size or evaluation.num_steps * options_lib.usual_step(epsilon) < largest:
      steps = max(1, evaluation.num_steps)
      advice = f"--config.evaluation.step_size={2.5 * largest / steps:.3g}, or more steps"
    raise UserError(
      f"{evaluation.num_steps} steps of {reach / max(1, evaluation.num_steps):g} cannot reach a "
      f"perturbation of {largest:g}, so PGD would be too weak: add {advice}"
    )


def _section(config: ml_collections.ConfigDict, key: str) -> ml_collections.ConfigDict:
  """Returns the section that holds a key; raises UserError with the nearest name."""
  where = "config"
  for number, name in enumerate(parts := key.split(".")):
    choices = sorted(config) if isinstance(config, ml_collections.ConfigDict) else []
    if name not in choices:
      hint = did_you_mean(name, choices)
      keys = f"Its keys are: {', '.join(choices)}" if choices else "It is a value without keys"
      raise UserError(f"{where} has no key {name!r}.{hint} {keys}")
    if number + 1 < len(parts):
      config, where = config[name], f"{where}.{name}"
  return config


def _read(text: str, present: Any, kind: type) -> Any:
  """Reads a text with the type of the present value; raises ValueError where it cannot."""
  if kind is tuple:
    return _read_tuple(text, present)
  if kind is bool:
    if text.lower() not in TRUTH:
      raise ValueError(text)
    return TRUTH[text.lower()]
  if kind is int:
    return int(text)
  if kind is float:
    return _number(text, float)
  return text


def _read_tuple(text: str, present: tuple[Any, ...]) -> tuple[Any, ...]:
  if text[:1] in ("(", "["):
    found = tuple(ast.literal_eval(text))
    if not (_kinds(found) <= {"texts"} or _kinds(found) <= {"numbers"}) or (
      present and found and _kinds(found) != _kinds(present)
    ):
      raise ValueError(text)
    return found
  entries = [part.strip() for part in text.split(",") if part.strip()]
  if present and not isinstance(present[0], str):
    return tuple(_number(entry, type(present[0])) for entry in entries)
  if not present:  # the type of the entries is unknown
    try:
      return tuple(_number(entry, float) for entry in entries)
    except ValueError:
      return tuple(entries)
  return tuple(entries)


def _kinds(values: Iterable[Any]) -> set[str]:
  """Returns the kinds of the entries of a tuple; a right one has texts only, or numbers only."""
  found: set[str] = set()
  for value in values:
    if isinstance(value, str):
      found.add("texts")
    elif isinstance(value, int | float) and math.isfinite(value) and not isinstance(value, bool):
      found.add("numbers")
    else:
      found.add(f"{value!r:.80}")
  return found


def _number(text: str, kind: type) -> int | float:
  if kind is int:
    return int(text)
  return float(fractions.Fraction(text)) if "/" in text else float(text)


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks the values of a config, as far as that needs no data, devices or model.

  Raises:
    UserError: a value is unknown or out of range; the message names the key and the valid values.
  """
  for key, (low, high) in RANGES.items():
    check_range(f"config.{key}", _get(config, key), low, high)
  for key, choices in CHOICES.items():
    check_choice(f"config.{key}", _get(config, key), choices)
  for key, value in flatten(config).items():
    kinds = _kinds(value) if isinstance(value, list) else set()
    if not (kinds <= {"texts"} or kinds <= {"numbers"}):
      raise UserError(
        f"config.{key} has entries of the kinds {', '.join(sorted(kinds))}; expected finite "
        "numbers only, or texts only"
      )
  check_range(
    "config.optimizer.warmup_epochs",
    config.optimizer.warmup_epochs,
    0,
    config.num_epochs,
    unit="(config.num_epochs)",
  )
  if not config.optimizer.learning_rate:
    raise UserError("config.optimizer.learning_rate is 0; set a positive rate, e.g. 0.1")
  optimizers.check_schedule(config.optimizer, config.num_epochs)
  if config.validation.epsilon and not config.dataset.validation_fraction:
    raise UserError(
      "config.validation.epsilon needs validation images, but there are none: "
      "config.dataset.validation_fraction is 0; set e.g. --config.dataset.validation_fraction=0.1"
    )
  data_request(config)
  evaluation = config.evaluation
  listed = (*evaluation.after_training, *evaluation.evaluations)
  if "transfer" in listed and not evaluation.transfer.sources:
    raise UserError(
      "the evaluation 'transfer' needs other trained runs; set e.g. "
      "--config.evaluation.transfer.sources=runs/natural"
    )
  table.check_settings("config.evaluation", evaluation)
  table.check_names("config.evaluation.after_training", evaluation.after_training)
  table.check_names("config.evaluation.evaluations", evaluation.evaluations)
  if evaluation.use_ema and not config.ema_decay:
    raise UserError(
      "config.evaluation.use_ema needs a moving average of the weights, but config.ema_decay is 0; "
      "set e.g. --config.ema_decay=0.999"
    )


def data_request(config: ml_collections.ConfigDict) -> data.Request:
  """Returns what `config.dataset` asks of a data set.

  Raises:
    UserError: a value is out of range, or does not fit the others.
  """
  options = config.dataset
  values = {name: options[name] for name in data.Request.__dataclass_fields__}
  # Numbers of the command line are read as floats where the default is ().
  values["image_size"] = tuple(
    int(side) if isinstance(side, float) and side.is_integer() else side
    for side in options.image_size
  )
  try:
    return data.Request(**values)
  except UserError as error:
    raise UserError(f"config.dataset.{error}") from error


def _get(config: ml_collections.ConfigDict, dotted: str) -> Any:
  for name in dotted.split("."):
    config = config[name]
  return config


def options(section: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config section without its name, as keyword arguments."""
  return {key: value for key, value in section.to_dict().items() if key != "name"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens a config: {"optimizer.learning_rate": 0.1, ...}; tuples become lists, as in JSON."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, (tuple, list)) else value
  return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lists the differences of two configs that change the trained parameters, a line each."""
  old, new = flatten(old), flatten(new)
  return [
    f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(FREE_KEYS)
  ]


def from_json(value: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Makes a config from the content of config.json. Lists become tuples."""

  def tuples(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: tuples(entry) for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ml_collections.ConfigDict(tuples(value)).lock()
