"""Checks of robustness numbers: signs that a number is too high because an attack is too weak.

`findings` derives every finding from stored numbers, outcomes and curves. It needs no model, so a
new wording or a new check repeats no measurement. A check gives no finding where the numbers that
it needs were not measured.

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

from sprout_jax.results.numbers import ENSEMBLES
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Stored

# Thresholds. Points are percentage points of accuracy.
BLACK_BOX_POINTS = 0.2  # most that an attack without gradients may lower the white-box accuracy
EFFORT_POINTS = 1.0  # most that more steps or restarts may change the accuracy
LARGE_RADIUS_POINTS = 1.0  # highest accuracy at a radius at which every image can be made grey
GAP_POINTS = 10.0  # largest difference between the accuracies under PGD and AutoAttack
MOVING_SHARE = 0.05  # largest change of the best loss in the last tenth of the steps, per range
BINARIZATION_SHARE = 0.95  # smallest share of the planted adversarial examples to be found
ROUNDING = 1e-9
THREAT = ("norm", "epsilon")
ATTACKS = {"pgd": "PGD", "auto_attack": "AutoAttack"}


@dataclasses.dataclass(frozen=True)
class Finding:
  """The outcome of one check.

  Attributes:
    check: a key of `CHECKS`.
    passed: whether the check found no reason to doubt the numbers.
    value: the value compared with the threshold; None where it could not be computed.
    threshold: the largest value that passes; for "binarization" and "reach" the smallest.
    text: the finding in words, with the numbers.
    concerns: selectors of the numbers that the finding is about, each {"evaluation": ..., keys}. A
      selector selects the numbers that have all of its entries.
  """

  check: str
  passed: bool
  value: float | None
  threshold: float
  text: str
  concerns: tuple[Mapping[str, Any], ...]

  def is_about(self, number: Number) -> bool:
    """Returns whether the finding concerns a number."""
    return any(number.matches(**selector) for selector in self.concerns)

  def to_json(self) -> dict[str, Any]:
    """Returns the finding as JSON."""
    return dataclasses.asdict(self) | {"concerns": [dict(c) for c in self.concerns]}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Finding":
    """Makes the finding from JSON."""
    return cls(**{**value, "concerns": tuple(dict(concern) for concern in value["concerns"])})


@dataclasses.dataclass(frozen=True)
class Evidence:
  """The input of the checks: all numbers of a model, and its stored evaluations by name."""

  numbers: Numbers
  stored: Mapping[str, Stored]

  def of(self, evaluation: str, **wanted: Any) -> Numbers:
    """Returns the numbers of one evaluation that have the wanted keys."""
    return self.numbers.where(evaluation=evaluation, **wanted)

  def detail(self, evaluation: str, name: str) -> Any:
    """Returns one of the details of an evaluation; None where there is none."""
    stored = self.stored.get(evaluation)
    return None if stored is None else stored.details.get(name)


def findings(evidence: Evidence) -> list[Finding]:
  """Returns the findings of all checks."""
  return [finding for check in CHECKS.values() for finding in check.derive(evidence)]


def gradients(evidence: Evidence) -> Iterable[Finding]:
  """Checks that no input gradient is zero, NaN or infinite."""
  found = Numbers(n for n in evidence.of("sanity") if n.metric in FAULTS)
  for place in found.values("place"):
    here = found.where(place=place)
    bad = [n for n in here if n.value]
    first = next(iter(here))
    threat = f"{_threat(first)}: " if "epsilon" in first.keys else ""
    listed = ", ".join(f"{FAULTS[n.metric]} for {n['loss']} in {n.value:.1%}" for n in bad)
    text = (
      f"{threat}some input gradients {place} are unusable ({listed} of {first.count} images). "
      f"Gradient-based attacks may miss adversarial examples.{HOOK}"
      if bad
      else f"{threat}all input gradients {place} are finite and not zero, for "
      f"{', '.join(here.values('loss'))} on {first.count} images."
    )
    yield Finding(
      "gradients",
      not bad,
      max((n.defined for n in here), default=0.0),
      0.0,
      _sentence(text),
      (_beside_pgd(first), *({"evaluation": "sanity", "metric": n.metric, **n.keys} for n in bad)),
    )


# What to do where gradients hide something; for a failed check.
HOOK = (
  " Give the attacks the gradient of a surrogate (attacks.with_surrogate) or, for a model that "
  "draws random numbers, a mean of draws (attacks.averaged)."
)
MASKED = " The gradients are probably masked." + HOOK
FEW_IMAGES = 2  # so few images are no sign of masked gradients
FEW_BROKEN = " So few images are no sign of masked gradients. The white-box attacks missed them."
FAULTS = {
  "zero_gradients": "zero",
  "nan_gradients": "not a number",
  "infinite_gradients": "infinite",
}


def square(evidence: Evidence) -> Iterable[Finding]:
  """Checks that Square, a black-box attack, breaks no images that white-box attacks missed.

  In the version "plus", white-box attacks follow Square. They do not attack the images that it
  broke, and might have broken them as well. A failure cannot be detected there, so there is no
  finding.
  """
  for last in evidence.of("auto_attack", metric="accuracy", stage="square"):
    chain = [
      n
      for n in evidence.of("auto_attack", metric="accuracy")
      if n["stage"] and _shared(n, last, (*THREAT, "version", "seed"))
    ]
    place = next(i for i, n in enumerate(chain) if n is last)
    if not place:
      continue
    before, after = chain[place - 1].defined, last.defined
    points = 100 * (before - after)
    passed = points <= BLACK_BOX_POINTS + ROUNDING
    if not passed and chain[-1] is not last:
      continue
    images = round((before - after) * (last.count or 0))
    failed = MASKED if images > FEW_IMAGES else FEW_BROKEN
    text = (
      f"{_threat(last)}: after the white-box attacks, Square lowers the accuracy by {points:.1f} "
      f"points ({before:.1%} to {after:.1%}; {images} of {last.count} images)."
      f"{'' if passed else failed}"
    )
    concerns = {"evaluation": "auto_attack", **_keys(last, (*THREAT, "version", "seed"))}
    yield Finding("square", passed, points, BLACK_BOX_POINTS, _sentence(text), (concerns,))


def black_box(evidence: Evidence) -> Iterable[Finding]:
  """Checks that noise and transferred attacks break no images that white-box attacks missed."""
  for noise in evidence.of("sanity", attack="noise"):
    found = _outcomes(
      noise, _base_pgd(evidence), _first_with(evidence.of("sanity"), "attack", "apgd")
    )
    if found:
      noisy, pgd, apgd = found
      yield _black_box(pgd & apgd, {"random noise": noisy}, noise, (_beside_pgd(noise),))
  yield from _noise(evidence)
  sources = evidence.of("transfer", metric="accuracy")
  white = sources.first(source=None)
  transferred = [number for number in sources if number["source"]]
  found = _outcomes(white, *transferred)
  if white is None or not transferred or not found:
    return
  names = (f"the attack on {number['source']}" for number in transferred)
  concerns = {"evaluation": "transfer"}, _beside_pgd(white)
  yield _black_box(found[0], dict(zip(names, found[1:])), white, concerns)


def _noise(evidence: Evidence) -> Iterable[Finding]:
  """Compares the evaluation of noise with PGD and AutoAttack: a finding for each at its worst."""
  for evaluation in ATTACKS:
    found = []
    for white in evidence.of(evaluation, metric="accuracy", stage=None):
      for noise in evidence.of("noise", metric="accuracy"):
        both = _on_same_images(white, noise) if _shared(white, noise, THREAT) else None
        if both is not None and _is_ensemble(white):
          about = {"evaluation": evaluation, **_keys(white, (*THREAT, "version"))}
          others, name = {"random noise": both[1]}, ATTACKS[evaluation]
          found.append(_black_box(both[0], others, noise, (about,), name))
    failed = [concern for one in found if not one.passed for concern in one.concerns]
    if found:
      worst = max(found, key=lambda one: one.value or 0.0)
      yield dataclasses.replace(worst, concerns=tuple(failed) or worst.concerns)


def _black_box(
  white: np.ndarray,
  others: Mapping[str, np.ndarray],
  number: Number,
  concerns: tuple[Mapping[str, Any], ...],
  attack: str = "the white-box attack",
) -> Finding:
  """Compares the outcomes of a white-box attack with those of attacks without gradients."""
  points = {name: 100 * float((white & ~outcome).mean()) for name, outcome in others.items()}
  worst = max(points, key=lambda name: points[name])
  passed = points[worst] <= BLACK_BOX_POINTS + ROUNDING
  text = (
    f"{_threat(number)}: {worst} breaks images that {attack} leaves robust, "
    f"{points[worst]:.1f} % of all {len(white)}.{'' if passed else MASKED}"
  )
  return Finding("black_box", passed, points[worst], BLACK_BOX_POINTS, _sentence(text), concerns)


def order(evidence: Evidence) -> Iterable[Finding]:
  """Checks that a stronger attack breaks every image that a weaker one breaks."""
  pgd = _base_pgd(evidence)
  apgd = _first_with(evidence.of("sanity"), "attack", "apgd")
  found = _outcomes(evidence.of("sanity").first(attack="fgsm"), pgd, apgd)
  if pgd is None or not found:
    return
  outcomes = dict(zip(("FGSM", "PGD", "APGD"), found))
  missed = {
    (weak, strong): int((outcomes[strong] & ~outcomes[weak]).sum())
    for weak, strong in itertools.pairwise(outcomes)
  }
  listed = "; ".join(
    f"{weak} breaks {count} of {pgd.count} images that {strong} leaves robust"
    for (weak, strong), count in missed.items()
    if count
  )
  text = (
    f"{_threat(pgd)}: {listed}. The stronger attack is too weak for this model."
    if listed
    else f"{_threat(pgd)}: PGD breaks every image that FGSM breaks, and APGD every image that PGD "
    "breaks."
  )
  yield Finding(
    "order", not listed, float(max(missed.values())), 0.0, _sentence(text), (_beside_pgd(pgd),)
  )


def monotone(evidence: Evidence) -> Iterable[Finding]:
  """Checks that the accuracy does not rise with the perturbation budget."""
  curve = sorted(evidence.of("pgd", metric="accuracy"), key=lambda n: n["epsilon"])
  rises = [(100 * (high.defined - low.defined), high) for low, high in itertools.pairwise(curve)]
  if not rises:
    return
  worst, where = max(rises, key=lambda rise: rise[0])
  bad = [n for rise, n in rises if rise > 100 * ROUNDING]
  text = (
    f"accuracy rises by {worst:.2f} points when epsilon grows to {where['epsilon']:g}. A larger "
    "ball contains the smaller one, so the attack misses adversarial examples."
    if bad
    else f"accuracy never rises with epsilon, over {len(curve)} values of epsilon."
  )
  concerns = tuple(_beside_pgd(n) for n in bad) or ({"evaluation": "pgd"},)
  yield Finding("monotone", not bad, max(worst, 0.0), 0.0, _sentence(text), concerns)


def reach(evidence: Evidence) -> Iterable[Finding]:
  """Checks that the steps of PGD can reach the budget: steps * step size is at least epsilon."""
  curve = [n for n in evidence.of("pgd", metric="accuracy") if n["epsilon"] and n["step_size"]]
  if not curve:
    return
  share = lambda n: n["steps"] * n["step_size"] / n["epsilon"]
  worst = min(curve, key=share)
  bad = [n for n in curve if share(n) < 1 - 1e-6]
  fails = (
    " Parts of the ball cannot be reached, and the accuracy may be too high. Take more steps, or a "
    "step size of at least epsilon / 4."
  )
  text = (
    f"{_threat(worst)}: {worst['steps']} steps of {worst['step_size']:.3g} move an image by at "
    f"most {worst['steps'] * worst['step_size']:.3g} from its start.{fails if bad else ''}"
  )
  concerns = tuple(_beside_pgd(n) for n in bad) or ({"evaluation": "pgd"},)
  yield Finding("reach", not bad, share(worst), 1.0, _sentence(text), concerns)


def large_radius(evidence: Evidence) -> Iterable[Finding]:
  """Checks that accuracy falls to about 0 at a radius at which every image can be made grey."""
  for number in evidence.of("sanity", metric="accuracy_at_large_radius"):
    points = 100 * number.defined
    passed = points <= LARGE_RADIUS_POINTS + ROUNDING
    fails = f" At this radius every image can be made grey, so the attack is too weak.{HOOK}"
    text = (
      f"{number.value:.1%} of {number.count} images are still classified correctly at epsilon "
      f"{number['epsilon']:g}.{'' if passed else fails}"
    )
    concerns = {"evaluation": "pgd", "norm": number["norm"]}
    yield Finding("large_radius", passed, points, LARGE_RADIUS_POINTS, text, (concerns,))


def effort(evidence: Evidence) -> Iterable[Finding]:
  """Checks that the accuracy is stable with more steps, more restarts and other losses."""
  for reported in evidence.of("pgd", metric="accuracy"):
    pairs = [
      (number, both)
      for number in evidence.of("strength", metric="accuracy")
      if _shared(number, reported, THREAT) and (both := _on_same_images(reported, number))
    ]
    if pairs:
      lowest, (ours, others) = min(pairs, key=lambda pair: pair[1][1].mean() - pair[1][0].mean())
      points = 100 * float(ours.mean() - others.mean())
      passed = points <= EFFORT_POINTS + ROUNDING
      loss = str(lowest["loss"]).replace("_", "-")
      text = (
        f"{_threat(reported)}: the accuracy under PGD on the {loss} loss with {_runs(lowest)} is "
        f"{abs(points):.1f} points {'lower' if points >= 0 else 'higher'} than that under the "
        f"reported PGD, on {len(ours)} images.{'' if passed else ' The reported PGD is too weak.'}"
      )
      concerns = (_beside_pgd(reported),)
      yield Finding("effort", passed, max(points, 0.0), EFFORT_POINTS, _sentence(text), concerns)
  base = _base_pgd(evidence)
  if base is None:
    return
  more = {
    _runs(n): n for n in evidence.of("sanity", metric="accuracy", attack="pgd") if n is not base
  }
  moves = {name: 100 * (base.defined - n.defined) for name, n in more.items()}
  if not moves:
    return
  worst = max(moves, key=lambda name: abs(moves[name]))
  passed = abs(moves[worst]) <= EFFORT_POINTS + ROUNDING
  text = (
    f"{_threat(base)}: with {worst}, the accuracy under PGD is {abs(moves[worst]):.1f} points "
    f"{'lower' if moves[worst] >= 0 else 'higher'} than with {_runs(base)}, on {base.count} images."
    f"{'' if passed else ' The attack is too weak.'}"
  )
  yield Finding(
    "effort", passed, abs(moves[worst]), EFFORT_POINTS, _sentence(text), (_beside_pgd(base),)
  )


def converged(evidence: Evidence) -> Iterable[Finding]:
  """Checks that the running best loss hardly changes in the last tenth of the steps."""
  curve, base = evidence.detail("sanity", "best_loss"), _base_pgd(evidence)
  if base is None or not curve or len(curve) < 10:
    return
  values = np.array([np.nan if value is None else value for value in curve], float)
  beside = (_beside_pgd(base),)
  if not np.isfinite(values).all():
    text = f"{_threat(base)}: the best loss of PGD is not finite at some step."
    yield Finding("converged", False, None, MOVING_SHARE, _sentence(text), beside)
    return
  span = np.ptp(values)
  share = float((values[-1] - values[-1 - len(values) // 10]) / span) if span else 0.0
  passed = share <= MOVING_SHARE + ROUNDING
  text = (
    f"{_threat(base)}: the best loss of PGD changes by {share:.1%} of its range in the last tenth "
    f"of its {len(values) - 1} steps.{'' if passed else ' PGD needs more steps.'}"
  )
  yield Finding("converged", passed, share, MOVING_SHARE, _sentence(text), beside)


def gap(evidence: Evidence) -> Iterable[Finding]:
  """Checks that the accuracy under PGD is near that under AutoAttack, and never below it.

  Both must be of the same images. An image that PGD breaks and AutoAttack does not shows that the
  accuracy under AutoAttack is too high. PGD is less than 8.8 points above for 89 of RobustBench's
  99 CIFAR-10 Linf models, and more than 11.5 points for the other 10.
  """
  for strong in evidence.of("auto_attack", metric="accuracy", stage=None):
    if not _is_ensemble(strong):
      continue  # a single attack of the ensemble
    for weak in evidence.of("pgd", metric="accuracy"):
      same_images = (
        weak.indices is not None
        and strong.indices is not None
        and np.array_equal(weak.indices, strong.indices)
      )
      if not _shared(weak, strong, THREAT) or not same_images:
        continue
      points = 100 * (weak.defined - strong.defined)
      passed = points <= GAP_POINTS + ROUNDING
      found = _outcomes(weak, strong)
      missed = int((found[1] & ~found[0]).sum()) if found else 0
      if missed:
        text = (
          f"{_threat(strong)}: PGD breaks {missed} of {strong.count} images that AutoAttack leaves "
          "robust. The accuracy under AutoAttack is too high for this model."
        )
        concerns = {"evaluation": "auto_attack", **_keys(strong, (*THREAT, "version", "seed"))}
        share = 100 * missed / len(found[0])
        yield Finding("gap", False, share, 0.0, _sentence(text), (concerns,))
      if missed and passed:
        continue  # one finding is enough
      text = (
        f"{_threat(strong)}: the accuracy under PGD is {points:.1f} points above that under "
        f"AutoAttack ({weak.value:.1%} against {strong.value:.1%})."
        f"{'' if passed else ' Report the accuracy under AutoAttack.'}"
      )
      yield Finding("gap", passed, points, GAP_POINTS, _sentence(text), (_beside_pgd(strong),))


def binarization(evidence: Evidence) -> Iterable[Finding]:
  """Checks that PGD finds planted adversarial examples, which exist by construction."""
  for found in evidence.of("binarization", metric="planted_found"):
    beside = (_beside_pgd(found), {"evaluation": "binarization"})
    if not found.count:
      text = (
        "The binarisation test could not be built for any image: no linear read-out of the "
        "features separates a point on the edge of the ball from the points inside."
      )
      yield Finding("binarization", False, None, BINARIZATION_SHARE, text, beside)
      continue
    random = evidence.of("binarization", metric="planted_found_by_noise").first()
    passed = found.defined >= BINARIZATION_SHARE - ROUNDING
    beside_noise = "" if random is None else f"; random noise finds {random.value:.1%}"
    text = (
      f"{_threat(found)}: PGD finds {found.value:.1%} of {found.count} planted adversarial "
      f"examples{beside_noise}.{'' if passed else f' PGD is too weak for this model.{HOOK}'}"
    )
    yield Finding("binarization", passed, found.value, BINARIZATION_SHARE, _sentence(text), beside)


@dataclasses.dataclass(frozen=True)
class Check:
  """A row of `CHECKS`.

  Attributes:
    question: what the check asks; the answer is yes where it passes.
    unit: the unit of the finding's value.
    derive: the function that derives the findings.
  """

  question: str
  unit: str
  derive: Callable[[Evidence], Iterable[Finding]]


CHECKS = {
  "gradients": Check("Are all input gradients finite and not zero?", "share of images", gradients),
  "square": Check("Do white-box attacks break every image that Square breaks?", "points", square),
  "black_box": Check(
    "Do white-box attacks break every image that noise and transferred attacks break?",
    "points",
    black_box,
  ),
  "order": Check(
    "Do stronger attacks break every image that weaker attacks break?", "images", order
  ),
  "monotone": Check("Does the accuracy never rise with epsilon?", "points", monotone),
  "reach": Check("Can the steps of PGD reach epsilon?", "of epsilon", reach),
  "large_radius": Check(
    "Does the accuracy fall to about 0 at a very large epsilon?", "points", large_radius
  ),
  "effort": Check(
    "Is the accuracy stable with more steps, restarts and other losses?", "points", effort
  ),
  "converged": Check("Has the loss of PGD converged?", "share of its range", converged),
  "gap": Check(
    "Is the accuracy under PGD near that under AutoAttack, and never below it?", "points", gap
  ),
  "binarization": Check("Does PGD find planted adversarial examples?", "share found", binarization),
}


def _base_pgd(evidence: Evidence) -> Number | None:
  """Returns the number of PGD with the steps and restarts of the sanity evaluation's options."""
  stored = evidence.stored.get("sanity")
  if stored is None:
    return None
  return evidence.of("sanity", metric="accuracy", attack="pgd").first(
    steps=stored.options["num_steps"], restarts=stored.options["num_restarts"]
  )


def _outcomes(*numbers: Number | None) -> list[np.ndarray]:
  """Returns the outcomes of numbers; an empty list where one is None or has none."""
  found = [number.outcomes for number in numbers if number and number.outcomes is not None]
  return found if len(found) == len(numbers) else []


def _on_same_images(first: Number, second: Number) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns the outcomes of two numbers on the images of both; None where there are none."""
  if not _outcomes(first, second) or first.indices is None or second.indices is None:
    return None
  _, rows, others = np.intersect1d(first.indices, second.indices, return_indices=True)
  ours, theirs = _outcomes(first, second)
  return (ours[rows], theirs[others]) if len(rows) else None


def _is_ensemble(number: Number) -> bool:
  """Returns whether a number of AutoAttack is that of a whole ensemble; True for other attacks."""
  return number["version"] in (None, *ENSEMBLES)


def _runs(number: Number) -> str:
  restarts = number["restarts"]
  return f"{number['steps']} steps and {restarts} restart{'s' * (restarts != 1)}"


def _first_with(numbers: Numbers, key: str, prefix: str) -> Number | None:
  return next((n for n in numbers if (n[key] or "").startswith(prefix)), None)


def _keys(number: Number, names: Iterable[str]) -> dict[str, Any]:
  return {name: number[name] for name in names if number[name] is not None}


def _shared(first: Number, second: Number, names: Iterable[str]) -> bool:
  return all(first[name] == second[name] for name in names)


def _beside_pgd(number: Number) -> dict[str, Any]:
  """Returns the selector of the PGD number with the same threat model."""
  return {"evaluation": "pgd", **_keys(number, THREAT)}


def _threat(number: Number) -> str:
  names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
  return f"at {names.get(number['norm'], number['norm'])} epsilon {number['epsilon']:g}"


def _sentence(text: str) -> str:
  return text[0].upper() + text[1:]
