"""PGD: closed forms on linear models, the ball and the box, independence of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks

KEY = jax.random.key(3)
SHAPE = (3, 4, 2)
# One program per set of options and shapes: many small programs would take longer to compile.
# `predict` is an argument, so that its weights are not constants.
pgd = jax.jit(
  attacks.pgd,
  static_argnames=("num_steps", "norm", "loss", "start", "keep", "momentum", "num_restarts"),
)


def _linear(weights, images):
  return (images - 0.5).reshape(len(images), -1) @ weights


def linear_model(classes=2, seed=0):
  rng = np.random.default_rng(seed)
  weights = rng.normal(size=(int(np.prod(SHAPE)), classes)).astype(np.float32)
  return weights, jax.tree_util.Partial(_linear, weights)


def interior_images(count=64, seed=1):
  """Images away from the edges of the box, so that the ball's closed form holds."""
  return np.random.default_rng(seed).uniform(0.4, 0.6, (count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("loss", attacks.LOSSES)
@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
def test_linear_model_equals_the_closed_form(norm, dual, loss):
  """Two classes: x is robust at epsilon iff z_y - z_other > epsilon |w_y - w_other|_dual."""
  weights, predict = linear_model()
  if loss == "dlr":  # needs a third class, here one that never matters
    two, predict = (
      predict,
      jax.tree_util.Partial(lambda x: jnp.pad(two(x), ((0, 0), (0, 1)), constant_values=-1e3)),
    )
  images = interior_images()
  labels = np.asarray(predict(images)).argmax(-1)
  difference = weights[:, 0] - weights[:, 1]
  distance = np.abs((images - 0.5).reshape(len(images), -1) @ difference) / np.linalg.norm(
    difference, dual
  )
  for epsilon in np.quantile(distance, [0.1, 0.5, 0.9]):
    adversarial = pgd(
      KEY,
      predict,
      images,
      labels,
      epsilon=epsilon,
      num_steps=10,
      step_size=epsilon / 2,
      norm=norm,
      loss=loss,
    )
    robust = np.asarray(predict(adversarial)).argmax(-1) == labels
    undecided = np.abs(distance - epsilon) < 1e-5
    np.testing.assert_array_equal(robust[~undecided], (distance > epsilon)[~undecided])
    assert 0 < robust.mean() < 1


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
def test_confident_models_are_not_flattered(norm, dual):
  """The closed form also holds with logits times 400, whose margins are 100 and more."""
  weights, predict = linear_model()
  images = interior_images()
  labels = np.asarray(predict(images)).argmax(-1)
  difference = weights[:, 0] - weights[:, 1]
  distance = np.abs((images - 0.5).reshape(len(images), -1) @ difference) / np.linalg.norm(
    difference, dual
  )
  epsilon = np.quantile(distance, 0.9)
  scaled = jax.tree_util.Partial(_linear, 400 * weights)
  assert np.ptp(np.asarray(scaled(images)), axis=-1).max() > 60
  adversarial = pgd(
    KEY, scaled, images, labels, epsilon=epsilon, num_steps=10, step_size=epsilon / 2, norm=norm
  )
  robust = np.asarray(predict(adversarial)).argmax(-1) == labels
  undecided = np.abs(distance - epsilon) < 1e-5
  np.testing.assert_array_equal(robust[~undecided], (distance > epsilon)[~undecided])


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_stays_in_the_ball_and_the_box_and_uses_both(norm):
  _, predict = linear_model(classes=5)
  images = np.random.default_rng(2).random((32, *SHAPE)).astype(np.float32)
  labels = np.zeros(32, np.int32)
  adversarial = np.asarray(
    pgd(KEY, predict, images, labels, epsilon=0.4, step_size=0.1, num_steps=7, norm=norm)
  )
  size = attacks.NORMS[norm].size(adversarial - images)
  assert size.max() <= 0.4 + 1e-6 and size.max() > 0.39
  assert adversarial.min() == 0 and adversarial.max() == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_against_numpy(norm):
  perturbation = np.random.default_rng(3).normal(size=(16, *SHAPE)).astype(np.float32)
  images = np.full((16, *SHAPE), 0.5, np.float32)
  projected = jax.jit(attacks.NORMS[norm].project)(images + perturbation, images, 0.7)
  if norm == "linf":
    expected = np.clip(perturbation, -0.7, 0.7)
  else:
    size = np.linalg.norm(perturbation.reshape(16, -1), axis=1).reshape(16, 1, 1, 1)
    expected = perturbation * np.minimum(1, 0.7 / size)
  np.testing.assert_allclose(projected, np.clip(images + expected, 0, 1), rtol=1e-5, atol=1e-6)


def test_random_starts_fill_the_ball_uniformly():
  keys = jax.random.split(KEY, 4000)
  images = jnp.zeros((4000, 1, 2, 1))
  for norm, share_inside_half in (("linf", 1 / 4), ("l2", 1 / 4)):  # (1/2)^dimension
    start = jax.jit(attacks.NORMS[norm].start)(keys, images, 0.3)
    size = np.asarray(attacks.NORMS[norm].size(start))
    assert size.max() <= 0.3
    assert abs((size < 0.15).mean() - share_inside_half) < 0.03


def test_outcome_does_not_depend_on_the_batch():
  """Each image alone, in another order, gives the same adversarial image."""
  _, predict = linear_model(classes=4)
  images, labels = interior_images(6), np.arange(6) % 4
  options = dict(epsilon=0.1, step_size=0.03, num_steps=3, num_restarts=2)
  together = np.asarray(pgd(KEY, predict, images, labels, **options))
  order = np.array([4, 1, 5])
  apart = pgd(KEY, predict, images[order], labels[order], indices=order, **options)
  np.testing.assert_allclose(apart, together[order], atol=1e-6)
  swapped = pgd(KEY, predict, images[order], labels[order], **options)
  assert not np.allclose(swapped, together[order], atol=1e-3)


def test_keeps_the_best_iterate():
  """A step that is too long leaves the adversarial region; the best iterate is still returned."""
  center, width = 0.5, 0.02

  @jax.tree_util.Partial
  def predict(images):  # wrong only within +-0.02 of the clean image + 0.1
    value = images.mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(value), width - jnp.abs(value - center - 0.1)], -1)

  images = np.full((1, *SHAPE), center, np.float32)
  adversarial = pgd(
    KEY, predict, images, np.array([0]), epsilon=0.3, step_size=0.1, num_steps=7, start="clean"
  )
  assert predict(adversarial).argmax(-1) == 1


def test_a_misclassified_iterate_beats_one_with_a_higher_loss():
  """Along the path the image is wrong at +0.1 (p_y = 0.45), and right at +0.2 (p_y = 0.34)."""
  table = np.log([[0.8, 0.1, 0.1], [0.45, 0.5, 0.05], [0.34, 0.33, 0.33]])

  @jax.tree_util.Partial
  def predict(images):
    value = images.mean((1, 2, 3)) - 0.5
    return jnp.stack(
      [jnp.interp(value, jnp.array([0, 0.1, 0.2]), jnp.asarray(column)) for column in table.T], -1
    )

  images = np.full((1, *SHAPE), 0.5, np.float32)
  adversarial = pgd(
    KEY, predict, images, np.array([0]), epsilon=0.2, step_size=0.1, num_steps=3, start="clean"
  )
  np.testing.assert_allclose(adversarial, 0.6, atol=1e-6)


def test_more_restarts_never_help_the_model():
  _, predict = linear_model(classes=6, seed=4)
  images = interior_images(200, seed=5)
  labels = np.asarray(predict(images)).argmax(-1)

  @jax.tree_util.Partial
  def bumpy(x):  # gradients point the wrong way
    return predict(x + 0.02 * jnp.sin(200 * x))

  robust = [
    np.asarray(
      bumpy(
        pgd(
          KEY,
          bumpy,
          images,
          labels,
          epsilon=0.02,
          step_size=0.005,
          num_steps=3,
          num_restarts=restarts,
        )
      )
    ).argmax(-1)
    == labels
    for restarts in (1, 5)
  ]
  assert not (robust[1] & ~robust[0]).any() and robust[1].sum() < robust[0].sum()


def test_zero_radius_and_zero_gradient_leave_the_image():
  images, labels = interior_images(4), np.zeros(4, np.int32)
  flat = jax.tree_util.Partial(lambda x: jnp.zeros((len(x), 3)))
  for norm in attacks.NORMS:
    adversarial = pgd(KEY, flat, images, labels, epsilon=0.0, step_size=0.1, num_steps=3, norm=norm)
    np.testing.assert_array_equal(adversarial, images)
    assert np.isfinite(
      pgd(KEY, flat, images, labels, epsilon=0.1, step_size=0.1, num_steps=3, norm=norm)
    ).all()


@pytest.mark.parametrize("start", attacks.STARTS)
@pytest.mark.parametrize("norm", attacks.NORMS)
def test_the_last_iterate_of_a_loss_of_ones_own_against_numpy(norm, start):
  """Three steps that raise the weighted sum of the pixels: the gradient is the weights."""
  images = np.random.default_rng(6).random((5, *SHAPE)).astype(np.float32)
  weights = np.random.default_rng(7).normal(size=SHAPE).astype(np.float32)
  scale = np.array([1.0, -2.0, 3.0, 0.5, -1.0], np.float32)
  adversarial = pgd(
    KEY,
    jax.tree_util.Partial(lambda x: jnp.sum(x * weights[None], axis=(1, 2, 3))[:, None]),
    images,
    scale,
    epsilon=0.2,
    step_size=0.07,
    num_steps=3,
    norm=norm,
    start=start,
    keep="last",
    loss=lambda values, scale: values[:, 0] * scale,
  )
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, 0), i))(jnp.arange(5))
  begin = {
    "clean": 0,
    "gaussian": 1e-3 * np.asarray(jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)),
    "uniform": np.asarray(attacks.NORMS[norm].start(keys, images, 0.2)),
  }[start]
  project = lambda x: np.asarray(attacks.NORMS[norm].project(x, images, 0.2))
  step = np.asarray(attacks.NORMS[norm].direction(weights[None])[0])
  x = project(images + begin)
  for _ in range(3):
    x = project(x + 0.07 * np.sign(scale)[:, None, None, None] * step)
  np.testing.assert_allclose(adversarial, x, atol=1e-6)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(norm="l0"), "choose one of: l1, l2, linf"),
    (dict(loss="hinge"), "choose one of: cross_entropy, dlr, margin"),
    (dict(num_restarts=0), "at least"),
    (
      dict(num_restarts=2, start="clean"),
      "from start=.clean. all restarts coincide; choose a random start",
    ),
    (
      dict(num_restarts=2, keep="last"),
      "with keep=.last. all but the last restart are lost; use keep=.best.",
    ),
    (dict(start="corner"), "choose one of: clean, gaussian, uniform"),
    (dict(keep="first"), "choose one of: best, last"),
  ],
)
def test_wrong_options_are_errors(options, message):
  _, predict = linear_model()
  with pytest.raises(ValueError, match=message):
    attacks.pgd(
      KEY,
      predict,
      interior_images(2),
      np.zeros(2, np.int32),
      **dict(epsilon=0.1, step_size=0.1, num_steps=1) | options,
    )
