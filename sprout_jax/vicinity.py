"""Vicinity distributions: pure functions that draw training images and labels around an example.

Vicinity risk minimisation replaces each example (x, y) by draws (x~, y~) from a distribution
around it. Each function makes one ingredient of such a distribution. The functions take and return
arrays: there is no config and no state. All can be jitted and differentiated.

Conventions: `key` comes first; `images` are float [batch, height, width, channels] in [0, 1];
`labels` are soft (rows sum to 1), float [batch, classes]. A wrong argument raises ValueError.

SPROUT's vicinity (Cheng et al., "Self-Progressing Robust Training", AAAI 2021, Algorithm 1) is::

    images         = gaussian_noise(key_noise, images, stddev)
    images, labels = mixup(key_mixup, images, labels, alpha)
    labels         = sample_dirichlet_labels(
        key_labels, dirichlet_concentration(labels, beta, label_weight, beta_weight))
"""

import jax
import jax.numpy as jnp

from sprout_jax.arguments import IMAGES
from sprout_jax.arguments import check_arrays
from sprout_jax.arguments import check_count
from sprout_jax.arguments import check_key
from sprout_jax.arguments import check_number


def gaussian_noise(key: jax.Array, images: jax.Array, stddev: jax.typing.ArrayLike) -> jax.Array:
  """Adds independent Gaussian noise to every pixel: x~ = x + stddev * n, n ~ N(0, 1).

  The result is not clamped to [0, 1]: clamping would bias dark and bright pixels, and SPROUT's
  released code does not clamp either. The noise has the dtype of `images`.

  Args:
    key: a PRNG key.
    images: float array [batch, height, width, channels].
    stddev: standard deviation in pixel units, a scalar of at least 0 (SPROUT: 0.1 on a range of
      [0, 1]). 0 returns the images unchanged.

  Returns:
    An array like `images`.

  Raises:
    ValueError: `images` has another shape or dtype, or `stddev` is negative.
  """
  check_arrays("gaussian_noise", images=(images, "float", IMAGES))
  check_key("gaussian_noise", key)
  stddev = check_number("gaussian_noise", "stddev", stddev)
  images = jnp.asarray(images)
  return images + jnp.asarray(stddev, images.dtype) * jax.random.normal(
    key, images.shape, images.dtype
  )


def mixup_pairs(
  key: jax.Array, batch_size: int, alpha: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Draws the weight and the pairs of a mixup.

  The weight is lambda ~ Beta(alpha, alpha), one for the whole batch. The pairs are a uniform
  permutation of the batch. (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.)

  Args:
    key: a PRNG key.
    batch_size: number of examples, a Python integer.
    alpha: parameter of the Beta distribution, a scalar greater than 0 (SPROUT: 0.2). The Python
      number 0 gives weight 1: nothing is mixed.

  Returns:
    A pair. The weight is a float32 scalar in [0, 1], the share of the example itself. The partners
    are an int array [batch], a permutation.

  Raises:
    ValueError: `key` is not a PRNG key, `batch_size` is not an integer of at least 1, or `alpha` is
      negative or not finite.
  """
  check_key("mixup_pairs", key)
  check_count("mixup_pairs", "batch_size", batch_size, 1)
  return _pairs(key, batch_size, check_number("mixup_pairs", "alpha", alpha))


def _pairs(
  key: jax.Array, batch_size: int, alpha: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """`mixup_pairs` on checked arguments."""
  key_weight, key_partners = jax.random.split(key)
  mixes = not (isinstance(alpha, int | float) and alpha == 0)
  weight = jax.random.beta(key_weight, alpha, alpha) if mixes else jnp.float32(1)
  return weight, jax.random.permutation(key_partners, batch_size)


def mix(values: jax.Array, weight: jax.typing.ArrayLike, partners: jax.Array) -> jax.Array:
  """Mixes every example i with its partner: weight * v_i + (1 - weight) * v_{partners[i]}.

  Args:
    values: float array [batch, ...], images or labels.
    weight: scalar in [0, 1].
    partners: int array [batch], the partner's position in the batch.

  Returns:
    An array like `values`.

  Raises:
    ValueError: `values` is not floating point (the weight would be rounded to 0 or 1), `weight` is
      no scalar of at least 0, or `partners` has another shape or dtype.
  """
  axes = " ".join(["batch", *(f"axis_{i}" for i in range(1, getattr(values, "ndim", 1)))])
  check_arrays("mix", values=(values, "float", axes), partners=(partners, "int", "batch"))
  values = jnp.asarray(values)
  weight = jnp.asarray(check_number("mix", "weight", weight), values.dtype)
  return weight * values + (1 - weight) * values[partners]


def mixup(
  key: jax.Array, images: jax.Array, labels: jax.Array, alpha: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Mixes every example with another one of the batch.

  x~ = lambda x_i + (1 - lambda) x_j and y~ = lambda y_i + (1 - lambda) y_j, with lambda ~
  Beta(alpha, alpha) shared by the batch and j a uniform permutation of i (Zhang et al., ICLR 2018).

  Args:
    key: a PRNG key.
    images: float array [batch, height, width, channels].
    labels: float array [batch, classes], rows sum to 1.
    alpha: parameter of the Beta distribution (SPROUT: 0.2). The Python number 0 mixes nothing.

  Returns:
    Images and labels of the same shapes. The rows of the labels still sum to 1.

  Raises:
    ValueError: wrong shapes or dtypes, batch sizes that differ, or a negative `alpha`.
  """
  check_arrays("mixup", images=(images, "float", IMAGES), labels=(labels, "float", "batch classes"))
  check_key("mixup", key)
  weight, partners = _pairs(key, images.shape[0], check_number("mixup", "alpha", alpha))
  return mix(images, weight, partners), mix(labels, weight, partners)


def dirichlet_concentration(
  labels: jax.Array,
  beta: jax.Array,
  label_weight: float | jax.Array,
  beta_weight: float | jax.Array,
) -> jax.Array:
  """Concentration of SPROUT's label distribution: c = label_weight * y + beta_weight * beta.

  The three known readings of SPROUT are weights of this formula (see
  `methods.sprout.CONCENTRATIONS`): the patent's claim 4 and the paper's text have (1 - a, a),
  Algorithm 1 as printed (a, 1 - a), the released code (10, 1).

  Args:
    labels: float array [batch, classes], rows sum to 1.
    beta: positive float array [classes], learned.
    label_weight: scalar of at least 0.
    beta_weight: scalar of at least 0.

  Returns:
    Float array [batch, classes]. It is a valid concentration if all entries are greater than 0,
    which positive `beta` and `beta_weight` ensure.

  Raises:
    ValueError: wrong shapes or dtypes, a `beta` without one entry per class, or a negative weight.
  """
  check_arrays(
    "dirichlet_concentration",
    labels=(labels, "float", "batch classes"),
    beta=(beta, "float", "classes"),
  )
  label_weight = check_number("dirichlet_concentration", "label_weight", label_weight)
  beta_weight = check_number("dirichlet_concentration", "beta_weight", beta_weight)
  return label_weight * labels + beta_weight * beta[None, :]


def sample_dirichlet_labels(key: jax.Array, concentration: jax.Array) -> jax.Array:
  """Draws soft labels y~ ~ Dirichlet(concentration), differentiable in the concentration.

  y~ = softmax(g), where g_k is the logarithm of a Gamma(c_k, 1) variate. It is drawn in log space:
  a Gamma(0.01) variate is below the smallest float32 about half of the time, its logarithm never
  is. The gradient is the implicit reparametrisation gradient of the Gamma variate (Figurnov et al.,
  "Implicit Reparameterization Gradients", NeurIPS 2018), which JAX attaches to
  `jax.random.loggamma`. Its expectation is the gradient of the expectation.

  An entry with concentration 0 gets probability 0, the limit of c -> 0, and no gradient.

  The gradient's variance grows as the concentration falls: below about 1e-3 its mass lies in
  draws too rare to be seen in practice. `mean_dirichlet_labels` has neither problem.

  Args:
    key: a PRNG key.
    concentration: non-negative float array [batch, classes], rows not all zero.

  Returns:
    An array like `concentration`; rows sum to 1.

  Raises:
    ValueError: `concentration` has another number of axes or another dtype.
  """
  check_key("sample_dirichlet_labels", key)
  check_arrays("sample_dirichlet_labels", concentration=(concentration, "float", "batch classes"))
  positive = concentration > 0
  logits = jax.random.loggamma(key, jnp.where(positive, concentration, 1))
  return jax.nn.softmax(jnp.where(positive, logits, -jnp.inf), axis=-1)


def mean_dirichlet_labels(concentration: jax.Array) -> jax.Array:
  """Exact expectation of `sample_dirichlet_labels`: y~ = c / sum(c).

  Cross-entropy is linear in the label. So training on this label has exactly the expected loss and
  the expected gradients (with respect to the model and to the concentration) of training on
  sampled labels, without their variance and without the cost of sampling.

  Args:
    concentration: non-negative float array [batch, classes], rows not all zero.

  Returns:
    An array like `concentration`; rows sum to 1.

  Raises:
    ValueError: `concentration` has another number of axes or another dtype.
  """
  check_arrays("mean_dirichlet_labels", concentration=(concentration, "float", "batch classes"))
  return concentration / jnp.sum(concentration, axis=-1, keepdims=True)
