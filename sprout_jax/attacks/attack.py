"""What an attack is: a start and a step over per-example state; and how one runs by itself.

`auto_attack` runs the same attacks over slots that it keeps full. Every example has its own key,
its own step number and its own state: what happens to it depends on nothing else in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec

from sprout_jax.attacks import inputs
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
    name: of the public function, for errors.
    norm: a key of `NORMS`.
    start: (predict, Batch) -> state.
    step: (predict, Batch, state, number of the step [batch]) -> state.
    num_steps: steps of a run.
    num_runs: restarts, or targets.
    spec: every constant, for the record.
    targeted: whether a run is a target, see `ranked_targets`.
    num_samples: draws of a step; with more than one, `predict` takes (images, keys [batch]).
    note: what was changed because of few classes; "" if nothing.
  """

  name: str
  norm: str
  start: Callable
  step: Callable
  num_steps: int
  num_runs: int
  spec: dict
  targeted: bool = False
  num_samples: int = 1
  note: str = ""


def is_wrong(logits, labels):
  """Whether a model errs: another class is largest, or an output is not finite, which is no answer.

  Every part of the package that decides whether an answer is right decides it here.

  Args:
    logits: float array [..., classes], of NumPy or of JAX.
    labels: int array [...].

  Returns:
    Bool array [...], of the same kind.
  """
  return (logits.argmax(-1) != labels) | ~(abs(logits) < jnp.inf).all(-1)


def ranked_targets(logits, labels, run):
  """The target of each run: the wrong class ranked `run` by the clean logits, 0 the most likely.

  Args:
    logits: float array [batch, classes], the clean logits.
    labels: int array [batch].
    run: int array [batch], 0 to classes - 2.

  Returns:
    Int array [batch].
  """
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  order = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=-1)
  return jnp.take_along_axis(order, run[:, None], axis=-1)[:, 0]


def finite(gradient):
  """The gradient with zeros where it is not finite: one such pixel must not spoil the image."""
  return jnp.where(jnp.isfinite(gradient), gradient, 0)


def example_keys(key, indices):
  """One key per example, from its index in the whole data set.

  They are of the kind threefry2x32 whatever the kind of `key`: with keys of the kind rbg,
  `jax.vmap` draws for all examples from the key of the first one.
  """
  if str(jax.random.key_impl(key)) in ("rbg", "unsafe_rbg"):  # two threefry2x32 keys in one
    key = jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl="threefry2x32")
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def run_keys(batch, number):
  """One key per example for its run and a number (a step, a purpose), [batch] or a scalar."""
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


def under_any_mesh(fn, predict, images, *arrays):
  """fn(predict, images, *arrays), also where `jax.set_mesh` has set axes of the explicit kind.

  There every array has a sharding in its type, and an operation whose result has none without doubt
  is refused. So the attack itself runs with automatic axes, and `predict` with the user's.

  Args:
    fn: function of the same arguments; what it returns is, leaf by leaf, [batch, ...].
    predict: function of images, and perhaps of keys.
    images, arrays: JAX arrays, or Python numbers.

  Returns:
    What `fn` does, split over devices as the batch of images is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  explicit = tuple(
    name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit
  )
  if not explicit:
    return fn(predict, images, *arrays)
  spec = jax.typeof(images).sharding.spec
  ask = jax.sharding.explicit_axes(predict, axes=explicit, in_sharding=PartitionSpec(*spec[:1]))
  run = jax.sharding.auto_axes(
    functools.partial(fn, ask), axes=explicit, out_sharding=PartitionSpec(*spec[:1])
  )
  return run(images, *arrays)


def attack_batch(attack, key, predict, images, labels, epsilon, indices=None):
  """All runs of an attack on one batch, as one compiled loop; jittable.

  Args:
    attack: an `Attack`. Of a targeted one, at most classes - 1 runs are made.
    key: a PRNG key.
    predict, images, labels, indices: see `inputs.prepare`.
    epsilon: radius in pixel units, a scalar.

  Returns:
    The adversarial images: of the first run that broke the example, else of the last.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  inputs.check_radius(attack.name, epsilon, attack.norm)
  predict, images, labels, indices = inputs.prepare(attack.name, predict, images, labels, indices)
  num_runs = attack.num_runs
  if attack.targeted:
    draws = (example_keys(key, indices),) if attack.num_samples > 1 else ()
    num_runs = min(num_runs, jax.eval_shape(predict, images, *draws).shape[-1] - 1)

  def all_runs(predict, images, labels, indices, key, epsilon):
    keys, epsilon = example_keys(key, indices), jnp.asarray(epsilon, images.dtype)

    def body(run, best):
      batch = Batch(images, labels, keys, jnp.full(labels.shape, run), epsilon)
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
    return jax.lax.fori_loop(0, num_runs, body, best)["adversarial"]

  return under_any_mesh(all_runs, predict, images, labels, indices, key, epsilon)
