"""The training step: pure, and ignorant of methods, devices and files."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sprout_jax.data import augmentation
from sprout_jax.data import to_float
from sprout_jax.methods import Network
from sprout_jax.training import optimizers


def train_step(recipe, state, images, labels, *, shard, mean):
  """One minibatch: the method's steps of the model and of its adversary.

  Args:
    recipe: a `Recipe`.
    state: a `TrainState`.
    images: the whole minibatch, [batch, height, width, channels], uint8 or float in [0, 1].
    labels: int array [batch].
    shard: (array [batch, ...]) -> the part of it that this program computes on.
    mean: (pytree of means over that part) -> means over the whole minibatch.

  Returns:
    The next state, and a dictionary of metrics of the last model step: "loss" with its "penalty",
    "accuracy" (of the images trained on, against the largest entry of y) and "grad_norm"; and the
    adversary's summary.
  """
  adversary = recipe.method.adversary
  key = jax.random.fold_in(jax.random.key(recipe.seed), state.step + 1)  # 0 made the parameters
  key_augment, key_model, key_adversary = jax.random.split(key, 3)
  batch = augment(recipe, key_augment, images), jax.nn.one_hot(labels, recipe.num_classes)

  def model_step(state, key):
    (grads, adversary_grads), batch_stats, metrics = gradients(
      recipe, state, recipe.method.vicinity, key, *batch, shard, mean
    )
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = average(recipe, state.ema, {"params": params, "batch_stats": batch_stats}, opt_state)
    metrics["grad_norm"] = optax.tree.norm(grads)
    state = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
    return ascend(recipe, state, adversary_grads) if adversary.vicinity is None else state, metrics

  state, history = jax.lax.scan(
    model_step, state, jax.random.split(key_model, recipe.method.steps_per_batch)
  )
  if adversary.vicinity is not None:
    plain = dataclasses.replace(recipe, penalty=None, awp_gamma=0.0)
    (_, grads), batch_stats, _ = gradients(
      plain, state, adversary.vicinity, key_adversary, *batch, shard, mean
    )
    state = ascend(recipe, state.replace(batch_stats=batch_stats), grads)
  metrics = jax.tree.map(lambda values: values[-1], history)
  return state.replace(step=state.step + 1), metrics | adversary.summary(state.adversary)


def gradients(recipe, state, vicinity, key, images, labels, shard, mean):
  """Gradients of the mean loss over a vicinity's draws, for the parameters and the adversary's.

  The method's probe sees the parameters as they are; where the recipe has an `awp_gamma`, the
  gradients are then taken at weights perturbed against that very loss.

  Returns:
    (gradient of the parameters, of the adversary's), running statistics, metrics.
  """
  method = recipe.method
  key_vicinity, key_attack = jax.random.split(key)

  def draw(adversary):
    return jax.tree.map(shard, vicinity(key_vicinity, images, labels, adversary))

  def network(params):
    def apply(x, train):
      logits, updates = recipe.model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        x,
        train=train,
        mutable=["batch_stats"],
      )
      return logits, updates.get("batch_stats", {})

    return Network(apply)

  found = method.probe and method.probe(
    key_attack, shard(jnp.arange(len(images))), network(state.params), *draw(state.adversary)
  )

  def mean_loss(params, adversary):
    x, y = draw(adversary)
    values, (logits, batch_stats) = method.loss(network(params), x, y, found)
    metrics = {"accuracy": jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(y, -1))}
    if recipe.penalty:
      penalty = recipe.penalty(network(params), x, y)
      values, metrics["penalty"] = values + penalty, jnp.mean(penalty)
    metrics["loss"] = jnp.mean(values)
    return metrics["loss"], (batch_stats, metrics)

  params = state.params
  if recipe.awp_gamma:
    ascent = mean(jax.grad(mean_loss, has_aux=True)(params, state.adversary)[0])
    params = perturb(params, ascent, recipe.awp_gamma)
  grads, (batch_stats, metrics) = jax.grad(mean_loss, (0, 1), has_aux=True)(params, state.adversary)
  return mean((grads, batch_stats, metrics))


def perturb(params, gradient, gamma):
  """Adversarial weight perturbation: w + gamma |w| g / |g|, per array of at least two axes.

  (Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, with
  one ascent step; biases and the scales of norms stay, as in the authors' code.)
  """

  def leaf(w, g):
    size = gamma * jnp.linalg.norm(w.ravel()) / jnp.maximum(jnp.linalg.norm(g.ravel()), 1e-12)
    return w + size * g if w.ndim > 1 else w

  return jax.tree.map(leaf, params, gradient)


def ascend(recipe, state, grads):
  """The adversary's update, by its own optimizer, and its projection."""
  updates, opt_state = recipe.adversary_optimizer.update(
    optax.tree.scale(-1, grads), state.adversary_opt_state, state.adversary
  )
  adversary = recipe.method.adversary.project(optax.apply_updates(state.adversary, updates))
  return state.replace(adversary=adversary, adversary_opt_state=opt_state)


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
