"""Paired comparison of two models on the same images."""

import dataclasses
import functools
import hashlib
import math
import statistics
from collections.abc import Iterable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from sprout_jax.results.numbers import Number

if TYPE_CHECKING:
  from sprout_jax.results.summary import Results

LEVEL = 0.05  # significance level of the test; the interval covers 1 - LEVEL
BLOCK = 2**22  # values of images that are converted at once

Identity = tuple[str, str, tuple[tuple[str, Any], ...]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The difference of two accuracies on the same images.

  Attributes:
    count: images on which both were measured.
    difference: the first accuracy minus the second, a share.
    interval: 95 % interval of the difference.
    p_value: of the test, two-sided, under the hypothesis of equal accuracies.
    test: the name of the test: "McNemar" or "paired t-test".
    first_only: images that only the first classifies correctly; None for means.
    second_only: images that only the second classifies correctly; None for means.
  """

  count: int
  difference: float
  interval: tuple[float, float]
  p_value: float
  test: str
  first_only: int | None = None
  second_only: int | None = None

  @property
  def differs(self) -> bool:
    """Whether the difference is significant at the 5 % level."""
    return self.p_value < LEVEL


def test_set_digest(images: np.ndarray, labels: np.ndarray) -> str:
  """Returns the SHA-256 (hex) of a test set, by which two results are about the same images.

  The digest is that of the shape, of the images as float32 in [0, 1], and of the labels as int64.
  Bytes and the same pixels as floats have the same digest.

  Args:
    images: [n, height, width, channels], uint8 or floats in [0, 1].
    labels: int [n].
  """
  found = hashlib.sha256(f"{images.shape}\n".encode())
  rows = max(1, BLOCK // max(1, math.prod(images.shape[1:])))
  for start in range(0, len(images), rows):
    block = np.asarray(images[start : start + rows])
    pixels = block.astype("<f4") / np.float32(255) if block.dtype == np.uint8 else block
    found.update(np.ascontiguousarray(pixels, "<f4").data)
  found.update(np.ascontiguousarray(labels, "<i8").data)
  return found.hexdigest()


def identity(number: Number) -> Identity:
  """Returns an identifier of a number's measurement, without the seed of its random draws.

  Numbers of two models compare only if their identities are equal: another attack, or the same
  attack with other steps, makes another number.
  """
  keys = tuple(sorted((key, entry) for key, entry in number.keys.items() if key != "seed"))
  return number.evaluation, number.metric, keys


def compare(first: Number, second: Number) -> Comparison | None:
  """Compares two numbers on the images for which both have outcomes, by `paired`.

  It does not know what the numbers are: `compare_runs` compares those of two runs.

  Returns:
    A `Comparison`; None where a number has no outcomes, or the two share no image.

  Raises:
    TypeError: an argument is not a `Number`.
  """
  for number in (first, second):
    if not isinstance(number, Number):
      raise TypeError(
        f"compare: expected two numbers, found {number!r:.80}; a query such as numbers.first(...) "
        "returns None where no number matches"
      )
  if first.outcomes is None or second.outcomes is None:
    return None
  if first.indices is None or second.indices is None:
    return None
  _, rows, other_rows = np.intersect1d(first.indices, second.indices, return_indices=True)
  if not len(rows):
    return None
  return paired(first.outcomes[rows], second.outcomes[other_rows])


def compare_means(first: Iterable[Number], second: Iterable[Number]) -> Comparison | None:
  """Compares the means of several accuracies, such as those under common corruptions.

  An image's mean is the share of the accuracies for which it is classified correctly. The test and
  the interval are those of the paired t-test of the images' means. Its normal approximation needs
  some tens of images.

  Args:
    first: the numbers of the first model, of distinct identities, each with outcomes.
    second: those of the second model, measured in the same ways.

  Returns:
    A `Comparison`; None where the two were not measured in the same ways, or a number has no
    outcomes, or fewer than two images have all of them.
  """
  import scipy.stats  # slow to import

  ours, theirs = ({identity(n): n for n in numbers} for numbers in (first, second))
  if not ours or ours.keys() != theirs.keys():
    return None
  pairs = [
    [(n.indices, n.outcomes) for n in numbers.values() if n.indices is not None]
    for numbers in (ours, theirs)
  ]
  if any(outcomes is None for some in pairs for _, outcomes in some):
    return None
  if not all(len(some) == len(ours) for some in pairs):
    return None
  kept = functools.reduce(np.intersect1d, (indices for some in pairs for indices, _ in some))
  if len(kept) < 2:
    return None

  def mean(some: list[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
    found = np.zeros(len(kept))
    for indices, outcomes in some:
      _, rows, _ = np.intersect1d(indices, kept, return_indices=True)
      found += np.asarray(outcomes)[rows]
    return found / len(some)

  differences = mean(pairs[0]) - mean(pairs[1])
  difference = float(differences.mean())
  if not np.ptp(differences):  # the test needs a spread
    p_value = 0.0 if difference else 1.0
    return Comparison(len(kept), difference, (difference, difference), p_value, "paired t-test")
  test = scipy.stats.ttest_1samp(differences, 0.0)
  low, high = test.confidence_interval(1 - LEVEL)
  limits = float(low), float(high)
  return Comparison(len(kept), difference, limits, float(test.pvalue), "paired t-test")


def compare_runs(
  first: "Results", second: "Results", number: Number, other: Number
) -> Comparison | None:
  """Compares a number of one run with that of another, if both were measured alike.

  Means under corruptions are compared by `compare_means`, other numbers by `compare`.

  Args:
    first: the results of the first run.
    second: those of the second run.
    number: a number of the first run.
    other: a number of the second run.

  Returns:
    A `Comparison`; None where the test sets, the attacks or other keys, or the versions of the
    evaluation differ, or there are no outcomes of the same images.
  """
  if first.test_set != second.test_set or first.measured(number) != second.measured(other):
    return None
  if not number["corruptions"]:
    return compare(number, other)
  wanted = {"evaluation": number.evaluation, "metric": "accuracy", "origin": number["origin"]}
  return compare_means(*(run.numbers.where(**wanted) for run in (first, second)))


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
    p1 - p2,
    (p1 - p2 - reach(p1 - low1, high2 - p2), p1 - p2 + reach(high1 - p1, p2 - low2)),
    float(p_value),
    "McNemar",
    first_only,
    second_only,
  )


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
  """Tests whether two groups of values have the same mean, by Welch's t-test.

  Args:
    first: the values of the first group, such as a model's accuracies over seeds.
    second: those of the second group.

  Returns:
    The two-sided p-value; None where no test is possible: a group has fewer than two values, or
    neither has any spread.
  """
  import scipy.stats  # slow to import

  if min(len(first), len(second)) < 2 or not any(map(statistics.stdev, (first, second))):
    return None
  parts = [f(v) for v in (first, second) for f in (statistics.fmean, statistics.stdev, len)]
  return float(scipy.stats.ttest_ind_from_stats(*parts, equal_var=False).pvalue)
