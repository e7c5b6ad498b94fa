"""Signs that a robustness number is too good to be true: pure functions of numbers and outcomes.

Each returns a finding, {"name", "passed", "value", "threshold", "text", "concerns"}: "text" is one
sentence in plain words with its numbers, "concerns" names the losses, attacks or radii that it is
about; `at` says where it was made and which number it stands beside. A finding never raises; numbers
that cannot be right do (RuntimeError). Accuracies are shares in [0, 1]; values and thresholds that
are called points are 100 times that. Outcomes are bool [n], True where still classified correctly, of
the same images in the same order; misclassified images are False.

(Carlini et al., "On Evaluating Adversarial Robustness", 2019; Croce, Hein, ICML 2020; Zimmermann et
al., "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022.)
"""

import itertools

import numpy as np

BLACK_BOX_POINTS = 0.2  # that attacks without gradients may win over those with them
EFFORT_POINTS = 1.0  # by which more steps or restarts may move an accuracy
LARGE_RADIUS_POINTS = 1.0  # of accuracy that may be left at a radius that hides any image
GAP_POINTS = 10.0  # from PGD to AutoAttack
MOVING_SHARE = 0.05  # of the running best loss's range, in the last tenth of the steps
BINARIZATION_SUCCESS = 0.95
ROUNDING = 1e-9


def gradients(health, where="at the images"):
  """No image may have an input gradient that is zero, NaN or infinite, for any loss.

  Args:
    health: from `gradients.health`.
    where: the points that it was taken at, in words.
  """
  shares = {
    f"{loss}: {fault}": share
    for loss, row in health["losses"].items()
    for fault, share in row.items()
  }
  concerns = [name for name, share in shares.items() if share > 0]
  found = ", ".join(f"{name} for {shares[name]:.1%}" for name in concerns)
  text = (
    f"Input gradients {where} cannot be followed ({found} of {health['count']} images): "
    "attacks that follow them may miss what is there."
    if concerns
    else f"All input gradients {where} are finite and not zero, for {', '.join(health['losses'])} "
    f"on {health['count']} images."
  )
  return _finding("gradients", max(shares.values()), 0.0, text, concerns)


def square(per_attack):
  """Square, which sees outputs only, must not find what the attacks before it missed.

  Args:
    per_attack: {name: outcomes or accuracy} in the order in which AutoAttack ran, each after all
      before it (`AttackResult.per_attack`, or that of results.json).

  Raises:
    ValueError: Square did not run, or ran first.
  """
  names = list(per_attack)
  if "square" not in names[1:]:
    raise ValueError(f"checks.square: the attacks are {names}; 'square' must follow another one")
  place = names.index("square")
  before, after = (float(np.mean(per_attack[name])) for name in names[place - 1 : place + 1])
  points = 100 * (before - after)
  passed = points <= BLACK_BOX_POINTS + ROUNDING
  text = (
    f"Square broke {points:.1f} points more than the white-box attacks before it "
    f"({before:.1%} to {after:.1%})" + ("." if passed else ": gradients are probably masked.")
  )
  return _finding("square", points, BLACK_BOX_POINTS, text, [] if passed else ["square"])


def black_box(white_box, others):
  """Noise of the same size, or a transferred attack, must not break what the white box left.

  Args:
    white_box: outcomes under the strongest attack with gradients.
    others: {name: outcomes} under attacks that do not use the model's gradients.
  """
  points = {
    name: 100 * float((white_box & ~outcome).mean())
    for name, outcome in _same_length(others, white_box).items()
  }
  concerns = [name for name, value in points.items() if value > BLACK_BOX_POINTS + ROUNDING]
  worst = max(points, key=points.get)
  text = (
    f"Of what the white-box attack left, {worst} broke {points[worst]:.1f} points of "
    f"{len(white_box)} images" + (": gradients are probably masked." if concerns else ".")
  )
  return _finding("black_box", points[worst], BLACK_BOX_POINTS, text, concerns)


def order(outcomes):
  """A stronger attack must break every image that a weaker one breaks.

  Args:
    outcomes: {name: outcomes}, from weak to strong, as "fgsm", "pgd", "apgd": each is compared with
      the next.
  """
  outcomes = _same_length(outcomes)
  missed = {
    (weak, strong): int((outcomes[strong] & ~outcomes[weak]).sum())
    for weak, strong in itertools.pairwise(outcomes)
  }
  wrong = [pair for pair, count in missed.items() if count]
  count = len(next(iter(outcomes.values())))
  found = "; ".join(
    f"{weak} broke {missed[weak, strong]} of {count} images that {strong} left robust"
    for weak, strong in wrong
  )
  text = (
    f"{found}: the stronger attack is not run properly."
    if wrong
    else f"Each of {', '.join(outcomes)} broke all that the one before it broke."
  )
  return _finding(
    "order", max(missed.values()), 0, text, [f"{weak} over {strong}" for weak, strong in wrong]
  )


def monotone(entries, clean_accuracy):
  """Accuracy must not rise with the radius.

  Args:
    entries: [{"epsilon", "accuracy"}] of one attack, as in results.json.
    clean_accuracy: on the same images.

  Raises:
    RuntimeError: an accuracy above the clean one, or another than it at radius 0.
  """
  curve = sorted((entry["epsilon"], entry["accuracy"]) for entry in entries)
  for epsilon, accuracy in curve:
    if accuracy > clean_accuracy + ROUNDING or (
      epsilon == 0 and abs(accuracy - clean_accuracy) > ROUNDING
    ):
      raise RuntimeError(
        f"the accuracy at epsilon {epsilon:g} is {accuracy:.4f}, on clean images "
        f"{clean_accuracy:.4f}; this is a defect of the evaluation"
      )
  rises = [(100 * (high[1] - low[1]), high[0]) for low, high in itertools.pairwise(curve)]
  concerns = [f"epsilon {epsilon:g}" for rise, epsilon in rises if rise > 100 * ROUNDING]
  worst, where = max(rises, default=(0.0, 0.0))
  text = (
    f"Accuracy rises by {worst:.2f} points up to epsilon {where:g}: a larger ball holds the "
    "smaller one, so the attack misses examples."
    if concerns
    else f"Accuracy never rises with epsilon, over {len(curve)} radii."
  )
  return _finding("monotone", max(worst, 0.0), 0.0, text, concerns)


def large_radius(epsilon, accuracy):
  """At a radius that hides any image (Linf: 0.5), an attack must leave next to nothing right."""
  points, passed = 100 * accuracy, 100 * accuracy <= LARGE_RADIUS_POINTS + ROUNDING
  text = f"{accuracy:.1%} of the images are still right at epsilon {epsilon:g}" + (
    "." if passed else ", where every image can be made grey: the attack does not work."
  )
  return _finding(
    "large_radius", points, LARGE_RADIUS_POINTS, text, [] if passed else [f"epsilon {epsilon:g}"]
  )


def effort(accuracy, more):
  """Twice the steps, or ten restarts, must not move the accuracy: else the attack was too weak.

  Args:
    accuracy: under the attack as it was run.
    more: {what was raised, in words: the accuracy then}, as {"twice the steps": 0.31}.
  """
  moves = {name: 100 * (accuracy - value) for name, value in more.items()}
  concerns = [name for name, move in moves.items() if abs(move) > EFFORT_POINTS + ROUNDING]
  worst = max(moves, key=lambda name: abs(moves[name]))
  verb = "lowered" if moves[worst] >= 0 else "raised"
  text = f"{worst[0].upper()}{worst[1:]} {verb} the accuracy by {abs(moves[worst]):.1f} points" + (
    ": the attack as it was run is too weak." if concerns else "."
  )
  return _finding("effort", abs(moves[worst]), EFFORT_POINTS, text, concerns)


def converged(best_losses, name="PGD"):
  """The running best loss must hardly move in the last tenth of the steps.

  Args:
    best_losses: [steps + 1], after 0, 1, ... steps, or [n, steps + 1] whose mean over images is taken; at
      least 10 values.
    name: of the attack.

  Raises:
    ValueError: fewer than 10 values: there is no last tenth.
  """
  curve = np.atleast_2d(np.asarray(best_losses, np.float64))
  if curve.shape[-1] < 10:
    raise ValueError(
      f"checks.converged: {curve.shape[-1]} steps have no last tenth; give at least 10"
    )
  curve = curve.mean(0)
  if not np.isfinite(curve).all():
    return _finding(
      "converged", None, MOVING_SHARE, f"The running best loss of {name} is not finite.", [name]
    )
  span = np.ptp(curve)
  share = float((curve[-1] - curve[-1 - len(curve) // 10]) / span) if span else 0.0
  passed = share <= MOVING_SHARE + ROUNDING
  text = (
    f"The running best loss of {name} moved by {share:.1%} of its range in the last tenth of "
    f"its {len(curve) - 1} steps" + ("." if passed else ": more steps would find more.")
  )
  return _finding("converged", share, MOVING_SHARE, text, [] if passed else [name])


def gap(pgd_accuracy, auto_attack_accuracy):
  """PGD must not be far above AutoAttack, on the same images at the same radius.

  Of RobustBench's 99 CIFAR-10 Linf models, 89 are below 8.8 points, the other 10 above 11.5.
  """
  points = 100 * (pgd_accuracy - auto_attack_accuracy)
  passed = points <= GAP_POINTS + ROUNDING
  text = (
    f"PGD leaves {points:.1f} points more than AutoAttack ({pgd_accuracy:.1%} against "
    f"{auto_attack_accuracy:.1%})" + ("." if passed else ": report AutoAttack's number.")
  )
  return _finding("gap", points, GAP_POINTS, text, [] if passed else ["pgd"])


def gaps(entries):
  """`gap` for each radius at which PGD and AutoAttack ran on as many images, in the same norm.

  Args:
    entries: results.json's "attacks".
  """
  pgd = {(e["norm"], e["epsilon"], e["count"]): e for e in entries if e["name"].startswith("pgd")}
  found = []
  for entry in entries:
    threat = entry["norm"], entry["epsilon"], entry["count"]
    if len(entry.get("per_attack", ())) > 1 and threat in pgd:
      found.append(at(gap(pgd[threat]["accuracy"], entry["accuracy"]), entry["epsilon"], "pgd"))
  return found


def binarization(result, name="the attack"):
  """The attack must find adversarial examples that are known to be there.

  Args:
    result: from `binarization.success`.
    name: of the attack.
  """
  if not result["count"]:
    text = (
      f"The binarisation test could be built for none of {result['images']} images: the "
      "features do not tell a point at the edge of the ball from those inside."
    )
    return _finding("binarization", None, BINARIZATION_SUCCESS, text, [name])
  rate, passed = result["success"], result["success"] >= BINARIZATION_SUCCESS - ROUNDING
  text = (
    f"Of {result['count']} adversarial examples that were planted, {name} found {rate:.1%}, "
    f"random noise {result['random_success']:.1%}"
    + ("." if passed else f": {name} is too weak for this model.")
  )
  return _finding("binarization", rate, BINARIZATION_SUCCESS, text, [] if passed else [name])


def at(finding, epsilon, evaluation, where=""):
  """A finding about attacks of one radius, with its place: the number of `evaluation` that it stands beside.

  "where" tells findings of one name apart, "beside" is [evaluation, radius in words].
  """
  radius = f"epsilon {epsilon:g}"
  return finding | {
    "where": where or radius,
    "beside": [evaluation, radius],
    "text": finding["text"] if where else f"At {radius}: {finding['text']}",
  }


def _finding(name, value, threshold, text, concerns):
  return {
    "name": name,
    "passed": not concerns,
    "value": None if value is None else float(value),
    "threshold": float(threshold),
    "text": text,
    "concerns": concerns,
  }


def _same_length(outcomes, *others):
  outcomes = {name: np.asarray(outcome, bool) for name, outcome in outcomes.items()}
  lengths = {len(outcome) for outcome in (*outcomes.values(), *others)}
  if len(lengths) != 1:
    raise ValueError(f"checks: outcomes of {sorted(lengths)} images; they must be of the same ones")
  return outcomes
