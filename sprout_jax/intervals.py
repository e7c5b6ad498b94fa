"""Confidence intervals of proportions."""

import math
from typing import Any

QUANTILE = 1.959963984540054  # of the normal distribution, at 97.5 %


def proportion(successes: int, count: int) -> dict[str, Any]:
  """Computes the proportion successes / count with its 95 % Wilson interval.

  With p = successes / count, n = count and z = 1.96 (Wilson, "Probable inference, the law of
  succession, and statistical inference", JASA 1927)::

      (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  Args:
    successes: number of images that are classified correctly.
    count: number of images, at least 1.

  Returns:
    {"accuracy": successes / count, "count": count, "interval": [low, high]}.

  Raises:
    ValueError: count is below 1, or successes are not from 0 to count.
  """
  if not 0 <= successes <= count or count < 1:
    raise ValueError(
      f"proportion: successes is {successes} and count is {count}; expected a count of at least 1 "
      "and successes from 0 to count"
    )
  successes, count = int(successes), int(count)
  share, square = successes / count, QUANTILE**2 / count
  centre = share + square / 2
  half = QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count))
  low = (centre - half) / (1 + square) if successes else 0.0
  high = (centre + half) / (1 + square) if successes < count else 1.0
  return {"accuracy": share, "count": count, "interval": [max(low, 0.0), min(high, 1.0)]}


def lower_bound(successes: int, count: int, alpha: float) -> float:
  """Computes the one-sided Clopper-Pearson bound of a probability from below.

  The probability is above the bound with confidence 1 - alpha. The bound is the alpha-quantile of
  Beta(successes, count - successes + 1), and 0 without any success. (Clopper, Pearson, "The use of
  confidence or fiducial limits illustrated in the case of the binomial", Biometrika 1934.)

  Args:
    successes: number of successes, from 0 to count.
    count: number of trials.
    alpha: probability that the bound is wrong, in (0, 1).
  """
  import scipy.stats  # slow to import, and the pure functions do not need it

  test = scipy.stats.binomtest(int(successes), int(count), alternative="greater")
  return float(test.proportion_ci(1 - alpha, method="exact").low)
