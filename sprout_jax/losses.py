"""Losses and penalties per example, as pure functions.

`logits` are float [batch, classes]. Soft `labels` are float [batch, classes], hard ones int
[batch]. Every function returns [batch]: the caller takes the mean. A wrong argument raises
ValueError.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sprout_jax.arguments import IMAGES
from sprout_jax.arguments import check_arrays
from sprout_jax.arguments import check_choice
from sprout_jax.arguments import check_number
from sprout_jax.arguments import per_example


def soft_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy with soft labels: -sum_k y_k log softmax(z)_k, in nats.

  Args:
    logits: float array [batch, classes].
    labels: float array [batch, classes], rows sum to 1.

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong dtypes, or shapes that differ or are not [batch, classes].
  """
  check_arrays(
    "soft_cross_entropy",
    logits=(logits, "float", "batch classes"),
    labels=(labels, "float", "batch classes"),
  )
  return optax.losses.softmax_cross_entropy(logits, labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy with integer labels: -log softmax(z)_y, in nats.

  It is computed as softplus(log_odds), the same number with a better gradient. The gradient of the
  usual form, softmax(z) - onehot(y), loses the label's part in float32 once the label leads by
  about 17.

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes, or fewer than two classes.
  """
  return jax.nn.softplus(_log_odds("cross_entropy", logits, labels))


def log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Log odds against the label: log((1 - p_y) / p_y) = logsumexp_{k != y}(z_k - z_y).

  This is log(exp(CE) - 1), a monotone function of the cross-entropy CE. So an attack that follows
  the direction of its gradient takes the same steps as an attack on the cross-entropy. But the
  gradient of the log odds never vanishes. That of the cross-entropy is smaller than any float32
  once the label leads by about 100, and confident models would look robust.

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes, or fewer than two classes.
  """
  return _log_odds("log_odds", logits, labels)


def _log_odds(who: str, logits: jax.Array, labels: jax.Array) -> jax.Array:
  others, true = _split(who, logits, labels)
  return jax.nn.logsumexp(others - true[:, None], axis=-1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Margin by which the best wrong class wins: max_{k != y} z_k - z_y.

  It is positive exactly where the example is misclassified. Maximised in a ball, it is the loss of
  Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017 (f_6 without
  its clipping).

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes, or fewer than two classes.
  """
  others, true = _split("margin", logits, labels)
  return jnp.max(others, axis=-1) - true


def targeted_margin(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Margin by which one wrong class wins: z_t - z_y.

  Args:
    logits: float array [batch, classes].
    labels: int array [batch], the true classes y.
    targets: int array [batch], the wrong classes t.

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes.
  """
  _check_targeted("targeted_margin", logits, labels, targets)
  return _take(logits, targets) - _take(logits, labels)


def difference_of_logits_ratio(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Difference of logits ratio: -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)).

  z_(i) is the i-th largest logit. The ratio is positive exactly where the example is misclassified.
  Shifting or scaling the logits does not change it, so that high confidence hides nothing. (Croce,
  Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
  Attacks", ICML 2020.)

  Args:
    logits: float array [batch, classes], at least 3 classes.
    labels: int array [batch].

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes, or fewer than 3 classes.
  """
  _check_hard("difference_of_logits_ratio", logits, labels)
  if logits.shape[-1] < 3:
    raise ValueError(
      f"difference_of_logits_ratio: `logits` has {logits.shape[-1]} classes; expected at least 3; "
      "for fewer, use `margin`"
    )
  ranked = jnp.sort(logits, axis=-1)
  return margin(logits, labels) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def targeted_difference_of_logits_ratio(
  logits: jax.Array, labels: jax.Array, targets: jax.Array
) -> jax.Array:
  """Targeted difference of logits ratio: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

  z_(i) is the i-th largest logit. (Croce, Hein, ICML 2020.)

  Args:
    logits: float array [batch, classes], at least 4 classes.
    labels: int array [batch], the true classes y.
    targets: int array [batch], the wrong classes t.

  Returns:
    Float array [batch].

  Raises:
    ValueError: wrong shapes or dtypes, or fewer than 4 classes.
  """
  _check_targeted("targeted_difference_of_logits_ratio", logits, labels, targets)
  if logits.shape[-1] < 4:
    raise ValueError(
      f"targeted_difference_of_logits_ratio: `logits` has {logits.shape[-1]} classes; expected at "
      "least 4; for fewer, use `targeted_margin`"
    )
  ranked = jnp.sort(logits, axis=-1)
  scale = ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2
  return targeted_margin(logits, labels, targets) / (scale + 1e-12)


def _take(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _split(who: str, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The logits with -inf at the label, [batch, classes], and the label's logit, [batch]."""
  _check_hard(who, logits, labels)
  if logits.shape[-1] < 2:
    raise ValueError(
      f"{who}: `logits` has shape {logits.shape}; expected at least 2 classes (one output z of a "
      "binary model: stack 0 and z)"
    )
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return (jnp.where(is_label, -jnp.inf, logits), jnp.sum(jnp.where(is_label, logits, 0), axis=-1))


def _check_hard(who: str, logits: jax.Array, labels: jax.Array) -> None:
  check_arrays(who, logits=(logits, "float", "batch classes"), labels=(labels, "int", "batch"))


def _check_targeted(who: str, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> None:
  check_arrays(
    who,
    logits=(logits, "float", "batch classes"),
    labels=(labels, "int", "batch"),
    targets=(targets, "int", "batch"),
  )


def kl_divergence(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
  """Kullback-Leibler divergence KL(p || q) = sum_k p_k (log p_k - log q_k), in nats.

  p = softmax(target_logits) and q = softmax(logits). With the clean logits as target this is the
  regulariser of TRADES (Zhang et al., ICML 2019). Gradients flow through both arguments; stop one
  with `jax.lax.stop_gradient`.

  Args:
    logits: float array [batch, classes], gives q.
    target_logits: float array [batch, classes], gives p.

  Returns:
    Float array [batch], at least 0 up to rounding.

  Raises:
    ValueError: wrong dtypes, or shapes that differ or are not [batch, classes].
  """
  check_arrays(
    "kl_divergence",
    logits=(logits, "float", "batch classes"),
    target_logits=(target_logits, "float", "batch classes"),
  )
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(target_logits, axis=-1)
  )


def _l1(values: jax.Array) -> jax.Array:
  return jnp.sum(jnp.abs(values), axis=(1, 2, 3))


def _l2(values: jax.Array) -> jax.Array:
  """L2 norm per example. The gradient is 0, not NaN, where all values are 0."""
  return optax.safe_norm(values.reshape(len(values), math.prod(values.shape[1:])), 1e-30, axis=-1)


# Norm of a ball -> dual norm: to first order, epsilon times it is what the ball adds to the loss.
DUAL_NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {"linf": _l1, "l2": _l2}

# Images [batch, height, width, channels] -> one loss per example [batch].
ImageLoss = Callable[[jax.Array], jax.Array]


def input_gradient_norm(loss: ImageLoss, images: jax.Array, norm: str = "linf") -> jax.Array:
  """Dual norm of the input gradient grad_x loss(x): its L1 norm for Linf, its L2 norm for L2.

  epsilon times this norm is, to first order, how much the worst perturbation of size epsilon adds
  to the loss. The result is differentiable with respect to everything that `loss` closes over
  (double back-propagation; Drucker, Le Cun, "Improving Generalization Performance Using Double
  Backpropagation", IEEE TNN 1992).

  Args:
    loss: function images -> [batch], one value per example.
    images: float array [batch, height, width, channels].
    norm: norm of the perturbation, a key of `DUAL_NORMS`.

  Returns:
    Float array [batch], in loss per pixel unit. Where a model mixes its batch (batch norm in
    training mode), the gradient is that of the sum of the batch's losses.

  Raises:
    ValueError: an unknown norm (the choices are listed), images of a wrong shape or dtype, or a
      `loss` that does not return [batch].
  """
  check_choice("input_gradient_norm", "norm", norm, DUAL_NORMS)
  check_arrays("input_gradient_norm", images=(images, "float", IMAGES))
  return DUAL_NORMS[norm](_input_gradient("input_gradient_norm", loss, images))


def curvature(
  loss: ImageLoss, images: jax.Array, h: jax.typing.ArrayLike, squared: bool = True
) -> jax.Array:
  """Change of the input gradient along its own sign: norm(g(x + h z) - g(x))^2, g = grad_x loss.

  z = sign(g(x)) / norm(sign(g(x))), through which no gradient flows. The norm is L2. On a quadratic
  with Hessian H the change is h^2 norm(H z)^2. (CURE: Moosavi-Dezfooli et al., "Robustness via
  Curvature Regularization, and Vice Versa", CVPR 2019.)

  Args:
    loss: function images -> [batch], one value per example.
    images: float array [batch, height, width, channels].
    h: length of the finite difference, an L2 norm in pixel units; greater than 0.
    squared: True returns the squared norm, False the norm itself.

  Returns:
    Float array [batch].

  Raises:
    ValueError: images of a wrong shape or dtype, an `h` that is not greater than 0, or a `loss`
      that does not return [batch].
  """
  check_arrays("curvature", images=(images, "float", IMAGES))
  h = check_number("curvature", "h", h, positive=True)
  images = jnp.asarray(images)
  gradient = _input_gradient("curvature", loss, images)
  direction = jnp.sign(jax.lax.stop_gradient(gradient))
  size = _l2(direction)[:, None, None, None]
  moved = images + jnp.asarray(h, images.dtype) * direction / size
  difference = _input_gradient("curvature", loss, moved) - gradient
  return jnp.sum(difference**2, axis=(1, 2, 3)) if squared else _l2(difference)


def _input_gradient(who: str, loss: ImageLoss, images: jax.Array) -> jax.Array:
  total = lambda x: jnp.sum(per_example(who, "loss", loss, len(images), x))
  return jax.grad(total)(jnp.asarray(images))
