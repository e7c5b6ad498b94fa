"""Paired comparison of two models on the same images."""

import dataclasses
import math

import numpy as np

from sprout_jax.results.numbers import Number

LEVEL = 0.05  # of the test; the interval has 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How two accuracies on the same images differ.

  Attributes:
    count: images that both were measured on.
    first_only: images that only the first classifies correctly.
    second_only: images that only the second classifies correctly.
    difference: the first accuracy minus the second, a share.
    interval: 95 % interval of the difference.
    p_value: of the exact McNemar test, two-sided: the chance of a split of the images on which they
      differ that is at least as uneven, if both were equally good.
  """

  count: int
  first_only: int
  second_only: int
  difference: float
  interval: tuple[float, float]
  p_value: float

  @property
  def differs(self) -> bool:
    """Whether the test sees a difference at the 5 % level."""
    return self.p_value < LEVEL


def compare(first: Number, second: Number) -> Comparison | None:
  """Compares two numbers with outcomes on the images that they share.

  Returns:
    A `Comparison`; None where one has no outcomes, or they share no image.
  """
  if first.outcomes is None or second.outcomes is None:
    return None
  _, rows, other_rows = np.intersect1d(first.indices, second.indices, return_indices=True)
  if not len(rows):
    return None
  return paired(first.outcomes[rows], second.outcomes[other_rows])


def paired(first: np.ndarray, second: np.ndarray) -> Comparison:
  """Compares outcomes of the same images, in the same order.

  The test is McNemar's, exact: of the b + c images on which the two differ, b is binomial with
  probability 1/2 if both are equally good. The interval is Newcombe's for a difference of paired
  proportions (his method 10): with the Wilson limits (l1, u1), (l2, u2) of both shares p1, p2 and
  the correlation phi of the outcomes,

      p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)^2)
      p1 - p2 + sqrt((u1 - p1)^2 - 2 phi (u1 - p1) (p2 - l2) + (p2 - l2)^2)

  A positive correlation is corrected for continuity: in its numerator a d - b c, of the counts a
  (both right), b, c, d (neither), it is max(a d - b c - n / 2, 0). Without that, intervals of
  strongly correlated outcomes of few images are too short.

  (McNemar, Psychometrika 1947; Newcombe, "Improved confidence intervals for the difference between
  binomial proportions based on paired data", Statistics in Medicine 1998.)

  Args:
    first, second: bool [n], n at least 1.

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

  def wilson(successes):
    limits = scipy.stats.binomtest(successes, n).proportion_ci(1 - LEVEL, method="wilson")
    return successes / n, limits.low, limits.high

  p1, low1, high1 = wilson(both + first_only)
  p2, low2, high2 = wilson(both + second_only)
  margins = (
    (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
  )
  together = both * neither - first_only * second_only
  together = max(together - n / 2, 0.0) if together > 0 else together
  phi = together / math.sqrt(margins) if margins else 0.0

  def reach(a, b):
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

  return Comparison(
    n,
    first_only,
    second_only,
    p1 - p2,
    (p1 - p2 - reach(p1 - low1, high2 - p2), p1 - p2 + reach(high1 - p1, p2 - low2)),
    float(p_value),
  )
