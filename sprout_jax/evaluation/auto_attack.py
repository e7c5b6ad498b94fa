"""Worst-case accuracy under AutoAttack."""

import contextlib
import functools
import pathlib
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Annotated
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.attacks import resume
from sprout_jax.errors import UserError
from sprout_jax.evaluation.options import PIXELS
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import with_epsilon
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import OnBatch
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results import bundle as bundle_lib
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

# The version "rand" draws anew in every step. Here a random model is the mean of draws, which is
# not random (`attacks.averaged`).
VERSIONS = tuple(sorted([*attacks.VERSIONS.keys() - {"rand"}, *attacks.ATTACKS]))
# Counts of an attack's spec that become notes.
REMARKS = {
  "not_misclassified_again": "adversarial images were misclassified only during the attack",
  "not_finite": "adversarial images have outputs that are not finite",
}
MOST_CLASSES = 100  # of more classes, the confusion is not kept

Version = Annotated[
  str, Option("version of AutoAttack, or a single one of its attacks", choices=VERSIONS)
]
LeavesBundle = Annotated[
  bool, Option("whether to leave the adversarial images with all outcomes in WORKDIR/evidence")
]
# (key, predict, images, labels, *, epsilon, norm, ...) -> result, as `attacks.auto_attack`.
Run = Callable[..., attacks.AttackResult]


def evaluate_auto_attack(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  version: Version = "standard",
  epsilon: Epsilon,
  epsilons: Annotated[
    tuple[float, ...],
    Option(f"perturbation budgets besides epsilon, {PIXELS}", 0, np.inf, ascends=True),
  ] = (),
  bundle: LeavesBundle = True,
  seed: Seed,
) -> Measurement:
  """Measures the worst-case accuracy under AutoAttack.

  The state of a running attack is stored: after a kill, the same call continues within the attack.
  The evidence is left as a bundle, which `sprout_jax.verify` checks. The details have the accuracy
  of each class and the confusion under attack.
  """
  images = subject.select(num_examples)
  run = functools.partial(attacks.auto_attack, version=version)
  numbers: list[Number] = []
  made: list[dict[str, Any]] = []
  notes: list[str] = []
  with bars(subject) as on_progress:
    for radius in with_epsilon(epsilons, epsilon):
      found = subject.memo(
        f"epsilon {radius!r}",
        functools.partial(
          measure,
          subject,
          images,
          run,
          norm,
          radius,
          seed,
          functools.partial(on_progress, radius),
          bundle,
        ),
      )
      numbers += _numbers(found, images, version, norm, radius, seed)
      made += details(found, radius)["specs"]
      notes += remarks(found, radius)
  return Measurement(Numbers(numbers), {"specs": made}, tuple(dict.fromkeys(notes)))


@contextlib.contextmanager
def bars(subject: Subject) -> Iterator[Callable[[float, Any], None]]:
  """Shows a progress bar for each attack; yields (epsilon, `attacks.Progress`) -> None."""
  with contextlib.ExitStack() as stack:
    made: dict[str, OnBatch] = {}

    def on_progress(epsilon: float, now: Any) -> None:
      name = f"{now.attack}, epsilon {epsilon:g}"
      if name not in made:
        made[name] = stack.enter_context(subject.progress(name, now.total))
      text = f"run {now.run} of {now.runs}, {now.robust} of {now.examples} robust"
      made[name](int(now.work), text, now.seconds_left)

    yield on_progress


def remarks(found: dict[str, Any], epsilon: float) -> list[str]:
  """The notes about what `measure` found."""
  spec = found["spec"]
  gib = found.get("too_large", 0) / 2**30
  large = f"At epsilon {epsilon:g}, no bundle was left in evidence: it would have {gib:.0f} GiB."
  return (
    ([large] if gib else [])
    + spec["notes"]
    + [f"At epsilon {epsilon:g}, {spec[key]} {text}." for key, text in REMARKS.items() if spec[key]]
  )


def details(found: dict[str, Any], epsilon: float) -> dict[str, Any]:
  """The details about what `measure` found: the attack, the classes, the place of the bundle."""
  more = {name: found[name] for name in ("classes", "bundle") if name in found}
  return {"specs": [{"epsilon": epsilon, "spec": found["spec"], **more}]}


def measure(
  subject: Subject,
  images: Images,
  run: Run,
  norm: str,
  epsilon: float,
  seed: int,
  on_progress: Callable[[Any], None],
  bundle: bool,
  state: str | None = "",
  places: np.ndarray | None = None,
) -> dict[str, Any]:
  """Attacks images at one epsilon, and leaves a bundle.

  Args:
    subject: the model. Its memo's folder holds the state of the running attack.
    images: the images to attack.
    run: the attack, such as `attacks.auto_attack`.
    norm: a key of `attacks.NORMS`.
    epsilon: perturbation budget, in pixel units.
    seed: the seed of all random draws.
    on_progress: called with each `attacks.Progress`.
    bundle: whether to leave a bundle in the subject's folder.
    state: name of the state's file besides epsilon; None keeps no state.
    places: int [n], the images' places in the whole choice, which determine their random draws;
      None: 0, 1, ..., n - 1. With them, an image's outcome does not depend on the other images.

  Returns:
    {"robust", "per_attack", "spec"} of the result, {"classes"}, and {"bundle": its place}.
  """
  state_file = None
  if state is not None and hasattr(subject.memo, "folder"):
    name = "-".join(filter(None, (state, f"epsilon-{epsilon!r}.npz")))
    state_file = pathlib.Path(subject.memo.folder) / name
    state_file.parent.mkdir(parents=True, exist_ok=True)

  def attack() -> attacks.AttackResult:
    with jax.default_matmul_precision("highest"):  # whatever the caller has set
      return run(
        root_key(seed),
        subject.predict,
        np.asarray(to_float(images.images)),
        images.labels,
        epsilon=epsilon,
        norm=norm,
        batch_size=subject.batch_size,
        indices=places,
        on_progress=on_progress,
        state_file=state_file,
      )

  try:
    result = attack()
  except resume.StateError as error:
    if state_file is None:
      raise
    _set_aside(state_file, error)
    result = attack()
  found = {"robust": result.robust, "per_attack": result.per_attack, "spec": result.spec}
  found["classes"] = by_class(images.labels, result, subject.num_classes)
  if bundle and subject.folder is not None:
    unpacked = bundle_lib.size(images.images, int((result.correct & ~result.robust).sum()))
    if unpacked <= bundle_lib.LARGEST:
      found["bundle"] = _leave_bundle(subject, images, result)
    else:
      found["too_large"] = unpacked
  return found


def by_class(labels: np.ndarray, result: attacks.AttackResult, num_classes: int) -> dict[str, Any]:
  """Counts the images of each class, those that are correct and robust, and the confusion.

  Args:
    labels: int [n].
    result: the result of the attack.
    num_classes: number of classes.

  Returns:
    {"count", "correct", "robust"}, lists [classes], and of up to `MOST_CLASSES` classes
    {"confusion"} [classes, classes]: of the images of a class (row), how many have which predicted
    class (column) after the attack.
  """
  count = lambda mask: np.bincount(labels[mask], minlength=num_classes).tolist()
  found: dict[str, Any] = {
    "count": count(np.ones(len(labels), bool)),
    "correct": count(result.correct),
    "robust": count(result.robust),
  }
  if num_classes <= MOST_CLASSES:
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, result.predicted), 1)
    found["confusion"] = confusion.tolist()
  return found


def _leave_bundle(subject: Subject, images: Images, result: attacks.AttackResult) -> str:
  """Writes the bundle of a result and returns its place in the workdir."""
  spec, folder = result.spec, getattr(subject.memo, "folder", None)
  # The last part is the identity of the options: other images or seeds are another bundle.
  own = "" if folder is None else "-" + pathlib.Path(folder).name.rpartition("-")[2]
  version = spec["version"] if isinstance(spec["version"], str) else "+".join(spec["version"])
  kind = "" if version == "extended" else "auto_attack-"
  place = f"evidence/{kind}{version}-{spec['norm']}-{spec['epsilon']:.6g}{own}"
  if subject.folder is not None and jax.process_index() == 0:
    bundle_lib.write(
      subject.folder / place,
      images=images.images,
      labels=images.labels,
      correct=result.correct,
      robust=result.robust,
      per_attack=result.per_attack,
      adversarial=result.images,
      spec=spec,
      indices=images.indices,
      model=subject.about,
    )
  return place


def _set_aside(path: pathlib.Path, error: resume.StateError) -> None:
  """Renames a state file that cannot be used, with a warning, so that the attack begins anew."""
  aside = path.with_name(path.name + ".damaged")
  reason = str(error).removesuffix(f"; {resume.ADVICE}")
  if jax.process_index() == 0:
    path.replace(aside)
  if jax.process_count() > 1:  # the others may have read it
    raise UserError(
      f"{reason}. The state file was renamed to {aside.name}. Type the same command again: the "
      "attack starts again"
    ) from error
  warnings.warn(
    f"{reason}. The state file was renamed to {aside.name}; the attack starts again.", stacklevel=2
  )


def _numbers(
  found: dict[str, Any], images: Images, version: str, norm: str, epsilon: float, seed: int
) -> list[Number]:
  """Makes the number after each stage, where there are several, and the one after all stages.

  Only the number of a single attack can have steps and restarts. It has them if the attack follows
  gradients and is not targeted: Square has queries, and a targeted attack has targets.
  """
  keys: dict[str, Any] = {
    "attack": "auto_attack",
    "version": version,
    "norm": norm,
    "epsilon": epsilon,
    "seed": seed,
  }
  first = next(iter(found["spec"]["attacks"].values()))
  effort = {"steps": first["steps"]} if "targeted" in first else {}
  effort |= {"restarts": first["runs"]} if first.get("targeted") is False else {}
  if len(found["per_attack"]) == 1:
    return [accuracy(found["robust"], images.indices, **keys, **effort)]
  made = [
    accuracy(robust, images.indices, stage=name, **keys, **({} if place else effort))
    for place, (name, robust) in enumerate(found["per_attack"].items())
  ]
  return [*made, accuracy(found["robust"], images.indices, **keys)]
