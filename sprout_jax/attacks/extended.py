"""Attacks after AutoAttack, on the images that it leaves robust.

The result is no AutoAttack accuracy and must not be called one: it can only be lower. Each attack
is there for what the ensemble lacks:

- `apgd-malt`: targets by the distance to the boundary of the linearised model, not by their logits.
- `apgd-pma`: the margin of the probabilities as loss.
- `apgd-best`: starts at the best points that the ensemble's own APGD found.
- `apgd-long`: 10 restarts and 500 steps.

`AttackResult.spec["gains"]` has what each attack broke, and its cost.

(MALT: Melamed, Yehudai, Shamir, "MALT Powers Up Adversarial Attacks", NeurIPS 2024; they rank by
the L2 norm of gradients, we by the dual norm of the threat model. PMA: Xie et al., "Towards
Million-scale Adversarial Robustness Evaluation with Stronger Individual Attacks", arXiv 2411.15210;
they use PGD, we use APGD.)
"""

import functools
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import arguments
from sprout_jax import losses
from sprout_jax.attacks import ensemble
from sprout_jax.attacks import norms
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.auto_pgd import apgd_attack
from sprout_jax.attacks.auto_pgd import fewest_classes
from sprout_jax.attacks.ensemble import ATTACKS
from sprout_jax.attacks.ensemble import TARGETS
from sprout_jax.attacks.ensemble import AttackResult
from sprout_jax.attacks.ensemble import Given
from sprout_jax.attacks.ensemble import Progress
from sprout_jax.attacks.ensemble import Row
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

CANDIDATES = 100  # classes of the largest logits that MALT ranks
BEST = 3  # best points per image that APGD starts at
LONG_RUNS, LONG_STEPS = 10, 500
OF_WHICH = ("apgd-ce", "apgd-t")  # attacks whose best points are starts


def linearised_targets(
  predict: Predict, images: jax.Array, labels: jax.Array, norm: str, count: int
) -> jax.Array:
  """Ranks wrong classes by the distance to their boundary, if the model were linear at the image.

  The distance to class t is (z_y - z_t) / norm(grad(z_t - z_y)), with the dual norm of the threat
  model. Only the `CANDIDATES` classes of the largest logits are ranked.

  Args:
    predict: function images -> logits.
    images: float array [batch, height, width, channels].
    labels: int array [batch].
    norm: a key of `NORMS`.
    count: number of targets, at most classes - 1.

  Returns:
    Int array [batch, count], the nearest class first.
  """
  logits, pull = jax.vjp(predict, images)
  classes = logits.shape[-1]
  is_label = jax.nn.one_hot(labels, classes, dtype=bool)
  _, ranked = jax.lax.top_k(jnp.where(is_label, -jnp.inf, logits), min(CANDIDATES, classes - 1))

  def distance(targets: jax.Array) -> jax.Array:
    one = jax.nn.one_hot(targets, classes, dtype=logits.dtype)
    one = one - is_label.astype(logits.dtype)
    slope = norms.NORMS[norm].dual(finite(pull(one)[0]))
    return -jnp.sum(one * logits, -1) / (slope + 1e-12)

  distances = jax.lax.map(distance, ranked.T).T
  order = jnp.argsort(distances, axis=-1)[:, :count]
  return jnp.take_along_axis(ranked, order, axis=-1)


def best_points(
  attack: Attack,
  predict: Predict,
  images: jax.Array,
  labels: jax.Array,
  keys: jax.Array,
  epsilon: jax.Array,
  logits: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The best point of every run of an attack of APGD, in the ball.

  Args:
    attack: from `apgd_attack`.
    predict: function images -> logits.
    images: float array [batch, height, width, channels].
    labels: int array [batch].
    keys: PRNG keys [batch] of the attack.
    epsilon: radius in pixel units.
    logits: float array [batch, classes], the model's outputs for `images`.

  Returns:
    The points [runs, batch, height, width, channels], and their margins [runs, batch].
  """

  def run(number: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = Batch(images, labels, keys, jnp.full(labels.shape, number), epsilon, logits)
    step = lambda i, state: attack.step(predict, batch, state, jnp.full(labels.shape, i))
    state = jax.lax.fori_loop(0, attack.num_steps, step, attack.start(batch))
    return state["best"], losses.margin(predict(state["best"]), labels)

  return jax.lax.map(run, jnp.arange(attack.num_runs))


def _in_batches(
  program: Callable[..., Any], given: Given, fixed: tuple[Any, ...], *arrays: np.ndarray
) -> list[np.ndarray]:
  """Applies a compiled function of (predict, *fixed, *rows) to the waiting rows of host arrays.

  The outputs are [batch, ...]. All batches have one size.
  """
  split, replicated = slots.shardings(given.mesh)
  fixed = slots.put(fixed, replicated)
  parts = []
  count = len(given.waiting)
  for start in range(0, count, given.batch_size):
    places = np.minimum(np.arange(start, start + given.batch_size), count - 1)
    rows = given.waiting[places]
    batch = slots.put(tuple(array[rows] for array in arrays), split)
    found = program(given.predict, *fixed, *batch)
    parts.append([np.asarray(leaf)[: count - start] for leaf in found])
  return [np.concatenate(part) for part in zip(*parts, strict=True)]


@functools.lru_cache(maxsize=64)
def _rank_program(attack: Attack, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
  """The compiled `linearised_targets` of an attack's runs."""

  def rank(predict: Predict, images: jax.Array, labels: jax.Array) -> tuple[jax.Array]:
    return (linearised_targets(predict, images, labels, attack.norm, attack.num_runs),)

  return jax.jit(rank, out_shardings=slots.shardings(mesh)[1])


def _malt_targets(attack: Attack, given: Given) -> tuple[np.ndarray, int]:
  """The targets of each example's runs, [n, runs], and the passes that they took."""
  (found,) = _in_batches(_rank_program(attack, given.mesh), given, (), *given.examples[:2])
  passes = 1 + 2 * min(CANDIDATES, given.classes - 1)
  return found.astype(np.int32), len(found) * passes


@functools.lru_cache(maxsize=64)
def _look_program(source: Attack, mesh: jax.sharding.Mesh, key_impl: str) -> Callable[..., Any]:
  """The compiled `best_points` of an attack."""

  def look(
    predict: Predict,
    key: jax.Array,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    logits: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    keys = example_keys(jax.random.wrap_key_data(key, impl=key_impl), indices)
    found, margin = best_points(source, predict, images, labels, keys, epsilon, logits)
    return jnp.moveaxis(found, 0, 1), margin.T

  return jax.jit(look, out_shardings=slots.shardings(mesh)[1])


def _best_starts(attack: Attack, given: Given) -> tuple[np.ndarray, int]:
  """The starts of each example's runs, [n, runs, height, width, channels], and their passes."""
  images, labels, indices, logits = given.examples
  points, margins, passes = [], [], 0
  impl = str(jax.random.key_impl(given.key))
  for name in OF_WHICH:
    key = np.asarray(jax.random.key_data(jax.random.fold_in(given.key, ATTACKS[name].id)))
    source = given.build(ATTACKS[name])
    program = _look_program(source, given.mesh, impl)
    fixed, rows = (
      (key, np.float32(given.epsilon)),
      (images, labels, indices.astype(np.uint32), logits),
    )
    found, margin = _in_batches(program, given, fixed, *rows)
    points.append(found)
    margins.append(margin)
    passes += len(found) * source.num_runs * source.num_steps * source.passes
  every, margin = np.concatenate(points, 1), np.concatenate(margins, 1)
  order = np.argsort(-margin, axis=1, kind="stable")[:, : attack.num_runs]
  return np.take_along_axis(every, order[..., None, None, None], 1), passes


def _malt(
  norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
) -> Attack:
  del image_shape, restarts, samples
  return apgd_attack(
    norm=norm,
    loss="dlr" if classes >= fewest_classes("dlr", targeted=True) else "margin",
    targeted=True,
    num_steps=ensemble.STEPS,
    num_runs=min(TARGETS, classes - 1),
    num_samples=1,
    given="target",
  )


def _untargeted(loss: str, steps: int, runs: int, given: str = "") -> ensemble.Build:
  def build(
    norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
  ) -> Attack:
    del image_shape, restarts, samples
    return apgd_attack(
      norm=norm,
      loss=loss,
      targeted=False,
      num_steps=steps,
      num_runs=min(runs, classes) if given else runs,  # few classes make few starts
      num_samples=1,
      given=given,
    )

  return build


EXTENSIONS = {
  "apgd-malt": Row(6, _malt, given=_malt_targets),
  "apgd-pma": Row(7, _untargeted("probability_margin", ensemble.STEPS, 1)),
  "apgd-best": Row(8, _untargeted("margin", ensemble.STEPS, BEST, "start"), given=_best_starts),
  "apgd-long": Row(9, _untargeted("cross_entropy", LONG_STEPS, LONG_RUNS)),
}


def extended_attack(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: float,
  norm: str = "linf",
  first: str | Iterable[str] = "standard",
  extensions: Iterable[str] = tuple(EXTENSIONS),
  after: AttackResult | None = None,
  batch_size: int = 128,
  indices: Array | None = None,
  devices: Sequence[jax.Device] | None = None,
  on_progress: Callable[[Progress], Any] | None = None,
  state_file: str | os.PathLike[str] | None = None,
  save_seconds: float = 30.0,
) -> AttackResult:
  """AutoAttack, and then the attacks of `EXTENSIONS` on the images that are still robust.

  The accuracy is at most that under AutoAttack, and is not called by that name. `per_attack` has
  the outcomes after each of AutoAttack's attacks, too, and `spec["gains"]` what each attack broke
  per million forward passes.

  Args:
    key: a PRNG key.
    predict: function images -> logits, as for `auto_attack`.
    images: float array [n, height, width, channels] in [0, 1].
    labels: int array [n].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    first: the version of `auto_attack` that runs before, not "rand".
    extensions: keys of `EXTENSIONS`, in the order in which they run. A shorter list saves time:
      see the gains on models like yours.
    after: the result of `auto_attack` with `first` as version and the same other arguments. Its
      attacks are then not repeated. None runs them.
    batch_size, indices, devices, on_progress, state_file, save_seconds: see `auto_attack`.

  Returns:
    As for `auto_attack`, with "extended" as version.

  Raises:
    ValueError: a wrong argument, see `auto_attack`; or `after` is the result of another call.
    OSError, RuntimeError: see `auto_attack`.
  """
  who = "extended_attack"
  restarts = 1
  if isinstance(first, str):
    choices = (*ATTACKS, *(version for version in ensemble.VERSIONS if version != "rand"))
    arguments.check_choice(who, "first", first, choices)
    restarts = ensemble.RESTARTS.get(first, 1)
    before = ensemble.VERSIONS.get(first, (first,))
  else:
    before = arguments.check_names(who, "first", first, ATTACKS)
  extensions = arguments.check_names(who, "extensions", extensions, EXTENSIONS)
  names = (*before, *extensions)
  if not before or len(set(names)) < len(names):
    raise ValueError(f"{who}: the attacks are {names}; give at least one in `first`, each once")
  return ensemble.attack_all(
    who,
    key,
    predict,
    images,
    labels,
    epsilon=epsilon,
    norm=norm,
    version="extended",
    restarts=restarts,
    rows={name: (ATTACKS | EXTENSIONS)[name] for name in names},
    after=after,
    batch_size=batch_size,
    indices=indices,
    devices=devices,
    on_progress=on_progress,
    state_file=state_file,
    save_seconds=save_seconds,
  )
