"""smoothing: a linear model's closed form, Clopper-Pearson by the beta quantile, votes by hand."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.evaluation import smoothing
from tests.linear import Linear
from tests.linear import linear_problem

SPEC = smoothing.SmoothingSpec(sigma=0.1, n0=50, n=4000, alpha=0.001, seed=0)
ONE, EIGHT = (sharding.make_mesh(jax.devices()[:count]) for count in (1, 8))
counts_fn = functools.cache(smoothing.counts_fn)


def certify(spec, mesh, count=24, draws_per_pass=100, rows=slice(None)):
  split, variables, _, _ = linear_problem(count)
  counts = counts_fn(Linear(), spec, draws_per_pass, mesh)
  return smoothing.certify(
    counts, variables, split.images[rows], np.arange(count)[rows], spec, 16, mesh
  )


def closed_form(count):
  """Distance to the plane and probability of the larger class under noise, per image."""
  _, variables, margin, _ = linear_problem(count)
  kernel = variables["params"]["Dense_0"]["kernel"]
  distance = np.abs(margin) / np.linalg.norm(kernel[:, 0] - kernel[:, 1])
  return distance, scipy.stats.norm.cdf(distance / SPEC.sigma)


def test_radius_of_a_linear_model_is_its_distance_to_the_plane():
  """P(class) = Phi(distance / sigma), so sigma Phi^-1(P) is the distance; the bound is below it."""
  outcomes = certify(SPEC, ONE)
  distance, probability = closed_form(24)
  successes = np.array([outcome["successes"] for outcome in outcomes])
  deviation = np.sqrt(probability * (1 - probability) / SPEC.n)
  selects_larger = successes > SPEC.n / 2
  assert selects_larger.mean() > 0.8
  assert (np.abs(successes / SPEC.n - probability) < 4.5 * deviation + 1e-3)[selects_larger].all()
  radius = np.array([outcome["radius"] for outcome in outcomes])
  certified = radius > 0
  assert 0.5 < certified.mean() < 1  # some are too near the plane
  # Within 4.5 deviations plus the 3.1 that alpha costs, through Phi^-1's slope.
  slope = SPEC.sigma / scipy.stats.norm.pdf(distance / SPEC.sigma)
  near = certified & (distance < 0.2)
  assert near.sum() > 5 and (radius <= distance + 0.01)[certified].all()
  assert (radius > distance - 8 * deviation * slope - 2e-3)[near].all()


def test_outcomes_are_the_formula_of_their_counts():
  for outcome in certify(SPEC, ONE):
    hits = outcome["successes"]
    bound = scipy.stats.beta.ppf(SPEC.alpha, hits, SPEC.n - hits + 1)
    np.testing.assert_allclose(outcome["lower_bound"], bound, rtol=1e-9)
    if bound > 0.5:
      np.testing.assert_allclose(outcome["radius"], SPEC.sigma * scipy.stats.norm.ppf(bound))
      assert outcome["prediction"] == outcome["selected"]
    else:
      assert outcome["prediction"] is None and outcome["radius"] == 0


@pytest.mark.parametrize(
  "successes, n, alpha", [(100_000, 100_000, 0.001), (7, 10, 0.05), (1, 9, 0.2)]
)
def test_bound_is_the_one_sided_one(successes, n, alpha):
  """The bound is the p at which `successes` or more have probability alpha (not alpha / 2)."""
  bound = smoothing.lower_bound(successes, n, alpha)
  np.testing.assert_allclose(scipy.stats.binom.sf(successes - 1, n, bound), alpha, rtol=1e-6)
  if successes == n:
    np.testing.assert_allclose(bound, alpha ** (1 / n))
  assert smoothing.lower_bound(0, n, alpha) == 0


def test_outcome_depends_on_neither_slice_nor_devices_nor_draws_per_pass():
  spec = dataclasses.replace(SPEC, n=333)  # no multiple of a pass
  whole = certify(spec, ONE)
  assert certify(spec, EIGHT, draws_per_pass=16) == whole
  parts = [certify(spec, EIGHT, rows=rows) for rows in (slice(0, 5), slice(5, 24))]
  assert parts[0] + parts[1] == whole
  assert certify(dataclasses.replace(spec, seed=1), ONE) != whole


def test_selection_and_estimation_have_draws_of_their_own_and_exactly_n():
  split, variables, _, _ = linear_problem(8)
  counts = counts_fn(Linear(), SPEC, 100, ONE)
  first, second = (
    np.asarray(counts(variables, purpose, np.int32(130), split.images, np.arange(8)))
    for purpose in (smoothing.SELECTION, smoothing.ESTIMATION)
  )
  assert (first.sum(1) == 130).all() and (second.sum(1) == 130).all() and (first != second).any()


class Constant(nn.Module):
  """Two equal halves of the draws, by the sign of the first pixel's noise; NaN above +1 sigma."""

  @nn.compact
  def __call__(self, images, train):
    noise = images[:, 0, 0, 0] - 0.5
    logits = jnp.stack([noise, -noise], -1)
    return jnp.where(noise[:, None] > 0.1, jnp.nan, logits)


def test_a_coin_abstains_and_what_is_not_finite_votes_for_nobody():
  images = np.full((8, 3, 3, 1), 0.5, np.float32)
  counts = smoothing.counts_fn(Constant(), SPEC, 100, ONE)
  outcomes = smoothing.certify(counts, {}, images, np.arange(8), SPEC, 8, ONE)
  assert all(outcome["prediction"] is None and outcome["radius"] == 0 for outcome in outcomes)
  votes = np.asarray(counts({}, 1, np.int32(4000), images, np.arange(8)))
  expected = 4000 * (1 - scipy.stats.norm.sf(1))
  assert (np.abs(votes.sum(1) - expected) < 120).all() and (votes[:, 0] < votes[:, 1]).all()


def test_result_by_hand():
  outcomes = [
    {"prediction": 1, "radius": 0.3},
    {"prediction": 0, "radius": 0.9},
    {"prediction": None, "radius": 0.0},
    {"prediction": 2, "radius": 0.1},
  ]
  found = smoothing.result(SPEC, outcomes, [1, 1, 0, 2], [0.0, 0.1, 0.2, 0.3])
  assert [entry["accuracy"] for entry in found["curve"]] == [0.5, 0.25, 0.25, 0.0]
  assert [entry["radius"] for entry in found["curve"]] == [0.0, 0.1, 0.2, 0.3]
  assert found["curve"][0]["count"] == 4 and len(found["curve"][0]["interval"]) == 2
  assert found["abstained"] == 1 and found["smoothed"]["accuracy"] == 0.5 and found["sigma"] == 0.1
  np.testing.assert_allclose(found["mean_radius"], 0.1)
  assert found["radii"] == [0.3, 0.9, 0.0, 0.1] and found["predictions"] == [1, 0, None, 2]


@pytest.mark.parametrize(
  "change", [{"sigma": 0.0}, {"n0": 0}, {"n": 0}, {"alpha": 0}, {"alpha": 1.0}]
)
def test_senseless_specs_are_refused(change):
  with pytest.raises(UserError, match=f"smoothing: {next(iter(change))} is"):
    dataclasses.replace(SPEC, **change)
