"""Confidence intervals of proportions."""


def proportion(successes: int, count: int) -> dict:
  """The share successes / count with its 95 % Wilson interval.

  Args:
    successes: number of images that are classified correctly (or robust).
    count: number of images, at least 1.

  Returns:
    {"accuracy": successes / count, "count": count, "interval": [low, high]}.

  Raises:
    ValueError: count is below 1, or successes are not within 0 and count.
  """
  import scipy.stats  # slow to import, and most users of the pure functions count nothing

  if not 0 <= successes <= count or count < 1:
    raise ValueError(f"proportion: {successes} of {count} is no share; give 0 <= s <= n, n >= 1")
  interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(0.95, method="wilson")
  return {
    "accuracy": int(successes) / int(count),
    "count": int(count),
    "interval": [float(interval.low), float(interval.high)],
  }


def lower_bound(successes: int, count: int, alpha: float) -> float:
  """One-sided Clopper-Pearson bound: the probability is above it with confidence 1 - alpha.

  It is the alpha-quantile of Beta(successes, count - successes + 1), and 0 without any success.
  (Clopper, Pearson, "The use of confidence or fiducial limits", Biometrika 1934.)
  """
  import scipy.stats

  test = scipy.stats.binomtest(int(successes), int(count), alternative="greater")
  return float(test.proportion_ci(1 - alpha, method="exact").low)
