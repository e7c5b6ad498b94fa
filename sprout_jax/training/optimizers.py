"""Optax optimizers and learning-rate schedules from a config."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

import optax

from sprout_jax.errors import UserError

if TYPE_CHECKING:
  import ml_collections

Schedule = Callable[[Any], Any]  # step -> value

# Each maps (config.optimizer, steps per epoch, total steps) to step -> share of the peak rate.
SCHEDULES: dict[str, Callable[["ml_collections.ConfigDict", float, int], Schedule]] = {
  "constant": lambda config, per_epoch, total: optax.schedules.constant_schedule(1.0),
  "cosine": lambda config, per_epoch, total: optax.schedules.cosine_decay_schedule(1.0, total),
  "piecewise": lambda config, per_epoch, total: optax.schedules.piecewise_constant_schedule(
    1.0, {int(epoch * per_epoch): config.decay_factor for epoch in config.boundaries}
  ),
}


def _sgd(learning_rate: Schedule, momentum: float, nesterov: bool, weight_decay: float) -> Any:
  # The decay is added to the gradient, as in PyTorch's SGD and SPROUT's released code.
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum or None, nesterov)
  )


def _adamw(learning_rate: Schedule, momentum: float, nesterov: bool, weight_decay: float) -> Any:
  return optax.adamw(learning_rate, b1=momentum, nesterov=nesterov, weight_decay=weight_decay)


# (learning rate, momentum, nesterov, weight decay) -> Optax transformation
OPTIMIZERS: dict[str, Callable[[Schedule, float, bool, float], Any]] = {
  "sgd": _sgd,
  "adamw": _adamw,
}


def check_schedule(config: "ml_collections.ConfigDict", num_epochs: int) -> None:
  """Raises UserError if the boundaries do not fit the schedule or the number of epochs."""
  if (config.schedule == "piecewise") != bool(config.boundaries):
    raise UserError(
      f"config.optimizer.schedule is {config.schedule!r} and config.optimizer.boundaries is "
      f"{tuple(config.boundaries)}; 'piecewise' needs boundaries (in epochs), other schedules "
      "take none"
    )
  boundaries = list(config.boundaries)
  if boundaries != sorted(set(boundaries)) or any(not 0 < b < num_epochs for b in boundaries):
    raise UserError(
      f"config.optimizer.boundaries is {tuple(boundaries)}; the boundaries must be ascending and "
      f"between 0 and config.num_epochs, {num_epochs}"
    )


def schedule(
  config: "ml_collections.ConfigDict", steps_per_epoch: int, num_epochs: int
) -> Schedule:
  """Makes the schedule: the share of the peak learning rate after a number of applied updates.

  Args:
    config: `config.optimizer`.
    steps_per_epoch: minibatches per epoch, before accumulation.
    num_epochs: number of epochs.

  Returns:
    An Optax schedule with values in [0, 1].
  """
  per_epoch = steps_per_epoch / config.accumulate_steps
  warmup = round(config.warmup_epochs * per_epoch)
  total = max(1, round(num_epochs * per_epoch))
  shape = SCHEDULES[config.schedule](config, per_epoch, total)
  if not warmup:
    return shape
  rise = optax.schedules.linear_schedule(0.0, 1.0, warmup)
  # The schedule also runs during warm-up, so that boundaries and the end stay at their epochs.
  return lambda count: rise(count) * shape(count)


def learning_rate(
  config: "ml_collections.ConfigDict", steps_per_epoch: int, num_epochs: int
) -> Schedule:
  """Makes the learning rate as a function of applied updates; arguments as in `schedule`."""
  shape = schedule(config, steps_per_epoch, num_epochs)
  return lambda count: config.learning_rate * shape(count)


def model_optimizer(config: "ml_collections.ConfigDict", rate: Schedule) -> Any:
  """Makes the optimizer of the model's parameters.

  Args:
    config: `config.optimizer`.
    rate: number of applied updates -> learning rate.

  Returns:
    An Optax transformation.
  """
  chain = [OPTIMIZERS[config.name](rate, config.momentum, config.nesterov, config.weight_decay)]
  if config.gradient_clip:
    chain.insert(0, optax.clip_by_global_norm(config.gradient_clip))
  return _accumulate(optax.chain(*chain), config)


def adversary_optimizer(
  config: "ml_collections.ConfigDict", factory: Callable[[Schedule], Any], shape: Schedule
) -> Any:
  """Makes the optimizer of a method's adversary, with the accumulation of the model.

  Args:
    config: `config.optimizer`.
    factory: schedule -> Optax transformation, of the method.
    shape: the schedule, number of applied updates -> share of the peak rate.
  """
  return _accumulate(factory(shape), config)


def _accumulate(optimizer: Any, config: "ml_collections.ConfigDict") -> Any:
  if config.accumulate_steps == 1:
    return optimizer
  return optax.MultiSteps(optimizer, config.accumulate_steps).gradient_transformation()


def is_update_applied(opt_state: Any) -> Any:
  """Returns whether the last call changed the parameters. Accumulation delays changes."""
  return opt_state.mini_step == 0 if isinstance(opt_state, optax.MultiStepsState) else True
