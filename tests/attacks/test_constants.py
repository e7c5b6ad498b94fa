"""The attacks' constants and building blocks, each against another way to compute it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import ranked_targets
from sprout_jax.attacks.auto_pgd import apgd_attack
from sprout_jax.attacks.auto_pgd import checkpoints
from sprout_jax.attacks.fast_boundary import project_on_hyperplane
from sprout_jax.attacks.squares import pyramid
from sprout_jax.attacks.squares import side
from sprout_jax.attacks.squares import square_attack

KEY = jax.random.key(8)
# Each is compiled as one program. Run operation by operation, they are many small programs.
project = jax.jit(project_on_hyperplane, static_argnums=3)
pgd = jax.jit(
  attacks.pgd, static_argnums=1, static_argnames=("num_steps", "start", "keep", "momentum")
)


@pytest.mark.parametrize(
  "num_steps, expected",
  [
    (100, [22, 41, 57, 70, 80, 87, 93, 99]),
    # 20 steps: a window of 4, shrinking by 1 (0.6 rounds to at least 1) to 1.
    (20, [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
    # 50 steps: a window of 11, shrinking by 1 to 3.
    (50, [11, 21, 30, 38, 45]),
  ],
)
def test_apgd_checkpoints(num_steps, expected):
  found = checkpoints(num_steps)
  if num_steps == 50:  # then windows of 6 and fewer steps end after the last step
    assert found[:5] == expected and found[-1] <= 50
    assert np.diff(found).min() >= 3
  else:
    assert found == expected


@pytest.mark.parametrize(
  "size, expected",
  [
    # round(sqrt(0.8 / 2^j * size^2)) for steps 0, 11, 51, 201, 501, 1001, 2001, 4001.
    (8, [7, 5, 4, 3, 2, 1, 1, 1]),
    (32, [29, 20, 14, 10, 7, 5, 4, 3]),
    (224, [200, 142, 100, 71, 50, 35, 25, 18]),
  ],
)
def test_square_sides(size, expected):
  steps = [0, 11, 51, 201, 501, 1001, 2001, 4001]
  assert [side(step, size, size) for step in steps] == expected
  # The step before each bound still has the larger square.
  assert [side(step - 1, size, size) for step in steps[1:]] == expected[:-1]
  odd = [side(step, size, size, "l2") for step in steps]
  assert all(s % 2 == 1 and s >= 3 for s in odd)


def hyperplane(seed, reachable=True):
  rng = np.random.default_rng(seed)
  points = rng.uniform(0, 1, (1, 3, 4, 2)).astype(np.float32)
  normal = rng.normal(size=points.shape).astype(np.float32)
  normal[0, 0, 0, 0] = 0  # a pixel that does not matter
  corner = np.where(normal > 0, 1 - points, -points)
  furthest = float((normal * corner).sum())
  offset = float((normal * points).sum()) + furthest * (
    0.4 + 0.5 * rng.random() if reachable else 1.5
  )
  return points, normal, np.array([offset], np.float32), corner


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_on_a_hyperplane_against_scipy(norm, seed, sign):
  """The smallest change within the box that reaches the plane is a linear or quadratic program."""
  points, normal, offset, _ = hyperplane(seed)
  found = np.asarray(project(points, sign * normal, sign * offset, norm)).ravel()
  x, w, b = points.ravel().astype(float), normal.ravel().astype(float), float(offset[0])
  np.testing.assert_allclose(w @ (x + found), b, atol=1e-4)
  assert (x + found).min() >= -1e-6 and (x + found).max() <= 1 + 1e-6
  n = len(x)
  if norm == "linf":  # minimise t with -t <= d <= t
    bounds = [(-v, 1 - v) for v in x] + [(0, None)]
    upper = np.vstack(
      [np.hstack([np.eye(n), -np.ones((n, 1))]), np.hstack([-np.eye(n), -np.ones((n, 1))])]
    )
    best = scipy.optimize.linprog(
      np.append(np.zeros(n), 1), upper, np.zeros(2 * n), np.append(w, 0)[None], [b - w @ x], bounds
    )
    np.testing.assert_allclose(np.abs(found).max(), best.fun, rtol=1e-4)
  else:
    best = scipy.optimize.minimize(
      lambda d: d @ d,
      np.clip(found + 0.01, -x, 1 - x),
      jac=lambda d: 2 * d,
      method="SLSQP",
      bounds=[(-v, 1 - v) for v in x],
      options={"ftol": 1e-12, "maxiter": 500},
      constraints={"type": "eq", "fun": lambda d: w @ (x + d) - b, "jac": lambda d: w},
    )
    assert best.success
    np.testing.assert_allclose(found @ found, best.fun, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_beyond_the_box_is_approached_as_far_as_it_goes(norm):
  points, normal, offset, corner = hyperplane(0, reachable=False)
  found = project(points, normal, offset, norm)
  np.testing.assert_allclose(found, np.where(normal == 0, 0, corner), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_of_many_pixels_reaches_the_plane(norm):
  """The iteration converges for 3,072 pixels, most of them at the box's faces."""
  rng = np.random.default_rng(1)
  points = np.round(rng.random((8, 32, 32, 3))).astype(np.float32)
  points[:, :8] = rng.random((8, 8, 32, 3))
  normal = rng.standard_cauchy((8, 32, 32, 3)).astype(np.float32)
  corner = np.where(normal > 0, 1 - points, -points)
  goal = (normal * (points + 0.7 * corner)).sum((1, 2, 3))
  found = np.asarray(project(points, normal, goal, norm))
  reached = (normal.astype(float) * (points + found)).sum((1, 2, 3))
  scale = np.abs(normal * corner).sum((1, 2, 3))
  np.testing.assert_allclose((reached - goal) / scale, 0, atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_is_invariant_to_shift_and_scale(targeted):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(50, 6)).astype(np.float32)
  labels = rng.integers(6, size=50).astype(np.int32)
  targets = ((labels + 1 + rng.integers(5, size=50)) % 6).astype(np.int32)
  fn = losses.targeted_difference_of_logits_ratio if targeted else losses.difference_of_logits_ratio
  extra = (targets,) if targeted else ()
  values = jax.jit(fn)(logits, labels, *extra)
  np.testing.assert_allclose(
    jax.jit(fn)(3.5 * logits + 7.0, labels, *extra), values, rtol=1e-4, atol=1e-5
  )
  by_hand = []
  for z, y, t in zip(logits.astype(float), labels, targets):
    ranked = np.sort(z)[::-1]
    if targeted:
      by_hand.append(-(z[y] - z[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2))
    else:
      by_hand.append(-(z[y] - np.delete(z, y).max()) / (ranked[0] - ranked[2]))
  np.testing.assert_allclose(values, by_hand, rtol=1e-4)
  with pytest.raises(ValueError, match="at least"):
    fn(logits[:, :2], labels % 2, *extra)


def test_targets_are_the_wrong_classes_by_rank():
  logits = jnp.array([[0.1, 3.0, 2.0, 1.0], [5.0, 1.0, 2.0, 3.0]])
  batch = Batch(None, np.array([1, 2]), None, None, None, logits)
  rank = jax.jit(lambda run: ranked_targets(batch._replace(run=run)))
  found = [rank(np.full(2, run)).tolist() for run in range(3)]
  assert found == [[2, 0], [3, 3], [0, 1]]


def square_of(norm):
  return square_attack(norm=norm, image_shape=(12, 12, 3), num_steps=5000, num_runs=1)


def square_batch(norm_epsilon=0.1, count=6, size=12):
  return Batch(
    np.full((count, size, size, 3), 0.5, np.float32),
    np.zeros(count, np.int32),
    example_keys(KEY, np.arange(count)),
    np.zeros(count, np.int32),
    np.float32(norm_epsilon),
  )


def compiled(attack, predict):
  """The start and the step of an attack as two compiled programs."""
  return jax.jit(attack.start), jax.jit(functools.partial(attack.step, predict))


def test_square_changes_one_square_per_step_and_its_colours_are_extreme():
  attack, batch = square_of("linf"), square_batch()
  rising = lambda x: jnp.stack([jnp.zeros(len(x)), x.mean((1, 2, 3)) - 9], -1)  # never broken
  start, advance = compiled(attack, rising)
  state = start(batch)
  stripes = np.asarray(state["adversarial"])
  np.testing.assert_allclose(np.abs(stripes - 0.5), 0.1, atol=1e-6)
  assert (stripes == stripes[:, :1]).all() and not (stripes[0] == stripes[1]).all()
  state = state | {"margin": np.full(6, -np.inf, np.float32)}  # so that the step is kept
  new = np.asarray(advance(batch, state, np.full(6, 61))["adversarial"])
  edge = side(60, 12, 12)
  for before, after in zip(stripes, new):
    changed = (before != after).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 0 < len(rows) <= edge and np.ptp(rows) < edge and np.ptp(columns) < edge
    np.testing.assert_allclose(np.abs(after - 0.5), 0.1, atol=1e-6)
  worse = advance(batch, state | {"margin": np.full(6, np.inf, np.float32)}, np.full(6, 61))
  np.testing.assert_array_equal(
    worse["adversarial"], stripes
  )  # a step that does not help is undone


def test_square_in_l2_uses_the_whole_ball():
  attack, batch = square_of("l2"), square_batch(0.7)
  rising = lambda x: jnp.stack([jnp.zeros(len(x)), x.mean((1, 2, 3)) - 9], -1)
  start, advance = compiled(attack, rising)
  state = start(batch)
  for step in range(5):
    np.testing.assert_allclose(
      attacks.NORMS["l2"].size(np.asarray(state["adversarial"]) - batch.images), 0.7, rtol=1e-4
    )
    state = advance(
      batch, state | {"margin": np.full(6, -np.inf, np.float32)}, np.full(6, step * 30 + 1)
    )


def test_pyramids_have_unit_norm_and_opposite_halves():
  for size in (3, 5, 7, 11):
    values = pyramid(size)
    np.testing.assert_allclose(np.linalg.norm(values), 1, rtol=1e-6)
    assert (values[: size // 2] >= 0).all() and (values[size // 2 :] <= 0).all()
    assert np.abs(values).max() == np.abs(values[:, size // 2]).max()  # the peaks lie in the middle


def test_fgsm_by_hand():
  """Two classes, linear: x + epsilon sign(w_other - w_y), clipped."""
  weights = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
  images = np.random.default_rng(1).random((5, 2, 3, 2)).astype(np.float32)
  labels = np.array([0, 1, 0, 1, 1])
  found = attacks.fgsm(lambda x: x.reshape(len(x), -1) @ weights, images, labels, epsilon=0.3)
  away = np.sign(weights[:, 1 - labels] - weights[:, labels]).T.reshape(images.shape)
  np.testing.assert_allclose(found, np.clip(images + 0.3 * away, 0, 1), atol=1e-6)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_momentum_by_hand(keep):
  """The gradient changes sign: momentum continues where the gradient alone would turn back."""

  def predict(x):  # raised by x up to 0.6, lowered beyond; never wrong
    value = x.mean((1, 2, 3))
    return jnp.stack([jnp.full_like(value, 5.0), -jnp.abs(value - 0.6) * 4], -1)

  images, labels = np.full((1, 2, 2, 1), 0.5, np.float32), np.array([0])
  x, velocity, path = 0.5, 0.0, []
  for _ in range(3):
    gradient = np.sign(0.6 - x) / 4 or 0.0  # gradient of every pixel, divided by its L1 norm
    velocity = 0.9 * velocity + gradient
    x = x + 0.07 * np.sign(velocity)
    path.append(x)
  found = pgd(
    KEY,
    predict,
    images,
    labels,
    epsilon=0.4,
    step_size=0.07,
    num_steps=3,
    start="clean",
    keep=keep,
    momentum=0.9,
  )
  expected = path[-1] if keep == "last" else min(path, key=lambda value: abs(value - 0.6))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  plain = pgd(
    KEY,
    predict,
    images,
    labels,
    epsilon=0.4,
    step_size=0.07,
    num_steps=3,
    start="clean",
    keep="last",
  )
  assert abs(float(plain[0, 0, 0, 0]) - path[-1]) > 0.05


def test_carlini_wagner_finds_the_nearest_point_of_a_linear_model():
  """Two classes: the distance to the boundary is |margin| / |w_0 - w_1|."""
  weights = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
  predict = lambda x: (x - 0.5).reshape(len(x), -1) @ weights
  images = np.random.default_rng(1).uniform(0.4, 0.6, (6, 2, 3, 2)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1)
  found = jax.jit(
    lambda x: attacks.carlini_wagner(predict, x, labels, num_steps=200, first_constant=0.1)
  )(images)
  assert (np.asarray(predict(found)).argmax(-1) != labels).all()
  logits = np.asarray(predict(images))
  exact = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(weights[:, 0] - weights[:, 1])
  size = np.asarray(attacks.NORMS["l2"].size(found - images))
  assert (size >= exact * 0.999).all()
  np.testing.assert_allclose(size, exact, rtol=0.05, atol=2e-3)


def test_carlini_wagner_leaves_what_it_cannot_break():
  images = np.full((2, 2, 2, 1), 0.5, np.float32)
  sure = lambda x: (
    jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], -1) + 0 * x.mean((1, 2, 3))[:, None]
  )
  found = jax.jit(
    lambda x: attacks.carlini_wagner(sure, x, np.array([0, 0]), num_steps=5, num_searches=2)
  )(images)
  np.testing.assert_array_equal(found, images)


@pytest.fixture(scope="module")
def reviewed():
  """APGD of 100 steps on a model whose margin rises with the mean pixel and is never broken."""
  predict = lambda x: jnp.stack([jnp.full(len(x), 9.0), x.mean((1, 2, 3))], -1)
  return tuple(
    compiled(
      apgd_attack(
        norm="linf", loss="margin", targeted=False, num_steps=100, num_runs=1, num_samples=1
      ),
      predict,
    )
  )


@pytest.mark.parametrize(
  "raised, halved_before, improved, halves",
  [
    (15, True, True, True),  # with this look 16 of 22: at most 0.75 of the window
    (16, True, True, False),
    (16, False, True, False),
    (16, False, False, True),  # not halved last time, and the best loss has not risen since
    (16, True, False, False),
  ],
)
def test_apgd_halves_its_step_at_a_checkpoint(reviewed, raised, halved_before, improved, halves):
  """The look after move 22 of 100, which raises the loss: the step size, and where it goes on."""
  start, advance = reviewed
  batch = square_batch(count=1, size=4)
  state = start(batch)
  state |= {
    "x": batch.images + np.float32(0.0625),
    "previous": batch.images - np.float32(0.05),
    "loss": np.full(1, -9.0, np.float32),
    "best": batch.images - np.float32(0.09),
    "best_loss": np.full(1, -9.0 if improved else 5.0, np.float32),
    "loss_at_review": np.full(1, -8.9 if improved else 5.0, np.float32),
    "raised": np.full(1, raised, np.int32),
    "halved": np.full(1, halved_before),
  }
  after = advance(batch, state, np.full(1, 22))
  assert float(after["step_size"][0]) == pytest.approx(0.1 if halves else 0.2)
  assert bool(after["halved"][0]) == halves and int(after["raised"][0]) == 0
  # Where the step is halved, the run moves on from its best point, which may be this one. From
  # 0.0625, z = P(0.0625 + step) = 0.1, and 3/4 of the way to it and 1/4 of the last move end beyond
  # 0.1. The gradient at -0.09 was not looked at: only the last move is left.
  going_on, moved = ("previous", "x")
  if halves and not improved:
    np.testing.assert_allclose(after[going_on], batch.images - 0.09, atol=1e-6)
    np.testing.assert_allclose(after[moved], batch.images - 0.1, atol=1e-6)
  else:
    np.testing.assert_allclose(after[going_on], batch.images + 0.0625, atol=1e-6)
    np.testing.assert_allclose(after[moved], batch.images + 0.1, atol=1e-6)
  between = advance(batch, state, np.full(1, 21))
  assert float(between["step_size"][0]) == pytest.approx(0.2)
  assert int(between["raised"][0]) == raised + 1
