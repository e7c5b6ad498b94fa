"""What is minimised or attacked: per-example losses and penalties, as pure functions.

`logits` are float [batch, classes]; soft `labels` are float [batch, classes], hard ones int
[batch]. Every function returns [batch]: the caller takes the mean. Nothing of the package is
imported.
"""

import chex
import jax
import jax.numpy as jnp
import optax


def soft_cross_entropy(logits, labels):
  """Cross-entropy with soft labels: -sum_k y_k log softmax(z)_k, in nats.

  Args:
    logits: float array [batch, classes].
    labels: float array [batch, classes], rows sum to 1.

  Returns:
    Float array [batch].

  Raises:
    AssertionError: shapes differ or are not rank 2.
  """
  chex.assert_rank([logits, labels], 2)
  chex.assert_equal_shape([logits, labels])
  return optax.losses.softmax_cross_entropy(logits, labels)


def cross_entropy(logits, labels):
  """Cross-entropy with integer labels: -log softmax(z)_y, in nats.

  Computed as softplus(log_odds), which is the same number but keeps its gradient: that of the usual
  form, softmax(z) - onehot(y), loses the label's part in float32 once the label leads by about 17.

  Args:
    logits: float array [batch, classes].
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    AssertionError: wrong ranks or dtypes.
  """
  return jax.nn.softplus(log_odds(logits, labels))


def log_odds(logits, labels):
  """Log odds against the label: log((1 - p_y) / p_y) = logsumexp_{k != y}(z_k - z_y).

  A monotone function of the cross-entropy, log(exp(CE) - 1): an attack that follows the direction
  of its gradient takes the very steps of one on the cross-entropy. But its gradient never vanishes,
  while that of the cross-entropy is smaller than any float32 once the label leads by about 100:
  confident models would look robust.

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    AssertionError: wrong ranks or dtypes.
  """
  others, true = _split(logits, labels)
  return jax.nn.logsumexp(others - true[:, None], axis=-1)


def margin(logits, labels):
  """Margin by which the best wrong class wins: max_{k != y} z_k - z_y.

  Positive exactly where the example is misclassified, so its maximisation is the Linf attack with
  the loss of Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017
  (f_6 without its clipping).

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    AssertionError: wrong ranks or dtypes.
  """
  others, true = _split(logits, labels)
  return jnp.max(others, axis=-1) - true


def targeted_margin(logits, labels, targets):
  """Margin by which one wrong class wins: z_t - z_y.

  Args:
    logits: float array [batch, classes].
    labels, targets: int arrays [batch].

  Returns:
    Float array [batch].

  Raises:
    AssertionError: wrong ranks or dtypes.
  """
  chex.assert_rank([logits, labels, targets], [2, 1, 1])
  chex.assert_type([labels, targets], int)
  return _take(logits, targets) - _take(logits, labels)


def difference_of_logits_ratio(logits, labels):
  """DLR: -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), z_(i) the i-th largest logit.

  Positive exactly where the example is misclassified; unchanged when the logits are shifted or
  scaled, so that no confidence hides it. (Croce, Hein, "Reliable Evaluation of Adversarial
  Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML 2020.)

  Args:
    logits: float array [batch, classes], at least 3 classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: fewer than 3 classes.
    AssertionError: wrong ranks or dtypes.
  """
  if logits.shape[-1] < 3:
    raise ValueError(f"the DLR loss needs at least 3 classes, not {logits.shape[-1]}; use margin")
  ranked = jnp.sort(logits, axis=-1)
  return margin(logits, labels) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def targeted_difference_of_logits_ratio(logits, labels, targets):
  """Targeted DLR: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest logit.

  Args:
    logits: float array [batch, classes], at least 4 classes.
    labels, targets: int arrays [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: fewer than 4 classes.
    AssertionError: wrong ranks or dtypes.
  """
  if logits.shape[-1] < 4:
    raise ValueError(
      f"the targeted DLR loss needs at least 4 classes, not {logits.shape[-1]}; use targeted_margin"
    )
  ranked = jnp.sort(logits, axis=-1)
  scale = ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2
  return targeted_margin(logits, labels, targets) / (scale + 1e-12)


def _take(logits, classes):
  return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _split(logits, labels):
  """The logits with -inf at the label, and the label's logit [batch]."""
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_type(labels, int)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return (jnp.where(is_label, -jnp.inf, logits), jnp.sum(jnp.where(is_label, logits, 0), axis=-1))


def kl_divergence(logits, target_logits):
  """KL(softmax(target) || softmax(logits)) = sum_k p_k (log p_k - log q_k), in nats.

  With the clean logits as target this is the regulariser of TRADES (Zhang et al., ICML 2019).
  Gradients flow through both arguments; use `jax.lax.stop_gradient` where that is not wanted.

  Args:
    logits: float array [batch, classes], gives q.
    target_logits: float array [batch, classes], gives p.

  Returns:
    Float array [batch], >= 0 up to rounding.

  Raises:
    AssertionError: shapes differ or are not rank 2.
  """
  chex.assert_rank([logits, target_logits], 2)
  chex.assert_equal_shape([logits, target_logits])
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(target_logits, axis=-1)
  )


# For the norm of a ball, the dual norm of the gradient: by how much a small ball raises the loss.
DUAL_NORMS = {
  "linf": lambda gradient: jnp.sum(jnp.abs(gradient), axis=(1, 2, 3)),
  "l2": lambda gradient: _l2(gradient),
}


def input_gradient_norm(loss, images, norm="linf"):
  """Dual norm of the input gradient: |grad_x loss(x)|_1 for the norm Linf, |.|_2 for L2.

  Times epsilon it is, to first order, what the worst perturbation of that size adds to the loss.
  Differentiable with respect to whatever `loss` closes over (double back-propagation; Drucker, Le
  Cun, "Improving Generalization Performance Using Double Backpropagation", IEEE TNN 1992).

  Args:
    loss: function images -> [batch], one value per example.
    images: float array [batch, height, width, channels].
    norm: a key of `DUAL_NORMS`.

  Returns:
    Float array [batch], in loss per pixel unit. Where a model mixes its batch (batch norm in
    training mode), the gradient is that of the sum of the batch's losses.

  Raises:
    ValueError: unknown norm (the choices are listed).
    AssertionError: images of a wrong rank or dtype.
  """
  if norm not in DUAL_NORMS:
    raise ValueError(
      f"input_gradient_norm: norm is {norm!r}; choose one of: {', '.join(sorted(DUAL_NORMS))}"
    )
  return DUAL_NORMS[norm](_input_gradient(loss, images))


def curvature(loss, images, h, squared=True):
  """Change of the input gradient along its own sign: |g(x + h z) - g(x)|^2, g = grad_x loss.

  z = sign(g(x)) / |sign(g(x))|_2, through which no gradient flows. On a quadratic with Hessian H
  this is h^2 |H z|^2. (CURE: Moosavi-Dezfooli et al., "Robustness via Curvature Regularization, and
  Vice Versa", CVPR 2019.)

  Args:
    loss: function images -> [batch], one value per example.
    images: float array [batch, height, width, channels].
    h: length of the finite difference, an L2 norm in pixel units.
    squared: whether to square the norm.

  Returns:
    Float array [batch].

  Raises:
    AssertionError: images of a wrong rank or dtype.
  """
  gradient = _input_gradient(loss, images)
  direction = jnp.sign(jax.lax.stop_gradient(gradient))
  size = _l2(direction)[:, None, None, None]
  difference = _input_gradient(loss, images + h * direction / size) - gradient
  return jnp.sum(difference**2, axis=(1, 2, 3)) if squared else _l2(difference)


def _l2(values):
  """L2 norm per example; the gradient is 0, not NaN, where the values are."""
  return optax.safe_norm(values.reshape(len(values), -1), 1e-30, axis=-1)


def _input_gradient(loss, images):
  chex.assert_rank(images, 4)
  chex.assert_type(images, float)
  return jax.grad(lambda x: jnp.sum(loss(x)))(images)
