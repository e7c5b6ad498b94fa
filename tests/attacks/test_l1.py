"""The attacks in L1: projection, sparse steps, hyperplanes, and the reference's outcomes.

Facts: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
ICML 2021.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from sprout_jax import attacks
from sprout_jax.attacks import ensemble
from sprout_jax.attacks import norms
from sprout_jax.attacks.auto_pgd import apgd_attack
from sprout_jax.attacks.fast_boundary import project_on_hyperplane
from sprout_jax.attacks.squares import pyramid
from sprout_jax.attacks.squares import side
from tests.attacks.test_auto_attack import distance_to_boundary
from tests.attacks.test_auto_attack import interior
from tests.attacks.test_auto_attack import linear_model

KEY = jax.random.key(0)


def nearest(change, images, epsilon):
  """The projection by sorting all ends of linear pieces of |d|_1 as a function of t, float64."""
  change, images = change.astype(float), images.astype(float)
  room = np.where(change > 0, 1 - images, images)
  norm = lambda t: np.clip(np.abs(change) - t, 0, room).sum()
  if norm(0) <= epsilon:
    return np.sign(change) * np.minimum(np.abs(change), room)
  ends = np.sort(np.r_[0, np.abs(change).ravel(), (np.abs(change) - room).ravel()])
  ends = ends[ends >= 0]
  place = next(i for i, t in enumerate(ends) if norm(t) <= epsilon)
  left, right = ends[place - 1], ends[place]
  t = left + (right - left) * (norm(left) - epsilon) / (norm(left) - norm(right))
  return np.sign(change) * np.clip(np.abs(change) - t, 0, room)


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 4.0, 30.0])
def test_projection_against_sorting(scale, epsilon):
  rng = np.random.default_rng(0)
  images = rng.random((20, 5, 4, 3)).astype(np.float32)
  images[:4] = images[:4].round()  # pixels at the edges have no room on one side
  change = (scale * rng.standard_t(2, images.shape)).astype(np.float32)
  change[0], change[1, 0] = 0, change[1, 0, 0, 0]  # nothing to do; ties
  found = np.asarray(
    jax.jit(norms.project, static_argnums=3)(images + change, images, epsilon, "l1")
  )
  change = (images + change) - images  # as it is after rounding
  for one, d, x in zip(found, change, images):
    between_floats = np.spacing(np.abs(d).max())  # where t lies
    atol = 2e-5 * max(epsilon, 0.01) + between_floats
    np.testing.assert_allclose(one - x, nearest(d, x, epsilon), atol=atol)
  assert found.min() >= 0 and found.max() <= 1
  sizes = np.abs(found - images).sum((1, 2, 3))
  assert sizes.max() <= epsilon + 1e-6 * max(1, epsilon)


def test_large_images_stay_within_the_tolerance():
  images = np.random.default_rng(0).random((2, 64, 64, 3)).astype(np.float32)
  change = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
  for epsilon in (0.5, 12.0, 60.0):
    found = np.asarray(norms.project(images + change, images, epsilon, "l1"))
    sizes = np.abs(found.astype(float) - images).sum((1, 2, 3))
    free = 5 * norms.MARGIN * epsilon + norms.ROUNDING * np.sqrt(images[0].size)
    assert (sizes <= epsilon * (1 + 1e-6)).all() and (sizes > epsilon - 1.2 * free).all()


def test_each_example_has_its_own_radius():
  images = np.full((3, 2, 2, 1), 0.5, np.float32)
  found = norms.project(images + 0.4, images, jnp.array([0.4, 0.8, 9.0]), "l1")
  np.testing.assert_allclose(
    found - images, np.full((3, 2, 2, 1), 1) * [[[[0.1]]], [[[0.2]]], [[[0.4]]]], rtol=1e-5
  )


def test_the_random_start_fills_the_ball_uniformly():
  keys, images = jax.random.split(KEY, 4000), jnp.zeros((4000, 1, 3, 1))
  start = np.asarray(jax.jit(norms.NORMS["l1"].start)(keys, images, 0.3))
  size = np.abs(start).sum((1, 2, 3))
  assert size.max() <= 0.3 * (1 + 1e-6)
  for share in (0.5, 0.8):
    assert abs((size < share * 0.3).mean() - share**3) < 0.03  # share^dimension of the volume
  assert abs((start > 0).mean() - 0.5) < 0.02


def test_a_sparse_step_changes_the_largest_entries():
  gradient = np.random.default_rng(0).normal(size=(3, 4, 5, 1)).astype(np.float32)
  gradient[2] = 0
  found = np.asarray(norms.sparse_direction(gradient, jnp.array([0.2, 0.001, 0.5])))
  for row, count in ((0, 4), (1, 1)):  # of 20 entries
    largest = np.argsort(-np.abs(gradient[row]).ravel())[:count]
    expected = np.zeros(20)
    expected[largest] = np.sign(gradient[row].ravel()[largest]) / count
    np.testing.assert_allclose(found[row].ravel(), expected, rtol=1e-6)
  assert not found[2].any()


def test_the_largest_number_is_found_to_the_last_bit():
  values = np.abs(np.random.default_rng(0).standard_cauchy((6, 40))).astype(np.float32)
  values[0, :5], values[1, :3] = 0, 1e-42  # compiled programs take subnormal numbers as zeros
  for rank in (1, 7, 39):
    found = norms.largest_number(
      lambda t, rank=rank: (
        (jnp.asarray(values)[:, None, None, :] >= t).sum(-1, keepdims=True) >= rank
      ),
      values,
    )
    expected = -np.sort(-values)[:, rank - 1]
    expected[expected < np.finfo(np.float32).tiny] = 0
    np.testing.assert_array_equal(found[:, 0, 0, 0], expected)
  never = norms.largest_number(lambda t: t < 0, values)
  assert not never.any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_of_a_hyperplane_against_scipy(seed, sign):
  """Minimise sum u, u >= |d|, w . (x + d) = b, 0 <= x + d <= 1: a linear programme."""
  rng = np.random.default_rng(seed)
  points = rng.uniform(0, 1, (1, 3, 4, 2)).astype(np.float32)
  normal = (sign * rng.normal(size=points.shape)).astype(np.float32)
  normal[0, 0, 0] = 0
  normal[0, 1, :2] = normal[0, 1, 0, 0]  # equal weights
  x, w = points.ravel().astype(float), normal.ravel().astype(float)
  furthest = (np.where(w > 0, 1 - x, -x) * w).sum()
  offset = w @ x + furthest * (0.1 + 0.2 * seed)
  found = np.asarray(
    project_on_hyperplane(points, normal, np.array([offset], np.float32), "l1")
  ).ravel()
  np.testing.assert_allclose(w @ (x + found), offset, atol=1e-4)
  assert (x + found).min() >= -1e-6 and (x + found).max() <= 1 + 1e-6
  n, eye = len(x), np.eye(len(x))
  best = scipy.optimize.linprog(
    np.r_[np.zeros(n), np.ones(n)],
    np.block([[eye, -eye], [-eye, -eye]]),
    np.zeros(2 * n),
    np.r_[w, np.zeros(n)][None],
    [offset - w @ x],
    [(-v, 1 - v) for v in x] + [(0, None)] * n,
  )
  np.testing.assert_allclose(np.abs(found).sum(), best.fun, rtol=1e-4)


def test_a_hyperplane_out_of_reach_saturates_all_that_matters():
  points = np.full((1, 1, 2, 2), 0.25, np.float32)
  normal = np.array([1.0, -2.0, 0.0, 3.0], np.float32).reshape(points.shape)
  found = project_on_hyperplane(points, normal, np.array([99.0], np.float32), "l1")
  np.testing.assert_allclose(np.ravel(found), [0.75, -0.25, 0, 0.75])


def test_linear_models_equal_the_closed_form():
  """The smallest L1 change of a class is margin / max |w|, away from the edges of the box."""
  weights, predict = linear_model()
  images, labels = interior(40, predict)
  distance = distance_to_boundary(weights, images, labels, np.inf)
  epsilon = float(np.quantile(distance[distance > 0], 0.5))
  assert epsilon < 0.4  # one pixel is enough
  result = attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    epsilon=epsilon,
    norm="l1",
    version=["apgd-ce", "apgd-t", "fab-t"],
    batch_size=16,
  )
  decided = np.abs(distance - epsilon) > 1e-3 * epsilon
  np.testing.assert_array_equal(result.robust[decided], (distance > epsilon)[decided])
  assert 5 < result.robust.sum() < 30
  assert epsilon * 0.99 < result.spec["largest_perturbation"] <= epsilon + 1e-6
  runs = {name: spec["runs"] for name, spec in result.spec["attacks"].items()}
  assert runs == {"apgd-ce": 5, "apgd-t": 4, "fab-t": 4}  # 5 classes have 4 wrong ones


@pytest.mark.parametrize("norm, size", [("linf", 0.5), ("l2", 1.0), ("l1", 2.0)])
def test_the_size_of_a_perturbation_is_that_of_its_norm(norm, size):
  """By it, `auto_attack` refuses a perturbation that exceeds epsilon."""
  perturbation = np.array([0.5, -0.5, 0.5, -0.5], np.float32).reshape(2, 2, 1)
  assert ensemble._size(perturbation, norm) == pytest.approx(size)


def test_pgd_in_l1_finds_what_a_linear_model_has():
  weights, predict = linear_model(classes=2)
  images, labels = interior(40, predict)
  distance = distance_to_boundary(weights, images, labels, np.inf)
  epsilon = float(np.quantile(distance[distance > 0], 0.5))
  found = attacks.pgd(
    KEY, predict, images, labels, epsilon=epsilon, step_size=epsilon / 4, num_steps=20, norm="l1"
  )
  robust = ~np.asarray(attacks.is_wrong(predict(found), labels))
  np.testing.assert_array_equal(robust, distance > epsilon)
  assert np.abs(found - images).sum((1, 2, 3)).max() <= epsilon + 1e-6


def test_a_large_step_changes_more_entries():
  """At half of the range of a pixel each; a small one the largest percent of the entries."""
  gradient = np.random.default_rng(0).normal(size=(3, 10, 10, 3)).astype(np.float32)
  found = np.asarray(norms.ascent_step(gradient, jnp.array([0.3, 30.0, 900.0]), "l1"))
  assert [np.count_nonzero(one) for one in found] == [3, 60, 300]
  np.testing.assert_allclose(np.abs(found).max((1, 2, 3)), [0.1, 0.5, 3.0], rtol=1e-5)
  for norm in ("linf", "l2"):
    one = norms.ascent_step(gradient, 0.3, norm)
    np.testing.assert_allclose(one, 0.3 * norms.NORMS[norm].direction(gradient), rtol=1e-6)


def test_pgd_reaches_any_image_in_a_large_ball():
  """At epsilon of half the number of values every image can be made grey."""
  weights, predict = linear_model(classes=2)
  images, labels = interior(10, predict)
  found = attacks.pgd(
    KEY, predict, images, labels, epsilon=18.0, step_size=4.5, num_steps=20, norm="l1"
  )
  assert attacks.is_wrong(predict(found), labels).all()


def test_the_stages_of_auto_pgd():
  """Radii 3, 2 and 1 epsilon for 30, 30 and 40 moves; a stage begins with a look at its start."""
  attack = apgd_attack(
    norm="l1", loss="cross_entropy", targeted=False, num_steps=100, num_runs=1, num_samples=1
  )
  assert attack.num_steps == 103 and attack.spec["stages"] == [[3, 0.3], [2, 0.3], [1, 0.4]]
  predict = lambda x: jnp.stack(
    [x[:, 0, 0, 0], -x[:, 0, 0, 0] + 9], -1
  )  # class 1, not to be broken
  images = jnp.full((1, 6, 6, 3), 0.5)
  batch = attacks.attack.Batch(
    images, jnp.array([1]), jax.random.split(KEY, 1), jnp.zeros(1, int), jnp.float32(2.0)
  )
  state, sizes, steps = attack.start(batch), [], []
  step = jax.jit(lambda state, number: attack.step(predict, batch, state, number))
  for number in range(attack.num_steps):
    sizes.append(float(np.abs(state["x"] - images).sum()))
    state = step(state, jnp.array([number]))
    steps.append(float(state["step_size"][0]))
  assert max(sizes[:31]) <= 6 and max(sizes[:31]) > 5.9
  assert max(sizes[31:62]) <= 4 and max(sizes[62:]) <= 2 and max(sizes[62:]) > 1.9
  assert steps[0] == 6 and steps[31] == 4 and steps[62] == 2 and min(steps[:31]) >= 0.6
  assert not state["broken"][0]
  assert 0 < float(np.abs(state["adversarial"] - images).sum()) <= 2


def test_what_only_a_larger_radius_breaks_is_not_broken():
  """The early stages leave the ball: their successes do not count."""
  predict = lambda x: jnp.stack([1.5 - x.sum((1, 2, 3)) + 9, jnp.zeros(len(x))], -1)
  images = np.full((2, 3, 3, 2), 0.5, np.float32)  # broken from an L1 distance of 1.5 on
  for epsilon, robust in ((1.4, True), (1.6, False)):
    adversarial = attacks.apgd(KEY, predict, images, np.zeros(2, int), epsilon=epsilon, norm="l1")
    assert np.abs(adversarial - images).sum((1, 2, 3)).max() <= epsilon + 1e-6
    assert (np.asarray(predict(adversarial)).argmax(-1) == 0).all() == robust


def test_square_breaks_what_is_near():
  weights, predict = linear_model()
  images, labels = interior(24, predict)
  distance = distance_to_boundary(weights, images, labels, np.inf)
  epsilon = float(np.quantile(distance[distance > 0], 0.6) / 0.15)
  result = attacks.auto_attack(
    KEY, predict, images, labels, epsilon=epsilon, norm="l1", version="square", batch_size=16
  )
  near = (distance > 0) & (distance < 0.15 * epsilon)
  assert near.sum() > 5 and result.robust[near].mean() < 0.2
  assert result.robust[distance > epsilon].all()


def test_square_s_pattern_and_sides():
  """Each half: 1 in its middle, 1/16 up to one pixel away, 1/81 up to two; halves of both signs."""
  for size in (1, 2, 6, 7):
    np.testing.assert_allclose(np.abs(pyramid(size, "l1")).sum(), 1, rtol=1e-6)
  upper, found = np.full((2, 5), 1 / 81), pyramid(5, "l1")
  upper[:, 1:4] += 1 / 16
  upper[1, 2] += 1
  np.testing.assert_allclose(found[:2] / found[0, 0], upper / upper[0, 0], rtol=1e-5)
  assert (found[2:] < 0).all()
  assert [side(step, 32, 32, "l1") for step in (0, 11, 4001)] == [29, 21, 3]
