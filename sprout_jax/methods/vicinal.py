"""Methods without an attack and without anything that is learned against the model."""

import jax
import optax

from sprout_jax import vicinity
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import BATCH_NORM
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import cross_entropy


def natural():
  """Empirical risk minimisation: x~ = x, y~ = y."""
  return Method(vicinity=lambda key, images, labels, adversary: (images, labels))


def gaussian(*, noise_stddev):
  """Gaussian augmentation: x~ ~ N(x, noise_stddev^2), y~ = y.

  What a certificate by randomised smoothing needs (Cohen, Rosenfeld, Kolter, "Certified Adversarial
  Robustness via Randomized Smoothing", ICML 2019).
  """
  return _noisy_smooth(noise_stddev, 0.0)


def label_smoothing(*, alpha):
  """Label smoothing: x~ = x, y~ = (1 - alpha) y + alpha / classes.

  (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.)
  """
  return _noisy_smooth(0.0, alpha)


def label_smoothing_gaussian(*, noise_stddev, alpha):
  """Both: x~ ~ N(x, noise_stddev^2), y~ = (1 - alpha) y + alpha / classes."""
  return _noisy_smooth(noise_stddev, alpha)


def _noisy_smooth(noise_stddev, alpha):
  check_range("config.method.noise_stddev", noise_stddev, 0, 10, unit="(pixels are in [0, 1])")
  check_range("config.method.alpha", alpha, 0, 1)

  def draw(key, images, labels, adversary):
    del adversary
    images = vicinity.gaussian_noise(key, images, noise_stddev) if noise_stddev else images
    return images, optax.losses.smooth_labels(labels, alpha)

  return Method(vicinity=draw)


def mixup(*, mixup_alpha):
  """Mixup: x~ = w x_i + (1 - w) x_j, y~ = w y_i + (1 - w) y_j, w ~ Beta(mixup_alpha, mixup_alpha).

  (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; one w per minibatch.)
  """
  check_range("config.method.mixup_alpha", mixup_alpha, 0, 100)
  return Method(
    vicinity=lambda key, images, labels, adversary: vicinity.mixup(key, images, labels, mixup_alpha)
  )


def stable(*, noise_stddev, alpha, batch_norm):
  """Stable training: x~ ~ N(x, noise_stddev^2), y~ = (1 - alpha) y + alpha softmax(f(x)).

  As SPROUT's paper writes it (its Table 1): the prediction on the clean image is part of the label,
  and no gradient flows through it. (After Zheng et al., "Improving the Robustness of Deep Neural
  Networks via Stability Training", CVPR 2016, who have the task's loss on the clean image.)

  Args:
    noise_stddev: in pixel units, >= 0.
    alpha: weight of the prediction, in [0, 1].
    batch_norm: of the pass that predicts, a key of `BATCH_NORM`.
  """
  check_range("config.method.noise_stddev", noise_stddev, 0, 10, unit="(pixels are in [0, 1])")
  check_range("config.method.alpha", alpha, 0, 1)
  check_choice("config.method.batch_norm", batch_norm, BATCH_NORM)

  def probe(key, indices, network, x, y):
    # One key per example, so that the noise does not depend on how the batch is split.
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return x + noise_stddev * noise, jax.nn.softmax(network.predict(batch_norm)(x))

  def loss(network, x, y, found):
    noisy, prediction = found
    return cross_entropy(network, noisy, (1 - alpha) * y + alpha * prediction)

  return Method(natural().vicinity, probe, loss)
