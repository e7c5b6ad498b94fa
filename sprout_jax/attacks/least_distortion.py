"""The L2 attack of Carlini and Wagner: the least distortion that changes the class."""

import functools
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from sprout_jax import arguments
from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.attack import under_any_mesh
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

# Best images, their squared distances [batch], and whether the class was ever changed [batch].
_Found: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
# Constant, its bounds below and above, best images, their squared distances; all but the images are
# [batch].
_Bisection: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def carlini_wagner(
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  confidence: float = 0.0,
  num_steps: int = 1000,
  num_searches: int = 9,
  learning_rate: float = 0.01,
  first_constant: float = 1e-3,
) -> jax.Array:
  """L2 attack of Carlini and Wagner: minimises the distortion that changes the class; jittable.

  It minimises norm(x' - x)^2 + c * max(z_y - max_{k != y} z_k, -confidence) over x' in [0, 1], with
  the L2 norm. x' = (tanh(w) + 1) / 2 keeps the box, and Adam moves w. Bisection finds c per
  example: it is lowered after a success and raised after a failure, tenfold until the first
  success. (Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.) In
  Linf, use `pgd` with loss="margin".

  Args:
    predict: function images -> logits, deterministic.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    confidence: kappa, the margin by which a wrong class must lead, in units of the logits.
    num_steps: steps of Adam for each constant.
    num_searches: number of constants tried.
    learning_rate: learning rate of Adam.
    first_constant: first value of c.

  Returns:
    The nearest misclassified images found, like `images`; the image itself where there was none.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  for what, value in (
    ("confidence", confidence),
    ("learning_rate", learning_rate),
    ("first_constant", first_constant),
  ):
    inputs.check_number("carlini_wagner", what, value)
  arguments.check_count("carlini_wagner", "num_steps", num_steps, 1)
  arguments.check_count("carlini_wagner", "num_searches", num_searches, 1)
  given = images
  predict, images, labels, _ = inputs.prepare("carlini_wagner", predict, images, labels)
  inputs.check_clean("carlini_wagner", predict, images)
  search = functools.partial(
    _search,
    confidence=confidence,
    num_steps=num_steps,
    num_searches=num_searches,
    learning_rate=learning_rate,
    first_constant=first_constant,
  )
  return inputs.as_given(under_any_mesh(search, predict, images, labels), given)


def _search(
  predict: Predict,
  images: jax.Array,
  labels: jax.Array,
  *,
  confidence: float,
  num_steps: int,
  num_searches: int,
  learning_rate: float,
  first_constant: float,
) -> jax.Array:
  """`carlini_wagner` on checked arguments."""
  optimizer = optax.adam(learning_rate)
  # tanh reaches the box's faces only at infinity.
  origin = jnp.arctanh(jnp.clip(2 * images - 1, -1, 1) * (1 - 1e-6))

  def distance(x: jax.Array) -> jax.Array:
    return jnp.sum((x - images) ** 2, axis=(1, 2, 3))

  def objective(w: jax.Array, constant: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x = (jnp.tanh(w) + 1) / 2
    lead = losses.margin(predict(x), labels)
    values = distance(x) + constant * jnp.maximum(confidence - lead, 0)
    return jnp.sum(values), (x, lead)

  def descend(constant: jax.Array) -> _Found:
    def step(_: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
      w, opt_state, best, nearest, found = carry
      gradient, (x, lead) = jax.grad(objective, has_aux=True)(w, constant)
      better = (lead > confidence) & (distance(x) < nearest)
      best = select(better, x, best)
      nearest, found = jnp.where(better, distance(x), nearest), found | (lead > confidence)
      with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to the power of an int
        updates, opt_state = optimizer.update(gradient, opt_state)
      return optax.apply_updates(w, updates), opt_state, best, nearest, found

    start = (
      origin,
      optimizer.init(origin),
      images,
      jnp.full(labels.shape, jnp.inf),
      jnp.zeros(labels.shape, bool),
    )
    return jax.lax.fori_loop(0, num_steps + 1, step, start)[2:]

  def search(_: int, carry: _Bisection) -> _Bisection:
    constant, low, high, best, nearest = carry
    x, size, found = descend(constant)
    better = size < nearest
    best = select(better, x, best)
    low, high = jnp.where(found, low, constant), jnp.where(found, constant, high)
    constant = jnp.where(jnp.isinf(high), constant * 10, (low + high) / 2)
    return constant, low, high, best, jnp.minimum(size, nearest)

  whole = lambda value: jnp.full(labels.shape, value, images.dtype)
  start = whole(first_constant), whole(0.0), whole(jnp.inf), images, whole(jnp.inf)
  return jax.lax.fori_loop(0, num_searches, search, start)[3]
