"""Methods without an attack and without an adversary.

The functions take options and return a `Method`. They raise UserError, which names the option, for
a value that is out of range or unknown.
"""

import jax
import optax

from sprout_jax import vicinity
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import BATCH_NORM
from sprout_jax.methods.method import Losses
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import Network
from sprout_jax.methods.method import Parameters
from sprout_jax.methods.method import cross_entropy


def natural() -> Method:
  """Empirical risk minimisation: x~ = x, y~ = y."""
  return Method(vicinity=lambda key, images, labels, adversary: (images, labels))


def gaussian(*, noise_stddev: float) -> Method:
  """Gaussian augmentation: x~ ~ N(x, noise_stddev^2), y~ = y.

  A certificate by randomised smoothing needs models trained in this way (Cohen, Rosenfeld, Kolter,
  "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019).

  Args:
    noise_stddev: standard deviation in pixel units, at least 0.
  """
  return _noisy_smooth(noise_stddev, 0.0)


def label_smoothing(*, alpha: float) -> Method:
  """Label smoothing: x~ = x, y~ = (1 - alpha) y + alpha / classes.

  (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.)

  Args:
    alpha: weight of the uniform label, in [0, 1].
  """
  return _noisy_smooth(0.0, alpha)


def label_smoothing_gaussian(*, noise_stddev: float, alpha: float) -> Method:
  """Label smoothing and Gaussian augmentation, with y~ = (1 - alpha) y + alpha / classes.

  x~ ~ N(x, noise_stddev^2).

  Args:
    noise_stddev: standard deviation in pixel units, at least 0.
    alpha: weight of the uniform label, in [0, 1].
  """
  return _noisy_smooth(noise_stddev, alpha)


def _noisy_smooth(noise_stddev: float, alpha: float) -> Method:
  check_range("config.method.noise_stddev", noise_stddev, 0, 10, unit="(pixels are in [0, 1])")
  check_range("config.method.alpha", alpha, 0, 1)

  def draw(
    key: jax.Array, images: jax.Array, labels: jax.Array, adversary: Parameters
  ) -> tuple[jax.Array, jax.Array]:
    del adversary
    images = vicinity.gaussian_noise(key, images, noise_stddev) if noise_stddev else images
    return images, optax.losses.smooth_labels(labels, alpha)

  return Method(vicinity=draw)


def mixup(*, mixup_alpha: float) -> Method:
  """Mixup: x~ = w x_i + (1 - w) x_j, y~ = w y_i + (1 - w) y_j, w ~ Beta(mixup_alpha, mixup_alpha).

  There is one w per minibatch. (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR
  2018.)

  Args:
    mixup_alpha: parameter of the Beta distribution, at least 0; 0 mixes nothing.
  """
  check_range("config.method.mixup_alpha", mixup_alpha, 0, 100)
  return Method(
    vicinity=lambda key, images, labels, adversary: vicinity.mixup(key, images, labels, mixup_alpha)
  )


def stable(*, noise_stddev: float, alpha: float, batch_norm: str) -> Method:
  """Stable training: x~ ~ N(x, noise_stddev^2), y~ = (1 - alpha) y + alpha softmax(f(x)).

  This is the form in Table 1 of SPROUT's paper. The prediction on the clean image is part of the
  label, and no gradient flows through it. (After Zheng et al., "Improving the Robustness of Deep
  Neural Networks via Stability Training", CVPR 2016, whose task loss is on the clean image.)

  Args:
    noise_stddev: standard deviation in pixel units, at least 0.
    alpha: weight of the prediction, in [0, 1].
    batch_norm: batch norm in the pass of the prediction, a key of `BATCH_NORM`.
  """
  check_range("config.method.noise_stddev", noise_stddev, 0, 10, unit="(pixels are in [0, 1])")
  check_range("config.method.alpha", alpha, 0, 1)
  check_choice("config.method.batch_norm", batch_norm, BATCH_NORM)

  def probe(
    key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    # One key per example, so that the noise does not depend on the split of the batch.
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return x + noise_stddev * noise, jax.nn.softmax(network.predict(batch_norm)(x))

  def loss(
    network: Network, x: jax.Array, y: jax.Array, found: tuple[jax.Array, jax.Array]
  ) -> Losses:
    noisy, prediction = found
    return cross_entropy(network, noisy, (1 - alpha) * y + alpha * prediction)

  return Method(natural().vicinity, probe, loss)
