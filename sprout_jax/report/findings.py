"""The checks of a run: which failed, and the numbers that they stand beside.

A finding is {"name", "passed", "value", "threshold", "text", "concerns", "evaluation"}, as in
results.json, with "where" and "beside" from `evaluation.checks.at` where it is about one radius.
"""

# What each check asks, and the unit of its value and threshold.
QUESTIONS = {
  "gradients": ("Input gradients are finite and not zero", "shares of images without"),
  "square": ("Square finds nothing that the white-box attacks missed", "points"),
  "black_box": ("Noise and transferred attacks find nothing that the white box missed", "points"),
  "order": ("Stronger attacks break all that weaker ones break", "images"),
  "monotone": ("Accuracy never rises with epsilon", "points"),
  "large_radius": ("Nothing is left at a radius that hides any image", "points"),
  "effort": ("More steps or restarts do not move the accuracy", "points"),
  "converged": ("The running best loss has settled", "shares of its range"),
  "gap": ("PGD is near AutoAttack", "points"),
  "binarization": ("The attack finds adversarial examples that are there", "shares found"),
}


def question(name):
  """A check's question and unit in words; its name where it is not known here."""
  return QUESTIONS.get(name, (name, ""))


def failed(results):
  return [finding for finding in results["checks"] if not finding["passed"]]


def beside(finding, measures):
  """Those of `measures` that a failed check concerns.

  Those that it says it stands beside; else of the same evaluation those whose tags (radius, loss, name) the
  check names; all of them, if it names none.
  """
  if "beside" in finding:
    evaluation, radius = finding["beside"]
    beside_it = [m for m in measures if m.evaluation == evaluation and radius == m.row]
    if beside_it:
      return beside_it
  about = {part for concern in finding["concerns"] for part in concern.split(" over ")}
  related = [measure for measure in measures if measure.evaluation == finding["evaluation"]]
  named = [measure for measure in related if measure.tags & about]
  return named or related
