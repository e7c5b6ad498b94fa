"""The training state: everything that one step reads and writes."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sprout_jax.errors import UserError
from sprout_jax.training import optimizers


@flax.struct.dataclass
class TrainState:
  """A pytree; replicated over all devices.

  Attributes:
    step: int32 scalar, minibatches done; with the seed it determines all randomness to come.
    params: the model's parameters.
    batch_stats: the model's running batch statistics; {} without batch norm.
    opt_state: state of the model's Optax optimizer.
    adversary: what the method learns against the model (SPROUT: {"beta": [classes]}); {} if none.
    adversary_opt_state: state of its Optax optimizer.
    ema: moving averages of "params" and "batch_stats"; {} if config.ema_decay is 0.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  adversary: Any
  adversary_opt_state: Any
  ema: Any

  def variables(self, use_ema=False):
    """What `model.apply` takes; optionally the moving average."""
    return self.ema if use_ema else {"params": self.params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The parts of a step that do not change from step to step; all hashable or closed over.

  Attributes:
    model: the Flax module.
    method: the `methods.Method`.
    penalty: None, or (network, x, y) -> [batch], added to the method's loss.
    optimizer, adversary_optimizer: Optax transformations.
    learning_rate: minibatches done -> rate of the next minibatch's first update of the model.
    num_classes: number of classes.
    batch_size, seed, ema_decay, awp_gamma, crop_padding, flip: as in the config.
  """

  model: Any
  method: Any
  penalty: Any
  optimizer: Any
  adversary_optimizer: Any
  learning_rate: Any
  num_classes: int
  batch_size: int
  seed: int
  ema_decay: float
  awp_gamma: float
  crop_padding: int
  flip: bool


def make_recipe(config, model, method, penalty, num_classes, steps_per_epoch):
  """Puts the parts together; the learning-rate schedules need the steps per epoch."""
  if method.steps_per_batch > 1 and config.optimizer.accumulate_steps > 1:
    raise UserError(
      f"config.optimizer.accumulate_steps is {config.optimizer.accumulate_steps}, but "
      f"the method takes {method.steps_per_batch} steps per minibatch (steps_per_batch or "
      "replays); one of the two must be 1"
    )
  rate = optimizers.learning_rate(
    config.optimizer, steps_per_epoch * method.steps_per_batch, config.num_epochs
  )
  ascents_per_batch = method.steps_per_batch if method.adversary.vicinity is None else 1
  ascent_share = optimizers.schedule(
    config.optimizer, steps_per_epoch * ascents_per_batch, config.num_epochs
  )
  return Recipe(
    model=model,
    method=method,
    penalty=penalty,
    optimizer=optimizers.model_optimizer(config.optimizer, rate),
    adversary_optimizer=optimizers.adversary_optimizer(
      config.optimizer, method.adversary.optimizer, ascent_share
    ),
    learning_rate=lambda done: rate(
      done * method.steps_per_batch // config.optimizer.accumulate_steps
    ),
    num_classes=num_classes,
    batch_size=config.batch_size,
    seed=config.seed,
    ema_decay=config.ema_decay,
    awp_gamma=config.awp_gamma,
    crop_padding=config.dataset.crop_padding,
    flip=config.dataset.flip,
  )


def create(recipe, image_shape):
  """Initialises the state from the recipe's seed; to be called under jit.

  Args:
    recipe: a `Recipe`.
    image_shape: (height, width, channels).
  """
  key_model, key_adversary = jax.random.split(jax.random.fold_in(jax.random.key(recipe.seed), 0))
  images = jnp.zeros((1, *image_shape))
  variables = recipe.model.init(key_model, images, train=False)
  params, batch_stats = variables["params"], variables.get("batch_stats", {})
  adversary = recipe.method.adversary.init(
    key_adversary, recipe.num_classes, (recipe.batch_size, *image_shape)
  )
  return TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=batch_stats,
    opt_state=recipe.optimizer.init(params),
    adversary=adversary,
    adversary_opt_state=recipe.adversary_optimizer.init(adversary),
    ema={"params": params, "batch_stats": batch_stats} if recipe.ema_decay else {},
  )


def start_from(state, variables):
  """The state with its weights and batch statistics replaced by those of a trained model."""
  return state.replace(
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    ema=jax.tree.map(jnp.copy, variables) if state.ema else {},
  )
