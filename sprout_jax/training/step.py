"""The training step, a pure function that knows no method by name, and no devices or files."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sprout_jax.data import augmentation
from sprout_jax.data import to_float
from sprout_jax.methods import Network
from sprout_jax.methods.method import Vicinity
from sprout_jax.training import optimizers
from sprout_jax.training.parallel import Mean
from sprout_jax.training.parallel import Shard
from sprout_jax.training.state import Recipe
from sprout_jax.training.state import TrainState


def train_step(
  recipe: Recipe,
  state: TrainState,
  images: jax.Array,
  labels: jax.Array,
  *,
  shard: Shard,
  mean: Mean,
  part: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Trains on one minibatch: the method's updates of the model and of its adversary.

  Args:
    recipe: the constant parts of the step.
    state: the training state.
    images: the whole minibatch, [batch, height, width, channels], uint8 or float in [0, 1]; or only
      the examples of this program, if `part` is given.
    labels: int array [batch].
    shard: array [batch, ...] -> the part on which this program computes.
    mean: pytree of means over that part -> means over the whole minibatch.
    part: the number of this program, which makes its draws other than those of the other programs.

  Returns:
    The next state, and the metrics of the last update of the model: "loss" and its part "penalty",
    "accuracy" (on the training images, against the largest entry of y), "grad_norm", and the
    adversary's summary.
  """
  adversary = recipe.method.adversary
  key = jax.random.fold_in(jax.random.key(recipe.seed), state.step + 1)  # 0 is that of the weights
  key = key if part is None else jax.random.fold_in(key, part)
  key_augment, key_model, key_adversary = jax.random.split(key, 3)
  batch = augment(recipe, key_augment, images), jax.nn.one_hot(labels, recipe.num_classes)

  def model_step(state: TrainState, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
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


def gradients(
  recipe: Recipe,
  state: TrainState,
  vicinity: Vicinity,
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  shard: Shard,
  mean: Mean,
) -> tuple[tuple[Any, Any], Any, dict[str, jax.Array]]:
  """Computes gradients of the mean loss over draws of a vicinity.

  The method's probe gets the unperturbed parameters. Where the recipe has an `awp_gamma`, the
  gradients are then taken at weights that are perturbed to increase the loss.

  Returns:
    (gradient of the parameters, gradient of the adversary), running statistics, metrics.
  """
  method = recipe.method
  key_vicinity, key_attack = jax.random.split(key)

  def draw(adversary: Any) -> Any:
    return jax.tree.map(shard, vicinity(key_vicinity, images, labels, adversary))

  def network(params: Any) -> Network:
    def apply(x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
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

  def mean_loss(params: Any, adversary: Any) -> tuple[jax.Array, Any]:
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


def perturb(params: Any, gradient: Any, gamma: float) -> Any:
  """Perturbs weights adversarially: w + gamma |w| g / |g|, per array of at least two axes.

  Biases and the scales of norms are unchanged, as in the authors' code. (Wu, Xia, Wang,
  "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, with one ascent
  step.) Weight decay acts on w. The authors' optimizer steps before the perturbation is taken back,
  so that their decay acts on the perturbed weights: it differs by at most gamma times itself.

  Args:
    params: the weights.
    gradient: the gradient of the loss, like `params`.
    gamma: relative size of the perturbation.
  """

  def leaf(w: jax.Array, g: jax.Array) -> jax.Array:
    size = gamma * jnp.linalg.norm(w.ravel()) / jnp.maximum(jnp.linalg.norm(g.ravel()), 1e-12)
    return w + size * g if w.ndim > 1 else w

  return jax.tree.map(leaf, params, gradient)


def ascend(recipe: Recipe, state: TrainState, grads: Any) -> TrainState:
  """Updates the adversary to increase the loss, by its own optimizer, and projects it."""
  updates, opt_state = recipe.adversary_optimizer.update(
    optax.tree.scale(-1, grads), state.adversary_opt_state, state.adversary
  )
  adversary = recipe.method.adversary.project(optax.apply_updates(state.adversary, updates))
  return state.replace(adversary=adversary, adversary_opt_state=opt_state)


def augment(recipe: Recipe, key: jax.Array, images: jax.Array) -> jax.Array:
  """Crops and flips images at random, and converts pixels to float32 in [0, 1]."""
  key_crop, key_flip = jax.random.split(key)
  if recipe.crop_padding:
    images = augmentation.random_crop(key_crop, images, recipe.crop_padding)
  if recipe.flip:
    images = augmentation.random_flip(key_flip, images)
  return to_float(images)


def average(recipe: Recipe, ema: Any, variables: Any, opt_state: Any) -> Any:
  """Updates the moving average: ema + (1 - decay) (variables - ema), after an applied update."""
  weight = (1 - recipe.ema_decay) * optimizers.is_update_applied(opt_state)
  return jax.tree.map(lambda old, new: old + weight * (new - old), ema, variables) if ema else ema
