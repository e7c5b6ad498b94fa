"""Losses against NumPy, SciPy and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sprout_jax import losses

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 300.0, -300.0]], np.float32)


def test_soft_cross_entropy_and_its_gradient():
  labels = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], np.float32)
  expected = -(labels * scipy.special.log_softmax(LOGITS, axis=-1)).sum(-1)
  np.testing.assert_allclose(losses.soft_cross_entropy(LOGITS, labels), expected, rtol=1e-6)
  gradient = jax.grad(lambda z: losses.soft_cross_entropy(z, labels).sum())(jnp.asarray(LOGITS))
  np.testing.assert_allclose(gradient, scipy.special.softmax(LOGITS, axis=-1) - labels, atol=1e-6)


def test_cross_entropy_is_the_soft_one_of_one_hot_labels():
  labels = jnp.array([2, 0])
  np.testing.assert_allclose(
    losses.cross_entropy(LOGITS, labels),
    losses.soft_cross_entropy(LOGITS, jax.nn.one_hot(labels, 3)),
    rtol=1e-6,
  )


def test_cross_entropy_keeps_its_gradient_on_confident_logits():
  """softmax - onehot rounds to zero for the label beyond a lead of about 17; float64 does not."""
  z = np.array([[40.0, 0.0, 1.0]])
  gradient = jax.grad(lambda z: losses.cross_entropy(z, jnp.array([0])).sum())(
    jnp.asarray(z, jnp.float32)
  )
  p = np.exp(z - scipy.special.logsumexp(z))
  np.testing.assert_allclose(gradient, [[-(p[0, 1] + p[0, 2]), p[0, 1], p[0, 2]]], rtol=1e-4)
  assert abs(float(gradient.sum())) < 1e-3 * float(gradient[0, 2])


def test_log_odds_are_a_monotone_function_of_the_cross_entropy():
  labels = jnp.array([2, 0])
  np.testing.assert_allclose(
    losses.log_odds(LOGITS[:1], labels[:1]),
    np.log(np.expm1(losses.cross_entropy(LOGITS[:1], labels[:1]))),
    rtol=1e-5,
  )
  gradient = jax.grad(lambda z: losses.log_odds(z, labels).sum())(
    jnp.array([[0, 0, 0], [9e4, 1, 1]])
  )
  np.testing.assert_allclose(gradient, [[0.5, 0.5, -1], [-1, 0.5, 0.5]], rtol=1e-6)


def test_margin_by_hand():
  np.testing.assert_allclose(losses.margin(LOGITS, jnp.array([0, 2])), [-1.5, 600.0])
  gradient = jax.grad(lambda z: losses.margin(z, jnp.array([0, 2])).sum())(jnp.asarray(LOGITS))
  np.testing.assert_array_equal(gradient, [[-1, 0, 1], [0, 1, -1]])


def test_kl_divergence_equals_scipy_and_is_zero_on_the_diagonal():
  target, other = LOGITS[:1], np.array([[0.3, 1.2, -2.0]], np.float32)
  p, q = (scipy.special.softmax(z, axis=-1) for z in (target, other))
  np.testing.assert_allclose(
    losses.kl_divergence(other, target), scipy.special.rel_entr(p, q).sum(-1), rtol=1e-5
  )
  np.testing.assert_allclose(losses.kl_divergence(LOGITS, LOGITS), 0, atol=1e-7)


def test_ratios_of_logits_by_hand():
  logits = np.array([[3.0, 1.0, 0.0, -2.0], [0.0, 5.0, 1.0, 3.0]], np.float32)
  labels, targets = jnp.array([0, 2]), jnp.array([2, 3])
  np.testing.assert_allclose(
    losses.difference_of_logits_ratio(logits, labels), [(1 - 3) / (3 - 0), (5 - 1) / (5 - 1)]
  )
  np.testing.assert_allclose(
    losses.targeted_difference_of_logits_ratio(logits, labels, targets),
    [(0 - 3) / (3 - (0 - 2) / 2), (3 - 1) / (5 - (1 + 0) / 2)],
    rtol=1e-6,
  )
  np.testing.assert_allclose(losses.targeted_margin(logits, labels, targets), [-3, 2])


def test_norms_and_curvature_of_a_quadratic():
  """loss = sum(d x^2) / 2 has the gradient d x, which changes along z by h d z."""
  d, h = np.array([1.0, -2.0, 4.0, 0.5], np.float32), 0.1
  x = np.array([[1.0, 1.0, -2.0, 3.0], [0.5, -1.0, 1.0, 1.0]], np.float32)
  loss = lambda images: jnp.sum(d[None] * images.reshape(-1, 4) ** 2, axis=-1) / 2
  images = jnp.asarray(x.reshape(2, 2, 2, 1))
  np.testing.assert_allclose(
    losses.input_gradient_norm(loss, images), np.abs(d * x).sum(-1), rtol=1e-6
  )
  np.testing.assert_allclose(
    losses.input_gradient_norm(loss, images, "l2"), np.linalg.norm(d * x, axis=-1), rtol=1e-6
  )
  change = h * np.linalg.norm(d * np.sign(d * x) / 2, axis=-1)  # four signs have L2 norm 2
  np.testing.assert_allclose(losses.curvature(loss, images, h), change**2, rtol=1e-4)
  np.testing.assert_allclose(losses.curvature(loss, images, h, squared=False), change, rtol=1e-4)


SOFT = np.full((2, 3), 1 / 3, np.float32)
HARD = jnp.array([0, 1])


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: losses.soft_cross_entropy(LOGITS, LOGITS[:1]),
      r"^soft_cross_entropy: `labels` has shape \(1, 3\); expected a float array "
      r"\[batch, classes\] with batch = 2, as in `logits`$",
    ),
    (
      lambda: losses.soft_cross_entropy(LOGITS, SOFT[:, :2]),
      "`labels` has shape .* with classes = 3, as in `logits`",
    ),
    (
      lambda: losses.soft_cross_entropy(LOGITS, HARD),
      r"`labels` has shape \(2,\); .*; for integer labels, jax.nn.one_hot\(labels, classes\)$",
    ),
    (
      lambda: losses.soft_cross_entropy(LOGITS.tolist(), SOFT),
      r"`logits` is a list; expected a float array .*, as from jnp.asarray\(logits\)$",
    ),
    (
      lambda: losses.soft_cross_entropy(LOGITS.astype(int), SOFT),
      r"`logits` has dtype int64; expected a float array .*: logits.astype\(jnp.float32\)$",
    ),
    (
      lambda: losses.cross_entropy(LOGITS, jnp.array([0.0, 1.0])),
      r"`labels` has dtype float32; expected an int array \[batch\]: labels.astype\(jnp.int32\)$",
    ),
    (
      lambda: losses.cross_entropy(LOGITS, SOFT),
      r"`labels` has shape \(2, 3\); expected an int array \[batch\]; for soft labels, "
      r"labels.argmax\(-1\)$",
    ),
    (
      lambda: losses.log_odds(LOGITS[:, :1], HARD),
      r"^log_odds: `logits` has shape \(2, 1\); expected at least 2 classes",
    ),
    (
      lambda: losses.margin(LOGITS[0], HARD),
      r"^margin: `logits` has shape \(3,\); .*; for one example, logits\[None\]$",
    ),
    (lambda: losses.margin(LOGITS[:, :1], HARD), "^margin: .*stack 0 and z"),
    (
      lambda: losses.targeted_margin(LOGITS, HARD, HARD[:1]),
      "^targeted_margin: `targets` has shape .* with batch = 2, as in `logits`",
    ),
    (
      lambda: losses.targeted_margin(LOGITS, HARD, HARD * 1.0),
      "^targeted_margin: `targets` has dtype float32; expected an int array",
    ),
    (
      lambda: losses.difference_of_logits_ratio(LOGITS[:, :2], HARD),
      "^difference_of_logits_ratio: `logits` has 2 classes; expected at least 3; .*use `margin`$",
    ),
    (
      lambda: losses.difference_of_logits_ratio(LOGITS[0], HARD),
      "^difference_of_logits_ratio: `logits` has shape",
    ),
    (
      lambda: losses.targeted_difference_of_logits_ratio(LOGITS, HARD, HARD),
      "^targeted_difference_of_logits_ratio: `logits` has 3 classes; .*use `targeted_margin`$",
    ),
    (
      lambda: losses.targeted_difference_of_logits_ratio(LOGITS, HARD, SOFT),
      "^targeted_difference_of_logits_ratio: `targets` has shape",
    ),
    (
      lambda: losses.kl_divergence(LOGITS, LOGITS[:, :2]),
      "^kl_divergence: `target_logits` has shape .* with classes = 3, as in `logits`",
    ),
    (
      lambda: losses.input_gradient_norm(jnp.sum, SOFT, "l1"),
      "^input_gradient_norm: norm is 'l1'; choose one of: l2, linf$",
    ),
    (
      lambda: losses.input_gradient_norm(jnp.sum, np.zeros((2, 4, 4, 1), np.float32)),
      r"^input_gradient_norm: `loss` returns shape \(\), dtype float32; .* \[2\], one number per",
    ),
    (
      lambda: losses.curvature(lambda: None, np.zeros((2, 4, 4, 1), np.float32), 0.1),
      "^curvature: `loss` raises TypeError: .* expected a function of one array",
    ),
    (
      lambda: losses.input_gradient_norm(jnp.sum, np.zeros((4, 4, 1), np.float32)),
      r"^input_gradient_norm: `images` has shape \(4, 4, 1\); .*; for one image, images\[None\]$",
    ),
    (
      lambda: losses.curvature(jnp.sum, np.zeros((1, 4, 4, 1), np.uint8), 0.1),
      "^curvature: `images` has dtype uint8; expected a float array",
    ),
    (
      lambda: losses.curvature(jnp.sum, np.zeros((1, 4, 4, 1), np.float32), 0),
      "^curvature: `h` is 0; expected a finite number greater than 0$",
    ),
    (
      lambda: losses.curvature(jnp.sum, np.zeros((1, 4, 4, 1), np.float32), -0.1),
      "^curvature: `h` is -0.1; expected a finite number",
    ),
  ],
)
def test_wrong_arguments_are_value_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_wrong_shapes_are_found_inside_jit():
  with pytest.raises(ValueError, match="^margin: `labels` has shape"):
    jax.jit(losses.margin)(LOGITS, HARD[:1])
