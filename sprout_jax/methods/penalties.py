"""Penalties for the loss of any method; the formulas are in `sprout_jax.losses`.

Each function takes its options and returns None or a function (network, x, y) -> [batch]. x and y
are drawn from the method's vicinity, before any attack. With SPROUT they are the noisy mixed images
and the drawn labels; with adversarial training, the clean ones.
"""

import jax

from sprout_jax import losses
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import BATCH_NORM
from sprout_jax.methods.method import Network
from sprout_jax.methods.method import Penalty


def none() -> None:
  """No penalty."""


def gradient_norm(*, epsilon: float, norm: str, batch_norm: str) -> Penalty:
  """Input-gradient norm: epsilon times the dual norm of grad_x CE(f(x), y).

  To first order it is the loss that an attack of size epsilon adds. (Rodriguez-Munoz, Wang,
  Torralba, "Characterizing Model Robustness via Natural Input Gradients", ECCV 2024: near
  adversarial training on ImageNet where the activations are smooth; Simon-Gabriel et al.,
  "First-Order Adversarial Vulnerability of Neural Networks and Input Dimension", ICML 2019.)

  Args:
    epsilon: perturbation budget, in pixel units, at least 0.
    norm: norm of the perturbation. "linf" penalises the L1 norm of the gradient, "l2" its L2 norm.
    batch_norm: batch norm in the pass of the gradient, a key of `BATCH_NORM`. With "train", a loss
      on x itself shares this pass.

  Raises:
    UserError: a value out of range or unknown, naming the option.
  """
  check_choice("config.penalty.norm", norm, losses.DUAL_NORMS)
  check_range(
    "config.penalty.epsilon",
    epsilon,
    0,
    1 if norm == "linf" else 1000,
    unit="(pixels are in [0, 1])",
  )
  check_choice("config.penalty.batch_norm", batch_norm, BATCH_NORM)

  def penalty(network: Network, x: jax.Array, y: jax.Array) -> jax.Array:
    predict = network.predict(batch_norm)
    return epsilon * losses.input_gradient_norm(
      lambda images: losses.soft_cross_entropy(predict(images), y), x, norm
    )

  return penalty


def cure(*, weight: float, h: float, squared: bool, batch_norm: str) -> Penalty:
  """CURE: weight * norm(grad CE(x + h z) - grad CE(x))^2, z the sign gradient of unit norm.

  The norms are L2. (Moosavi-Dezfooli, Fawzi, Uesato, Frossard, "Robustness via Curvature
  Regularization, and Vice Versa", CVPR 2019.) The authors start from a natural model, as with
  `config.init_from`. They let h grow over the first epochs; here it is constant.

  Args:
    weight: weight of the penalty, the paper's gamma, at least 0.
    h: length of the finite difference, an L2 norm in pixel units, greater than 0. The authors' code
      divides images by a standard deviation of about 0.2, so its gradients are a fifth of ours.
    squared: whether to square the norm. The paper's formula does, the authors' code does not.
    batch_norm: batch norm in the passes of the penalty, a key of `BATCH_NORM`.

  Raises:
    UserError: a value out of range or unknown, naming the option.
  """
  check_range("config.penalty.weight", weight, 0, 1e6)
  check_range("config.penalty.h", h, 1e-6, 1e3)
  check_choice("config.penalty.squared", squared, (True, False))
  check_choice("config.penalty.batch_norm", batch_norm, BATCH_NORM)

  def penalty(network: Network, x: jax.Array, y: jax.Array) -> jax.Array:
    predict = network.predict(batch_norm)
    return weight * losses.curvature(
      lambda images: losses.soft_cross_entropy(predict(images), y), x, h, squared
    )

  return penalty
