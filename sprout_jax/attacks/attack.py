"""Attacks as a start and a step over the state of each example, and the loop over one batch.

`auto_attack` applies the same attacks to many images, see `slots`. Every example has its own key,
step number and state. So its outcome does not depend on the rest of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import TypeAlias
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from sprout_jax import arguments
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

# Name -> array [batch, ...], with at least "adversarial" and "broken".
State: TypeAlias = dict[str, jax.Array]
Tree = TypeVar("Tree")
AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


RANKING = 2**30 - 1  # number of the draw that ranks targets; no run has it


class Batch(NamedTuple):
  """The examples that an attack works on.

  Attributes:
    images: float [batch, height, width, channels] in [0, 1].
    labels: int [batch], the true classes.
    keys: PRNG keys [batch], one per example, the same in every run of the attack.
    run: int [batch], number of the restart or of the target: 0, 1, ...
    epsilon: float scalar, radius in pixel units.
    logits: float [batch, classes], the model's outputs for `images`, by which a targeted attack
      ranks its targets; None for other attacks, and in steps.
    given: what each example's run is given beforehand: its start [batch, height, width, channels]
      or its target, int [batch]; None where the attack finds its own, and in steps.
  """

  images: jax.Array
  labels: jax.Array
  keys: jax.Array
  run: jax.Array
  epsilon: jax.Array
  logits: jax.Array | None = None
  given: jax.Array | None = None


class Start(Protocol):
  """Initialisation of a run. It does not ask the model, so that only steps compile it."""

  def __call__(self, batch: Batch, /) -> State:
    """Returns the state before the first step."""


class Step(Protocol):
  """One step of a run."""

  def __call__(self, predict: Predict, batch: Batch, state: State, number: jax.Array, /) -> State:
    """Returns the state after the step; `number` [batch] counts each example's steps from 0."""


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept per object
class Attack:
  """One attack with all its constants.

  Its state is a dictionary of arrays [batch, ...]. "adversarial" holds the best images so far
  within the ball and the box; "broken", bool, is True where they are misclassified.

  Attributes:
    name: name of the public function, which begins error messages.
    norm: a key of `NORMS`.
    start: batch -> state before the first step.
    step: (predict, batch, state, number of the step [batch]) -> next state.
    num_steps: calls of `step` in a run. APGD and Square make one more than they make moves, because
      their first step looks at the start.
    num_runs: number of restarts, or of targets.
    spec: every constant, for the record.
    targeted: True where each run has a target, see `ranked_targets`, and the batch has logits.
    num_samples: draws of a step. With more than one, `predict` takes (images, keys [batch]).
    passes: forward passes of a step, of one example; a backward pass counts as two.
    note: change that few classes made necessary; "" if none.
  """

  name: str
  norm: str
  start: Start
  step: Step
  num_steps: int
  num_runs: int
  spec: dict[str, Any]
  targeted: bool = False
  num_samples: int = 1
  passes: int = 3
  note: str = ""


def is_wrong(logits: AnyArray, labels: Array) -> AnyArray:
  """Marks misclassified examples: another class is largest, or an output is not finite.

  Every part of the package that decides whether an answer is right decides it here.

  Args:
    logits: float array [..., classes], of NumPy or of JAX.
    labels: int array [...].

  Returns:
    Bool array [...], of NumPy or of JAX as `logits` is.
  """
  return (logits.argmax(-1) != labels) | ~(abs(logits) < jnp.inf).all(-1)


def ranked_targets(batch: Batch) -> jax.Array:
  """Target of each run: the wrong class with the `run`-th largest clean logit, counted from 0.

  Args:
    batch: the examples with their logits; `run` is at most classes - 2.

  Returns:
    Int array [batch].
  """
  logits = jnp.asarray(batch.logits)
  is_label = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=bool)
  order = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=-1)
  return jnp.take_along_axis(order, batch.run[:, None], axis=-1)[:, 0]


def finite(gradient: jax.Array) -> jax.Array:
  """Replaces entries that are not finite by 0, so that one such pixel does not spoil the image."""
  return jnp.where(jnp.isfinite(gradient), gradient, 0)


def example_keys(key: jax.Array, indices: Array) -> jax.Array:
  """Makes one PRNG key per example from its index in the whole data set.

  The keys are of the kind threefry2x32 whatever the kind of `key`. With keys of the kind rbg,
  `jax.vmap` would draw for all examples from the key of the first one.

  Args:
    key: a PRNG key.
    indices: int array [batch].

  Returns:
    PRNG keys [batch].
  """
  if str(jax.random.key_impl(key)) in ("rbg", "unsafe_rbg"):  # two threefry2x32 keys in one
    key = jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl="threefry2x32")
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def run_keys(batch: Batch, number: ArrayLike) -> jax.Array:
  """Makes one PRNG key per example from its run and a number.

  Args:
    batch: the examples.
    number: a step or a purpose, int array [batch] or a scalar.

  Returns:
    PRNG keys [batch].
  """
  number = jnp.broadcast_to(number, batch.run.shape)
  return jax.vmap(lambda key, run, n: jax.random.fold_in(jax.random.fold_in(key, run), n))(
    batch.keys, batch.run, number
  )


def select(mask: jax.Array, new: Tree, old: Tree) -> Tree:
  """Chooses per example: `new` where `mask` is True, else `old`.

  Args:
    mask: bool array [batch], or of more axes.
    new: pytree of arrays and keys [batch, ...], with the mask's axes first.
    old: pytree of the same structure.

  Returns:
    A pytree of the same structure.
  """

  def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim)), a, b)

  return jax.tree.map(leaf, new, old)


def project(candidates: jax.Array, batch: Batch, norm: str) -> jax.Array:
  """Projects on the ball around the batch's images and on the box, see `norms.project`."""
  return norms.project(candidates, batch.images, batch.epsilon, norm)


def under_any_mesh(
  fn: Callable[..., Tree], predict: Predict, images: jax.Array, *arrays: ArrayLike
) -> Tree:
  """Calls `fn` with the other arguments, also where `jax.set_mesh` has set explicit axes.

  With explicit axes every array has a sharding in its type, and JAX refuses an operation whose
  result has an ambiguous one. So the attack itself has automatic axes, and `predict` the user's.

  Args:
    fn: function of the same arguments. The leaves that it returns are [batch, ...].
    predict: function of images, and perhaps of keys.
    images: float array [batch, height, width, channels].
    *arrays: JAX arrays, or Python numbers.

  Returns:
    The result of `fn`, split over devices as the batch of images is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  explicit = tuple(
    name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit
  )
  if not explicit:
    return fn(predict, images, *arrays)
  spec = jax.typeof(images).sharding.spec
  ask = jax.sharding.explicit_axes(predict, axes=explicit, in_sharding=PartitionSpec(*spec[:1]))
  call = jax.sharding.auto_axes(
    functools.partial(fn, ask), axes=explicit, out_sharding=PartitionSpec(*spec[:1])
  )
  return call(images, *arrays)


def attack_batch(
  attack: Attack,
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  epsilon: ArrayLike,
  indices: Array | None = None,
) -> jax.Array:
  """Makes all runs of an attack on one batch, as one compiled loop; jittable.

  Args:
    attack: the attack. A targeted one makes at most classes - 1 runs.
    key: a PRNG key.
    predict: function images -> logits [batch, classes]; see `Attack.num_samples`.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius in pixel units, a scalar.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Adversarial images like `images`, from the first run that broke the example, else from the last.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  arguments.check_key(attack.name, key)
  inputs.check_radius(attack.name, epsilon, attack.norm)
  given = images
  predict, images, labels, indices = inputs.prepare(attack.name, predict, images, labels, indices)
  draws = (example_keys(key, indices),) if attack.num_samples > 1 else ()
  inputs.check_clean(attack.name, predict, images, *draws)
  num_runs = attack.num_runs
  if attack.targeted:
    num_runs = min(num_runs, jax.eval_shape(predict, images, *draws).shape[-1] - 1)

  def all_runs(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    key: jax.Array,
    epsilon: ArrayLike,
  ) -> jax.Array:
    keys, radius = example_keys(key, indices), jnp.asarray(epsilon, images.dtype)
    logits = None
    if attack.targeted:  # by one draw of a random model
      draw = jax.vmap(lambda key: jax.random.fold_in(key, RANKING))(keys)
      logits = predict(images, *((draw,) if attack.num_samples > 1 else ()))

    def body(run: jax.Array, best: State) -> State:
      batch = Batch(images, labels, keys, jnp.full(labels.shape, run), radius, logits)
      state = jax.lax.fori_loop(
        0,
        attack.num_steps,
        lambda i, state: select(
          ~state["broken"], attack.step(predict, batch, state, jnp.full(labels.shape, i)), state
        ),
        attack.start(batch),
      )
      new = {name: state[name] for name in ("adversarial", "broken")}
      return select(~best["broken"], new, best)

    best = {"adversarial": images, "broken": jnp.zeros(labels.shape, bool)}
    return jax.lax.fori_loop(0, num_runs, body, best)["adversarial"]

  found = under_any_mesh(all_runs, predict, images, labels, indices, key, epsilon)
  return inputs.as_given(found, given)
