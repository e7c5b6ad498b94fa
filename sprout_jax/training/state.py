"""The training state, which a step reads and writes, and the recipe, which it only reads."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.methods import Method
from sprout_jax.methods.method import Penalty
from sprout_jax.training import optimizers

if TYPE_CHECKING:
  import ml_collections


class TrainState(flax.struct.PyTreeNode):
  """The training state, a pytree. `sharding.of_state` says how it is placed on the devices.

  Attributes:
    step: int32 scalar, minibatches done. With the seed it determines all further randomness.
    params: the model's parameters.
    batch_stats: the model's running batch statistics; {} without batch norm.
    opt_state: the state of the model's Optax optimizer.
    adversary: the parameters that the method learns against the model, such as SPROUT's {"beta":
      [classes]}; {} for other methods.
    adversary_opt_state: the state of the adversary's Optax optimizer.
    ema: moving averages of "params" and "batch_stats"; {} if config.ema_decay is 0.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  adversary: Any
  adversary_opt_state: Any
  ema: Any

  def variables(self, use_ema: bool = False) -> Any:
    """Returns the variables of `model.apply`, or their moving average."""
    return self.ema if use_ema else {"params": self.params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The constant parts of a training step.

  Attributes:
    model: the Flax module.
    method: the robust-training method.
    penalty: None, or (network, x, y) -> [batch], which is added to the method's loss.
    optimizer: the Optax transformation of the model's parameters.
    adversary_optimizer: the Optax transformation of the adversary's parameters.
    learning_rate: minibatches done -> learning rate of the next update of the model.
    num_classes: number of classes.
    batch_size: examples of a minibatch, over all devices.
    seed: the seed of all randomness.
    ema_decay: decay of the moving average, per update; 0 for none.
    awp_gamma: relative size of the adversarial weight perturbation; 0 for none.
    crop_padding: padding of the random crop, in pixels; 0 for none.
    flip: whether images are flipped at random.
  """

  model: Any
  method: Method
  penalty: Penalty | None
  optimizer: Any
  adversary_optimizer: Any
  learning_rate: Callable[[int], Any]
  num_classes: int
  batch_size: int
  seed: int
  ema_decay: float
  awp_gamma: float
  crop_padding: int
  flip: bool


def make_recipe(
  config: "ml_collections.ConfigDict",
  model: Any,
  method: Method,
  penalty: Penalty | None,
  num_classes: int,
  steps_per_epoch: int,
) -> Recipe:
  """Makes the recipe of a config.

  Args:
    config: the config.
    model: the Flax module.
    method: the robust-training method.
    penalty: None, or the penalty added to its loss.
    num_classes: number of classes.
    steps_per_epoch: minibatches per epoch, for the learning-rate schedules.

  Raises:
    UserError: the method takes several steps per minibatch, and the config accumulates gradients.
  """
  if method.steps_per_batch > 1 and config.optimizer.accumulate_steps > 1:
    raise UserError(
      f"config.optimizer.accumulate_steps is {config.optimizer.accumulate_steps}, and the method "
      f"takes {method.steps_per_batch} steps per minibatch (steps_per_batch or replays); one of "
      "the two must be 1"
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


def create(recipe: Recipe, image_shape: tuple[int, ...]) -> TrainState:
  """Initialises the state from the recipe's seed. Call it under jit.

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


def start_from(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
  """Replaces the weights and batch statistics of a state by those of a trained model.

  The new arrays are placed on the devices like those that they replace.
  """

  def placed() -> dict[str, Any]:  # each call makes copies, because the state is donated
    return {
      name: jax.tree.map(
        lambda old, new: sharding.put(new, old.sharding), getattr(state, name), variables[name]
      )
      for name in ("params", "batch_stats")
    }

  return state.replace(**placed(), ema=placed() if state.ema else {})


def check_adversary(recipe: Recipe, image_shape: tuple[int, ...]) -> None:
  """Checks that the method's adversary does not belong to the places of a minibatch.

  Raises:
    UserError: it does. Where each device draws for its own examples, it has no such places.
  """
  init = recipe.method.adversary.init
  small, large = (
    jax.eval_shape(
      lambda key, size=size: init(key, recipe.num_classes, (size, *image_shape)), jax.random.key(0)
    )
    for size in (recipe.batch_size, 2 * recipe.batch_size)
  )
  if jax.tree.leaves(small) != jax.tree.leaves(large):
    raise UserError(
      "the method keeps a perturbation for each place of the minibatch, so it cannot be trained "
      "with config.parallelism 'shard_map' on a streamed set; type --config.parallelism=jit"
    )
