"""Paired comparison: against SciPy, hand counts, and coverage by simulation."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax.results import comparison
from sprout_jax.results import numbers
from sprout_jax.results import summary
from sprout_jax.results.store import Stored

Z = scipy.stats.norm.ppf(0.975)


def outcomes(both, first_only, second_only, neither):
  """Two arrays of outcomes with these counts, in a random order."""
  first = [True] * (both + first_only) + [False] * (second_only + neither)
  second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
  order = np.random.RandomState(0).permutation(len(first))
  return np.array(first)[order], np.array(second)[order]


def wilson(successes, n):
  """The roots of (p - share)^2 = Z^2 share (1 - share) / n in the share."""
  p = successes / n
  return np.sort(np.roots([1 + Z**2 / n, -(2 * p + Z**2 / n), p**2]))


def newcombe(a, b, c, d):
  """Newcombe's interval from the counts, step by step."""
  n = a + b + c + d
  p1, p2 = (a + b) / n, (a + c) / n
  (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
  product = a * d - b * c
  corrected = product if product < 0 else max(product - n / 2, 0)
  below = (a + b) * (c + d) * (a + c) * (b + d)
  phi = corrected / math.sqrt(below) if below else 0
  down = (p1 - l1) ** 2 + (u2 - p2) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2)
  up = (u1 - p1) ** 2 + (p2 - l2) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2)
  return p1 - p2 - math.sqrt(max(down, 0)), p1 - p2 + math.sqrt(max(up, 0))


def mcnemar(b, c):
  """Twice the probability of at most min(b, c) heads in b + c throws, as a sum of binomials."""
  n = b + c
  tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
  return min(1.0, 2 * tail / 2**n)


@settings(deadline=None)
@given(strategies.tuples(*[strategies.integers(0, 40)] * 4).filter(any))
def test_counts_difference_test_and_interval(counts):
  a, b, c, d = counts
  found = comparison.paired(*outcomes(*counts))
  n = sum(counts)
  assert (found.count, found.first_only, found.second_only) == (n, b, c)
  assert found.difference == pytest.approx((b - c) / n, abs=1e-12)
  assert found.p_value == pytest.approx(mcnemar(b, c), rel=1e-9)
  if b + c:
    assert found.p_value == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue, rel=1e-9)
  assert found.interval == pytest.approx(newcombe(*counts), abs=1e-9)
  low, high = found.interval
  assert -1 <= low <= found.difference <= high <= 1


def test_by_hand():
  """4 against 0 of 10: 2 / 2^4. Nothing differs: 1."""
  assert comparison.paired(*outcomes(3, 4, 0, 3)).p_value == pytest.approx(0.125)
  same = comparison.paired(*outcomes(5, 0, 0, 5))
  assert same.p_value == 1 and same.difference == 0 and not same.differs
  assert comparison.paired(*outcomes(0, 0, 6, 0)).differs  # 2 / 2^6 = 0.031
  assert not comparison.paired(*outcomes(0, 0, 5, 0)).differs  # 0.0625


def test_the_published_example():
  """Altman et al., Statistics with Confidence, 2000, Table 6.2: 0.12 (0.01 to 0.23)."""
  found = comparison.paired(*outcomes(14, 5, 0, 22))
  assert found.difference == pytest.approx(0.12, abs=5e-3)
  assert found.interval == pytest.approx((0.01, 0.23), abs=5e-3)


def test_the_other_way_round():
  one = comparison.paired(*outcomes(30, 12, 5, 9))
  other = comparison.paired(*outcomes(30, 5, 12, 9))
  assert other.difference == -one.difference and other.p_value == one.p_value
  assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]), abs=1e-12)


def cells(p1, p2, rho):
  """Probabilities of both, first only, second only, neither; rho is limited to its maximum."""
  both = min(p1 * p2 + rho * math.sqrt(p1 * (1 - p1) * p2 * (1 - p2)), p1, p2)
  return [both, p1 - both, p2 - both, 1 - p1 - p2 + both]


def test_the_interval_covers_the_difference():
  """Of 500 samples, at least 92 % for every (n, p, rho), and 94 % on average."""
  covered, random = [], np.random.RandomState(0)
  pairs = ((0.5, 0.4), (0.9, 0.85), (0.3, 0.3))
  for n, (p1, p2), rho in itertools.product((50, 200), pairs, (0, 1)):
    probabilities = cells(p1, p2, rho)
    drawn, often = np.unique(random.multinomial(n, probabilities, 500), axis=0, return_counts=True)
    intervals = [comparison.paired(*outcomes(*map(int, counts))).interval for counts in drawn]
    hits = [low <= p1 - p2 <= high for low, high in intervals]
    covered.append(np.average(hits, weights=often))
  assert len(covered) == 12
  assert min(covered) >= 0.92 and np.mean(covered) >= 0.94


def number(right, indices):
  return numbers.accuracy(np.array(right, bool), np.array(indices))


def test_the_same_images_are_found_by_their_positions():
  """Images 2, 5, 7 and 9 are shared, in another order and among others; 7 alone differs."""
  first = number([1, 0, 1, 1, 0], [9, 2, 5, 7, 4])
  second = number([1, 1, 0, 1, 0, 0], [1, 5, 3, 9, 7, 2])
  found = comparison.compare(first, second)
  assert (found.count, found.first_only, found.second_only) == (4, 1, 0)
  assert found.difference == pytest.approx(1 / 4)


def test_what_cannot_be_compared():
  first, second = number([1, 0], [0, 1]), number([1, 0], [2, 3])
  assert comparison.compare(first, second) is None
  bare = numbers.Number("accuracy", 0.5, {}, count=2)
  assert comparison.compare(first, bare) is None and comparison.compare(bare, first) is None


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_outcomes_that_do_not_fit(shapes):
  with pytest.raises(ValueError, match="paired: outcomes have shapes"):
    comparison.paired(*(np.zeros(shape, bool) for shape in shapes))


# Means of several accuracies.


def accuracies(right, indices=None, seed=0, **keys):
  """Numbers of outcomes [corruptions, images]."""
  indices = np.arange(right.shape[1]) if indices is None else indices
  return [
    numbers.accuracy(row, indices, severity=place, corruption="fog", seed=seed, **keys)
    for place, row in enumerate(right)
  ]


def test_means_are_compared_by_the_paired_t_test():
  random = np.random.RandomState(0)
  ours, theirs = random.rand(5, 60) < 0.7, random.rand(5, 60) < 0.6
  found = comparison.compare_means(accuracies(ours), accuracies(theirs, seed=1)[::-1])
  means, others = ours.mean(0), theirs.mean(0)
  expected = scipy.stats.ttest_rel(means, others)
  assert found.difference == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)
  assert found.p_value == pytest.approx(expected.pvalue)
  assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
  assert found.test == "paired t-test" and found.first_only is None and found.count == 60


def test_means_are_compared_on_shared_images_in_any_order():
  random = np.random.RandomState(0)
  right = random.rand(3, 40) < 0.5
  order, others = random.permutation(40), np.arange(10, 50)
  shuffled = accuracies(right[:, order], order)
  found = comparison.compare_means(shuffled, accuracies(right))
  assert found.difference == 0 and found.p_value == 1 and not found.differs and found.count == 40
  part = comparison.compare_means(accuracies(right), accuracies(~right, others))
  expected = right[:, 10:].mean() - (~right)[:, :30].mean()
  assert part.count == 30 and part.difference == pytest.approx(expected)
  whole = comparison.compare_means(accuracies(right | True), accuracies(right & False))
  assert whole.difference == 1 and whole.interval == (1, 1) and whole.differs


def test_means_of_other_accuracies_do_not_compare():
  right = np.ones((3, 20), bool)
  usual = accuracies(right)
  assert comparison.compare_means(usual, usual).count == 20
  assert comparison.compare_means(usual, usual[:2]) is None
  assert comparison.compare_means(usual, accuracies(right, origin="tfds")) is None
  assert comparison.compare_means(usual, accuracies(right, np.arange(19, 39))) is None
  assert comparison.compare_means([], []) is None
  bare = [numbers.Number("accuracy", n.value, n.keys) for n in usual]
  assert comparison.compare_means(bare, bare) is None


def test_the_interval_of_means_covers_the_difference():
  """Of 600 samples of 100 images, at least 92 %."""
  random, hits = np.random.RandomState(0), 0
  for _ in range(600):
    hard = random.rand(100)  # an image's difficulty, the same for both models
    ours, theirs = random.rand(6, 100) < 1 - hard / 2, random.rand(6, 100) < 0.9 - hard / 2
    found = comparison.compare_means(accuracies(ours), accuracies(theirs))
    hits += found.interval[0] <= 0.1 <= found.interval[1]
  assert hits / 600 >= 0.92


# What may be compared.


def test_an_identity_is_that_of_the_attack_without_its_seed():
  def of(seed=0, metric="accuracy", **keys):
    return comparison.identity(numbers.Number(metric, 0.5, {"steps": 5, "seed": seed, **keys}))

  assert of() == of(seed=1) != of(steps=6) and of() != of(restarts=2) and of() != of(metric="x")


@pytest.mark.parametrize("block", [2**24, 7])
def test_the_same_test_images_have_one_digest(monkeypatch, block):
  """As bytes, as floats of either size, with labels of any type; other images have another."""
  monkeypatch.setattr(comparison, "BLOCK", block)
  pixels = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 1)).astype(np.uint8)
  labels = np.arange(10) % 3
  digest = comparison.test_set_digest(pixels, labels)
  for same in (pixels / np.float32(255), pixels / 255.0, np.asfortranarray(pixels)):
    assert comparison.test_set_digest(same, labels.astype(np.int32)) == digest
  changed = pixels.copy()
  changed[9, 3, 3, 0] ^= 1
  assert comparison.test_set_digest(changed, labels) != digest
  assert comparison.test_set_digest(pixels, labels[::-1]) != digest
  assert comparison.test_set_digest(pixels.reshape(10, 2, 8, 1), labels) != digest


def test_groups_are_compared_by_welchs_test():
  """A constant group is no obstacle: only the other one's spread counts."""
  near, far = [0.50, 0.52, 0.49], [0.40, 0.41, 0.405]
  expected = scipy.stats.ttest_ind(near, far, equal_var=False).pvalue
  assert comparison.welch(near, far) == pytest.approx(expected)
  constant = comparison.welch([0.95] * 3, [0.90, 0.93, 0.91])  # a one-sample test, with n - 1
  assert constant == pytest.approx(scipy.stats.ttest_1samp([0.90, 0.93, 0.91], 0.95).pvalue)
  assert comparison.welch([0.5], near) is comparison.welch([0.5] * 3, [0.4] * 3) is None


def run(test_sha256="e" * 64, version=1, measured=()):
  """The results of a run, as far as comparisons need them."""
  about = dict.fromkeys(summary.ABOUT) | {"data": {"test_sha256": test_sha256}}
  known = numbers.Numbers(dataclasses.replace(n, evaluation="pgd") for n in measured)
  stored = [Stored(known, name="pgd", version=version)]
  right = numbers.accuracy(np.ones(9, bool), np.arange(9))
  return summary.collect("folder", about, right, stored, {})


def test_runs_compare_where_they_were_measured_alike():
  def some(right, seed, **keys):
    return [numbers.accuracy(np.arange(9) < right, np.arange(9), seed=seed, **keys)]

  usual, other = run(measured=some(9, 0, steps=5)), run(measured=some(1, 1, steps=5))
  of = lambda run: next(iter(run.stored["pgd"].numbers))
  compare = lambda one, two: comparison.compare_runs(one, two, of(one), of(two))
  assert compare(usual, other).first_only == 8
  for odd in (
    run(measured=some(1, 1, steps=6)),
    run("f" * 64, measured=some(1, 1, steps=5)),
    run(version=2, measured=some(1, 1, steps=5)),
  ):
    assert compare(usual, odd) is None
  unknown = [run(None, measured=some(right, 0, steps=5)) for right in (9, 1)]
  unknown[1] = dataclasses.replace(unknown[1], workdir="another folder")
  assert compare(*unknown) is None  # nothing says that the images are the same


@pytest.mark.parametrize("place", [0, 1])
def test_a_query_without_a_match_is_not_compared(place):
  pair = [numbers.accuracy(np.ones(3, bool), np.arange(3))] * 2
  assert comparison.compare(*pair).difference == 0
  pair[place] = None
  with pytest.raises(TypeError, match="expected two numbers, found None; .* where no number match"):
    comparison.compare(*pair)
