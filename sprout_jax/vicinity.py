"""What is trained on: the vicinity of an example, as pure functions.

Vicinity risk minimisation replaces each example (x, y) by draws (x~, y~) from a distribution
around it. Every function here makes one ingredient of such a distribution. They need nothing but
arrays: no config, no state, no other module of this package. All can be jitted and differentiated.

Conventions: `key` comes first; `images` are float [batch, height, width, channels] in [0, 1];
`labels` are soft (rows sum to 1), [batch, classes].

SPROUT's vicinity (Cheng et al., "Self-Progressing Robust Training", AAAI 2021, Algorithm 1) is

    images         = gaussian_noise(key_noise, images, stddev)
    images, labels = mixup(key_mixup, images, labels, alpha)
    labels         = sample_dirichlet_labels(
        key_labels, dirichlet_concentration(labels, beta, label_weight, beta_weight))
"""

import chex
import jax
import jax.numpy as jnp


def gaussian_noise(key, images, stddev):
  """Adds independent Gaussian noise to every pixel: x~ = x + stddev * n, n ~ N(0, 1).

  The result is not clamped to [0, 1]: clamping would bias dark and bright pixels, and SPROUT's
  released code does not clamp either. The noise has the dtype of `images`.

  Args:
    key: a PRNG key.
    images: float array [batch, height, width, channels].
    stddev: standard deviation in pixel units (SPROUT: 0.1 on a range of [0, 1]); 0 gives `images`.

  Returns:
    An array like `images`.

  Raises:
    AssertionError: `images` is not a rank-4 float array.
  """
  chex.assert_rank(images, 4)
  chex.assert_type(images, float)
  return images + jnp.asarray(stddev, images.dtype) * jax.random.normal(
    key, images.shape, images.dtype
  )


def mixup_pairs(key, batch_size, alpha):
  """Draws what a mixup needs: one weight and a partner for every example.

  lambda ~ Beta(alpha, alpha), one for the whole batch, and a uniform permutation of the batch, as
  in Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

  Args:
    key: a PRNG key.
    batch_size: number of examples, a Python integer.
    alpha: parameter of the Beta distribution (SPROUT: 0.2), > 0, or the Python number 0, which
      gives weight 1: no mixing, the limit up to the order of the batch.

  Returns:
    weight: float32 scalar in [0, 1], the share of the example itself.
    partners: int array [batch], a permutation.
  """
  key_weight, key_partners = jax.random.split(key)
  mixes = not (isinstance(alpha, (int, float)) and alpha == 0)
  weight = jax.random.beta(key_weight, alpha, alpha) if mixes else jnp.float32(1)
  return weight, jax.random.permutation(key_partners, batch_size)


def mix(values, weight, partners):
  """Returns weight * values[i] + (1 - weight) * values[partners[i]] for every example i.

  Args:
    values: array [batch, ...], images or labels.
    weight: scalar in [0, 1].
    partners: int array [batch].
  """
  values = jnp.asarray(values)
  weight = jnp.asarray(weight, values.dtype)
  return weight * values + (1 - weight) * values[partners]


def mixup(key, images, labels, alpha):
  """Mixes every example with another one of the batch.

  x~ = lambda x_i + (1 - lambda) x_j,  y~ = lambda y_i + (1 - lambda) y_j,  lambda ~ Beta(alpha,
  alpha) shared by the batch, j a uniform permutation of i (Zhang et al., ICLR 2018).

  Args:
    key: a PRNG key.
    images: float array [batch, height, width, channels].
    labels: float array [batch, classes], rows sum to 1.
    alpha: parameter of the Beta distribution (SPROUT: 0.2); the Python number 0 mixes nothing.

  Returns:
    images, labels of the same shapes; the rows of the labels still sum to 1.

  Raises:
    AssertionError: wrong ranks, or batch sizes that differ.
  """
  chex.assert_rank([images, labels], [4, 2])
  chex.assert_equal_shape_prefix([images, labels], 1)
  weight, partners = mixup_pairs(key, images.shape[0], alpha)
  return mix(images, weight, partners), mix(labels, weight, partners)


def dirichlet_concentration(labels, beta, label_weight, beta_weight):
  """Concentration of SPROUT's label distribution: c = label_weight * y + beta_weight * beta.

  The three known readings of SPROUT are weights of this one formula (see
  `methods.sprout.CONCENTRATIONS`): the patent's claim 4 and the paper's text have (1 - a, a),
  Algorithm 1 as printed (a, 1 - a), the released code (10, 1).

  Args:
    labels: float array [batch, classes], rows sum to 1.
    beta: positive float array [classes], learned.
    label_weight: scalar >= 0.
    beta_weight: scalar >= 0.

  Returns:
    Float array [batch, classes]. It is a valid concentration if all entries are > 0, which
    `beta` > 0 and `beta_weight` > 0 ensure.

  Raises:
    AssertionError: wrong ranks, or a `beta` that does not have one entry per class.
  """
  chex.assert_rank([labels, beta], [2, 1])
  chex.assert_equal(labels.shape[1], beta.shape[0])
  return label_weight * labels + beta_weight * beta[None, :]


def sample_dirichlet_labels(key, concentration):
  """Draws soft labels y~ ~ Dirichlet(concentration), differentiable in the concentration.

  y~ = softmax(g), g_k = log of a Gamma(c_k, 1) variate, drawn in log space: a Gamma(0.01) variate
  is below the smallest float32 about half of the time, its logarithm never is. The gradient is the
  implicit reparametrisation gradient of the Gamma variate (Figurnov et al., "Implicit
  Reparameterization Gradients", NeurIPS 2018), which JAX attaches to `jax.random.loggamma`; its
  expectation is the gradient of the expectation.

  An entry with concentration 0 gets probability 0, the limit of c -> 0, and no gradient.

  The gradient's variance grows as the concentration falls: below about 1e-3 its mass lies in
  draws too rare to be seen in practice. `mean_dirichlet_labels` has neither problem.

  Args:
    key: a PRNG key.
    concentration: non-negative float array [batch, classes], rows not all zero.

  Returns:
    An array like `concentration`; rows sum to 1.

  Raises:
    AssertionError: `concentration` is not a rank-2 float array.
  """
  chex.assert_rank(concentration, 2)
  chex.assert_type(concentration, float)
  positive = concentration > 0
  logits = jax.random.loggamma(key, jnp.where(positive, concentration, 1))
  return jax.nn.softmax(jnp.where(positive, logits, -jnp.inf), axis=-1)


def mean_dirichlet_labels(concentration):
  """The exact expectation of `sample_dirichlet_labels`: y~ = c / sum(c).

  Cross-entropy is linear in the label, so training on this label has exactly the expected loss and
  the expected gradients (with respect to the model and to the concentration) of training on
  sampled labels, without their variance and without the cost of sampling.

  Args:
    concentration: non-negative float array [batch, classes], rows not all zero.

  Returns:
    An array like `concentration`; rows sum to 1.

  Raises:
    AssertionError: `concentration` is not a rank-2 float array.
  """
  chex.assert_rank(concentration, 2)
  chex.assert_type(concentration, float)
  return concentration / jnp.sum(concentration, axis=-1, keepdims=True)
