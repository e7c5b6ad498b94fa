"""Worst-case accuracy under AutoAttack."""

import contextlib
import functools
import pathlib
import warnings
from collections.abc import Callable
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
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

# The version "rand" is for models that draw random numbers. `preflight` refuses such models.
VERSIONS = tuple(sorted([*attacks.VERSIONS.keys() - {"rand"}, *attacks.ATTACKS]))
# Counts of an attack's spec that become notes.
REMARKS = {
  "not_misclassified_again": "adversarial images were misclassified only during the attack",
  "not_finite": "adversarial images have outputs that are not finite",
}


def evaluate_auto_attack(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  version: Annotated[
    str, Option("version of AutoAttack, or a single one of its attacks", choices=VERSIONS)
  ] = "standard",
  epsilon: Epsilon,
  epsilons: Annotated[
    tuple[float, ...],
    Option(f"perturbation budgets besides epsilon, {PIXELS}", 0, np.inf, ascends=True),
  ] = (),
  seed: Seed,
) -> Measurement:
  """Measures the worst-case accuracy under AutoAttack.

  The state of a running attack is stored: after a kill, the same call continues within the attack.
  """
  images = subject.select(num_examples)
  numbers: list[Number] = []
  specs: list[dict[str, Any]] = []
  notes: list[str] = []
  with contextlib.ExitStack() as stack:
    bars: dict[str, Callable[[float, str], None]] = {}

    def on_progress(epsilon: float, now: Any) -> None:
      name = f"{now.attack}, epsilon {epsilon:g}"
      if name not in bars:
        bars[name] = stack.enter_context(subject.progress(name, now.total))
      text = f"run {now.run} of {now.runs}, {now.robust} of {now.examples} robust"
      bars[name](int(now.work), text)

    for radius in with_epsilon(epsilons, epsilon):
      found = subject.memo(
        f"epsilon {radius!r}",
        functools.partial(
          _measure,
          subject,
          images,
          version,
          norm,
          radius,
          seed,
          functools.partial(on_progress, radius),
        ),
      )
      numbers += _numbers(found, images, version, norm, radius, seed)
      specs.append({"epsilon": radius, "spec": found["spec"]})
      notes += found["spec"]["notes"] + [
        f"At epsilon {radius:g}, {found['spec'][key]} {text}."
        for key, text in REMARKS.items()
        if found["spec"][key]
      ]
  return Measurement(Numbers(numbers), {"specs": specs}, tuple(dict.fromkeys(notes)))


def _measure(
  subject: Subject,
  images: Images,
  version: str,
  norm: str,
  epsilon: float,
  seed: int,
  on_progress: Callable[[Any], None],
) -> dict[str, Any]:
  """Attacks the images by AutoAttack at one epsilon; the memo's folder holds the running state."""
  state_file = None
  if hasattr(subject.memo, "folder"):
    state_file = pathlib.Path(subject.memo.folder) / f"epsilon-{epsilon!r}.npz"
    state_file.parent.mkdir(parents=True, exist_ok=True)

  def attack() -> attacks.AttackResult:
    with jax.default_matmul_precision("highest"):  # whatever the caller has set
      return attacks.auto_attack(
        root_key(seed),
        subject.predict,
        np.asarray(to_float(images.images)),
        images.labels,
        epsilon=epsilon,
        norm=norm,
        version=version,
        batch_size=subject.batch_size,
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
  return {"robust": result.robust, "per_attack": result.per_attack, "spec": result.spec}


def _set_aside(path: pathlib.Path, error: resume.StateError) -> None:
  """Renames a state file that cannot be used, with a warning, so that the attack begins anew."""
  aside = path.with_name(path.name + ".damaged")
  reason = str(error).removesuffix(f"; {resume.ADVICE}")
  if jax.process_index() == 0:
    path.replace(aside)
  if jax.process_count() > 1:  # the others may have read it
    raise UserError(
      f"{reason}. It is now {aside.name}. Type the same command again: the attack starts again"
    ) from error
  warnings.warn(f"{reason}. It is now {aside.name}; the attack starts again.", stacklevel=2)


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
