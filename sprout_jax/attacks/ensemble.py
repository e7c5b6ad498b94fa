"""AutoAttack: an ensemble of attacks without parameters to choose, in JAX.

(Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020.)
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import arguments
from sprout_jax import intervals
from sprout_jax.attacks import inputs
from sprout_jax.attacks import inspection
from sprout_jax.attacks import resume
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.auto_pgd import apgd_attack
from sprout_jax.attacks.auto_pgd import fewest_classes
from sprout_jax.attacks.fast_boundary import fab_attack
from sprout_jax.attacks.forecast import Forecast
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict
from sprout_jax.attacks.squares import square_attack

VERSIONS = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
RESTARTS = {"plus": 5}  # of untargeted APGD and FAB; 1 otherwise
SAMPLES = {"rand": 20}  # gradients averaged per step; 1 otherwise
STEPS = 100  # of each attack with gradients
QUERIES = 5000  # of Square, after that of its start
# Rounding changes the class of at most this share of images, or of two, from call to call.
CHANGED = 0.01
TARGETS = 9  # largest number of targets of a targeted attack
L1_RUNS = 5  # in L1: restarts of untargeted APGD, and largest number of targets of targeted APGD
clock = time.monotonic  # tests replace it
TOLERANCE = 1e-6  # allowed excess over epsilon by rounding, times max(1, epsilon)
CLEAN, FINAL = 2**32 - 1, 2**32 - 2  # purposes of draws; those of attacks are their ids in ATTACKS


@dataclasses.dataclass(frozen=True)
class Given:
  """What an attack may use before it starts, see `Row.given`.

  Attributes:
    key: PRNG key of the ensemble.
    predict: the model on the devices.
    examples: host arrays (images, labels, indices, logits) of all examples.
    waiting: positions of the examples that wait for the attack.
    classes: number of classes.
    epsilon: radius in pixel units.
    batch_size: examples of a compiled call, a multiple of the number of devices.
    mesh: mesh of the devices.
    build: row of a table -> its attack in this ensemble.
  """

  key: jax.Array
  predict: jax.tree_util.Partial
  examples: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
  waiting: np.ndarray
  classes: int
  epsilon: float
  batch_size: int
  mesh: jax.sharding.Mesh
  build: "Callable[[Row], Attack]"


class Build(Protocol):
  """Construction of an attack of the ensemble."""

  def __call__(
    self, norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int, /
  ) -> Attack:
    """Builds the attack for images of shape (height, width, channels)."""


def _apgd(loss: str, targeted: bool) -> Build:
  """APGD on a loss; on the margin where there are too few classes for the loss."""

  def build(
    norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
  ) -> Attack:
    del image_shape
    most = TARGETS if targeted else restarts
    if norm == "l1" and samples == 1:
      most = L1_RUNS
    classes_needed = fewest_classes(loss, targeted)
    enough = classes >= classes_needed
    attack = apgd_attack(
      norm=norm,
      loss=loss if enough else "margin",
      targeted=targeted,
      num_steps=STEPS,
      num_runs=min(most, classes - 1) if targeted else most,
      num_samples=samples,
    )
    needs = f"needs {classes_needed} classes"
    note = (
      f"the targeted DLR loss {needs}; the targeted margin is maximised instead"
      if targeted
      else f"{loss} {needs}; the margin is maximised instead"
    )
    return attack if enough else dataclasses.replace(attack, note=note)

  return build


def _fab(targeted: bool) -> Build:
  def build(
    norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
  ) -> Attack:
    del image_shape, samples
    runs = min(TARGETS, classes - 1) if targeted else restarts
    attack = fab_attack(norm=norm, targeted=targeted, num_steps=STEPS, num_runs=runs)
    # A gradient and a look at the next point; untargeted, the gradients of all classes.
    return dataclasses.replace(attack, passes=4 if targeted else 2 * classes + 2)

  return build


def _square(
  norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
) -> Attack:
  del classes, restarts, samples
  return square_attack(norm=norm, image_shape=image_shape, num_steps=QUERIES, num_runs=1)


@dataclasses.dataclass(frozen=True)
class Row:
  """An attack of the ensemble.

  Attributes:
    id: number that determines its random draws. Never changed, and never given to another attack.
    build: (norm, number of classes, image shape, restarts, gradient samples) -> `Attack`.
    given: (attack, `Given`) -> host array [waiting, runs, ...] of `Batch.given`, and the forward
      passes that it took; None where the attack needs nothing.
  """

  id: int
  build: Build
  given: Callable[[Attack, Given], tuple[np.ndarray, int]] | None = None


ATTACKS = {
  "apgd-ce": Row(0, _apgd("cross_entropy", targeted=False)),
  "apgd-dlr": Row(1, _apgd("dlr", targeted=False)),
  "apgd-t": Row(2, _apgd("dlr", targeted=True)),
  "fab": Row(3, _fab(targeted=False)),
  "fab-t": Row(4, _fab(targeted=True)),
  "square": Row(5, _square),
}


@dataclasses.dataclass(frozen=True, repr=False)
class AttackResult:
  """Result of an ensemble of attacks.

  Attributes:
    robust: bool [n], the worst case: True where the image is classified correctly and no attack
      broke it. This and the other arrays are on the host.
    per_attack: name -> bool [n], in the order in which the attacks ran: True where the image was
      robust after this attack and all before it.
    images: float [n, height, width, channels], the adversarial image where one was found, else the
      given one.
    correct: bool [n], True where the given image is classified correctly.
    predicted: int [n], the classes of `images`, from a last pass.
    spec: version, norm, epsilon, every attack's constants, seed, counts, accuracies with 95 %
      intervals, the largest perturbation, and notes.
  """

  robust: np.ndarray
  per_attack: dict[str, np.ndarray]
  images: np.ndarray
  correct: np.ndarray
  predicted: np.ndarray
  spec: dict[str, Any]

  def __repr__(self) -> str:
    """Returns one line: the attack, the accuracy with its interval, and that after each attack.

    Example:
      >>> attacks.auto_attack(key, predict, images, labels, epsilon=4/255)
      <AttackResult standard, linf epsilon 0.01569: 37.5 % [26.7, 49.7] of 64 images robust; ...>
    """
    spec = self.spec
    low, high = (100 * limit for limit in spec["robust"]["interval"])
    version = spec["version"]
    name = version if isinstance(version, str) else " + ".join(version)
    listed = ", ".join(
      f"{key} {100 * robust.mean():.1f}" for key, robust in self.per_attack.items()
    )
    return (
      f"<AttackResult {name}, {spec['norm']} epsilon {spec['epsilon']:.4g}: "
      f"{100 * self.robust.mean():.1f} % [{low:.1f}, {high:.1f}] of {len(self.robust)} images "
      f"robust; after {listed} %>"
    )


@dataclasses.dataclass(frozen=True)
class Progress:
  """Progress of an ensemble; `str()` of it is one readable line.

  Attributes:
    attack: name of the current attack.
    number: its position in the ensemble, from 1.
    count: number of attacks.
    run: first run (restart or target) that an example is in, from 1.
    runs: number of runs.
    done: examples that this attack is done with.
    total: examples that this attack was given.
    work: `done` plus the finished shares of the examples in progress; `total` at the end.
    robust: examples still robust.
    examples: all examples.
    seconds: seconds since the ensemble was started.
    seconds_left: estimated seconds of this attack and all later ones; None until it can be
      estimated (see `forecast`).
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

  def __str__(self) -> str:
    left = "?" if self.seconds_left is None else f"{self.seconds_left:.0f} s"
    return (
      f"{self.attack} ({self.number} of {self.count}), run {self.run} of {self.runs}: "
      f"{self.done}/{self.total} done, {self.robust}/{self.examples} robust, left {left}"
    )


def auto_attack(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: float,
  norm: str = "linf",
  version: str | Iterable[str] = "standard",
  batch_size: int = 128,
  indices: Array | None = None,
  devices: Sequence[jax.Device] | None = None,
  on_progress: Callable[[Progress], Any] | None = None,
  state_file: str | os.PathLike[str] | None = None,
  save_seconds: float = 30.0,
) -> AttackResult:
  """AutoAttack: the worst case over an ensemble of attacks, for every image.

  "standard" is APGD on the cross-entropy, targeted APGD (9 targets), targeted FAB (9 targets) and
  Square (5,000 queries), with 100 iterations for each of the first three. "plus" adds APGD on DLR
  and untargeted FAB, and makes 5 restarts of untargeted APGD and FAB. "rand" is for models that
  draw random numbers: APGD on cross-entropy and on DLR, with gradients averaged over 20 draws.
  There the mean logits of 20 fresh draws decide which images are misclassified, before and after
  the attack.

  Every attack starts from the original images that all attacks before it left robust. A
  misclassified image is never attacked. See `ATTACKS`, `apgd`, `fab` and `square` for the constants
  and their sources.

  This function drives compiled programs and is not itself jittable. Every few steps broken images
  leave their slots and others take their place, over all devices (see `slots`). An
  image's outcome depends on the key, its own index and itself. It does not depend on the batch
  size, the order of work, the number of devices or an interruption, up to rounding, which differs
  between the shapes of programs.

  On GPUs and TPUs set `jax.default_matmul_precision("highest")` inside `predict`: rounded products
  hide gradients.

  Args:
    key: a PRNG key.
    predict: function images [batch, height, width, channels] in [0, 1] -> logits [batch, classes],
      deterministic, with normalisation inside. For "rand": (images, keys [batch]) -> logits. Give
      large weights in a `jax.tree_util.Partial` of the function: then they are arguments of the
      compiled programs, not constants in them. Arrays on a mesh with explicit axes need it.
    images: float array [n, height, width, channels] in [0, 1].
    labels: int array [n].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    version: a key of `VERSIONS`, or a list of names from `ATTACKS`.
    batch_size: images attacked at once, over all devices together; rounded up to a multiple of
      their number. On a CPU it is then rounded down to whole pieces, see `slots`.
    indices: int array [n], the images' positions in the whole data set, which determine their
      random draws; default 0, 1, ..., n - 1.
    devices: the devices to use; default all.
    on_progress: function of a `Progress`, called after every compiled call; for example `print`.
    state_file: path of a file with the state. After an interruption the same call with the same
      model continues from it. The file is kept at the end. None writes no file.
    save_seconds: smallest time between two writes of the file, in seconds.

  Returns:
    The robust images, per attack and in all, the adversarial images and a record of the attacks.

  Raises:
    ValueError: a wrong argument, see `inputs`; a `predict` whose outputs are not logits, are
      probabilities, differ between passes or are not finite.
    resume.StateError: a ValueError: the state file is damaged or belongs to another call.
    OSError: the state cannot be written. The last state saved is still there.
    RuntimeError: a perturbation exceeds epsilon or leaves the box, which is a defect of the attack.
  """
  ensemble = version if isinstance(version, str) else None
  if ensemble is not None:
    arguments.check_choice("auto_attack", "version", version, (*ATTACKS, *VERSIONS))
    names = VERSIONS.get(ensemble, (ensemble,))
  else:
    names = arguments.check_names("auto_attack", "version", version, ATTACKS)
  if not names or len(set(names)) < len(names):
    raise ValueError(f"auto_attack: version is {names!r}; give at least one attack, each once")
  return attack_all(
    "auto_attack",
    key,
    predict,
    images,
    labels,
    epsilon=epsilon,
    norm=norm,
    version=ensemble,
    restarts=RESTARTS.get(ensemble or "", 1),
    rows={name: ATTACKS[name] for name in names},
    after=None,
    batch_size=batch_size,
    indices=indices,
    devices=devices,
    on_progress=on_progress,
    state_file=state_file,
    save_seconds=save_seconds,
  )


def attack_all(
  who: str,
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: float,
  norm: str,
  version: str | None,
  restarts: int,
  rows: dict[str, Row],
  after: AttackResult | None,
  batch_size: int,
  indices: Array | None,
  devices: Sequence[jax.Device] | None,
  on_progress: Callable[[Progress], Any] | None,
  state_file: str | os.PathLike[str] | None,
  save_seconds: float,
) -> AttackResult:
  """Runs the attacks of some rows one after the other, as `auto_attack` does.

  Args:
    who: name of the public function, which begins messages.
    key: a PRNG key.
    predict: as for `auto_attack`.
    images: as for `auto_attack`.
    labels: as for `auto_attack`.
    epsilon: as for `auto_attack`.
    norm: as for `auto_attack`.
    version: name of the ensemble; None for a list of attacks.
    restarts: restarts of untargeted attacks of `ATTACKS`.
    rows: name -> row, in the order of the attacks.
    after: result of the first attacks, which are not repeated; None where there is none.
    batch_size: as for `auto_attack`.
    indices: as for `auto_attack`.
    devices: as for `auto_attack`.
    on_progress: as for `auto_attack`.
    state_file: as for `auto_attack`.
    save_seconds: as for `auto_attack`.
  """
  arguments.check_key(who, key)
  arguments.check_count(who, "batch_size", batch_size, 1)
  arguments.check_number(who, "save_seconds", save_seconds)
  if on_progress is not None and not callable(on_progress):
    raise ValueError(
      f"{who}: on_progress is {arguments.shown(on_progress)}; expected a function, such as print"
    )
  if state_file is not None and not isinstance(state_file, str | os.PathLike):
    raise ValueError(
      f"{who}: state_file is {arguments.shown(state_file)}; expected the path of a file"
    )
  if after is not None and not isinstance(after, AttackResult):
    raise ValueError(
      f"{who}: `after` is a {type(after).__name__}; expected the result of auto_attack"
    )
  devices = jax.devices() if devices is None else devices
  devices = list(devices.ravel()) if isinstance(devices, np.ndarray) else devices
  if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
    raise ValueError(
      f"{who}: devices is {arguments.shown(devices)}; expected a list such as jax.devices()"
    )
  if not devices:
    raise ValueError(f"{who}: devices is empty; give at least one, such as jax.devices()")
  inputs.check_radius(who, epsilon, norm)
  inputs.check_predict(who, predict)
  images, labels, indices = map(np.asarray, inputs.check_examples(who, images, labels, indices))
  key_data = np.asarray(jax.random.key_data(key))
  with jax.set_mesh(None):  # the programs have a mesh of their own
    return _attack_all(
      jax.random.wrap_key_data(jnp.asarray(key_data), impl=jax.random.key_impl(key)),
      predict,
      (images.astype(np.float32), labels.astype(np.int32), indices),
      epsilon=float(epsilon),
      norm=norm,
      ensemble=version,
      restarts=restarts,
      rows=rows,
      after=after,
      who=who,
      batch_size=batch_size,
      devices=devices,
      on_progress=on_progress,
      state_file=state_file,
      save_seconds=save_seconds,
    )


def _attack_all(
  key: jax.Array,
  predict: Predict,
  examples: tuple[np.ndarray, np.ndarray, np.ndarray],
  *,
  epsilon: float,
  norm: str,
  ensemble: str | None,
  restarts: int,
  rows: dict[str, Row],
  after: AttackResult | None,
  who: str,
  batch_size: int,
  devices: Sequence[jax.Device],
  on_progress: Callable[[Progress], Any] | None,
  state_file: str | os.PathLike[str] | None,
  save_seconds: float,
) -> AttackResult:
  """`attack_all` on checked arguments; `ensemble` is None for a list of attacks."""
  images, labels, indices = examples
  mesh = jax.make_mesh(
    (len(devices),), ("examples",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,)
  )
  batch_size = -(-batch_size // mesh.size) * mesh.size
  samples = SAMPLES.get(ensemble or "", 1)
  shapes = [jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), np.float32)]
  if samples > 1:
    shapes.append(jax.eval_shape(lambda key: jax.random.split(key, batch_size), key))
  model = inspection.on_devices(predict, slots.shardings(mesh)[1], *shapes)

  def look(images: np.ndarray, purpose: int) -> np.ndarray:
    """Logits of all images; `purpose` determines the draws of a random model."""
    keys = None if samples == 1 else inspection.draw_keys(key, purpose, indices, samples)
    return inspection.all_logits(model, images, batch_size, mesh, keys)

  logits = look(images, CLEAN)
  inspection.check_outputs(logits, labels, who)
  build = lambda row: _build(row, norm, logits.shape[-1], images.shape[1:], restarts, samples)
  attacks = {name: build(row) for name, row in rows.items()}
  clean = ~is_wrong(logits, labels)
  spec = {
    "version": ensemble or list(rows),
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
    "matmul_precision": str(
      jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds it at import
    ),
  }
  state = resume.State(state_file, save_seconds, spec, images, labels, indices, logits)
  if after is not None and not state.per_attack:
    _continue_after(after, state, spec, clean, lambda images: look(images, FINAL), who)
  forecast = Forecast([(one, slots.sizes(one, batch_size, mesh)) for one in attacks.values()])
  for number, (name, attack) in enumerate(attacks.items(), start=1):
    if name not in state.per_attack:
      _attack_with(
        name,
        rows[name],
        number,
        attack,
        Given(
          key,
          model,
          (*examples, logits),
          np.flatnonzero(state.robust & ~state.done),
          logits.shape[-1],
          epsilon,
          batch_size,
          mesh,
          build,
        ),
        state,
        forecast,
        on_progress,
      )
  return _result(state, spec, images, labels, clean, lambda adversarial: look(adversarial, FINAL))


@functools.lru_cache(maxsize=64)
def _build(
  row: Row, norm: str, classes: int, image_shape: tuple[int, ...], restarts: int, samples: int
) -> Attack:
  """The same object for the same options, so that its compiled programs are found again."""
  return row.build(norm, classes, image_shape, restarts, samples)


def _continue_after(
  after: AttackResult,
  state: resume.State,
  spec: dict[str, Any],
  clean: np.ndarray,
  look: Callable[[np.ndarray], np.ndarray],
  who: str,
) -> None:
  """Enters the outcomes of an earlier call in the state.

  Raises:
    ValueError: the earlier call was another one, or did not run the first attacks.
  """
  same = ("norm", "epsilon", "seed", "examples", "classes")
  other = [name for name in same if after.spec[name] != spec[name]]
  first = list(after.per_attack)
  attacks = list(spec["attacks"].items())[: len(first)]
  if list(after.spec["attacks"].items()) != attacks or [name for name, _ in attacks] != first:
    other.append("attacks")
  if after.images.shape != state.images.shape:
    other.append("images")
  elif not other:
    untouched = after.robust | ~after.correct
    is_same = (after.images[untouched] == state.images[untouched]).all()
    # Rounding can change a few classes. Another model changes many.
    changed = (after.predicted != look(after.images).argmax(-1)) | (after.correct != clean)
    if not is_same or changed.sum() > max(2, CHANGED * len(changed)):
      other.append("images, labels or model")
  if other:
    raise ValueError(
      f"{who}: `after` is the result of another call (other {', '.join(other)}); give that of "
      "auto_attack(..., version='standard') with the same model, key, images and epsilon, or None"
    )
  state.robust[:] &= after.robust
  state.images[:] = after.images
  state.per_attack = {name: robust.copy() for name, robust in after.per_attack.items()}
  state.passes = dict(after.spec["passes"])


def _attack_with(
  name: str,
  row: Row,
  number: int,
  attack: Attack,
  given: Given,
  state: resume.State,
  forecast: Forecast,
  on_progress: Callable[[Progress], Any] | None,
) -> None:
  """Attacks the waiting examples, and enters the outcomes in the state."""
  earlier, finished, survived, steps = int((state.robust & state.done).sum()), 0, 0, 0
  total = int((state.robust | state.done).sum())
  attack_key = jax.random.fold_in(given.key, row.id)
  own = None
  if row.given is not None and len(given.waiting):
    own, passes = row.given(attack, given)
    state.passes.setdefault(name, passes)  # after an interruption they are not counted again
  last = clock()
  for call in slots.attack_examples(
    attack,
    given.predict,
    attack_key,
    given.examples,
    given.waiting,
    given.epsilon,
    given.batch_size,
    given.mesh,
    own,
  ):
    for ended in call.ended:
      position = ended.position
      finished, survived = finished + 1, survived + (not ended.broken)
      steps += ended.steps
      state.done[position] = True
      state.passes[name] = state.passes.get(name, 0) + attack.passes * ended.steps
      if ended.broken:
        state.robust[position] = False
        state.images[position] = ended.image
    state.save()
    now = clock()
    forecast.measure(number - 1, call, now - last)
    last = now
    if on_progress is not None:
      done = int(state.done.sum())
      waiting = total - done - len(call.left)
      on_progress(
        Progress(
          name,
          number,
          len(forecast.attacks),
          min(call.runs, default=attack.num_runs - 1) + 1,
          attack.num_runs,
          done,
          total,
          done + call.behind,
          int(state.robust.sum()),
          len(state.robust),
          state.seconds(),
          forecast.left(number - 1, call, waiting, finished, survived, steps, earlier),
        )
      )
  state.finish(name)


def _result(
  state: resume.State,
  spec: dict[str, Any],
  images: np.ndarray,
  labels: np.ndarray,
  clean: np.ndarray,
  look: Callable[[np.ndarray], np.ndarray],
) -> AttackResult:
  """The result, after a check of the perturbations and one more pass over all images."""
  # On the host, one by one: all images at once may be more than a device holds.
  size = np.array([_size(state.images[i] - images[i], spec["norm"]) for i in range(len(images))])
  is_inside = all(image.min() >= 0 and image.max() <= 1 for image in state.images)
  if not (
    size.max(initial=0) <= spec["epsilon"] + TOLERANCE * max(1, spec["epsilon"]) and is_inside
  ):
    raise RuntimeError(
      f"auto_attack: a perturbation of {size.max():.8g} exceeds epsilon {spec['epsilon']:g}, or "
      "pixels leave [0, 1]; this is a defect of the attack, please report it"
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
    # Forward passes of each attack, and the images that it broke.
    "passes": state.passes,
    "gains": _gains(state, clean),
    "largest_perturbation": float(size.max(initial=0)),
    # Misclassified in the attack, but not in the last pass: rounding, or other draws of the model.
    "not_misclassified_again": int((attacked & ~is_wrong(again, labels)).sum()),
    "not_finite": int((~np.isfinite(again).all(-1)).sum()),
    "seconds": state.seconds(),
  }
  predicted = again.argmax(-1).astype(np.int32)
  return AttackResult(state.robust, state.per_attack, state.images, clean, predicted, spec)


def _gains(state: resume.State, clean: np.ndarray) -> dict[str, dict[str, float]]:
  """For each attack: the images that it broke, its forward passes, and the first per million."""
  found, before = {}, int(clean.sum())
  for name, robust in state.per_attack.items():
    broken, passes = before - int(robust.sum()), state.passes.get(name, 0)
    before = int(robust.sum())
    per_million = 1e6 * broken / passes if passes else 0.0
    found[name] = {"broken": broken, "passes": passes, "per_million_passes": per_million}
  return found


def _size(perturbation: np.ndarray, norm: str) -> float:
  """The norm of one perturbation, in float64."""
  values = np.abs(perturbation.astype(np.float64))
  if norm == "l1":
    return float(values.sum())
  return float(values.max() if norm == "linf" else np.sqrt((values**2).sum()))
