"""Loading of trained models from workdirs, and of files of weights that stand in their place."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sprout_jax import models
from sprout_jax import sharding
from sprout_jax import zoo
from sprout_jax.errors import UserError
from sprout_jax.evaluation.subject import Predict
from sprout_jax.launcher import configuration
from sprout_jax.launcher import published
from sprout_jax.models.layers import Classifier
from sprout_jax.models.weights import Weights
from sprout_jax.results import files
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.training import checkpoints

VariablesFunction = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
  """A trained model. `trained(images)` returns logits.

  Attributes:
    predict: images [batch, height, width, channels] in [0, 1] -> logits [batch, classes], in
      evaluation mode. A pytree whose leaves are the variables.
    features: images -> the input of the last layer; None where the model does not expose it.
    model: the Flax module.
    variables: {"params", "batch_stats"}.
    config: the config of the run.
    class_names: the names of the classes.
    image_shape: (height, width, channels).
    data: the training data's {name, fingerprint, ...}.
    step: the step of the checkpoint; 0 for a file of weights.
    validated: whether the checkpoint was selected on a held-out split.
    beta: [classes], SPROUT's learned concentration; None for other methods.
    workdir: the folder of the run.
    file: the content of weights.json if a file of published weights stands in the place of a
      training; else None.
  """

  predict: Predict
  features: Predict | None
  model: Any
  variables: Any
  config: ml_collections.ConfigDict
  class_names: tuple[str, ...]
  image_shape: tuple[int, ...]
  data: dict[str, Any]
  step: int
  validated: bool
  beta: np.ndarray | None
  workdir: str
  file: dict[str, Any] | None = None

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits of images [batch, height, width, channels], floats in [0, 1].

    Raises:
      ValueError: the images have another shape than those of the training.
    """
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[1:] != self.image_shape:
      raise ValueError(
        f"the model takes images of shape (batch, {', '.join(map(str, self.image_shape))}), but "
        f"these have {shape}" + "; for one image, type images[None]" * (shape == self.image_shape)
      )
    return self.predict(images)

  def __repr__(self) -> str:
    """Returns one line: the model, the method, the data and the folder."""
    method = f"{self.config.method.name}, step {self.step}" if self.file is None else "from a file"
    return (
      f"<Trained {self.config.model.name} ({method}) on {self.data['name']}: "
      f"{len(self.class_names)} classes, images {'x'.join(map(str, self.image_shape))}; "
      f"{self.workdir}>"
    )

  @property
  def sha256(self) -> str:
    """SHA-256 (hex) of the variables."""
    return checkpoints.sha256(self.variables)


def load(workdir: pathlib.Path | str, checkpoint: str | None = None) -> Trained:
  """Loads the trained model of a workdir, or one of `sprout_jax.zoo`. No data set is needed.

  For the workdir of a file of weights (`--weights`), the file is read again.

  Example::

      model = sprout_jax.load("runs/digits")
      logits = model(images)

  Args:
    workdir: the folder of the run, or "zoo/NAME".
    checkpoint: "best" on the held-out split, or "last"; default: the choice of the run's config.

  Returns:
    The `Trained` model.

  Raises:
    UserError: the workdir has no trained model, its checkpoints are damaged, its file of weights is
      gone or has changed, or the zoo has no model of this name.
  """
  packaged = zoo.find(workdir)
  if packaged is not None:
    return _load_packaged(packaged)
  workdir = pathlib.Path(workdir).expanduser()
  config = read_config(workdir)
  return load_as(workdir, config, checkpoint or config.evaluation.checkpoint)


def _load_packaged(path: pathlib.Path) -> Trained:
  """Loads a model of `sprout_jax.zoo` from its file."""
  card = zoo.read_card(path)
  config = configuration.from_json(card["config"])
  data = card["data"]
  model = create_model(config, len(data["class_names"]), tuple(data["image_shape"]))
  weights = models.load_weights(path, model=model)
  record = published.record(published.File(path), weights)
  return from_file(pathlib.Path(zoo.PREFIX) / path.stem, config, data, weights, record)


def read_config(workdir: pathlib.Path | str) -> ml_collections.ConfigDict:
  """Reads the config of a workdir.

  Raises:
    UserError: the workdir has no config, or a damaged one.
  """
  value = workdir_lib.read_config(workdir)
  try:
    config = configuration.from_json(value)
    if workdir_lib.read_weights(workdir) is not None:
      config = published.whole_config(config.to_dict())
    configuration.validate(config)
  except UserError:
    raise
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    path = pathlib.Path(workdir) / "config.json"
    raise files.Damaged(
      f"{path} is not a config of this version of sprout_jax ({type(error).__name__}: {error}); "
      "choose another --workdir"
    ) from error
  return config


def load_as(workdir: pathlib.Path, config: ml_collections.ConfigDict, checkpoint: str) -> Trained:
  """Loads the trained model of a workdir, as `load`, with the evaluation keys of another config."""
  data = workdir_lib.read_data(workdir)
  file = published.known(workdir)
  if file is not None:
    sizes = len(data["class_names"]), tuple(data["image_shape"])
    weights, config = published.load(file, config, *sizes, typed=published.STATED)
    return from_file(workdir, config, data, weights, workdir_lib.read_weights(workdir) or {})
  model = create_model(config, len(data["class_names"]), tuple(data["image_shape"]))
  loaded = checkpoints.load_model(
    workdir, checkpoint, abstract_model(config, model, tuple(data["image_shape"]))
  )
  parts = loaded.model
  variables = (
    parts["ema"]
    if config.evaluation.use_ema
    else {name: parts[name] for name in ("params", "batch_stats")}
  )
  predict, features = functions(model)
  return Trained(
    jax.tree_util.Partial(predict, variables),
    None if features is None else jax.tree_util.Partial(features, variables),
    model,
    variables,
    config,
    tuple(data["class_names"]),
    tuple(data["image_shape"]),
    data,
    loaded.step,
    loaded.validated,
    loaded.beta,
    str(workdir),
  )


def from_file(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  data: dict[str, Any],
  weights: Weights,
  record: dict[str, Any],
) -> Trained:
  """Makes the model of a file of weights, with the options of `config.model`.

  Args:
    workdir: the folder of the evaluation.
    config: from `published.load`.
    data: the data set's {name, fingerprint, class_names, image_shape, ...}.
    weights: from `published.load`.
    record: the content of weights.json.
  """
  names, shape = tuple(data["class_names"]), tuple(data["image_shape"])
  model = create_model(config, len(names), shape)
  variables = replicate(weights.variables)
  predict, features = functions(model)
  return Trained(
    jax.tree_util.Partial(predict, variables),
    None if features is None else jax.tree_util.Partial(features, variables),
    model,
    variables,
    config,
    names,
    shape,
    data,
    step=0,
    validated=False,
    beta=None,
    workdir=str(workdir),
    file=record,
  )


def replicate(variables: Any) -> Any:
  """Returns the variables of a file, on all devices, as those of a checkpoint."""
  return sharding.put(variables, sharding.replicated(sharding.make_mesh()))


def functions(model: Any) -> tuple[VariablesFunction, VariablesFunction | None]:
  """Returns a Flax module's functions (variables, images) -> logits, and -> features.

  The features are the input of the last layer. Their function is None where the model does not
  expose them.
  """

  def predict(variables: Any, images: jax.Array) -> jax.Array:
    return model.apply(variables, images, train=False)

  def features(variables: Any, images: jax.Array) -> jax.Array:
    _, found = model.apply(
      variables,
      images,
      train=False,
      mutable=["intermediates"],
      capture_intermediates=lambda module, name: module.name is None and name == "features",
    )
    return found["intermediates"]["features"][0]

  return predict, features if isinstance(model, Classifier) else None


def create_model(
  config: ml_collections.ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> Any:
  """Creates the Flax module of a config."""
  options = configuration.options(config.model)
  return models.create(
    config.model.name, num_classes=num_classes, image_shape=image_shape, **options
  )


def abstract_model(
  config: ml_collections.ConfigDict, model: Any, image_shape: tuple[int, ...]
) -> dict[str, Any]:
  """Returns the shapes of a checkpoint's model part, replicated over all devices."""
  images = jnp.zeros((1, *image_shape))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
  everywhere = sharding.replicated(sharding.make_mesh())
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    shapes | {"ema": shapes if config.ema_decay else {}},
  )
