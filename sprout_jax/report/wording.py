"""Texts of numbers and keys, and the cleaning of texts from files."""

import unicodedata
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from sprout_jax.results import KEYS
from sprout_jax.results import Number

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NAMES = {  # other names are shown as in the files, with spaces
  "pgd": "PGD",
  "auto_attack": "AutoAttack",
  "fgsm": "FGSM",
  "noise": "random noise",
  "strength": "stronger attacks",
  "transfer": "transferred attacks",
  "invariance": "transformations",
  "smoothing": "randomised smoothing",
  "landscape": "loss landscape",
  "gradients": "input gradients",
  "sanity": "attacks for the checks",
  "binarization": "binarisation test",
  "redraws": "draws of a randomised model",
  "extended": "AutoAttack and the attacks after it",
  "union": "union of norms",
  "estimate": "AutoAttack within a budget",
  "corrupted_attack": "AutoAttack on corrupted images",
  "probabilistic": "random perturbations",
  "random_targets": "PGD towards random classes",
  "pgd_random_targets": "PGD towards random classes",
  "target_share": "images that reach the random class",
  "accuracy_stddev": "standard deviation of the accuracy",
  "accuracy_bound": "upper bound of the accuracy",
  "fooling_share": "share of perturbations that fool the model",
  "probabilistic_accuracy": "accuracy with a tolerance",
  "planted_found": "planted adversarial examples found",
  "planted_found_by_noise": "planted adversarial examples found by random noise",
  "abstained": "abstentions",
  "certified_accuracy": "certified accuracy",
  "smoothed_accuracy": "accuracy of the smoothed model",
  "brier_score": "Brier score",
  "cross_entropy": "cross-entropy",
  "dlr": "DLR",
}
NOT_DEFINED = {"cosine_similarity": "No gradient was defined"}
LONGEST = 2000  # characters


def clean(text: Any, longest: int = LONGEST) -> str:
  """Returns a text from a file in a safe form: one line, bounded, without invisible characters.

  Control, format and unassigned characters (escape sequences, marks of the direction of text)
  become their escapes.
  """
  text = "".join(map(_visible, str(text)[: longest + 1]))
  return text if len(text) <= longest else text[: longest - 1] + "…"


def _visible(character: str) -> str:
  if character in "\n\t":
    return " "
  is_hidden = unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
  return ascii(character)[1:-1] if is_hidden else character


def name(text: str) -> str:
  """Returns the readable name of an evaluation, an attack, a metric or an entry."""
  return NAMES.get(text) or clean(str(text).replace("_", " "), 60)


def percent(share: float) -> str:
  """Formats a share, such as "78.3 %"."""
  return f"{100 * share:.1f} %"


def value(number: Number) -> str:
  """Formats a number with its unit; a text where it has no value."""
  if number.value is None:
    return NOT_DEFINED.get(number.metric, "not defined")
  if number.unit == "share":
    return percent(number.value)
  if number.unit == "images":
    return plural(round(number.value), "image")
  return f"{number.value:.4g} {clean(number.unit, 20)}".rstrip()


def interval(number: Number) -> str:
  """Formats the 95 % interval in square brackets, in the unit of the value; "" without one."""
  if number.interval is None:
    return ""
  factor, form = (100, ".1f") if number.unit == "share" else (1, ".4g")
  return f"[{', '.join(f'{factor * limit:{form}}' for limit in number.interval)}]"


def plural(count: int, noun: str) -> str:
  """Formats a count with its noun: "1 image", "2 images"."""
  return f"{count:,} {noun}{'s' * (count != 1)}"


def seconds(spent: float) -> str:
  """Formats a time: "12 s", "3.4 min", "5.1 h"."""
  for unit, length in (("h", 3600), ("min", 60)):
    if spent >= 2 * length:
      return f"{spent / length:.1f} {unit}"
  return f"{spent:.0f} s" if spent >= 10 else f"{spent:.2g} s"


def radius(epsilon: float) -> str:
  """Formats a perturbation budget: decimal, or in 255ths where that is shorter."""
  decimal, whole = f"{epsilon:.6g}", epsilon * 255
  is_fraction = len(decimal) > 5 and abs(whole - round(whole)) < 1e-4
  return f"{round(whole)}/255" if is_fraction else decimal


def threat(norm: str, epsilon: float) -> str:
  """Formats a threat model: "Linf epsilon 0.1"."""
  return f"{NORMS.get(norm, clean(norm, 20))} epsilon {radius(epsilon)}"


PHRASES: dict[str, Callable[[Any], str]] = {
  "stage": lambda v: f"after {v}",
  "norm": lambda v: NORMS.get(v, v),
  "epsilon": lambda v: f"epsilon {radius(v)}",
  "steps": lambda v: plural(v, "step"),
  "step_size": lambda v: f"steps of {radius(v)}",
  "restarts": lambda v: plural(v, "restart"),
  "loss": lambda v: f"{name(v)} loss",
  "draws": lambda v: plural(v, "draw"),
  "corruptions": lambda v: f"mean over {plural(v.count(',') + 1, 'corruption')}: {v}",
  "n0": lambda v: f"{plural(v, 'draw')} to select",
  "n": lambda v: f"{plural(v, 'draw')} to certify",
  "bins": lambda v: plural(v, "bin"),
  "source": lambda v: f"from {v}",
  "other_module": lambda v: f"with {v}",
  "radius": lambda v: f"L2 radius {v:g}",
  "sigma": lambda v: f"noise of standard deviation {v:g}",
  # These need no key beside them.
  **dict.fromkeys(("attack", "transformation", "corruption", "module", "origin", "place"), name),
}


def describe(keys: Mapping[str, Any]) -> str:
  """Formats the keys of a number in the order of `KEYS`: "PGD, Linf, epsilon 0.1, 50 steps"."""
  return ", ".join(clean(_phrase(key, keys[key]), 120) for key in KEYS if key in keys)


def _phrase(key: str, found: Any) -> str:
  plain = f"{found:g}" if isinstance(found, float) else found
  return PHRASES[key](found) if key in PHRASES else f"{name(key)} {plain}"
