"""binarization: read-outs by hand; strong attacks pass, weak ones and masked gradients do not."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.evaluation import binarization
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import probes
from sprout_jax.models import layers

RNG = np.random.default_rng(0)
ALONE = sharding.make_mesh(jax.devices()[:1])  # compiles faster than eight
read_out = jax.jit(binarization.read_out)
success_fn = functools.cache(binarization.success_fn)
IMAGES = RNG.uniform(size=(10, 4, 4, 1)).astype(np.float32)
IMAGES[:3] = IMAGES[:3].round()  # black and white: at the edge of the box
EPSILON = 0.05


class Features(nn.Module):
  """No last layer of its own; `levels` quantises the input, `bend` makes it less linear."""

  bend: float = 0.0
  levels: int = 0
  scale: float = 1.0

  @nn.compact
  def __call__(self, images, train):
    x = jnp.round(images * self.levels) / self.levels if self.levels else images
    x = nn.Dense(24)(x.reshape(len(x), -1))
    return self.scale * (jnp.tanh(self.bend * x) if self.bend else x)


class Small(layers.Classifier):
  def features(self, x, train):
    return self.act(nn.Dense(24, name="hidden")(x.reshape(len(x), -1)))


DENSE = {"kernel": RNG.normal(size=(16, 24)).astype(np.float32), "bias": np.zeros(24, np.float32)}
VARIABLES = {"params": {"Dense_0": DENSE}}
PGD = functools.partial(attacks.pgd, step_size=0.01, num_steps=20)


def success(model, attack, norm="linf", variables=VARIABLES, epsilon=EPSILON, rows=slice(None)):
  fn = success_fn(model, attack, norm, 0, ALONE)
  return binarization.success(fn, variables, IMAGES[rows], np.arange(10)[rows], epsilon, 16, ALONE)


def test_widest_margin_by_hand():
  """Points at x = 0 and x = -1 against one at x = 2: s is x - 1, scaled so that -s and s span 1."""
  points = np.float32([[0, 1], [0, -1], [0, 2], [-1, 0], [2, 0]])
  center, weights, threshold, separates = read_out(points)
  scores = (points - np.asarray(center)) @ np.asarray(weights) - threshold
  np.testing.assert_allclose(scores, [-1 / 4, -1 / 4, -1 / 4, -1 / 2, 1 / 4], atol=2e-3)
  assert separates


def test_read_out_separates_far_from_the_origin_and_in_more_dimensions_than_points():
  for count, size, shift in ((150, 24, 50.0), (40, 100, 0.0)):
    points = (shift + 0.1 * RNG.normal(size=(count, size))).astype(np.float32)
    points[-1, 0] = shift + 0.5
    center, weights, threshold, separates = read_out(points)
    scores = (points - np.asarray(center)) @ np.asarray(weights) - threshold
    assert separates and scores[-1] > 0 > scores[:-1].max() and np.abs(scores).max() < 0.5001


@pytest.mark.parametrize("last", [[0.1, 0.2], [0, 1], [np.nan, 0]])
def test_what_cannot_be_separated_is_said_to_be_so(last):
  points = np.float32([[1, 0], [-1, 0], [0, 1], [0, -1], last])
  assert not read_out(points)[3] and not read_out(0 * points)[3]


def test_features_are_the_input_of_the_last_layer():
  model = Small(5, mean=(0.5,), std=(0.25,))
  dense = {"kernel": RNG.normal(size=(24, 5)).astype(np.float32), "bias": np.ones(5, np.float32)}
  variables = {"params": {"hidden": DENSE, "dense": dense}}
  found = np.asarray(binarization.features(model, variables, IMAGES))
  expected = np.maximum(((IMAGES - 0.5) / 0.25).reshape(10, 16) @ DENSE["kernel"], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  logits = model.apply(variables, IMAGES, train=False)
  np.testing.assert_allclose(found @ dense["kernel"] + 1, logits, rtol=1e-4, atol=1e-4)
  assert success(model, PGD, variables=variables)["success"] >= 0.95


@pytest.mark.parametrize("norm, epsilon", [("linf", EPSILON), ("l2", 0.3)])
def test_on_a_linear_model_one_full_step_is_exact_and_must_succeed(norm, epsilon):
  """It reaches the ball's highest point, and the planted point is in the ball and positive."""
  step = functools.partial(attacks.pgd, step_size=1.0, num_steps=3)  # three: the box cuts L2 steps
  found = success(Features(), step, norm, epsilon=epsilon)
  assert found["images"] == 10 and found["count"] >= 9 and found["success"] == 1
  assert 0 < found["random_success"] < 0.6 and found["interval"][1] == 1
  assert checks.binarization(found)["passed"]
  json.dumps(found, allow_nan=False)
  if norm == "l2":  # twenty steps of 0.01 do not cross a ball of radius 0.3
    assert not checks.binarization(success(Features(), PGD, norm, epsilon=epsilon))["passed"]


def test_pgd_passes_on_a_smooth_model_and_fails_without_steps():
  smooth = Features(bend=0.3)
  assert checks.binarization(success(smooth, PGD))["passed"]
  still = success(smooth, functools.partial(attacks.pgd, step_size=0.0, num_steps=20))
  assert still["count"] >= 9 and not checks.binarization(still)["passed"]
  assert still["success"] < still["random_success"]


def test_auto_pgd_fits_in():
  assert success(Features(bend=0.3), functools.partial(attacks.apgd, num_steps=20))["success"] == 1


def test_masked_gradients_fail():
  """Behind rounding, the planted points are as easy to reach, but PGD has no gradient."""
  found = success(Features(levels=255), PGD)
  assert found["count"] >= 9 and not checks.binarization(found)["passed"]
  assert found["random_success"] > found["success"]


def test_confident_features_do_not_fail():
  """The read-out is scaled: features a million times larger hide nothing."""
  assert success(Features(scale=1e6), PGD)["success"] == 1


def test_noise_as_an_attack_is_the_baseline():
  attack = functools.partial(probes.noise, num_draws=binarization.NUM_RANDOM)
  found = success(Features(), attack)
  assert 0 < found["success"] < 1 and abs(found["success"] - found["random_success"]) < 0.35


def test_outcome_depends_on_neither_slice_nor_devices():
  def tells_score(key, predict, images, labels, **kwargs):
    """Its perturbation's size gives the read-out away, and with it all the points."""
    return images + 0.2 * predict(images)[:, 1, None, None, None] * jnp.sign(images - 0.5)

  def outcomes(mesh, rows):
    fn = binarization.success_fn(Features(bend=0.3), tells_score, "linf", 0, mesh, 20)
    return np.asarray(fn(VARIABLES, np.float32(0.2), IMAGES[rows], np.arange(10)[rows]))

  whole, part = outcomes(ALONE, slice(None)), outcomes(sharding.make_mesh(), slice(2, 10))
  np.testing.assert_array_equal(part[:, :3], whole[2:, :3])
  np.testing.assert_allclose(part[:, 3], whole[2:, 3], atol=4e-3)
  assert np.std(whole[:, 3]) > 1e-2


def test_features_that_do_not_tell_points_apart_leave_nothing_to_attack():
  found = success(Features(levels=1), PGD, epsilon=0.01, rows=slice(0, 3))
  assert found["count"] == 0 and found["success"] is None
  assert not checks.binarization(found)["passed"]


def test_an_attack_that_leaves_its_threat_model_is_an_error():
  with pytest.raises(RuntimeError, match="binarisation test at epsilon 0.05 exceeded .* by 0.05"):
    success(
      Features(),
      lambda key, predict, images, labels, *, epsilon, norm, indices: jnp.where(
        images > 0.5, images - 2 * epsilon, images + 2 * epsilon
      ),
    )
