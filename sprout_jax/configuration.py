"""Configs as claims: their arguments, their checks, their comparison, their file in the workdir.

Everything here happens before any compilation and raises `UserError`.
"""

import difflib
import json
import math

import ml_collections

from sprout_jax import records
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.evaluation import options as evaluation_options
from sprout_jax.training import optimizers

# What may differ between two runs in one workdir: it does not change the trained parameters.
FREE_KEYS = ("evaluation.", "dataset.data_dir", "dataset.cache_dir")


def parse_arguments(text, **defaults):
  """Parses a config file's argument, "model=vgg16,method=sprout", over its defaults.

  Raises:
    UserError: not of the form name=value, or an unknown name (the known ones are listed).
  """
  arguments = dict(defaults)
  for part in filter(None, (text or "").split(",")):
    name, separator, value = part.partition("=")
    if not separator or name not in defaults:
      raise UserError(
        f"config argument {part!r}; expected NAME=VALUE with a name from: "
        + ", ".join(f"{key} (default {value})" for key, value in defaults.items())
      )
    arguments[name] = value
  return arguments


def positive_integer(name, text):
  """An argument's text as an integer >= 1, or UserError."""
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"config argument {name}={text!r}; expected an integer of at least 1")
  return int(text)


def validate(config):
  """Checks what can be checked without data, devices or a model.

  Raises:
    UserError: a value is unknown or out of range; names the key and what it may be.
  """
  inf = math.inf
  check_choice("config.parallelism", config.parallelism, ("jit", "pmap"))
  for key, low, high in (
    ("seed", 0, 2**32 - 1),
    ("num_epochs", 1, inf),
    ("batch_size", 1, inf),
    ("log_every", 1, inf),
    ("ema_decay", 0, 0.999999),
    ("awp_gamma", 0, 1),
    ("validation.epsilon", 0, 1),
    ("validation.step_size", 1e-6, inf),
    ("validation.num_steps", 1, inf),
    ("dataset.validation_fraction", 0, 0.9),
    ("dataset.crop_padding", 0, 1000),
    ("optimizer.learning_rate", 0, 1000),
    ("optimizer.momentum", 0, 0.9999),
    ("optimizer.weight_decay", 0, 1),
    ("optimizer.gradient_clip", 0, inf),
    ("optimizer.decay_factor", 0, 1),
    ("optimizer.accumulate_steps", 1, inf),
    ("checkpoint.every_epochs", 1, inf),
    ("checkpoint.every_steps", 0, inf),
    ("checkpoint.keep", 1, inf),
    ("evaluation.batch_size", 1, inf),
  ):
    check_range(f"config.{key}", _get(config, key), low, high)
  check_range(
    "config.optimizer.warmup_epochs",
    config.optimizer.warmup_epochs,
    0,
    config.num_epochs,
    unit="(config.num_epochs)",
  )
  for key, choices in (
    ("optimizer.name", optimizers.OPTIMIZERS),
    ("optimizer.schedule", optimizers.SCHEDULES),
    ("evaluation.checkpoint", ("best", "last")),
  ):
    check_choice(f"config.{key}", _get(config, key), choices)
  if not config.optimizer.learning_rate:
    raise UserError("config.optimizer.learning_rate is 0; nothing would be learned")
  optimizers.check_schedule(config.optimizer, config.num_epochs)
  if config.validation.epsilon and not config.dataset.validation_fraction:
    raise UserError(
      "config.validation.epsilon needs images to validate on: set e.g. "
      "--config.dataset.validation_fraction=0.1 (it is 0)"
    )
  evaluation_options.validate(config.evaluation)
  if config.evaluation.use_ema and not config.ema_decay:
    raise UserError(
      "config.evaluation.use_ema needs an average to use: set e.g. "
      "--config.ema_decay=0.999 (it is 0 = off)"
    )


def _get(config, dotted):
  for name in dotted.split("."):
    config = config[name]
  return config


def options(section):
  """A config section without its name, as keyword arguments."""
  return {key: value for key, value in section.to_dict().items() if key != "name"}


def flatten(config, prefix=""):
  """Returns {"optimizer.learning_rate": 0.1, ...}; tuples become lists, as in JSON."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, (tuple, list)) else value
  return flat


def differences(old, new):
  """Lists, as text, the keys in which two configs would train different parameters."""
  old, new = flatten(old), flatten(new)
  return [
    f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(FREE_KEYS)
  ]


def dumps(config):
  """The config as JSON text."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def loads(text):
  """The config from JSON text, also of an earlier version; its lists are tuples again."""

  def tuples(value):
    if isinstance(value, dict):
      return {key: tuples(entry) for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ml_collections.ConfigDict(records.complete(tuples(json.loads(text)))).lock()


def known(values, section):
  """The entries of a config section that another has too, below it likewise."""
  return {
    key: known(value, section[key]) if isinstance(value, ml_collections.ConfigDict) else value
    for key, value in values.items()
    if key in section
  }


def unknown_key(config, dotted):
  """The message for a key that a config does not have: what there is, and the nearest.

  Args:
    config: the config.
    dotted: "optimizer.lr".

  Returns:
    The message, or None if the config has the key.
  """
  where = "config"
  for name in dotted.split("."):
    choices = sorted(config) if isinstance(config, ml_collections.ConfigDict) else []
    if name not in choices:
      nearest = difflib.get_close_matches(name, choices, n=1)
      hint = f" did you mean {nearest[0]!r}?" if nearest else ""
      return (
        f"{where} has no key {name!r};{hint} It has: {', '.join(choices) or 'nothing below it'}"
      )
    config, where = config[name], f"{where}.{name}"
  return None
