"""smoothing: a linear model's closed form, Clopper-Pearson by the beta quantile, votes by hand."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sprout_jax import intervals
from sprout_jax.evaluation import smoothing
from sprout_jax.evaluation.smoothing import Smoothing
from sprout_jax.evaluation.subject import Subject
from tests.evaluation import subjects
from tests.linear import linear_problem

OPTIONS = Smoothing(sigma=0.1, n0=50, n=4000, alpha=0.001, seed=0)
votes_fn = functools.cache(smoothing.votes_fn)


@functools.cache
def subject(batch_size=16):
  return subjects.two_classes(24, batch_size=batch_size)[0]


@functools.cache
def certify(options=OPTIONS, draws_per_pass=100, start=0, stop=24):
  images, rows = subject().images[start:stop], np.arange(start, stop)
  return smoothing.certify(subject(), images, rows, options, votes_fn(options, draws_per_pass))


def closed_form():
  """Distance to the plane and probability of the larger class under noise, per image."""
  _, variables, margin, _ = linear_problem(24)
  kernel = variables["params"]["Dense_0"]["kernel"]
  distance = np.abs(margin) / np.linalg.norm(kernel[:, 0] - kernel[:, 1])
  return distance, scipy.stats.norm.cdf(distance / OPTIONS.sigma)


def test_radius_of_a_linear_model_is_its_distance_to_the_plane():
  """P(class) = Phi(distance / sigma), so sigma Phi^-1(P) is the distance; the bound is below it."""
  outcomes = certify()
  distance, probability = closed_form()
  successes = np.array([outcome["successes"] for outcome in outcomes])
  deviation = np.sqrt(probability * (1 - probability) / OPTIONS.n)
  selects_larger = successes > OPTIONS.n / 2
  assert selects_larger.mean() > 0.8
  near_enough = np.abs(successes / OPTIONS.n - probability) < 4.5 * deviation + 1e-3
  assert near_enough[selects_larger].all()
  radius = np.array([outcome["radius"] for outcome in outcomes])
  certified = radius > 0
  assert 0.5 < certified.mean() < 1  # some are too near the plane
  # Within 4.5 deviations plus the 3.1 that alpha costs, through Phi^-1's slope.
  slope = OPTIONS.sigma / scipy.stats.norm.pdf(distance / OPTIONS.sigma)
  near = certified & (distance < 0.2)
  assert near.sum() > 5 and (radius <= distance + 0.01)[certified].all()
  assert (radius > distance - 8 * deviation * slope - 2e-3)[near].all()


def test_outcomes_are_the_formula_of_their_counts():
  for outcome in certify():
    hits = outcome["successes"]
    bound = scipy.stats.beta.ppf(OPTIONS.alpha, hits, OPTIONS.n - hits + 1)
    np.testing.assert_allclose(outcome["lower_bound"], bound, rtol=1e-9)
    if bound > 0.5:
      np.testing.assert_allclose(outcome["radius"], OPTIONS.sigma * scipy.stats.norm.ppf(bound))
      assert outcome["prediction"] == outcome["selected"]
    else:
      assert outcome["prediction"] is None and outcome["radius"] == 0


@pytest.mark.parametrize(
  "successes, n, alpha", [(100_000, 100_000, 0.001), (7, 10, 0.05), (1, 9, 0.2)]
)
def test_bound_is_the_one_sided_one(successes, n, alpha):
  """The bound is the p at which `successes` or more have probability alpha (not alpha / 2)."""
  bound = intervals.lower_bound(successes, n, alpha)
  np.testing.assert_allclose(scipy.stats.binom.sf(successes - 1, n, bound), alpha, rtol=1e-6)
  if successes == n:
    np.testing.assert_allclose(bound, alpha ** (1 / n))
  assert intervals.lower_bound(0, n, alpha) == 0


def test_the_largest_radius_is_that_of_votes_that_all_agree():
  """No image can have more: sigma Phi^-1 of the bound of n successes in n."""
  bound = scipy.stats.beta.ppf(OPTIONS.alpha, OPTIONS.n, 1)
  expected = OPTIONS.sigma * scipy.stats.norm.ppf(bound)
  np.testing.assert_allclose(OPTIONS.largest_radius, expected)
  assert OPTIONS._replace(n=3).largest_radius == 0  # 0.001^(1/3) is below 1/2


def test_an_outcome_depends_on_neither_slice_nor_devices_nor_draws_per_pass():
  options = OPTIONS._replace(n=333)  # no multiple of a pass
  whole = certify(options)
  assert certify(options, draws_per_pass=16) == whole
  assert certify(options, stop=5) + certify(options, start=5) == whole
  assert certify(options._replace(seed=1)) != whole
  with subjects.devices(1):
    alone, _, _ = subjects.two_classes(24, batch_size=5)
    fn = votes_fn(options, 100)
    assert smoothing.certify(alone, alone.images, np.arange(24), options, fn) == whole


def votes(purpose, n, model=None, images=None):
  model, images = model or subject(), subject().images[:8] if images is None else images
  fn = votes_fn(OPTIONS, 100)
  return model.map(fn, images, np.arange(8, dtype=np.int32), shared=(purpose, n))


def test_selection_and_estimation_have_draws_of_their_own_and_exactly_n():
  first, second = votes(smoothing.SELECTION, 130), votes(smoothing.ESTIMATION, 130)
  assert (first.sum(1) == 130).all() and (second.sum(1) == 130).all() and (first != second).any()


def coin(weights, images):
  """Two equal halves of the draws, by the sign of the first pixel's noise; NaN above +1 sigma."""
  noise = images[:, 0, 0, 0] - 0.5
  logits = jnp.stack([noise, -noise], -1)
  return jnp.where(noise[:, None] > 0.1, jnp.nan, logits)


def test_a_coin_abstains_and_what_is_not_finite_votes_for_nobody():
  images = np.full((8, 3, 3, 1), 0.5, np.float32)
  model = Subject(subjects.model({}, coin), images, np.zeros(8, np.int32), batch_size=8)
  outcomes = smoothing.certify(model, images, np.arange(8), OPTIONS, votes_fn(OPTIONS, 100))
  assert all(outcome["prediction"] is None and outcome["radius"] == 0 for outcome in outcomes)
  counted = votes(1, 4000, model, images)
  expected = 4000 * (1 - scipy.stats.norm.sf(1))
  assert (np.abs(counted.sum(1) - expected) < 120).all() and (counted[:, 0] < counted[:, 1]).all()


def test_numbers_by_hand():
  """An image counts at a radius if it is right, with a certificate of more: the ball is open."""
  outcomes = [
    {"index": 4, "prediction": 1, "radius": 0.3},
    {"index": 2, "prediction": 0, "radius": 0.9},
    {"index": 7, "prediction": None, "radius": 0.0},
    {"index": 1, "prediction": 2, "radius": 0.1},
  ]
  found = smoothing.summarize(OPTIONS, outcomes, np.array([1, 1, 0, 2]), (0.0, 0.1, 0.2, 0.3))
  curve = found.numbers.where(metric="certified_accuracy")
  assert [number.value for number in curve] == [0.5, 0.25, 0.25, 0.0]
  assert [number["radius"] for number in curve] == [0.0, 0.1, 0.2, 0.3]
  by = {number.metric: number for number in found.numbers}
  assert by["abstained"].value == 1 and by["abstained"].unit == "images"
  assert by["smoothed_accuracy"].outcomes.tolist() == [True, False, False, True]
  assert by["smoothed_accuracy"].indices.tolist() == [4, 2, 7, 1]
  np.testing.assert_allclose(by["mean_certified_radius"].value, 0.1)
  assert by["largest_certifiable_radius"].value == OPTIONS.largest_radius
  assert all(n.count == 4 and n.matches(**OPTIONS._asdict()) for n in found.numbers)
  assert found.details == {"radii": [0.3, 0.9, 0.0, 0.1], "predictions": [1, 0, None, 2]}
