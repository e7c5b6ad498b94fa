"""Calibration: how well a model's confidence agrees with its accuracy."""

from typing import Annotated
from typing import Any

import numpy as np

from sprout_jax import intervals
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def calibration_errors(
  logits: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> dict[str, Any]:
  """Computes the expected calibration error, proper scores, and a reliability diagram's bins.

  Bin m of M holds the images whose confidence max_k softmax(z)_k is in ((m - 1) / M, m / M]::

      ECE = sum_m |bin m| / n * |accuracy(bin m) - confidence(bin m)|
      NLL = mean of -log softmax(z)_y, in nats
      Brier = mean of sum_k (softmax(z)_k - [k = y])^2, from 0 to 2

  (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Brier, "Verification of
  forecasts expressed in terms of probability", Monthly Weather Review 1950.)

  Args:
    logits: host array [n, classes].
    labels: int array [n].
    num_bins: number M of bins, of equal width.

  Returns:
    {"ece", "nll", "brier", "confidence" (mean), "accuracy", "count", "interval", "num_bins",
    "bins": [{"low", "high", "count", "confidence", "accuracy"}]}. The confidence and the accuracy
    of an empty bin are None.

  Raises:
    ValueError: wrong shapes, labels out of range, or logits that are not finite.
  """
  import scipy.special  # slow to import

  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
    raise ValueError(
      f"calibration_errors: logits have shape {logits.shape} and labels {labels.shape}; "
      "expected [n, classes] and [n], n at least 1"
    )
  if labels.min() < 0 or labels.max() >= logits.shape[1]:
    raise ValueError(
      f"calibration_errors: labels range from {labels.min()} to {labels.max()}; expected 0 to "
      f"{logits.shape[1] - 1}, as the logits have {logits.shape[1]} classes"
    )
  if not np.isfinite(logits).all():
    broken = np.sum(~np.isfinite(logits).all(-1))
    raise ValueError(
      f"calibration_errors: the logits of {broken} images are not finite; look for overflow in the "
      "model"
    )
  log_probabilities = scipy.special.log_softmax(logits, axis=-1)
  probabilities = np.exp(log_probabilities)
  confidence, right = probabilities.max(-1), logits.argmax(-1) == labels
  edges = np.arange(num_bins + 1) / num_bins
  bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
  bins: list[dict[str, Any]] = []
  for number in range(num_bins):
    members = bin_of == number
    filled = members.any()
    bins.append(
      {
        "low": float(edges[number]),
        "high": float(edges[number + 1]),
        "count": int(members.sum()),
        "confidence": float(confidence[members].mean()) if filled else None,
        "accuracy": float(right[members].mean()) if filled else None,
      }
    )
  gaps = [b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["count"]]
  targets = np.eye(logits.shape[1])[labels]
  return {
    "ece": float(sum(gaps) / len(labels)),
    "nll": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
    "brier": float(((probabilities - targets) ** 2).sum(-1).mean()),
    "confidence": float(confidence.mean()),
    **intervals.proportion(right.sum(), len(right)),
    "num_bins": num_bins,
    "bins": bins,
  }


def evaluate_calibration(
  subject: Subject,
  *,
  num_bins: Annotated[int, Option("bins of confidence, of equal width", 1, 10_000)] = 15,
) -> Measurement:
  """Measures the calibration on all test images."""
  found = calibration_errors(subject.logits, subject.labels, num_bins)
  keys, count = {"bins": num_bins}, len(subject.labels)
  rows = (
    ("expected_calibration_error", "ece", "share"),
    ("mean_confidence", "confidence", "share"),
    ("negative_log_likelihood", "nll", "nats"),
    ("brier_score", "brier", ""),
  )
  numbers = [Number(metric, found[name], keys, unit, count) for metric, name, unit in rows]
  numbers.append(accuracy(subject.correct, np.arange(count), **keys))
  return Measurement(Numbers(numbers), {"bins": found["bins"]})
