"""An estimate of the accuracy under AutoAttack within a budget of forward passes.

Two numbers are kept apart:

- The *bound*: the images whose clean margin is smallest are attacked first, because they break
  most easily. All images that are not broken count as robust. So the accuracy under AutoAttack is
  at most the bound, whatever the rest would give.
- The *estimate*: images are attacked in a random order. Its interval contains the accuracy that
  AutoAttack would give on all images with 95 % confidence, at whatever time the attack is stopped.
"""

import functools
import math
from typing import Annotated
from typing import Any

import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import auto_attack
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement

ALPHA = 0.05  # probability that the interval misses the accuracy at any time


class Sequence:
  """Confidence sequence for the number of robust images, from draws without replacement.

  Of `population` images an unknown number K is robust. After m images in random order, k of them
  robust, K is in the set of all K with P(k of m | K) >= alpha / (m + 1), where P is the
  hypergeometric distribution. With probability 1 - alpha, K is in all of these sets at once: the
  ratio of the mean of P over a uniform prior of K, which is 1 / (m + 1), and of P at the true K is
  a martingale, and Ville's inequality bounds it. So one may look after every image, and stop at
  any time. (Waudby-Smith, Ramdas, "Confidence sequences for sampling without replacement", NeurIPS
  2020.)

  Attributes:
    low, high: the smallest and the largest K that are possible after all images so far.
  """

  def __init__(self, population: int, alpha: float = ALPHA) -> None:
    """Starts with all numbers from 0 to `population`."""
    self._population, self._alpha = population, alpha
    self._possible = np.ones(population + 1, bool)
    self.low, self.high = 0, population

  def update(self, drawn: int, robust: int) -> None:
    """Takes the state after `drawn` images, `robust` of them robust, into account."""
    count, m, k = self._population, drawn, robust
    numbers = np.arange(count + 1)
    inside = (numbers >= k) & (count - numbers >= m - k)
    safe = np.where(inside, numbers, k)
    chance = _choose(safe, k) + _choose(count - safe, m - k) - _choose(count, m)
    likely = inside & (chance >= math.log(self._alpha / (m + 1)) - 1e-9)
    self._possible &= likely
    found = np.flatnonzero(self._possible)
    if len(
      found
    ):  # where all are excluded, which happens with probability alpha, the last set stays
      self.low, self.high = int(found[0]), int(found[-1])


def _choose(n: Any, k: Any) -> Any:
  """Logarithm of the binomial coefficient."""
  import scipy.special  # slow to import

  lgamma = scipy.special.gammaln
  return lgamma(np.asarray(n) + 1.0) - lgamma(np.asarray(k) + 1.0) - lgamma(np.asarray(n - k) + 1.0)


def evaluate_estimate(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  version: auto_attack.Version = "standard",
  million_passes: Annotated[
    float, Option("budget in millions of forward passes; a backward pass counts as two", 0, np.inf)
  ] = 1.0,
  group: Annotated[int, Option("images that are attacked together", 1, 2**31)] = 32,
  seed: Seed,
) -> Measurement:
  """Estimates the accuracy under AutoAttack within a budget of forward passes.

  Half of the passes go to the images with the smallest margin and give an upper bound. The other
  half go to images in random order and give an estimate with an interval, which holds whenever the
  attack is stopped. The budget is looked at after each group of images.
  """
  images = subject.select(num_examples)
  right = np.flatnonzero(images.correct)
  logits = subject.logits[images.indices[right]]
  margins = _margins(logits, images.labels[right])
  queues = {
    "bound": right[np.argsort(margins, kind="stable")],
    "estimate": np.random.RandomState(seed).permutation(right),
  }
  places, spent = dict.fromkeys(queues, 0), dict.fromkeys(queues, 0.0)
  known: dict[int, bool] = {}
  sequence, course = Sequence(len(right)), []
  with subject.progress("estimate", max(million_passes, 1e-9), "million passes") as bar:
    while any(places[name] < len(right) for name in queues):
      if sum(spent.values()) >= 1e6 * million_passes:
        break
      name = min((n for n in queues if places[n] < len(right)), key=lambda n: spent[n])
      rows = queues[name][places[name] : places[name] + group]
      new = np.array([row for row in rows if int(row) not in known], int)
      if len(new):
        found = subject.memo(
          f"{name} {places[name]}",
          functools.partial(_attack, subject, images, new, version, norm, epsilon, seed),
        )
        known |= dict(zip(map(int, new), map(bool, found["robust"]), strict=True))
        spent[name] += found["passes"]
      places[name] += len(rows)
      if name == "estimate":
        drawn = queues[name][: places[name]]
        sequence.update(len(drawn), sum(known[int(row)] for row in drawn))
      course.append(_state(images, queues, places, known, sequence, sum(spent.values())))
      bar(min(sum(spent.values()) / 1e6, million_passes), f"{len(known)} images attacked")
  return _measurement(images, course, norm, epsilon, version, seed)


def _margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """By how much the label's logit leads, [n], for labels that lead."""
  others = logits.astype(np.float64).copy()
  rows = np.arange(len(labels))
  lead = others[rows, labels].copy()
  others[rows, labels] = -np.inf
  return lead - others.max(-1, initial=-np.inf)


def _attack(
  subject: Subject,
  images: Images,
  rows: np.ndarray,
  version: str,
  norm: str,
  epsilon: float,
  seed: int,
) -> dict[str, Any]:
  """Attacks a group of images by AutoAttack, each as if all images were attacked together."""
  run = functools.partial(attacks.auto_attack, version=version)
  silent = lambda now: None
  found = auto_attack.measure(
    subject, images.take(rows), run, norm, epsilon, seed, silent, False, None, rows
  )
  return {"robust": found["robust"], "passes": float(sum(found["spec"]["passes"].values()))}


def _state(
  images: Images,
  queues: dict[str, np.ndarray],
  places: dict[str, int],
  known: dict[int, bool],
  sequence: Sequence,
  passes: float,
) -> dict[str, Any]:
  """What is known after a group."""
  count = len(images.labels)
  drawn = queues["estimate"][: places["estimate"]]
  robust = sum(known[int(row)] for row in drawn)
  right = len(queues["bound"])
  share = None if not len(drawn) else right * robust / len(drawn) / count
  return {
    "passes": passes,
    "attacked": len(known),
    "drawn": len(drawn),
    "estimate": share,
    "low": sequence.low / count,
    "high": sequence.high / count,
    "bound": (right - sum(not one for one in known.values())) / count,
  }


def _measurement(
  images: Images, course: list[dict[str, Any]], norm: str, epsilon: float, version: str, seed: int
) -> Measurement:
  """The numbers after the last group, and the course of all groups."""
  keys: dict[str, Any] = dict(attack="auto_attack", version=version, norm=norm)
  keys |= dict(epsilon=epsilon, seed=seed)
  count, right = len(images.labels), float(images.correct.mean())
  last: dict[str, Any] = {"passes": 0.0, "attacked": 0, "drawn": 0, "estimate": None}
  last |= {"low": 0.0, "high": right, "bound": right}
  last = course[-1] if course else last
  numbers = [
    Number(
      "estimated_accuracy",
      last["estimate"],
      keys,
      count=count,
      interval=(last["low"], last["high"]),
    ),
    Number("accuracy_bound", last["bound"], keys, count=count),
    Number("images_drawn", last["drawn"], keys, "images", count),
    Number("images_attacked", last["attacked"], keys, "images", count),
    Number("million_passes", last["passes"] / 1e6, keys, "", count),
  ]
  text = (
    f"After {last['passes'] / 1e6:.3g} million forward passes, the accuracy under AutoAttack on "
    f"all {count} images is between {last['low']:.1%} and {last['high']:.1%} with 95 % confidence, "
    f"and certainly at most {last['bound']:.1%}."
  )
  notes = [text]
  if course and not last["drawn"]:
    notes.append("The budget was too small for an estimate: no image was drawn at random.")
  return Measurement(Numbers(numbers), {"course": course}, tuple(notes))
