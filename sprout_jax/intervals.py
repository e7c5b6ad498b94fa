"""Confidence intervals of proportions."""

from typing import Any


def proportion(successes: int, count: int) -> dict[str, Any]:
  """Computes the proportion successes / count with its 95 % Wilson interval.

  Args:
    successes: number of images that are classified correctly.
    count: number of images, at least 1.

  Returns:
    {"accuracy": successes / count, "count": count, "interval": [low, high]}.

  Raises:
    ValueError: count is below 1, or successes are not from 0 to count.
  """
  import scipy.stats  # slow to import, and the pure functions do not need it

  if not 0 <= successes <= count or count < 1:
    raise ValueError(
      f"proportion: successes is {successes} and count is {count}; expected a count of at least 1 "
      "and successes from 0 to count"
    )
  interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(0.95, method="wilson")
  return {
    "accuracy": int(successes) / int(count),
    "count": int(count),
    "interval": [float(interval.low), float(interval.high)],
  }


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
  import scipy.stats

  test = scipy.stats.binomtest(int(successes), int(count), alternative="greater")
  return float(test.proportion_ci(1 - alpha, method="exact").low)
