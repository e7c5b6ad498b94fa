"""What an attack is: a start and a step over per-example state; and how one runs by itself.

`auto_attack` runs the same attacks over slots that it keeps full. Every example has its own key, its
own step number and its own state: what happens to it depends on nothing else in the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sprout_jax.attacks import norms


class Batch(NamedTuple):
  """What an attack is given.

  Attributes:
    images: float [batch, height, width, channels] in [0, 1].
    labels: int [batch], the true classes.
    keys: PRNG keys [batch], one per example, the same in every run of the attack.
    run: int [batch], which restart or which target: 0, 1, ...
    epsilon: float scalar, radius in pixel units.
  """

  images: Any
  labels: Any
  keys: Any
  run: Any
  epsilon: Any


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept per object
class Attack:
  """One attack with all its constants.

  Its state is a dictionary of arrays [batch, ...] with at least "adversarial", the best images so
  far within the ball and the box, and "broken", bool: whether they are misclassified.

  Attributes:
    start: (predict, Batch) -> state.
    step: (predict, Batch, state, number of the step [batch]) -> state.
    num_steps: steps of a run.
    num_runs: restarts, or targets.
    spec: every constant, for the record.
    note: what was changed because of few classes; "" if nothing.
  """

  start: Callable
  step: Callable
  num_steps: int
  num_runs: int
  spec: dict
  note: str = ""


def check_name(attack, what, name, table):
  """Raises ValueError, listing the choices, unless `name` is in the table."""
  if name not in table:
    raise ValueError(f"{attack}: {what} is {name!r}; choose one of: {', '.join(sorted(table))}")


def is_wrong(logits, labels):
  """[batch] bool: another class is largest, or the outputs are not finite, which is no answer."""
  return (jnp.argmax(logits, -1) != labels) | ~jnp.all(jnp.isfinite(logits), -1)


def finite(gradient):
  """The gradient with zeros where it is not finite: one such pixel must not spoil the image."""
  return jnp.where(jnp.isfinite(gradient), gradient, 0)


def example_keys(key, indices):
  """One key per example, from its index in the whole data set."""
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def run_keys(batch, number):
  """One key per example for its run and for a number (a step, a purpose), both [batch] or scalars."""
  number = jnp.broadcast_to(number, batch.run.shape)
  return jax.vmap(lambda key, run, n: jax.random.fold_in(jax.random.fold_in(key, run), n))(
    batch.keys, batch.run, number
  )


def select(mask, new, old):
  """Per example: `new` where `mask` [batch], else `old`; for pytrees of arrays and keys."""

  def leaf(a, b):
    return jnp.where(mask.reshape(mask.shape + (1,) * (b.ndim - 1)), a, b)

  return jax.tree.map(leaf, new, old)


def project(candidates, batch, norm):
  """`norms.project` on the ball around the batch's images."""
  return norms.project(candidates, batch.images, batch.epsilon, norm)


def run_alone(attack, key, predict, images, labels, epsilon, indices=None):
  """All runs of an attack on one batch, as one compiled loop; jittable.

  Returns:
    The adversarial images: of the first run that broke the example, else of the last.
  """
  chex.assert_rank([images, labels], [4, 1])
  chex.assert_type([images, labels], [float, int])
  chex.assert_equal_shape_prefix([images, labels], 1)
  indices = jnp.arange(images.shape[0]) if indices is None else jnp.asarray(indices)
  images, labels = jnp.asarray(images), jnp.asarray(labels)

  def body(run, best):
    batch = Batch(
      images,
      labels,
      example_keys(key, indices),
      jnp.full(labels.shape, run),
      jnp.asarray(epsilon, images.dtype),
    )
    state = jax.lax.fori_loop(
      0,
      attack.num_steps,
      lambda i, state: select(
        ~state["broken"], attack.step(predict, batch, state, jnp.full(labels.shape, i)), state
      ),
      attack.start(predict, batch),
    )
    new = {name: state[name] for name in ("adversarial", "broken")}
    return select(~best["broken"], new, best)

  best = {"adversarial": images, "broken": jnp.zeros(labels.shape, bool)}
  return jax.lax.fori_loop(0, attack.num_runs, body, best)["adversarial"]
