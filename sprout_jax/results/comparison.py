"""Paired comparison of two models on the same images."""

import dataclasses
import math

import numpy as np

from sprout_jax.results.numbers import Number

LEVEL = 0.05  # significance level of the test; the interval covers 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The difference of two accuracies on the same images.

  Attributes:
    count: images on which both were measured.
    first_only: images that only the first classifies correctly.
    second_only: images that only the second classifies correctly.
    difference: the first accuracy minus the second, a share.
    interval: 95 % interval of the difference.
    p_value: of McNemar's exact test, two-sided: the probability of a split at least as uneven of
      the images on which the two differ, under the hypothesis of equal accuracies.
  """

  count: int
  first_only: int
  second_only: int
  difference: float
  interval: tuple[float, float]
  p_value: float

  @property
  def differs(self) -> bool:
    """Whether the difference is significant at the 5 % level."""
    return self.p_value < LEVEL


def compare(first: Number, second: Number) -> Comparison | None:
  """Compares two numbers on the images for which both have outcomes.

  Returns:
    A `Comparison`; None where a number has no outcomes, or the two share no image.
  """
  if first.outcomes is None or second.outcomes is None:
    return None
  if first.indices is None or second.indices is None:
    return None
  _, rows, other_rows = np.intersect1d(first.indices, second.indices, return_indices=True)
  if not len(rows):
    return None
  return paired(first.outcomes[rows], second.outcomes[other_rows])


def paired(first: np.ndarray, second: np.ndarray) -> Comparison:
  """Compares two sets of outcomes of the same images, in the same order.

  The test is McNemar's exact test: of the b + c images on which the two differ, b follows a
  binomial distribution with probability 1/2 under equal accuracies. The interval is Newcombe's
  for a difference of paired proportions (his method 10). With the Wilson limits (l1, u1) and
  (l2, u2) of the proportions p1 and p2, and the correlation phi of the outcomes, it reaches from
  the first of these values to the second::

      p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)^2)
      p1 - p2 + sqrt((u1 - p1)^2 - 2 phi (u1 - p1) (p2 - l2) + (p2 - l2)^2)

  With the counts a (both right), b, c and d (neither right), the numerator of phi is a d - b c. A
  positive numerator is corrected for continuity: max(a d - b c - n / 2, 0). Without the correction,
  the intervals are too short for strongly correlated outcomes of few images.

  (McNemar, Psychometrika 1947; Newcombe, "Improved confidence intervals for the difference between
  binomial proportions based on paired data", Statistics in Medicine 1998.)

  Args:
    first: bool [n], n at least 1: which images are classified correctly.
    second: bool [n], the same for the other model.

  Returns:
    A `Comparison`.

  Raises:
    ValueError: the shapes differ, or there is no image.
  """
  import scipy.stats  # slow to import

  first, second = np.asarray(first, bool), np.asarray(second, bool)
  if first.shape != second.shape or first.ndim != 1 or not len(first):
    raise ValueError(
      f"paired: outcomes have shapes {first.shape} and {second.shape}; expected [n] twice, n at "
      "least 1"
    )
  n = len(first)
  both, first_only, second_only = (
    int(mask.sum()) for mask in (first & second, first & ~second, second & ~first)
  )
  neither = n - both - first_only - second_only
  wrong = first_only + second_only
  p_value = scipy.stats.binomtest(first_only, wrong).pvalue if wrong else 1.0

  def wilson(successes: int) -> tuple[float, float, float]:
    limits = scipy.stats.binomtest(successes, n).proportion_ci(1 - LEVEL, method="wilson")
    return successes / n, limits.low, limits.high

  p1, low1, high1 = wilson(both + first_only)
  p2, low2, high2 = wilson(both + second_only)
  margins = (
    (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
  )
  together = float(both * neither - first_only * second_only)
  together = max(together - n / 2, 0.0) if together > 0 else together
  phi = together / math.sqrt(margins) if margins else 0.0

  def reach(a: float, b: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

  return Comparison(
    n,
    first_only,
    second_only,
    p1 - p2,
    (p1 - p2 - reach(p1 - low1, high2 - p2), p1 - p2 + reach(high1 - p1, p2 - low2)),
    float(p_value),
  )
