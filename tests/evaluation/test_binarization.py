"""binarization: read-outs by hand; strong attacks pass, weak ones and masked gradients do not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.evaluation import binarization
from sprout_jax.evaluation.noise import random_noise
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.checks import BINARIZATION_SHARE
from tests.evaluation import subjects

RNG = np.random.default_rng(0)
read_out = jax.jit(binarization.read_out)
search_fn = functools.cache(binarization.search_fn)
IMAGES = RNG.uniform(size=(10, 4, 4, 1)).astype(np.float32)
IMAGES[:3] = IMAGES[:3].round()  # black and white: at the edge of the box
KERNEL = RNG.normal(size=(16, 24)).astype(np.float32)
EPSILON, INNER = 0.05, 300
PGD = functools.partial(attacks.pgd, step_size=0.01, num_steps=20)
PROGRAMS = {}  # of all subjects here: they differ in weights only


def features(weights, images):
  """`levels` above 0 quantise the input; `bend` above 0 makes it less linear."""
  levels, bend = weights["levels"], weights["bend"]
  x = jnp.where(levels > 0, jnp.round(images * levels) / jnp.maximum(levels, 1), images)
  x = x.reshape(len(x), -1) @ weights["kernel"]
  return weights["scale"] * jnp.where(bend > 0, jnp.tanh(bend * x), x)


def make(bend=0.0, levels=0.0, scale=1.0, **changes):
  weights = dict(kernel=KERNEL, bend=bend, levels=levels, scale=scale)
  predict = subjects.model(jax.tree.map(np.float32, weights), features)
  options = dict(features=predict, batch_size=16, shows_progress=False, programs=PROGRAMS)
  return Subject(predict, IMAGES, np.zeros(10, np.int32), **options | changes)


def search(subject, attack, norm="linf", epsilon=EPSILON, rows=slice(None), inner=INNER):
  return subject.map(
    search_fn(attack, norm, 0, inner),
    IMAGES[rows],
    np.arange(10, dtype=np.int32)[rows],
    shared=(subject.features, float(epsilon)),
  )


def found(*args, **options):
  """How many could be built, and of these the shares that the attack and noise find."""
  by = search(*args, **options)
  assert by["excess"].max() <= 1e-6
  built = by["built"]
  return built.sum(), by["found"][built].mean(), by["found_by_noise"][built].mean()


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


@pytest.mark.parametrize("norm, epsilon", [("linf", EPSILON), ("l2", 0.3)])
def test_on_a_linear_model_one_full_step_is_exact_and_must_succeed(norm, epsilon):
  """It reaches the ball's highest point, and the planted point is in the ball and positive."""
  step = functools.partial(attacks.pgd, step_size=1.0, num_steps=3)  # three: the box cuts L2 steps
  built, share, by_noise = found(make(), step, norm, epsilon)
  assert built >= 9 and share == 1 and 0 < by_noise < 0.6


def stays(key, predict, images, labels, **kwargs):
  return images


def test_pgd_passes_on_a_smooth_model_and_what_does_not_move_fails():
  assert found(make(bend=0.3), PGD)[1] >= BINARIZATION_SHARE
  built, share, by_noise = found(make(bend=0.3), stays)
  assert built >= 9 and share == 0 < by_noise


def test_auto_pgd_fits_in():
  assert found(make(bend=0.3), functools.partial(attacks.apgd, num_steps=20))[1] == 1


def test_masked_gradients_fail():
  """Behind rounding, the planted points are as easy to reach, but PGD has no gradient."""
  built, share, by_noise = found(make(levels=255), PGD)
  assert built >= 9 and share < BINARIZATION_SHARE and by_noise > share


def test_confident_features_do_not_fail():
  """The read-out is scaled: features a million times larger hide nothing."""
  assert found(make(scale=1e6), PGD)[1] == 1


def test_noise_as_an_attack_is_the_baseline():
  attack = functools.partial(random_noise, num_draws=binarization.NUM_RANDOM)
  _, share, by_noise = found(make(), attack)
  assert 0 < share < 1 and abs(share - by_noise) < 0.35


def tells_score(key, predict, images, labels, **kwargs):
  """Its perturbation's size gives the read-out away, and with it all the points."""
  return images + 0.2 * predict(images)[:, 1, None, None, None] * jnp.sign(images - 0.5)


def test_outcome_depends_on_neither_slice_nor_devices():
  whole = search(make(bend=0.3), tells_score, epsilon=0.2, inner=20)
  with subjects.devices(1):
    alone = make(bend=0.3, batch_size=4, programs={})
    part = search(alone, tells_score, epsilon=0.2, rows=slice(2, 10), inner=20)
  for name in ("built", "found", "found_by_noise"):
    np.testing.assert_array_equal(part[name], whole[name][2:])
  np.testing.assert_allclose(part["excess"], whole["excess"][2:], atol=4e-3)
  assert np.std(whole["excess"]) > 1e-2


def measure(subject, **changes):
  section = dict(num_examples=0, num_inner=INNER)
  steps = dict(epsilon=EPSILON, step_size=0.01, num_steps=20)
  return subjects.measure("binarization", subject, **steps | dict(binarization=section) | changes)


def test_numbers_of_an_evaluation():
  """Of the images that could be built; with the interval of the share."""
  measured, (built, share, by_noise) = measure(make(bend=0.3)), found(make(bend=0.3), PGD)
  planted, baseline = measured.numbers
  assert (planted.metric, planted.value, planted.count) == ("planted_found", share, built)
  assert planted.interval[1] == 1 and planted.interval[0] > 0.6
  assert (baseline.metric, baseline.count) == ("planted_found_by_noise", built)
  np.testing.assert_allclose(baseline.value, by_noise)
  assert all(
    n.matches(attack="pgd", steps=20, restarts=1, epsilon=EPSILON) for n in measured.numbers
  )
  assert measured.details == {"built": built, "images": 10}


def test_of_a_model_whose_features_are_not_known_the_logits_are_taken():
  subject = make(bend=0.3)
  unknown = make(bend=0.3, features=None)
  assert [n.value for n in measure(unknown).numbers] == [n.value for n in measure(subject).numbers]


def test_features_that_do_not_tell_points_apart_leave_nothing_to_attack():
  black_and_white = np.repeat(IMAGES[:1], 10, 0)
  subject = dataclasses.replace(make(levels=1), images=black_and_white)
  planted, baseline = measure(subject, epsilon=0.01).numbers
  assert planted.count == 0 and planted.value is None and planted.interval is None
  assert baseline.value is None


def pretend(monkeypatch, excess):
  """Replaces the search: half of the images are built. Returns the list of its arguments."""
  made = []

  def search_fn(*args):
    made.append(args)

    def run(predict, features, epsilon, images, indices):
      even = indices % 2 == 0
      return {"built": even, "found": even, "found_by_noise": ~even, "excess": excess(indices)}

    return run

  monkeypatch.setattr(binarization, "search_fn", search_fn)
  return made


def test_there_is_no_dlr_of_two_classes(monkeypatch):
  made = pretend(monkeypatch, lambda indices: 0.0 * indices)
  planted, baseline = measure(make(), loss="dlr").numbers
  assert planted["loss"] == made[0][0].keywords["loss"] == "margin"
  assert (planted.value, planted.count, baseline.value) == (1, 5, 0)  # of those that were built


def test_an_attack_that_leaves_its_threat_model_is_an_error(monkeypatch):
  """Of the images that were built: no other was attacked in earnest."""
  pretend(monkeypatch, lambda indices: jnp.where(indices % 2 == 0, 0.0, 0.3))
  measure(make())
  pretend(monkeypatch, lambda indices: jnp.where(indices == 4, 0.05, 0.0))
  with pytest.raises(RuntimeError, match="PGD-20 in the binarisation test left .* by 0.05"):
    measure(make())
