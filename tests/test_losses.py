"""losses: against NumPy, by hand."""

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


@pytest.mark.parametrize(
  "call",
  [
    lambda: losses.soft_cross_entropy(LOGITS, LOGITS[:1]),
    lambda: losses.cross_entropy(LOGITS, jnp.array([0.0, 1.0])),
    lambda: losses.margin(LOGITS[0], jnp.array([0])),
    lambda: losses.kl_divergence(LOGITS, LOGITS[:, :2]),
  ],
)
def test_wrong_shapes_and_types_are_errors(call):
  with pytest.raises(AssertionError):
    call()
