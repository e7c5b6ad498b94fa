"""The training step: pure, and ignorant of methods, devices and files."""

import jax
import jax.numpy as jnp
import optax

from sprout_jax.data import augmentation
from sprout_jax.data import to_float
from sprout_jax.training import optimizers


def train_step(recipe, state, images, labels, *, shard, mean):
  """One minibatch: the method's steps of the model, then one of the method's adversary.

  Args:
    recipe: a `Recipe`.
    state: a `TrainState`.
    images: the whole minibatch, [batch, height, width, channels], uint8 or float in [0, 1].
    labels: int array [batch].
    shard: (array [batch, ...]) -> the part of it that this program computes on.
    mean: (pytree of means over that part) -> means over the whole minibatch.

  Returns:
    The next state, and a dictionary of metrics: "loss" and "accuracy" (of x~ against the largest
    entry of y~) and "grad_norm" of the last model step, and the adversary's parameters.
  """
  method, adversary_options = recipe.method, recipe.method.adversary
  key = jax.random.fold_in(jax.random.key(recipe.seed), state.step + 1)  # 0 made the parameters
  key_augment, key_model, key_adversary = jax.random.split(key, 3)
  images = augment(recipe, key_augment, images)
  labels = jax.nn.one_hot(labels, recipe.num_classes)

  def mean_loss(params, adversary, batch_stats, vicinity, key):
    x, y = jax.tree.map(shard, vicinity(key, images, labels, adversary))
    logits, updates = recipe.model.apply(
        {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"])
    accuracy = jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(y, -1))
    return jnp.mean(method.loss(logits, y)), (updates.get("batch_stats", {}), accuracy)

  def gradients(state, vicinity, key):
    (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(
        mean_loss, argnums=(0, 1), has_aux=True)(
            state.params, state.adversary, state.batch_stats, vicinity, key)
    return mean((grads, batch_stats, {"loss": loss, "accuracy": accuracy}))

  def model_step(state, key):
    (grads, adversary_grads), batch_stats, metrics = gradients(state, method.vicinity, key)
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = average(recipe, state.ema, {"params": params, "batch_stats": batch_stats}, opt_state)
    metrics["grad_norm"] = optax.tree.norm(grads)
    state = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
    return state, (adversary_grads, metrics)

  state, history = jax.lax.scan(model_step, state, jax.random.split(key_model, method.steps_per_batch))
  grads, metrics = jax.tree.map(lambda values: values[-1], history)
  if adversary_options.vicinity is not None:
    (_, grads), batch_stats, _ = gradients(state, adversary_options.vicinity, key_adversary)
    state = state.replace(batch_stats=batch_stats)
  updates, opt_state = recipe.adversary_optimizer.update(
      optax.tree.scale(-1, grads), state.adversary_opt_state, state.adversary)
  adversary = adversary_options.project(optax.apply_updates(state.adversary, updates))
  state = state.replace(step=state.step + 1, adversary=adversary, adversary_opt_state=opt_state)
  return state, metrics | adversary


def augment(recipe, key, images):
  """Random crop and flip, as the recipe says, and pixels as float32 in [0, 1]."""
  key_crop, key_flip = jax.random.split(key)
  if recipe.crop_padding:
    images = augmentation.random_crop(key_crop, images, recipe.crop_padding)
  if recipe.flip:
    images = augmentation.random_flip(key_flip, images)
  return to_float(images)


def average(recipe, ema, variables, opt_state):
  """ema + (1 - decay) (variables - ema), where the optimizer has applied an update."""
  weight = (1 - recipe.ema_decay) * optimizers.is_update_applied(opt_state)
  return jax.tree.map(lambda old, new: old + weight * (new - old), ema, variables) if ema else ema
