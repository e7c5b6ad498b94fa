"""Models as attacks should see them: with the gradient of a surrogate, or as an average of draws.

A defence can hide its gradients from attacks (rounding, codes, random numbers) and stay as easy to
break. Both functions here return a model that every attack takes, and so do `auto_attack` and
`sprout_jax.evaluation.evaluate`::

    hook = attacks.with_surrogate(defended, undefended)   # the gradient is that of `undefended`
    mean = attacks.averaged(random_model, draws=32)       # mean logits over 32 draws

(Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018.)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sprout_jax import arguments
from sprout_jax.attacks import inputs
from sprout_jax.attacks.inputs import Predict


def with_surrogate(predict: Predict, surrogate: Predict) -> Predict:
  """A model with the outputs of `predict` and the gradient of `surrogate` (BPDA).

  Backward pass differentiable approximation: outputs are those of `predict`, so that an image
  counts as broken only where `predict` is wrong. Gradients are those of `surrogate` at the same
  images, for the cotangent of the loss at the outputs of `predict`.

  To pass a preprocessing step `g` straight through, take the gradient of the network `f` at g(x)::

      surrogate = lambda x: f(x + jax.lax.stop_gradient(g(x) - x))

  For a model that draws random numbers, type averaged(with_surrogate(predict, surrogate), draws).

  Args:
    predict: the defended model: images -> logits, or (images, keys [batch]) -> logits.
    surrogate: a function of the same arguments whose outputs have the same shape, and whose
      gradient is of use: the model without its defence, or with a smooth form of it.

  Returns:
    A model with the arguments of `predict`, whose leaves are those of both. It has first
    derivatives with respect to images only.

  Raises:
    ValueError: an argument cannot be called; when called, outputs of another shape.
  """
  inputs.check_predict("with_surrogate", predict)
  inputs.check_predict("with_surrogate", surrogate)
  return jax.tree_util.Partial(_call, _as_pytree(predict), _as_pytree(surrogate))


def _call(predict: Predict, surrogate: Predict, images: jax.Array, *keys: jax.Array) -> jax.Array:
  # The keys are arguments, not captured: the backward pass may run in another trace.
  call = jax.custom_vjp(lambda images, keys: predict(images, *keys))

  def forward(images: jax.Array, keys: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
    return predict(images, *keys), (images, keys)

  def backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    images, keys = residuals
    outputs, pull = jax.vjp(lambda images: surrogate(images, *keys), images)
    if outputs.shape != cotangent.shape:
      raise ValueError(
        f"with_surrogate: `surrogate` returns shape {outputs.shape}, `predict` {cotangent.shape}; "
        "expected outputs of the same shape"
      )
    return pull(cotangent.astype(outputs.dtype))[0], None

  call.defvjp(forward, backward)
  return call(images, keys)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["predict", "key"], meta_fields=["draws"]
)
@dataclasses.dataclass(frozen=True)
class Averaged:
  """The mean logits of a random model over a fixed number of draws; from `averaged`.

  Attributes:
    predict: (images, keys [batch]) -> logits.
    key: PRNG key of the draws.
    draws: number of draws.
  """

  predict: Predict
  key: jax.Array
  draws: int

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the mean logits [batch, classes]."""

    @jax.checkpoint  # else the backward pass would keep the activations of all draws
    def draw(number: jax.Array) -> jax.Array:
      key = jax.random.fold_in(self.key, number)
      return self.predict(images, jnp.broadcast_to(key, (len(images), *key.shape)))

    shape = jax.eval_shape(draw, jnp.int32(0))
    total, _ = jax.lax.scan(
      lambda total, number: (total + draw(number), None),
      jnp.zeros(shape.shape, shape.dtype),
      jnp.arange(self.draws),
    )
    return total / self.draws

  def redrawn(self, key: jax.Array) -> "Averaged":
    """Returns the same model with other draws: those of another PRNG key."""
    arguments.check_key("redrawn", key)
    return dataclasses.replace(self, key=key)


def averaged(predict: Predict, draws: int, *, key: jax.Array | None = None) -> Averaged:
  """The mean logits of a random model over `draws` draws: a model without random numbers (EOT).

  Expectation over transformation: gradients of the result are means over the draws as well. The
  draws are the same for all images and in every call. So attacks see one fixed model, which they
  can fit: the more draws, the less. `Averaged.redrawn` judges what they found by other draws, and
  so does the evaluation "redraws".

  A gradient of D draws costs about 3 D forward passes and the memory of one draw. An attack that
  averages over fresh draws in every step is `auto_attack(..., version="rand")`, or `apgd` with
  `num_samples`.

  Args:
    predict: (images [batch, height, width, channels], PRNG keys [batch]) -> logits. The draws of
      an image depend on its own key only.
    draws: number of draws, at least 1.
    key: PRNG key of the draws; default jax.random.key(0).

  Returns:
    A model images -> logits. Its leaves are those of `predict`, and the key.

  Raises:
    ValueError: a wrong argument.
  """
  inputs.check_predict("averaged", predict)
  arguments.check_count("averaged", "draws", draws, 1)
  key = jax.random.key(0) if key is None else key
  arguments.check_key("averaged", key)
  return Averaged(_as_pytree(predict), key, int(draws))


def _as_pytree(predict: Predict) -> Predict:
  """A plain function as a pytree without leaves, so that it can be an argument of `jax.jit`."""
  return jax.tree_util.Partial(predict) if jax.tree_util.all_leaves([predict]) else predict
