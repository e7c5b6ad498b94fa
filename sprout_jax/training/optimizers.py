"""Optax optimizers and learning-rate schedules from a config."""

import optax

from sprout_jax.errors import UserError

# Each maps (config.optimizer, steps per epoch, total steps) to step -> share of the peak rate.
SCHEDULES = {
  "constant": lambda config, per_epoch, total: optax.schedules.constant_schedule(1.0),
  "cosine": lambda config, per_epoch, total: optax.schedules.cosine_decay_schedule(1.0, total),
  "piecewise": lambda config, per_epoch, total: optax.schedules.piecewise_constant_schedule(
    1.0, {int(epoch * per_epoch): config.decay_factor for epoch in config.boundaries}
  ),
}


def _sgd(learning_rate, momentum, nesterov, weight_decay):
  # The decay is part of the gradient, as in PyTorch's SGD and SPROUT's released code.
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum or None, nesterov)
  )


def _adamw(learning_rate, momentum, nesterov, weight_decay):
  return optax.adamw(learning_rate, b1=momentum, nesterov=nesterov, weight_decay=weight_decay)


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


def check_schedule(config, num_epochs):
  """Raises UserError for boundaries that the schedule does not have or that never come."""
  if (config.schedule == "piecewise") != bool(config.boundaries):
    raise UserError(
      f"config.optimizer.schedule is {config.schedule!r} and .boundaries "
      f"{tuple(config.boundaries)}; 'piecewise' needs boundaries (in epochs), the "
      "others have none"
    )
  boundaries = list(config.boundaries)
  if boundaries != sorted(set(boundaries)) or any(not 0 < b < num_epochs for b in boundaries):
    raise UserError(
      f"config.optimizer.boundaries is {tuple(boundaries)}; they must ascend and lie "
      f"between 0 and the last epoch, {num_epochs}"
    )


def schedule(config, steps_per_epoch, num_epochs):
  """Share of the peak learning rate as a function of the number of *applied* updates.

  Args:
    config: `config.optimizer`.
    steps_per_epoch: updates per epoch, before accumulation.
    num_epochs: epochs of the run.

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
  # The schedule runs on during warm-up: boundaries and the end stay where the config puts them.
  return lambda count: rise(count) * shape(count)


def learning_rate(config, steps_per_epoch, num_epochs):
  """The learning rate as a function of the number of applied updates; arguments of `schedule`."""
  shape = schedule(config, steps_per_epoch, num_epochs)
  return lambda count: config.learning_rate * shape(count)


def model_optimizer(config, rate):
  """The optimizer of the model's parameters.

  Args:
    config: `config.optimizer`.
    rate: number of applied updates -> learning rate.
  """
  chain = [OPTIMIZERS[config.name](rate, config.momentum, config.nesterov, config.weight_decay)]
  if config.gradient_clip:
    chain.insert(0, optax.clip_by_global_norm(config.gradient_clip))
  return _accumulate(optax.chain(*chain), config)


def adversary_optimizer(config, factory, shape):
  """The optimizer of what a method learns against the model; accumulation is the model's."""
  return _accumulate(factory(shape), config)


def _accumulate(optimizer, config):
  if config.accumulate_steps == 1:
    return optimizer
  return optax.MultiSteps(optimizer, config.accumulate_steps).gradient_transformation()


def is_update_applied(opt_state):
  """Whether the last call of the optimizer changed the parameters (accumulation: every k-th)."""
  return opt_state.mini_step == 0 if isinstance(opt_state, optax.MultiStepsState) else True
