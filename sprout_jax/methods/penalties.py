"""Penalties that any method's loss can carry; the mathematics is in `sprout_jax.losses`.

Each function takes its options and returns None or (network, x, y) -> [batch], where x and y are
drawn from the method's vicinity, before any attack: with SPROUT, the noisy mixed images and the
drawn labels; with adversarial training, the clean ones.
"""

from sprout_jax import losses
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import BATCH_NORM


def none():
  """No penalty."""


def gradient_norm(*, epsilon, norm, batch_norm):
  """epsilon * dual norm of grad_x CE(f(x), y): to first order, what an attack of that size gains.

  (Rodriguez-Munoz, Wang, Torralba, "Characterizing Model Robustness via Natural Input Gradients",
  ECCV 2024: near adversarial training on ImageNet where the activations are smooth; Simon-Gabriel
  et al., "First-Order Adversarial Vulnerability of Neural Networks and Input Dimension", ICML
  2019.)

  Args:
    epsilon: radius of the ball in pixel units, >= 0.
    norm: of the ball: "linf" penalises the gradient's L1 norm, "l2" its L2 norm.
    batch_norm: of the pass whose gradient it is, a key of `BATCH_NORM`; "train" shares the pass of
      a loss that is taken on x itself.
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

  def penalty(network, x, y):
    predict = network.predict(batch_norm)
    return epsilon * losses.input_gradient_norm(
      lambda images: losses.soft_cross_entropy(predict(images), y), x, norm
    )

  return penalty


def cure(*, weight, h, squared, batch_norm):
  """CURE: weight * |grad ell(x + h z) - grad ell(x)|^2, z the sign gradient with unit L2 norm.

  (Moosavi-Dezfooli, Fawzi, Uesato, Frossard, "Robustness via Curvature Regularization, and Vice
  Versa", CVPR 2019, who start from a natural model: `config.init_from`. They let h grow over the
  first epochs; here it is constant.)

  Args:
    weight: the paper's gamma, >= 0.
    h: length of the finite difference, an L2 norm in pixel units, > 0. (The authors' code works on
      images divided by a standard deviation of about 0.2: its gradients are a fifth of those here.)
    squared: True: the paper's formula; False: the norm itself, as the authors' released code.
    batch_norm: of its passes, a key of `BATCH_NORM`.
  """
  check_range("config.penalty.weight", weight, 0, 1e6)
  check_range("config.penalty.h", h, 1e-6, 1e3)
  check_choice("config.penalty.squared", squared, (True, False))
  check_choice("config.penalty.batch_norm", batch_norm, BATCH_NORM)

  def penalty(network, x, y):
    predict = network.predict(batch_norm)
    return weight * losses.curvature(
      lambda images: losses.soft_cross_entropy(predict(images), y), x, h, squared
    )

  return penalty
