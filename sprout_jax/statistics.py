"""Intervals for counts."""


def proportion(successes, count):
  """An accuracy as an entry of results.json (and of `AttackResult.spec`), with its 95 % Wilson interval.

  Args:
    successes: number of correct (or robust) images.
    count: number of images.

  Returns:
    {"accuracy": successes / count, "count": count, "interval": [low, high]}.
  """
  import scipy.stats  # slow to import, and most users of the pure functions count nothing

  interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(0.95, method="wilson")
  return {
    "accuracy": int(successes) / int(count),
    "count": int(count),
    "interval": [float(interval.low), float(interval.high)],
  }
