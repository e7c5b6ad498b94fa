"""Loads files of weights into our models: PyTorch state dicts, DeepMind's NumPy files, our own.

    weights = models.load_weights(
      "cifar_linf_8.pt", model="wrn_28_10", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)
    )
    logits = weights(images)
    evaluation.evaluate(weights.predict, images, labels, workdir="runs/published")

`files` reads the files. `names` has the names of the arrays in published networks.
"""

import dataclasses
import fnmatch
import hashlib
import json
import pathlib
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.errors import UserError
from sprout_jax.models.layers import Classifier
from sprout_jax.models.weights import files
from sprout_jax.models.weights import names as names_lib
from sprout_jax.models.weights.names import Form
from sprout_jax.models.weights.names import Place

LISTED = 40  # names in one list of a message
NORMALISATION = {"mu": "sigma", "mean": "std", "new_mean": "new_std"}  # in published files
CLOSE = 1e-4  # two statements of a mean or standard deviation, in [0, 1] pixels
ACTIVATION, MODEL = "activation", "model"  # names of texts in our own files
# Fields of a model that are stated elsewhere, or do not change its function.
NOT_ARCHITECTURE = (
  "activation",
  "mean",
  "std",
  "num_classes",
  "dtype",
  "remat",
  "parent",
  "name",
)
CHANNELS = 3  # of the images with which the shapes of a named model are found


class NotStated(UserError):
  """The file lacks something that the caller must state: the normalisation or the activation.

  Attributes:
    problem: what is not in the file, a sentence without full stop.
    arguments: the arguments of `load_weights` that state it.
  """

  def __init__(self, problem: str, advice: str, *arguments: str) -> None:
    super().__init__(f"{problem}{advice}")
    self.problem, self.arguments = problem, arguments


@dataclasses.dataclass(frozen=True)
class Weights:
  """A model with published weights; `weights(images)` gives logits.

  It is a pytree: its leaves are the variables.

  Attributes:
    variables: {"params", "batch_stats"}, float32, for `model.apply`.
    model: the Flax module, which normalises by `mean` and `std`.
    mean, std: one value per channel, for images in [0, 1].
    normalisation: where mean and std come from: "given", or the names in the file.
    path: path of the file.
    file_sha256: SHA-256 of the file, hexadecimal.
    form: the family of codes whose names the file has.
    mapping: {name in the file: place in the variables, such as "params/conv/kernel"}.
    unused: {name in the file: reason why it is not used}.
  """

  variables: Any = dataclasses.field(repr=False, compare=False)
  model: Classifier
  mean: tuple[float, ...]
  std: tuple[float, ...]
  normalisation: str
  path: str
  file_sha256: str
  form: str
  mapping: dict[str, str] = dataclasses.field(repr=False, hash=False)
  unused: dict[str, str] = dataclasses.field(repr=False, hash=False)

  @property
  def predict(self) -> jax.tree_util.Partial:
    """images [batch, height, width, channels] in [0, 1] -> logits, in evaluation mode."""
    return jax.tree_util.Partial(_Apply(self.model), self.variables)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits of images [batch, height, width, channels], floats in [0, 1].

    Raises:
      ValueError: the images have another number of axes or channels.
    """
    shape, channels = tuple(getattr(images, "shape", ())), len(self.mean)
    if len(shape) != 4 or shape[3] != channels:
      raise ValueError(
        f"the model takes images of shape (batch, height, width, {channels}), but these have "
        f"{shape}"
      )
    return self.predict(images)


jax.tree_util.register_pytree_node(
  Weights,
  lambda weights: ((weights.variables,), dataclasses.replace(weights, variables=None)),
  lambda rest, parts: dataclasses.replace(rest, variables=parts[0]),
)


@dataclasses.dataclass(frozen=True)
class _Apply:
  """A model in evaluation mode. Equal models give equal objects, to reuse compiled programs."""

  model: Classifier

  def __call__(self, variables: Any, images: jax.Array) -> Any:
    return self.model.apply(variables, images, train=False)


def load_weights(
  path: pathlib.Path | str,
  *,
  model: str | Classifier,
  mean: Collection[float] | None = None,
  std: Collection[float] | None = None,
  activation: str | None = None,
  entry: str | None = None,
  ignore: Collection[str] = (),
) -> Weights:
  """Loads published weights into one of our models.

  These files can be read: PyTorch state dicts as .safetensors, or as .pt, .pth or .ckpt; the same
  arrays as .npz; DeepMind's Haiku networks as .npy, or as .npz with names joined by "/"; the .npz
  files of `save_weights`. Files that end in .pt, .pth or .ckpt need PyTorch and are read with
  `weights_only=True`. No code in a file is executed.

  These networks are known: torchvision's ResNet-18, -50, -101, -152 and VGG-BN; ResNets and VGG for
  CIFAR-10; PreActResNet-18; Wide ResNets with the names of TRADES, RobustBench or DeepMind. If all
  names have a prefix, such as "module.", it is removed.

  Every array of the file is used, listed in `unused`, or named in an error. These arrays are not
  used: PyTorch's counts `num_batches_tracked`, Haiku's `hidden` and `counter` of moving averages,
  TRADES' `sub_block1`, and the arrays that `ignore` names. The normalisation is read from the file
  if it has the arrays `mu` and `sigma`, `mean` and `std`, or `new_mean` and `new_std`. Otherwise it
  must be given.

  Example:
    >>> weights = load_weights("resnet50.pth", model="resnet50", mean=(0.485, 0.456, 0.406),
    ...                        std=(0.229, 0.224, 0.225))

  Args:
    path: the file.
    model: a name for `models.create`, or a model that it made. A named model gets the numbers of
      classes and channels from the file.
    mean, std: mean and standard deviation of the normalisation in training, for images in [0, 1];
      one number per channel, or one for all channels. mean=(0,), std=(1,) means no normalisation.
      Not needed if the file has them.
    activation: activation of a named model. It is not needed if the file has it. Otherwise the
      default is "relu"; DeepMind's networks have no default.
    entry: the state dict to read if a checkpoint has several, such as "last" or "state_dict".
    ignore: patterns of names of arrays to ignore, such as "*.scores"; each must match a name.

  Raises:
    UserError: the file is missing, damaged or too large, or has other content than arrays; arrays
      are missing, left over, of another shape or not finite; the normalisation or the activation is
      not known.
  """
  path = pathlib.Path(path).expanduser()
  if not isinstance(model, str | Classifier):
    raise UserError(
      f"model is a {type(model).__name__}; expected a name, or a model from models.create"
    )
  if not isinstance(model, str) and activation is not None:
    raise UserError(
      "activation is given, but model is not a name; leave activation out, the model has its own"
    )
  arrays, others = files.read(path, entry)
  # The names do not depend on the number of classes. The file has this number.
  template = _create(model, num_classes=2) if isinstance(model, str) else model
  places = names_lib.places(template, CHANNELS)
  form, prefix = _find_form(path, template, list(places), arrays)
  if form.own:
    stored = _own_activation(path, template, arrays)
    wanted = activation if isinstance(model, str) else template.activation
    if stored is not None and wanted not in (None, stored):
      raise UserError(
        f"{path} has the activation {stored!r}, but {wanted!r} is given; give that of the file"
      )
    activation = stored if isinstance(model, str) else None
  if isinstance(model, str) and activation is None and not form.one_activation:
    raise NotStated(
      f"{path} has the array names of {form.title}. The activation is not in the file",
      "; give it. DeepMind's published networks have activation='silu'",
      "activation",
    )
  classes, channels = _sizes(places, form, prefix, arrays)
  if isinstance(model, str):
    options = {"num_classes": classes, "activation": activation or "relu"}
    template = _create(model, channels, **options)
  places = names_lib.places(template, channels)
  found = _sort(path, form, prefix, places, arrays, others, ignore)
  means, stds, source = _normalisation(path, found.normalisation, mean, std, arrays, channels)
  converted = {
    place: form.convert(place, _to_float32(path, name, arrays[name]))
    for place, name in found.names.items()
  }
  _check_values(path, found.names, converted)
  return Weights(
    names_lib.variables(converted),
    template.clone(mean=means, std=stds),
    means,
    stds,
    source,
    str(path),
    sha256(path),
    form.title,
    {name: "/".join(place) for place, name in found.names.items()},
    found.unused,
  )


def save_weights(path: pathlib.Path | str, model: Classifier, variables: Any) -> None:
  """Saves the variables of one of our models as a .npz file, which `load_weights` reads.

  The name of an array is its place, such as "params/conv/kernel". The entries "model", "mean",
  "std" and "activation" describe the model. A file of this name is replaced.

  Example:
    >>> trained = sprout_jax.load("runs/digits")
    >>> save_weights("digits.npz", trained.model, trained.variables)

  Args:
    path: the file; it ends in ".npz".
    model: a model that `models.create` made.
    variables: {"params", "batch_stats"}, as from `model.init`.

  Raises:
    UserError: the name has another ending, or the variables are not those of the model.
    OSError: the file cannot be written.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != ".npz":
    raise UserError(f"the file is {str(path)!r}; expected a name that ends in .npz")
  if not isinstance(model, Classifier):
    raise UserError(f"model is a {type(model).__name__}; expected a model from models.create")
  arrays = {
    tuple(key.key for key in place): np.asarray(leaf)
    for place, leaf in jax.tree.leaves_with_path(dict(variables))
  }
  images = _takes_images(names_lib.places(model, CHANNELS))
  shape = arrays[images].shape if images in arrays else ()
  channels = shape[2] if len(shape) == 4 else CHANNELS
  if {place: a.shape for place, a in arrays.items()} != names_lib.places(model, channels):
    raise UserError(
      f"the variables are not those of this {type(model).__name__}; give the model that they "
      'belong to, and {"params": ..., "batch_stats": ...}'
    )
  named: dict[str, Any] = {names_lib.OWN.name(place): array for place, array in arrays.items()}
  for name in ("mean", "std"):
    named[name] = np.asarray(getattr(model, name), np.float32)
  named |= {
    ACTIVATION: np.asarray(model.activation),
    MODEL: np.asarray(json.dumps(_architecture(model))),
  }
  part = path.with_name(path.name + ".part")
  try:
    with open(part, "wb") as file:
      np.savez_compressed(file, **named)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _architecture(model: Classifier) -> dict[str, Any]:
  """The class of a model and the fields that decide its function."""
  fields = [field.name for field in dataclasses.fields(model) if field.name not in NOT_ARCHITECTURE]
  return {"class": type(model).__name__} | {name: getattr(model, name) for name in sorted(fields)}


def _is_architecture(model: Classifier, stored: Any) -> bool:
  """Whether stored fields are those of a model. Fields that the file lacks have their defaults."""
  if not isinstance(stored, dict):
    return False
  defaults = {field.name: field.default for field in dataclasses.fields(model)}
  own = _architecture(model)
  return set(stored) <= set(own) and all(
    stored.get(name, defaults.get(name)) == value for name, value in own.items()
  )


def _own_activation(
  path: pathlib.Path, model: Classifier, arrays: dict[str, np.ndarray]
) -> str | None:
  """Removes the facts of `save_weights` from the arrays, and returns the activation.

  Raises:
    UserError: the weights are those of another model.
  """
  facts = {name: str(arrays.pop(name)) for name in (ACTIVATION, MODEL) if name in arrays}
  if MODEL in facts:
    try:
      stored = json.loads(facts[MODEL])
    except ValueError:
      stored = facts[MODEL]
    if not _is_architecture(model, stored):
      raise UserError(
        f"{path} has weights of {stored}, but the model is {_architecture(model)}; choose the "
        "model of the file"
      )
  return facts.get(ACTIVATION)


def _create(name: str, channels: int = 3, **options: Any) -> Classifier:
  """Makes a named model. Its variables do not depend on the image size; all models take 224."""
  from sprout_jax import models  # which imports this file

  return models.create(name, image_shape=(224, 224, channels), **options)


def sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 (hex) of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _find_form(
  path: pathlib.Path, model: Classifier, places: Collection[Place], arrays: Mapping[str, np.ndarray]
) -> tuple[Form, str]:
  """Finds the form whose names fit best, and the prefix of the names in this file."""
  forms = names_lib.forms(model)
  others = names_lib.other_forms(model)
  ranked = []
  for form in (*forms, *others):
    expected = {form.name(place) for place in places}
    prefix, count = _find_prefix(expected, arrays)
    ranked.append((count, form, prefix))
  count, form, prefix = max(ranked, key=lambda entry: entry[0])
  if form in others:
    raise UserError(
      f"{path} has the array names of {form.title}. Their padding differs; type "
      f"model={others[form]!r}"
    )
  return form, prefix


def _find_prefix(expected: Collection[str], arrays: Mapping[str, np.ndarray]) -> tuple[str, int]:
  """Finds the prefix with which most expected names are in the file, and their number."""
  anchors = [name for name in expected if name.count(".") + name.count("/") == 1] or list(expected)
  prefixes = {
    name[: -len(anchor)]
    for name in arrays
    for anchor in anchors
    if name.endswith(anchor) and name[: -len(anchor)][-1:] in ("", ".", "/")
  }
  counted = {prefix: sum(prefix + name in arrays for name in expected) for prefix in prefixes}
  # Among equally good prefixes, the shortest. An error lists the names that are left over.
  return max(counted.items(), key=lambda entry: (entry[1], -len(entry[0])), default=("", 0))


def _sizes(
  places: Mapping[Place, tuple[int, ...]], form: Form, prefix: str, arrays: Mapping[str, np.ndarray]
) -> tuple[int, int]:
  """Reads the numbers of classes and channels from the file; 2 and 3 if they are not in it."""
  first = _takes_images(places)
  last = ("params", "dense", "kernel")
  classes, channels = 2, 3
  stored = arrays.get(prefix + form.name(last), np.empty(0)).shape
  if len(stored) == 2:
    inputs = places[last][0]
    # The classes are the axis that is not the features. In a transposed array, the axes change.
    axis = 1 if form.inputs_first else 0
    classes = stored[axis] if stored[1 - axis] == inputs else stored[1 - axis]
  stored = arrays.get(prefix + form.name(first), np.empty(0)).shape
  if len(stored) == 4:
    channels = stored[2 if form.inputs_first else 1]
  return classes, channels


def _takes_images(places: Mapping[Place, tuple[int, ...]]) -> Place:
  """Returns the place of the kernel that takes the images, for images with CHANNELS channels."""
  return next(p for p, shape in places.items() if len(shape) == 4 and shape[2] == CHANNELS)


@dataclasses.dataclass
class _Found:
  names: dict[Place, str]
  unused: dict[str, str]
  normalisation: dict[str, str]


def _sort(
  path: pathlib.Path,
  form: Form,
  prefix: str,
  places: Mapping[Place, tuple[int, ...]],
  arrays: Mapping[str, np.ndarray],
  others: Mapping[str, str],
  ignore: Collection[str],
) -> _Found:
  """Assigns each array of the file to its use.

  Raises:
    UserError: arrays are missing, left over or of another shape; all are listed.
  """
  names = {place: prefix + form.name(place) for place in places}
  missing = [
    f"{name} {form.shape(place, places[place])}"
    for place, name in names.items()
    if name not in arrays
  ]
  wrong = []
  for place, name in names.items():
    expected = form.shape(place, places[place])
    if name in arrays and arrays[name].shape != expected:
      shape = arrays[name].shape
      is_transposed = sorted(shape) == sorted(expected)
      wrong.append(f"{name} is {shape}, expected {expected}{', transposed' * is_transposed}")
  rest = {name: str(arrays[name].shape) for name in arrays if name not in names.values()}
  rest |= {name: kind for name, kind in others.items() if name not in names.values()}
  known = {prefix + name: why for name, why in form.unused(list(places)).items()}
  unused = {name: known[name] for name in rest if name in known}
  for pattern in (ignore,) if isinstance(ignore, str) else ignore:
    matching = [name for name in rest if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
      raise UserError(
        f"ignore has {pattern!r}, which matches no unused name of {path}; unused are: "
        f"{_list([f'{name} {kind}' for name, kind in rest.items()]) or 'none'}"
      )
    unused |= dict.fromkeys(matching, f"ignored as {pattern!r}")
  normalisation = {
    name: partner
    for name in rest
    if name not in unused and (partner := _partner(name)) in rest and partner not in unused
  }
  kept = {*unused, *normalisation, *normalisation.values()}
  surplus = [f"{name} {kind}" for name, kind in rest.items() if name not in kept]
  parts = {"missing": missing, "not used": surplus, "of another shape": wrong}
  if any(parts.values()):
    listed = "; ".join(f"{what}: {_list(entries)}" for what, entries in parts.items() if entries)
    advice = "Choose another model" + ", or ignore arrays with ignore=(...,)" * bool(surplus)
    if missing and not surplus and not wrong:  # every array has its place
      advice = (
        f"{len(missing)} of {len(places)} arrays are missing. Choose another model; if it is the "
        "right one, the file is incomplete"
      )
    raise UserError(
      f"{path} does not fit the model. With the names of {form.title}: {listed}. {advice}"
    )
  return _Found(names, unused, normalisation)


def _list(entries: Sequence[str]) -> str:
  rest = f", and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
  return ", ".join(entries[:LISTED]) + rest


def _partner(name: str) -> str | None:
  """Returns the name of the standard deviation that belongs to a mean; None for other names."""
  stem, _, last = name.rpartition(".")
  partner = NORMALISATION.get(last)
  return None if partner is None else f"{stem}.{partner}" if stem else partner


def _normalisation(
  path: pathlib.Path,
  pairs: Mapping[str, str],
  mean: Collection[float] | None,
  std: Collection[float] | None,
  arrays: Mapping[str, np.ndarray],
  channels: int,
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
  """Returns (mean, std, their origin), from the file or from the arguments.

  Raises:
    UserError: they are not known, or the file and the arguments differ.
  """
  stated = {}
  if (mean is None) != (std is None):
    raise UserError("only one of mean and std is given; give both, or neither if the file has them")
  if mean is not None:
    stated["given"] = tuple(
      _channels(what, values, channels) for what, values in (("mean", mean), ("std", std))
    )
  for name, partner in pairs.items():
    stated[f"{name}, {partner}"] = tuple(
      _channels(f"{path}: {what}", _to_float32(path, what, arrays[what]), channels)
      for what in (name, partner)
    )
  if not stated:
    raise NotStated(
      f"{path} does not have the mean and standard deviation of the normalisation, and they are "
      "not guessed",
      ": give mean=(...), std=(...) for images in [0, 1]. docs/weights.md lists those of published "
      "models; mean=(0,), std=(1,) means no normalisation",
      "mean",
      "std",
    )
  source, values = list(stated.items())[
    -1
  ]  # the values of a file are exact; given values may be rounded
  for other, different in stated.items():
    if max(np.max(np.abs(a - b)) for a, b in zip(values, different, strict=True)) > CLOSE:
      raise UserError(
        f"{path}: mean and std are {_pair(values)} ({source}) and {_pair(different)} ({other}); "
        "expected one pair. Leave out the wrong pair; for a pair in the file, type ignore=(...,)"
      )
  # The shortest decimals of these float32: 0.4914, not 0.49140000343.
  means, stds = (tuple(float(str(value)) for value in part) for part in values)
  return means, stds, source


def _pair(values: Iterable[Iterable[float]]) -> str:
  return " and ".join(str(tuple(round(float(v), 6) for v in part)) for part in values)


def _channels(what: str, values: Any, channels: int) -> np.ndarray:
  """Returns a mean or standard deviation as an array with one number per channel."""
  try:
    array = np.asarray(values, np.float32)
  except (TypeError, ValueError):
    array = np.empty(0, np.float32)
  if array.size not in (1, channels) or max(array.shape, default=1) != array.size:
    raise UserError(
      f"{what} is {values!r}; expected 1 number or {channels}, one per channel, such as (0.5,)"
    )
  array = np.broadcast_to(array.reshape(-1), (channels,))
  is_std = what.endswith(("std", "sigma"))
  if not np.isfinite(array).all() or array.max() > 1 or array.min() < (1e-6 if is_std else 0):
    raise UserError(
      f"{what} is {tuple(map(float, array))}; expected numbers "
      f"{'above 0 and up to' if is_std else 'from 0 to'} 1, for images in [0, 1]: divide numbers "
      "for pixels from 0 to 255 by 255"
    )
  return array


def _to_float32(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
  if not jnp.issubdtype(array.dtype, jnp.floating):  # NumPy's issubdtype does not know bfloat16
    raise UserError(f"{path}: {name} is {array.dtype}; expected floating-point numbers")
  with np.errstate(over="ignore"):  # `_check_values` refuses infinities
    return array.astype(np.float32)


def _check_values(
  path: pathlib.Path, names: Mapping[Place, str], arrays: Mapping[Place, np.ndarray]
) -> None:
  """Raises UserError if numbers are not finite or a variance is negative."""
  bad = [names[place] for place, array in arrays.items() if not np.isfinite(array).all()]
  if bad:
    raise UserError(f"{path} has numbers that are not finite, in: {_list(bad)}")
  bad = [names[place] for place, a in arrays.items() if place[-1] == "var" and (a < 0).any()]
  if bad:
    raise UserError(f"{path} has negative variances, in: {_list(bad)}")
