"""Signs that a robustness number is too good to be true.

`findings` derives all of them from the numbers, outcomes and curves that evaluations have left; no
model is needed. A new wording or a new check measures nothing again. Each check looks for the
numbers that it needs and finds nothing where they were not measured.

(Carlini et al., "On Evaluating Adversarial Robustness", 2019; Croce, Hein, "Reliable Evaluation of
Adversarial Robustness", ICML 2020; Zimmermann et al., "Increasing Confidence in Adversarial
Robustness Evaluations", NeurIPS 2022.)
"""

import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import numpy as np

from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Stored

BLACK_BOX_POINTS = 0.2  # that attacks without gradients may win over those with them
EFFORT_POINTS = 1.0  # by which more steps or restarts may move an accuracy
LARGE_RADIUS_POINTS = 1.0  # of accuracy that may be left at a radius that hides any image
GAP_POINTS = 10.0  # from PGD to AutoAttack
MOVING_SHARE = 0.05  # of the running best loss's range, in the last tenth of the steps
BINARIZATION_SHARE = 0.95  # of the planted adversarial examples that an attack must find
ROUNDING = 1e-9
THREAT = ("norm", "epsilon")


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check found.

  Attributes:
    check: a key of `CHECKS`.
    passed: whether the numbers may be believed as far as this check goes.
    value: what was compared with the threshold; None where it could not be computed.
    threshold: the largest value that passes (of "binarization" the smallest).
    text: one sentence with the numbers in it.
    concerns: the numbers that it speaks of, a selector each: {"evaluation": ..., keys}. A number is
      meant if it has all of them.
  """

  check: str
  passed: bool
  value: float | None
  threshold: float
  text: str
  concerns: tuple[Mapping[str, Any], ...]

  def is_about(self, number: Number) -> bool:
    """Whether a number is one that the finding concerns."""
    return any(number.matches(**selector) for selector in self.concerns)

  def to_json(self) -> dict:
    """The finding as JSON."""
    return dataclasses.asdict(self) | {"concerns": [dict(c) for c in self.concerns]}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Finding":
    """The finding from JSON."""
    return cls(**{**value, "concerns": tuple(dict(concern) for concern in value["concerns"])})


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What the checks look at: all numbers of a model, and what else its evaluations have left."""

  numbers: Numbers
  stored: Mapping[str, Stored]

  def of(self, evaluation: str, **wanted: Any) -> Numbers:
    """The numbers of one evaluation that match."""
    return self.numbers.where(evaluation=evaluation, **wanted)

  def detail(self, evaluation: str, name: str) -> Any:
    """One of the details of an evaluation; None where there is none."""
    stored = self.stored.get(evaluation)
    return None if stored is None else stored.details.get(name)


def findings(evidence: Evidence) -> list[Finding]:
  """Everything that the checks find."""
  return [finding for check in CHECKS.values() for finding in check.derive(evidence)]


def gradients(evidence: Evidence) -> Iterable[Finding]:
  """No image may have an input gradient that is zero, NaN or infinite."""
  found = Numbers(n for n in evidence.of("sanity") if n.metric in FAULTS)
  for place in found.values("place"):
    here = found.where(place=place)
    bad = [n for n in here if n.value]
    first = next(iter(here))
    threat = f"{_threat(first)}: " if "epsilon" in first.keys else ""
    listed = ", ".join(f"{FAULTS[n.metric]} for {n['loss']} in {n.value:.1%}" for n in bad)
    text = (
      f"{threat}input gradients {place} cannot be followed ({listed} of {first.count} images): "
      "attacks that "
      "follow them may miss adversarial examples."
      if bad
      else f"{threat}all input gradients {place} are finite and not zero, for "
      f"{', '.join(here.values('loss'))} "
      f"on {first.count} images."
    )
    yield Finding(
      "gradients",
      not bad,
      max((n.value for n in here), default=0.0),
      0.0,
      _sentence(text),
      (_beside_pgd(first), *({"evaluation": "sanity", "metric": n.metric, **n.keys} for n in bad)),
    )


FAULTS = {
  "zero_gradients": "zero",
  "nan_gradients": "not a number",
  "infinite_gradients": "infinite",
}


def square(evidence: Evidence) -> Iterable[Finding]:
  """Square, which sees outputs only, must not find what the attacks before it missed."""
  for last in evidence.of("auto_attack", metric="accuracy", stage="square"):
    chain = [
      n
      for n in evidence.of("auto_attack", metric="accuracy")
      if n["stage"] and _shared(n, last, (*THREAT, "version", "seed"))
    ]
    place = next(i for i, n in enumerate(chain) if n is last)
    if not place:
      continue
    before, after = chain[place - 1].value, last.value
    points = 100 * (before - after)
    passed = points <= BLACK_BOX_POINTS + ROUNDING
    text = (
      f"{_threat(last)}: Square broke {points:.1f} points more than the white-box attacks before "
      "it "
      f"({before:.1%} to {after:.1%}){'' if passed else ': gradients are probably masked'}."
    )
    concerns = {"evaluation": "auto_attack", **_keys(last, (*THREAT, "version", "seed"))}
    yield Finding("square", passed, points, BLACK_BOX_POINTS, _sentence(text), (concerns,))


def black_box(evidence: Evidence) -> Iterable[Finding]:
  """Noise of the same size, or a transferred attack, must not break what the white box left."""
  for noise in evidence.of("sanity", attack="noise"):
    pgd, apgd = _base_pgd(evidence), _first_with(evidence.of("sanity"), "attack", "apgd")
    if _have_outcomes(noise, pgd, apgd):
      white = pgd.outcomes & apgd.outcomes
      yield _black_box(white, {"random noise": noise.outcomes}, noise, (_beside_pgd(noise),))
  sources = evidence.of("transfer", metric="accuracy")
  white = sources.first(source=None)
  if not _have_outcomes(white, *sources):
    return
  others = {f"the attack on {n['source']}": n.outcomes for n in sources if n["source"]}
  if others:
    yield _black_box(
      white.outcomes, others, white, ({"evaluation": "transfer"}, _beside_pgd(white))
    )


def _black_box(white, others, number, concerns):
  points = {name: 100 * float((white & ~outcome).mean()) for name, outcome in others.items()}
  worst = max(points, key=points.get)
  passed = points[worst] <= BLACK_BOX_POINTS + ROUNDING
  text = (
    f"{_threat(number)}: of what the white-box attack left, {worst} broke {points[worst]:.1f} "
    "points of "
    f"{len(white)} images{'' if passed else ': gradients are probably masked'}."
  )
  return Finding("black_box", passed, points[worst], BLACK_BOX_POINTS, _sentence(text), concerns)


def order(evidence: Evidence) -> Iterable[Finding]:
  """A stronger attack must break every image that a weaker one breaks."""
  fgsm, pgd = evidence.of("sanity").first(attack="fgsm"), _base_pgd(evidence)
  apgd = _first_with(evidence.of("sanity"), "attack", "apgd")
  if not _have_outcomes(fgsm, pgd, apgd):
    return
  names = {"FGSM": fgsm, "PGD": pgd, "APGD": apgd}
  missed = {
    (weak, strong): int((names[strong].outcomes & ~names[weak].outcomes).sum())
    for weak, strong in itertools.pairwise(names)
  }
  listed = "; ".join(
    f"{weak} broke {count} of {pgd.count} images that {strong} left robust"
    for (weak, strong), count in missed.items()
    if count
  )
  text = (
    f"{_threat(pgd)}: {listed}: the stronger attack is not strong enough here."
    if listed
    else f"{_threat(pgd)}: each of {', '.join(names)} broke all that the one before it broke."
  )
  yield Finding(
    "order", not listed, float(max(missed.values())), 0.0, _sentence(text), (_beside_pgd(pgd),)
  )


def monotone(evidence: Evidence) -> Iterable[Finding]:
  """Accuracy must not rise with the perturbation budget."""
  curve = sorted(evidence.of("pgd", metric="accuracy"), key=lambda n: n["epsilon"])
  rises = [(100 * (high.value - low.value), high) for low, high in itertools.pairwise(curve)]
  if not rises:
    return
  worst, where = max(rises, key=lambda rise: rise[0])
  bad = [n for rise, n in rises if rise > 100 * ROUNDING]
  text = (
    f"accuracy rises by {worst:.2f} points up to epsilon {where['epsilon']:g}: a larger ball "
    "holds the smaller "
    "one, so the attack misses adversarial examples."
    if bad
    else f"accuracy never rises with epsilon, over {len(curve)} values of it."
  )
  concerns = tuple(_beside_pgd(n) for n in bad) or ({"evaluation": "pgd"},)
  yield Finding("monotone", not bad, max(worst, 0.0), 0.0, _sentence(text), concerns)


def large_radius(evidence: Evidence) -> Iterable[Finding]:
  """At a radius that hides any image, an attack must leave next to nothing right."""
  for number in evidence.of("sanity", metric="accuracy_at_large_radius"):
    points = 100 * number.value
    passed = points <= LARGE_RADIUS_POINTS + ROUNDING
    text = (
      f"{number.value:.1%} of {number.count} images are still classified correctly at epsilon "
      f"{number['epsilon']:g}"
      f"{'' if passed else ', where every image can be made grey: the attack fails'}."
    )
    concerns = {"evaluation": "pgd", "norm": number["norm"]}
    yield Finding("large_radius", passed, points, LARGE_RADIUS_POINTS, text, (concerns,))


def effort(evidence: Evidence) -> Iterable[Finding]:
  """Twice the steps, or many restarts, must not move the accuracy: else the attack was too weak."""
  base = _base_pgd(evidence)
  if base is None:
    return
  more = {
    _runs(n): n for n in evidence.of("sanity", metric="accuracy", attack="pgd") if n is not base
  }
  moves = {name: 100 * (base.value - n.value) for name, n in more.items()}
  if not moves:
    return
  worst = max(moves, key=lambda name: abs(moves[name]))
  passed = abs(moves[worst]) <= EFFORT_POINTS + ROUNDING
  text = (
    f"{_threat(base)}: PGD with {worst} leaves {abs(moves[worst]):.1f} points "
    f"{'less' if moves[worst] >= 0 else 'more'} than with {_runs(base)}, of {base.count} images"
    f"{'' if passed else ': the attack is too weak'}."
  )
  yield Finding(
    "effort", passed, abs(moves[worst]), EFFORT_POINTS, _sentence(text), (_beside_pgd(base),)
  )


def converged(evidence: Evidence) -> Iterable[Finding]:
  """The running best loss must hardly move in the last tenth of the steps."""
  curve, base = evidence.detail("sanity", "best_loss"), _base_pgd(evidence)
  if base is None or not curve or len(curve) < 10:
    return
  values = np.array([np.nan if value is None else value for value in curve], float)
  beside = (_beside_pgd(base),)
  if not np.isfinite(values).all():
    text = f"{_threat(base)}: the running best loss of PGD is not finite."
    yield Finding("converged", False, None, MOVING_SHARE, _sentence(text), beside)
    return
  span = np.ptp(values)
  share = float((values[-1] - values[-1 - len(values) // 10]) / span) if span else 0.0
  passed = share <= MOVING_SHARE + ROUNDING
  text = (
    f"{_threat(base)}: the running best loss of PGD moved by {share:.1%} of its range in the "
    "last tenth of "
    f"its {len(values) - 1} steps{'' if passed else ': more steps would find more'}."
  )
  yield Finding("converged", passed, share, MOVING_SHARE, _sentence(text), beside)


def gap(evidence: Evidence) -> Iterable[Finding]:
  """PGD must not be far above AutoAttack, on the same images.

  Of RobustBench's 99 CIFAR-10 Linf models, 89 are below 8.8 points, the other 10 above 11.5.
  """
  for strong in evidence.of("auto_attack", metric="accuracy", stage=None):
    if strong["version"] not in ("standard", "plus"):
      continue  # one of its attacks alone is no AutoAttack
    for weak in evidence.of("pgd", metric="accuracy"):
      if not _shared(weak, strong, THREAT) or not np.array_equal(weak.indices, strong.indices):
        continue
      points = 100 * (weak.value - strong.value)
      passed = points <= GAP_POINTS + ROUNDING
      text = (
        f"{_threat(strong)}: PGD leaves {points:.1f} points more than AutoAttack "
        f"({weak.value:.1%} against "
        f"{strong.value:.1%}){'' if passed else ': quote the number of AutoAttack'}."
      )
      yield Finding("gap", passed, points, GAP_POINTS, _sentence(text), (_beside_pgd(strong),))


def binarization(evidence: Evidence) -> Iterable[Finding]:
  """The attack must find adversarial examples that are known to be there."""
  for found in evidence.of("binarization", metric="planted_found"):
    beside = (_beside_pgd(found), {"evaluation": "binarization"})
    if not found.count:
      text = (
        "The binarisation test could not be built for any image: the features do not tell a "
        "point on the edge "
        "of the ball from those inside."
      )
      yield Finding("binarization", False, None, BINARIZATION_SHARE, text, beside)
      continue
    random = evidence.of("binarization", metric="planted_found_by_noise").first()
    passed = found.value >= BINARIZATION_SHARE - ROUNDING
    text = (
      f"{_threat(found)}: of {found.count} planted adversarial examples PGD found "
      f"{found.value:.1%}, random "
      f"noise {random.value:.1%}{'' if passed else ': PGD is too weak for this model'}."
    )
    yield Finding("binarization", passed, found.value, BINARIZATION_SHARE, _sentence(text), beside)


@dataclasses.dataclass(frozen=True)
class Check:
  """A row of `CHECKS`: what it asks, the unit of its value, and what derives it."""

  question: str
  unit: str
  derive: Callable[[Evidence], Iterable[Finding]]


CHECKS = {
  "gradients": Check("Are all input gradients finite and not zero?", "share of images", gradients),
  "square": Check("Does Square find nothing that white-box attacks missed?", "points", square),
  "black_box": Check(
    "Do noise and transferred attacks find nothing that white-box attacks missed?",
    "points",
    black_box,
  ),
  "order": Check("Do stronger attacks break all that weaker ones break?", "images", order),
  "monotone": Check("Does accuracy never rise with epsilon?", "points", monotone),
  "large_radius": Check(
    "Is nothing left at a radius that hides any image?", "points", large_radius
  ),
  "effort": Check("Do more steps and restarts leave the accuracy as it is?", "points", effort),
  "converged": Check("Has the running best loss settled?", "share of its range", converged),
  "gap": Check("Is PGD near AutoAttack?", "points", gap),
  "binarization": Check(
    "Does the attack find planted adversarial examples?", "share found", binarization
  ),
}


def _base_pgd(evidence):
  """PGD as the sanity evaluation was asked to run it."""
  stored = evidence.stored.get("sanity")
  if stored is None:
    return None
  return evidence.of("sanity", metric="accuracy", attack="pgd").first(
    steps=stored.options["num_steps"], restarts=stored.options["num_restarts"]
  )


def _have_outcomes(*numbers):
  return all(number is not None and number.outcomes is not None for number in numbers)


def _runs(number):
  restarts = number["restarts"]
  return f"{number['steps']} steps and {restarts} restart{'s' * (restarts != 1)}"


def _first_with(numbers, key, prefix):
  return next((n for n in numbers if (n[key] or "").startswith(prefix)), None)


def _keys(number, names):
  return {name: number[name] for name in names if number[name] is not None}


def _shared(first, second, names):
  return all(first[name] == second[name] for name in names)


def _beside_pgd(number):
  """Selects the PGD number of the same threat model."""
  return {"evaluation": "pgd", **_keys(number, THREAT)}


def _threat(number):
  names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
  return f"at {names.get(number['norm'], number['norm'])} epsilon {number['epsilon']:g}"


def _sentence(text):
  return text[0].upper() + text[1:]
