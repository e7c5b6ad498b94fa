"""Configs as claims: loading them, changing single values, checking them, comparing them.

Everything here happens before any compilation and raises `UserError`.
"""

import ast
import difflib
import fractions
import importlib
import importlib.util
import inspect
import math
import pathlib
import traceback
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import ml_collections

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.evaluation import table
from sprout_jax.training import optimizers
from sprout_jax.training import parallel

# What may differ between two runs in one workdir: it does not change the trained parameters.
FREE_KEYS = ("evaluation.", "dataset.data_dir", "dataset.cache_dir")
RANGES = {
  "seed": (0, 2**32 - 1),
  "num_epochs": (1, 10**6),
  "batch_size": (1, 10**7),
  "log_every": (1, 10**6),
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
CHOICES = {
  "parallelism": parallel.PARALLELISM,
  "optimizer.name": optimizers.OPTIMIZERS,
  "optimizer.schedule": optimizers.SCHEDULES,
  "evaluation.checkpoint": ("best", "last"),
}


def load(text: str) -> ml_collections.ConfigDict:
  """Loads a config: FILE or NAME, with arguments after a colon.

  "configs/digits.py:method=natural" is a file; "digits:method=natural" is a config of this package.

  Raises:
    UserError: there is no such file or name, or it fails.
  """
  where, _, arguments = text.partition(":")
  path = pathlib.Path(where).expanduser()
  if path.suffix == ".py":
    if not path.exists():
      raise UserError(f"there is no config file {path}; name one, e.g. configs/digits.py")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    get = lambda: _module(spec).get_config
  else:
    known = sorted(p.stem for p in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
    known = [name for name in known if not name.startswith("_")]
    check_choice("--config", where, known)
    get = lambda: importlib.import_module(f"sprout_jax.configs.{where}").get_config
  try:
    function = get()
    takes = bool(inspect.signature(function).parameters)
    if arguments and not takes:
      raise UserError(f"{where} takes no arguments, but {arguments!r} was given")
    config = function(arguments) if takes else function()
  except UserError:
    raise
  except Exception as error:  # any fault of a user's file
    last = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(
      f"{where} fails at {last.filename}, line {last.lineno}: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"get_config of {where} returns {type(config).__name__}, expected a ConfigDict")
  return config


def _module(spec):
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def parse_arguments(text: str, **defaults: str) -> dict[str, str]:
  """Parses a config file's argument, "model=vgg16,method=sprout", over its defaults.

  Raises:
    UserError: not of the form name=value, or an unknown name (the known ones are listed).
  """
  arguments = dict(defaults)
  for part in filter(None, (text or "").split(",")):
    name, separator, value = part.partition("=")
    if not separator or name not in defaults:
      listed = ", ".join(f"{key} (default {value})" for key, value in defaults.items())
      raise UserError(f"config argument {part!r}; expected NAME=VALUE with a name from: {listed}")
    arguments[name] = value
  return arguments


def positive_integer(name: str, text: str) -> int:
  """An argument's text as an integer of at least 1, or UserError."""
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"config argument {name}={text!r}; expected an integer of at least 1")
  return int(text)


def override(config: ml_collections.ConfigDict, changes: Iterable[tuple[str, str]]) -> None:
  """Changes single values: ("optimizer.learning_rate", "0.1").

  The text is read as the type of the value that is there: 8/255 is a number, "0.1,0.2" or "(0.1,
  0.2)" a tuple, "true" or "false" a truth value.

  Raises:
    UserError: the config has no such key, or the text is of another type.
  """
  for key, text in changes:
    section = _section(config, key)
    last = key.rpartition(".")[2]
    present = section[last]
    if isinstance(present, ml_collections.ConfigDict):
      hint = ""
      if "name" in present and key in ("method", "penalty"):
        hint = f": an argument of the config, --config FILE:{key}={text}"
      raise UserError(
        f"--config.{key} is a section, not a value; give one of its keys "
        f"({', '.join(sorted(present))}), or choose another {key}{hint}"
      )
    kind = section.get_type(last)
    try:
      section[last] = _read(text, present, kind)
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError) as error:
      expected = "a list of values, e.g. 1,2" if kind is tuple else f"a {kind.__name__}"
      raise UserError(f"--config.{key}={text}: expected {expected}") from error


def _section(config, key):
  """The section that holds a key, or UserError with the nearest name."""
  where = "config"
  for number, name in enumerate(parts := key.split(".")):
    choices = sorted(config) if isinstance(config, ml_collections.ConfigDict) else []
    if name not in choices:
      nearest = difflib.get_close_matches(name, choices, n=1)
      hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
      listed = ", ".join(choices) or "nothing below it"
      raise UserError(f"{where} has no key {name!r}.{hint} It has: {listed}")
    if number + 1 < len(parts):
      config, where = config[name], f"{where}.{name}"
  return config


def _read(text, present, kind):
  if kind is tuple:
    return _read_tuple(text, present)
  if kind is bool:
    return (
      {"true": True, "1": True, "false": False, "0": False}[text.lower()]
      if (text.lower() in ("true", "false", "0", "1"))
      else _fail(text)
    )
  if kind is int:
    return int(text)
  if kind is float:
    return _number(text, float)
  return text


def _read_tuple(text, present):
  if text[:1] in "([":
    return tuple(ast.literal_eval(text))
  entries = [part.strip() for part in text.split(",") if part.strip()]
  if present and not isinstance(present[0], str):
    return tuple(_number(entry, type(present[0])) for entry in entries)
  if not present:  # an empty tuple does not say of what
    try:
      return tuple(_number(entry, float) for entry in entries)
    except ValueError:
      return tuple(entries)
  return tuple(entries)


def _number(text, kind):
  if kind is int:
    return int(text)
  return float(fractions.Fraction(text)) if "/" in text else float(text)


def _fail(text):
  raise ValueError(text)


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks what can be checked without data, devices or a model.

  Raises:
    UserError: a value is unknown or out of range; names the key and what it may be.
  """
  for key, (low, high) in RANGES.items():
    check_range(f"config.{key}", _get(config, key), low, high)
  for key, choices in CHOICES.items():
    check_choice(f"config.{key}", _get(config, key), choices)
  check_range(
    "config.optimizer.warmup_epochs",
    config.optimizer.warmup_epochs,
    0,
    config.num_epochs,
    unit="(config.num_epochs)",
  )
  if not config.optimizer.learning_rate:
    raise UserError("config.optimizer.learning_rate is 0; nothing would be learned")
  optimizers.check_schedule(config.optimizer, config.num_epochs)
  if config.validation.epsilon and not config.dataset.validation_fraction:
    raise UserError(
      "config.validation.epsilon needs images to validate on: set e.g. "
      "--config.dataset.validation_fraction=0.1 (it is 0)"
    )
  evaluation = config.evaluation
  listed = (*evaluation.after_training, *evaluation.evaluations)
  if "transfer" in listed and not evaluation.transfer.sources:
    raise UserError(
      "the evaluation 'transfer' needs other runs to transfer from: set e.g. "
      "--config.evaluation.transfer.sources=runs/natural"
    )
  table.check_settings("config.evaluation", evaluation)
  table.check_names("config.evaluation.after_training", evaluation.after_training)
  table.check_names("config.evaluation.evaluations", evaluation.evaluations)
  if evaluation.use_ema and not config.ema_decay:
    raise UserError(
      "config.evaluation.use_ema needs an average to use: set e.g. "
      "--config.ema_decay=0.999 (it is 0 = off)"
    )


def _get(config, dotted):
  for name in dotted.split("."):
    config = config[name]
  return config


def options(section: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config section without its name, as keyword arguments."""
  return {key: value for key, value in section.to_dict().items() if key != "name"}


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
  """Returns {"optimizer.learning_rate": 0.1, ...}; tuples become lists, as in JSON."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, (tuple, list)) else value
  return flat


def differences(old: Mapping, new: Mapping) -> list[str]:
  """Lists, as text, the keys in which two configs would train different parameters."""
  old, new = flatten(old), flatten(new)
  return [
    f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(FREE_KEYS)
  ]


def from_json(value: Mapping) -> ml_collections.ConfigDict:
  """The config from config.json's content; its lists are tuples again."""

  def tuples(value):
    if isinstance(value, dict):
      return {key: tuples(entry) for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ml_collections.ConfigDict(tuples(value)).lock()
