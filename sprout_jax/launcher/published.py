"""Files of published weights on the command line: `--weights FILE` and `--config.init_from=FILE`.

A file has no config. The config of the command gives the model, the data and the evaluation. What
the file does not state, the mean and standard deviation of the normalisation and sometimes the
activation, must be set on purpose: by a flag, or by a config file with other values than the
defaults.
"""

import dataclasses
import pathlib
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from sprout_jax import models
from sprout_jax import zoo
from sprout_jax.configs import default
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.models import weights as weights_lib
from sprout_jax.models.weights import Weights
from sprout_jax.results import commands
from sprout_jax.results import workdir as workdir_lib

SECTIONS = ("model", "dataset", "evaluation")  # of a config, for the evaluation of a file
# Keys of these sections that only a training has.
OF_TRAINING = (
  "dataset.validation_fraction",
  "dataset.crop_padding",
  "dataset.flip",
  "dataset.workers",
  "evaluation.checkpoint",
  "evaluation.use_ema",
  "evaluation.after_training",
)
STATED = ("model.mean", "model.std", "model.activation")  # keys that a file may not state
FLAGS = {
  "mean": "--config.model.mean=0.4914,0.4822,0.4465 --config.model.std=0.2471,0.2435,0.2616 (those "
  "of CIFAR-10), or --config.model.mean=0 --config.model.std=1 for no normalisation. "
  "docs/weights.md lists those of published models",
  "activation": "--config.model.activation=silu, which DeepMind's published networks have",
}


@dataclasses.dataclass(frozen=True)
class File:
  """A file of weights, and what to read from it.

  Attributes:
    path: the file.
    entry: the state dict to read if the file has several; "" if it has one.
    ignore: patterns of names of arrays to ignore.
  """

  path: pathlib.Path
  entry: str = ""
  ignore: tuple[str, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Returns the entries of weights.json that name the file."""
    path = str(self.path.absolute())
    return {"path": path, "entry": self.entry, "ignore": list(self.ignore)}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "File":
    """Makes the file from the content of weights.json."""
    return cls(pathlib.Path(value["path"]), value["entry"], tuple(value["ignore"]))


def parse(flag: str, text: str) -> File:
  """Parses FILE or FILE:entry=NAME,ignore=PATTERN,ignore=PATTERN,...

  Args:
    flag: the flag or key, for messages.
    text: its value. If a file has this whole name, it is that file. "zoo/NAME" is a file of
      `sprout_jax.zoo`.

  Raises:
    UserError: there is no such file, or the text after the colon has another form.
  """
  packaged = zoo.find(text)
  if packaged is not None:
    return File(packaged)
  whole = pathlib.Path(text).expanduser()
  where, _, arguments = text.rpartition(":")
  path = pathlib.Path(where).expanduser()
  if whole.exists() or not (where and path.is_file()):
    return File(whole)
  found: dict[str, list[str]] = {"entry": [], "ignore": []}
  for part in arguments.split(","):
    name, _, value = part.partition("=")
    if name not in found or not value or (name == "entry" and found["entry"]):
      raise UserError(
        f"{flag} has {part!r} after the file; expected entry=NAME (once) or ignore=PATTERN, e.g. "
        f"{where}:entry=state_dict,ignore=*.scores"
      )
    found[name].append(value)
  return File(path, "".join(found["entry"]), tuple(found["ignore"]))


def known(workdir: pathlib.Path) -> File | None:
  """Returns the file whose evaluation a workdir has; None for other workdirs.

  Raises:
    UserError: weights.json is damaged, or the file is gone or has changed.
  """
  record = workdir_lib.read_weights(workdir)
  if record is None:
    return None
  file = File.from_json(record)
  if not file.path.is_file() or weights_lib.sha256(file.path) != record["sha256"]:
    raise UserError(
      f"{workdir} belongs to {file.path} (SHA-256 {record['sha256']}). This file is gone or has "
      "changed. If it was moved, type --weights NEW_PATH"
    )
  return file


def load(
  file: File,
  config: ml_collections.ConfigDict,
  num_classes: int,
  image_shape: tuple[int, ...],
  typed: Collection[str],
) -> tuple[Weights, ml_collections.ConfigDict]:
  """Loads a file into the model of a config.

  Args:
    file: the file.
    config: the config; `config.model` gives the model and its activation.
    num_classes: number of classes of the data.
    image_shape: (height, width, channels) of the data.
    typed: keys of the config that the user has set by flags, such as "model.mean".

  Returns:
    The weights, and the config with the normalisation and the activation of the file if it has
    them.

  Raises:
    UserError: the file does not fit the model or the data, or something that it does not state is
      not set on purpose.
  """
  stated = _stated(config, typed)
  lacking = [key for key in ("mean", "std") if key not in stated]
  if len(lacking) == 1:
    given = "std" if lacking == ["mean"] else "mean"
    raise UserError(
      f"config.model.{given} is set, but config.model.{lacking[0]} is not; add "
      f"--config.model.{lacking[0]}=VALUES. If {file.path} has both, leave both out"
    )
  try:
    found = models.load_weights(
      file.path,
      model=config.model.name,
      mean=stated.get("mean"),
      std=stated.get("std"),
      activation=stated.get("activation"),
      entry=file.entry or None,
      ignore=file.ignore,
    )
  except weights_lib.NotStated as error:
    raise UserError(f"{error.problem}; add {FLAGS[error.arguments[0]]}") from error
  except UserError as error:
    asks = any(word in str(error) for word in ("entry=", "ignore="))
    hint = ". In a command, these follow the file: FILE:entry=NAME,ignore=PATTERN" if asks else ""
    raise UserError(f"{error}{hint}") from error
  classes, channels = found.model.num_classes, len(found.mean)
  if classes != num_classes:
    raise UserError(
      f"{file.path} has {classes} classes, but {config.dataset.name} has {num_classes}; give the "
      "data with which the file was trained"
    )
  if channels != image_shape[-1]:
    raise UserError(
      f"{file.path} takes images with {channels} channels, but those of {config.dataset.name} have "
      f"{image_shape[-1]}; give the data with which the file was trained"
    )
  config = config.copy_and_resolve_references().unlock()
  if found.normalisation != "given":
    config.model.mean, config.model.std = found.mean, found.std
  config.model.activation = found.model.activation
  return found, config.lock()


def record(file: File, found: Weights) -> dict[str, Any]:
  """Returns the content of weights.json."""
  return {
    **file.to_json(),
    "sha256": found.file_sha256,
    "form": found.form,
    "normalisation": found.normalisation,
    "mean": list(found.mean),
    "std": list(found.std),
    "unused": found.unused,
  }


def _stated(config: ml_collections.ConfigDict, typed: Collection[str]) -> dict[str, Any]:
  """Returns the keys of config.model that were set on purpose: typed, or not the default."""
  usual = default.get_config().model
  found = {}
  for key in STATED:
    name = key.removeprefix("model.")
    if key in typed or config.model[name] != usual[name]:
      found[name] = config.model[name]
  return found


def differences(weights: Weights, model: ml_collections.ConfigDict) -> list[str]:
  """Lists where the normalisation or activation of a file is not that of `config.model`."""
  pairs = (("mean", weights.mean, model.mean), ("std", weights.std, model.std))
  found = [
    f"model.{key} is {list(there)} in {weights.path}, {list(here)} in this config"
    for key, there, here in pairs
    if np.abs(np.array(there) - np.array(here)).max() > weights_lib.CLOSE  # `here` can be one value
  ]
  there, here = weights.model.activation, model.activation
  if there != here:
    found.append(f"model.activation is {there!r} in {weights.path}, {here!r} in this config")
  return found


def sections(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the part of a config that counts for a file: model, data and evaluation."""
  whole = config.to_dict()
  return {
    section: {
      key: value for key, value in whole[section].items() if f"{section}.{key}" not in OF_TRAINING
    }
    for section in SECTIONS
  }


def whole_config(part: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Makes a config from the result of `sections`. It trains nothing, and no image is held out."""
  config = default.get_config("natural").unlock()
  config.dataset.validation_fraction = 0.0
  for section in SECTIONS:
    config[section].update(part[section])
  return config.lock()


def check_flags(config: ml_collections.ConfigDict, typed: Iterable[str]) -> None:
  """Raises UserError if a flag sets a key that only a training has."""
  known = configuration.flatten(sections(config))
  for key in typed:
    if key not in known:
      raise UserError(
        f"--config.{key} has no effect: a file of weights is evaluated, not trained; leave it out"
      )


def check_owner(
  workdir: pathlib.Path, config: ml_collections.ConfigDict, file: File, file_sha256: str
) -> None:
  """Checks that a workdir is new, or that it belongs to this file, model and data.

  Raises:
    UserError: it belongs to another one, or to a training.
  """
  advice = "Choose another --workdir"
  record = workdir_lib.read_weights(workdir)
  if record is None:
    if workdir_lib.is_run(workdir):
      raise UserError(f"{workdir} belongs to a training, not to a file of weights. {advice}")
    if workdir.exists() and not workdir.is_dir():
      raise UserError(f"--workdir {workdir} is a file; name a folder")
    return
  if (record["sha256"], record["entry"]) != (file_sha256, file.entry):
    names = [
      f"{path}{entry and ':entry='}{entry} (SHA-256 {sha256})"
      for path, entry, sha256 in (
        (record["path"], record["entry"], record["sha256"]),
        (file.path, file.entry, file_sha256),
      )
    ]
    raise UserError(f"{workdir} belongs to {names[0]}, not to {names[1]}. {advice}")
  if workdir_lib.is_run(workdir):
    old = configuration.from_json(workdir_lib.read_config(workdir))
    found = configuration.differences(old, sections(config))
    if found:
      raise UserError(
        f"{workdir} belongs to the same file with another config:\n  "
        + "\n  ".join(found)
        + f"\n{advice}, or give the config of this workdir."
      )


def missing_config(text: str, workdir: pathlib.Path) -> UserError:
  """Returns the error of `--weights` without a config, in a workdir that has none."""
  name = "cifar10" if commands.program == "sprout" else "configs/cifar10.py"
  example = commands.evaluate_weights(text, f"{name}:model=wrn_28_10", workdir)
  return UserError(f"--config is missing: it gives the model and the data; type e.g. {example}")
