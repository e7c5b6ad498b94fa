"""AutoAttack: an ensemble of attacks without parameters to choose, in JAX.

(Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020.)
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sprout_jax import intervals
from sprout_jax.attacks import inputs
from sprout_jax.attacks import inspection
from sprout_jax.attacks import resume
from sprout_jax.attacks import slots
from sprout_jax.attacks.apgd import apgd_attack
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.fab import fab_attack
from sprout_jax.attacks.square import square_attack

VERSIONS = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
RESTARTS = {"plus": 5}  # of the untargeted attacks; 1 otherwise
SAMPLES = {"rand": 20}  # gradients averaged per step; 1 otherwise
STEPS = 100  # of the attacks with gradients
QUERIES = 5000  # of Square, after the start's
TARGETS = 9  # most targets of a targeted attack
L1_RUNS = 5  # in L1: of APGD on the cross-entropy, and most targets of APGD
TOLERANCE = 1e-6  # by which rounding may take a perturbation over epsilon, per unit of size above 1
CLEAN, FINAL = 2**32 - 1, 2**32 - 2  # purposes of draws; the attacks' are their ids in ATTACKS


def _apgd(loss, classes_needed, targeted):
  """How APGD on a loss is built; with fewer classes than that needs, on the margin."""

  def build(norm, classes, image_shape, restarts, samples):
    del image_shape
    most = TARGETS if targeted else restarts
    if norm == "l1" and samples == 1:
      most = L1_RUNS
    enough = classes >= classes_needed
    attack = apgd_attack(
      norm=norm,
      loss=loss if enough else "margin",
      targeted=targeted,
      num_steps=STEPS,
      num_runs=min(most, classes - 1) if targeted else most,
      num_samples=samples,
    )
    note = (
      "the targeted DLR loss needs 4 classes; the targeted margin is maximised instead"
      if targeted
      else f"{loss} needs {classes_needed} classes; the margin is maximised instead"
    )
    return attack if enough else dataclasses.replace(attack, note=note)

  return build


def _fab(targeted):
  def build(norm, classes, image_shape, restarts, samples):
    del image_shape, samples
    runs = min(TARGETS, classes - 1) if targeted else restarts
    return fab_attack(norm=norm, targeted=targeted, num_steps=STEPS, num_runs=runs)

  return build


def _square(norm, classes, image_shape, restarts, samples):
  del classes, restarts, samples
  return square_attack(norm=norm, image_shape=image_shape, num_steps=QUERIES, num_runs=1)


@dataclasses.dataclass(frozen=True)
class Row:
  """An attack of the ensemble.

  Attributes:
    id: what makes its random numbers. Never changed, and never given to another attack.
    build: (norm, number of classes, image shape, restarts, gradient samples) -> `Attack`.
    chunk: steps between two looks for broken examples.
  """

  id: int
  build: Callable[..., Attack]
  chunk: int = 10


ATTACKS = {
  "apgd-ce": Row(0, _apgd("cross_entropy", 2, targeted=False)),
  "apgd-dlr": Row(1, _apgd("dlr", 3, targeted=False)),
  "apgd-t": Row(2, _apgd("dlr", 4, targeted=True)),
  "fab": Row(3, _fab(targeted=False)),
  "fab-t": Row(4, _fab(targeted=True)),
  "square": Row(5, _square, chunk=50),
}


@dataclasses.dataclass(frozen=True)
class AttackResult:
  """What an ensemble of attacks left.

  Attributes:
    robust: host array [n] bool, the worst case: classified correctly, and unbroken by every attack.
    per_attack: {name: [n] bool}, in the order in which they ran: robust after this attack and all
      before it.
    images: host array like the given images, the adversarial ones where broken, else the given.
    spec: what was run: version, norm, epsilon, every attack's constants, seed, counts, accuracies
      with 95 % intervals, the largest perturbation used, notes.
  """

  robust: np.ndarray
  per_attack: dict[str, np.ndarray]
  images: np.ndarray
  spec: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where an ensemble is; `str()` of it is a line for people.

  Attributes:
    attack, number, count: the attack's name, which one it is, of how many.
    run, runs: the first restart or target that an example is in, of how many.
    done, total: examples that this attack is done with, of those that it got.
    work: the same with those that are under way, counted by their share: total when all is done.
    robust, examples: examples still robust, of all.
    seconds: since the ensemble was started.
    seconds_left: of this attack, at the present speed; None at its beginning.
  """

  attack: str
  number: int
  count: int
  run: int
  runs: int
  done: int
  total: int
  work: float
  robust: int
  examples: int
  seconds: float
  seconds_left: float | None

  def __str__(self):
    left = "?" if self.seconds_left is None else f"{self.seconds_left:.0f} s"
    return (
      f"{self.attack} ({self.number} of {self.count}), run {self.run} of {self.runs}: "
      f"{self.done}/{self.total} done, {self.robust}/{self.examples} robust, left {left}"
    )


def auto_attack(
  key,
  predict,
  images,
  labels,
  *,
  epsilon,
  norm="linf",
  version="standard",
  batch_size=128,
  indices=None,
  devices=None,
  on_progress=None,
  state_file=None,
  save_seconds=30.0,
):
  """The worst case over an ensemble of attacks, for every image.

  "standard" is APGD on the cross-entropy, targeted APGD (9 targets), targeted FAB (9 targets) and
  Square (5,000 queries), 100 iterations each of the first three. "plus" has 5 restarts of APGD on
  cross-entropy and DLR and of untargeted FAB as well. "rand" is for models that draw random
  numbers: APGD on cross-entropy and DLR with gradients averaged over 20 draws, where the mean
  logits of 20 fresh draws decide what is right, before and after. Every attack starts from the
  original images, on those that all attacks before it left robust; a misclassified image is never
  attacked. See `ATTACKS`, `apgd`, `fab` and `square` for the constants and what they come from.

  This drives compiled programs and is not itself jittable: every 10 steps (Square: 50) broken
  images leave their batch and others take their place, over all devices (see `slots`). An image's
  outcome depends on the key, its own index and itself: not on the batch size, the order of work,
  the number of devices, or on having been interrupted, but for rounding, which follows the shapes
  of programs.
  On GPUs and TPUs set `jax.default_matmul_precision("highest")` inside `predict`: rounded products
  hide gradients.

  Args:
    key: a PRNG key.
    predict: function images [batch, height, width, channels] in [0, 1] -> logits [batch, classes],
      deterministic, with normalisation inside. For "rand": (images, keys [batch]) -> logits. Give
      large weights in a `jax.tree_util.Partial` of the function: so they are arguments of the
      compiled programs, not constants in them. Arrays on a mesh with explicit axes must be there.
    images: float array [n, height, width, channels] in [0, 1].
    labels: int array [n].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    version: a key of `VERSIONS`, or a list of names from `ATTACKS`.
    batch_size: images attacked at once, over all devices together; rounded up to their multiple.
    indices: int array [n], the images' positions in the whole data set, which make their random
      numbers; default 0, 1, ..., n - 1.
    devices: the devices to use; default all.
    on_progress: function of a `Progress`, called after every compiled call. `print` will do.
    state_file: path where the state is kept: the same call, with the same model, continues from it
      after a kill. Left there when all is done; None keeps nothing.
    save_seconds: at most this often.

  Returns:
    An `AttackResult`.

  Raises:
    ValueError: a wrong argument, see `inputs`; outputs that are no logits, probabilities, random or
      not finite; a state file that is damaged or belongs to another call.
    OSError: the state cannot be written; what was saved before is still there.
    RuntimeError: a perturbation over epsilon, or outside the box: a defect of the attack.
  """
  ensemble = version if isinstance(version, str) else None
  if ensemble is not None:
    inputs.check_choice("auto_attack", "version", version, (*ATTACKS, *VERSIONS))
  names = tuple(version) if ensemble is None else VERSIONS.get(ensemble, (ensemble,))
  for name in names:
    inputs.check_choice("auto_attack", "an attack of version", name, ATTACKS)
  if not names or len(set(names)) < len(names):
    raise ValueError(f"auto_attack: version is {names!r}; give at least one attack, each once")
  inputs.check_count("auto_attack", "batch_size", batch_size, 1)
  inputs.check_radius("auto_attack", epsilon, norm)
  inputs.check_predict("auto_attack", predict)
  images, labels, indices = map(
    np.asarray, inputs.check_examples("auto_attack", images, labels, indices)
  )
  with jax.set_mesh(None):  # the programs have a mesh of their own
    return _run(
      jax.random.wrap_key_data(np.asarray(jax.random.key_data(key)), impl=jax.random.key_impl(key)),
      predict,
      (images.astype(np.float32), labels.astype(np.int32), indices),
      epsilon=float(epsilon),
      norm=norm,
      ensemble=ensemble,
      names=names,
      batch_size=batch_size,
      devices=jax.devices() if devices is None else devices,
      on_progress=on_progress,
      state_file=state_file,
      save_seconds=save_seconds,
    )


def _run(
  key,
  predict,
  examples,
  *,
  epsilon,
  norm,
  ensemble,
  names,
  batch_size,
  devices,
  on_progress,
  state_file,
  save_seconds,
):
  """`auto_attack` with checked arguments; `ensemble` is None for a list of attacks."""
  images, labels, indices = examples
  mesh = jax.make_mesh(
    (len(devices),), ("examples",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,)
  )
  batch_size = -(-batch_size // mesh.size) * mesh.size
  samples, restarts = SAMPLES.get(ensemble, 1), RESTARTS.get(ensemble, 1)
  predict = inspection.on_devices(predict, slots.shardings(mesh)[1])

  def look(images, purpose):
    keys = None if samples == 1 else inspection.draw_keys(key, purpose, indices, samples)
    return inspection.all_logits(predict, images, batch_size, mesh, keys)

  logits = look(images, CLEAN)
  inspection.check_outputs(logits, labels)
  attacks = {
    name: _build(name, norm, logits.shape[-1], images.shape[1:], restarts, samples)
    for name in names
  }
  clean = ~is_wrong(logits, labels)
  spec = {
    "version": ensemble or list(names),
    "norm": norm,
    "epsilon": epsilon,
    "seed": np.asarray(jax.random.key_data(key)).tolist(),
    "examples": len(labels),
    "classes": logits.shape[-1],
    "attacks": {name: attack.spec for name, attack in attacks.items()},
    "notes": [f"{name}: {attack.note}" for name, attack in attacks.items() if attack.note],
    "key_implementation": str(jax.random.key_impl(key)),
    "jax": jax.__version__,
    "device": f"{mesh.size} x {devices[0].device_kind}",
    "matmul_precision": str(jax.config.jax_default_matmul_precision),
  }
  state = resume.State(state_file, save_seconds, spec, images, labels, indices, logits)
  for number, (name, attack) in enumerate(attacks.items(), start=1):
    if name not in state.per_attack:
      _run_attack(
        name,
        number,
        attack,
        key,
        predict,
        examples,
        epsilon,
        batch_size,
        mesh,
        state,
        len(attacks),
        on_progress,
      )
  return _result(state, spec, images, labels, clean, lambda adversarial: look(adversarial, FINAL))


@functools.lru_cache(maxsize=64)
def _build(name, *options):
  """The same object for the same options: its compiled programs are found again."""
  return ATTACKS[name].build(*options)


def _run_attack(
  name, number, attack, key, predict, examples, epsilon, batch_size, mesh, state, count, on_progress
):
  """Runs one attack on what is still robust and not yet done, and notes it in the state."""
  waiting = np.flatnonzero(state.robust & ~state.done)
  start, already = time.monotonic(), int(state.done.sum())
  total = int((state.robust | state.done).sum())
  attack_key = jax.random.fold_in(key, ATTACKS[name].id)
  for outcomes, runs, behind in slots.run(
    attack,
    predict,
    attack_key,
    examples,
    waiting,
    epsilon,
    batch_size,
    mesh,
    ATTACKS[name].chunk,
  ):
    for outcome in outcomes:
      state.done[outcome.index] = True
      if outcome.broken:
        state.robust[outcome.index] = False
        state.images[outcome.index] = outcome.image
    state.save()
    if on_progress is not None:
      done, seconds = int(state.done.sum()), time.monotonic() - start
      work = done + behind
      left = (total - work) * seconds / (work - already) if work > already else None
      on_progress(
        Progress(
          name,
          number,
          count,
          min(runs, default=attack.num_runs - 1) + 1,
          attack.num_runs,
          done,
          total,
          work,
          int(state.robust.sum()),
          len(state.robust),
          state.seconds(),
          left,
        )
      )
  state.finish(name)


def _result(state, spec, images, labels, clean, look):
  """The result, after a last look at every adversarial image."""
  # On the host, one by one: all images at once may be more than a device holds.
  size = np.array([_size(state.images[i] - images[i], spec["norm"]) for i in range(len(images))])
  is_inside = all(image.min() >= 0 and image.max() <= 1 for image in state.images)
  if not (
    size.max(initial=0) <= spec["epsilon"] + TOLERANCE * max(1, spec["epsilon"]) and is_inside
  ):
    raise RuntimeError(
      f"auto_attack: a perturbation of {size.max():.8g} exceeds epsilon "
      f"{spec['epsilon']:g}, or pixels leave [0, 1]; this is a defect of the attack"
    )
  again = look(state.images)
  attacked = clean & ~state.robust
  spec = spec | {
    "clean": intervals.proportion(clean.sum(), len(clean)),
    "per_attack": {
      name: intervals.proportion(robust.sum(), len(robust))
      for name, robust in state.per_attack.items()
    },
    "robust": intervals.proportion(state.robust.sum(), len(state.robust)),
    "largest_perturbation": float(size.max(initial=0)),
    # Misclassified in the attack, but not when seen again: rounding, or a model's other draws.
    "not_misclassified_again": int((attacked & ~is_wrong(again, labels)).sum()),
    "not_finite": int((~np.isfinite(again).all(-1)).sum()),
    "seconds": state.seconds(),
  }
  return AttackResult(state.robust, state.per_attack, state.images, spec)


def _size(perturbation, norm):
  """The norm of one perturbation, in float64."""
  values = np.abs(perturbation.astype(np.float64))
  return values.max() if norm == "linf" else np.sqrt((values**2).sum())
