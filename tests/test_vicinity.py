"""Vicinities against NumPy, SciPy, closed forms and numerical derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sprout_jax import vicinity

KEY = jax.random.key(7)
CONCENTRATIONS = ([0.01, 0.01, 0.02], [0.3, 1.0, 2.5], [11.0, 1.0, 1.0])


def images_and_labels(batch=6, classes=3):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.random((batch, 4, 5, 2)), jnp.float32),
    jax.nn.one_hot(rng.integers(classes, size=batch), classes),
  )


def test_gaussian_noise_has_the_stated_distribution():
  images = jnp.full((8, 32, 32, 3), 0.25)
  noise = np.asarray(vicinity.gaussian_noise(KEY, images, 0.1) - images).ravel()
  assert scipy.stats.kstest(noise / 0.1, "norm").pvalue > 0.01
  assert noise.min() < -0.25  # not clamped


def test_no_noise_is_exact():
  images, _ = images_and_labels()
  np.testing.assert_array_equal(vicinity.gaussian_noise(KEY, images, 0.0), images)


def test_mixup_equals_a_loop_over_the_pairs():
  images, labels = images_and_labels()
  mixed_images, mixed_labels = vicinity.mixup(KEY, images, labels, 0.2)
  weight, partners = vicinity.mixup_pairs(KEY, len(images), 0.2)
  assert sorted(np.asarray(partners)) == list(range(len(images)))
  for i, j in enumerate(np.asarray(partners)):
    np.testing.assert_allclose(
      mixed_images[i], weight * images[i] + (1 - weight) * images[j], rtol=1e-6
    )
    np.testing.assert_allclose(
      mixed_labels[i], weight * labels[i] + (1 - weight) * labels[j], rtol=1e-6
    )
  np.testing.assert_allclose(mixed_labels.sum(-1), 1, rtol=1e-6)


def test_mixup_weight_is_beta_distributed():
  keys = jax.random.split(KEY, 3000)
  weights = jax.vmap(lambda key: vicinity.mixup_pairs(key, 4, 0.2)[0])(keys)
  assert scipy.stats.kstest(np.asarray(weights), scipy.stats.beta(0.2, 0.2).cdf).pvalue > 0.01


def test_mixup_with_alpha_zero_mixes_nothing():
  images, labels = images_and_labels()
  chex.assert_trees_all_equal(vicinity.mixup(KEY, images, labels, 0), (images, labels))


def test_dirichlet_concentration_by_hand():
  labels = jnp.array([[1.0, 0.0], [0.25, 0.75]])
  concentration = vicinity.dirichlet_concentration(labels, jnp.array([2.0, 3.0]), 10.0, 0.5)
  np.testing.assert_allclose(concentration, [[11.0, 1.5], [3.5, 9.0]])


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_sampled_labels_have_the_moments_of_the_dirichlet(concentration):
  draws = np.asarray(
    vicinity.sample_dirichlet_labels(KEY, jnp.broadcast_to(jnp.array(concentration), (100_000, 3)))
  )
  reference = scipy.stats.dirichlet(concentration)
  # Five standard errors of the sample mean and (by the fourth moment) of the sample variance.
  error = draws.std(0) / np.sqrt(len(draws))
  np.testing.assert_array_less(np.abs(draws.mean(0) - reference.mean()), 5 * error)
  square = (draws - reference.mean()) ** 2
  np.testing.assert_array_less(
    np.abs(square.mean(0) - reference.var()), 5 * square.std(0) / np.sqrt(len(draws))
  )
  np.testing.assert_allclose(draws.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_sampled_gradient_averages_to_the_derivative_of_the_mean(concentration):
  """d E[y_0] / d c_k, by central differences of SciPy's mean."""
  c = np.array(concentration)

  def first(c):
    return vicinity.sample_dirichlet_labels(KEY, c)[:, 0].sum()

  gradients = np.asarray(jax.grad(first)(jnp.broadcast_to(jnp.asarray(c), (60_000, 3))))
  step = 1e-3 * c.min()
  numerical = [
    (
      scipy.stats.dirichlet(c + step * unit).mean()[0]
      - scipy.stats.dirichlet(c - step * unit).mean()[0]
    )
    / (2 * step)
    for unit in np.eye(3)
  ]
  error = gradients.std(0) / np.sqrt(len(gradients))
  np.testing.assert_array_less(np.abs(gradients.mean(0) - numerical), 5 * error)
  # The test has power: the standard error is well below the value (it is largest at 0.01).
  assert error[0] < 0.5 * abs(numerical[0])


@pytest.mark.parametrize("level", [1e-5, 0.01, 1.0, 100.0])
def test_sampling_neither_underflows_nor_gives_nan(level):
  c = jnp.full((2000, 10), level)

  def log_mean(c):
    labels = vicinity.sample_dirichlet_labels(KEY, c)
    return jnp.mean(labels[:, 0]), labels

  gradient, labels = jax.grad(log_mean, has_aux=True)(c)
  assert jnp.isfinite(labels).all() and jnp.isfinite(gradient).all()
  np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)  # a row of underflows would be 0 or NaN


def test_zero_concentration_has_zero_probability_and_no_gradient():
  c = jnp.array([[1.0, 0.0, 0.5]])
  gradient, labels = jax.grad(
    lambda c: (lambda y: (y[0, 0], y))(vicinity.sample_dirichlet_labels(KEY, c)), has_aux=True
  )(c)
  assert labels[0, 1] == 0 and gradient[0, 1] == 0 and jnp.isfinite(gradient).all()
  one_hot = jnp.array([[0.0, 1.0, 0.0]])
  np.testing.assert_array_equal(vicinity.sample_dirichlet_labels(KEY, one_hot), one_hot)


def test_mean_labels_equal_scipy():
  c = np.array([[0.01, 0.5, 3.0], [10.0, 1.0, 1.0]])
  np.testing.assert_allclose(
    vicinity.mean_dirichlet_labels(jnp.asarray(c)),
    [scipy.stats.dirichlet(row).mean() for row in c],
    rtol=1e-6,
  )


def test_functions_are_jittable_and_deterministic_by_key():
  images, labels = images_and_labels()

  def all_of_it(key):
    x, y = vicinity.mixup(key, vicinity.gaussian_noise(key, images, 0.1), labels, 0.2)
    return x, vicinity.sample_dirichlet_labels(
      key, vicinity.dirichlet_concentration(y, jnp.ones(3), 10.0, 1.0)
    )

  chex.assert_trees_all_close(jax.jit(all_of_it)(KEY), all_of_it(KEY), rtol=1e-5)
  other = all_of_it(jax.random.key(8))
  assert not np.allclose(all_of_it(KEY)[0], other[0]) and not np.allclose(
    all_of_it(KEY)[1], other[1]
  )


IMAGES, LABELS = images_and_labels()


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: vicinity.gaussian_noise(KEY, IMAGES[0], 0.1),
      r"^gaussian_noise: `images` has shape \(4, 5, 2\); expected a float array "
      r"\[batch, height, width, channels\]; for one image, images\[None\]$",
    ),
    (
      lambda: vicinity.gaussian_noise(KEY, IMAGES.astype(jnp.uint8), 0.1),
      r"`images` has dtype uint8; expected a float array .*: images.astype\(jnp.float32\)$",
    ),
    (
      lambda: vicinity.gaussian_noise(KEY, IMAGES, -0.1),
      "^gaussian_noise: `stddev` is -0.1; expected a finite number of at least 0$",
    ),
    (
      lambda: vicinity.mixup(KEY, IMAGES, LABELS[:-1], 0.2),
      "^mixup: `labels` has shape .* with batch = 6, as in `images`$",
    ),
    (
      lambda: vicinity.mixup(KEY, IMAGES, LABELS.argmax(-1), 0.2),
      r"^mixup: `labels` .*for integer labels, jax.nn.one_hot\(labels, classes\)$",
    ),
    (
      lambda: vicinity.mixup(KEY, IMAGES, LABELS.astype(int), 0.2),
      "^mixup: `labels` has dtype int32; expected a float array",
    ),
    (lambda: vicinity.mixup(KEY, IMAGES, LABELS, -1), "^mixup: `alpha` is -1; expected"),
    (
      lambda: vicinity.mixup_pairs(KEY, 4, float("nan")),
      "^mixup_pairs: `alpha` is nan; expected a finite number of at least 0$",
    ),
    (
      lambda: vicinity.mix(LABELS.astype(int), 0.3, jnp.arange(6)),
      r"^mix: `values` has dtype int32; expected a float array \[batch, axis_1\]: values.astype",
    ),
    (
      lambda: vicinity.dirichlet_concentration(LABELS, jnp.ones(2), 1.0, 1.0),
      "^dirichlet_concentration: `beta` has shape .* with classes = 3, as in `labels`$",
    ),
    (
      lambda: vicinity.dirichlet_concentration(LABELS, jnp.ones(3), -1.0, 1.0),
      "^dirichlet_concentration: `label_weight` is -1.0",
    ),
    (
      lambda: vicinity.dirichlet_concentration(LABELS, jnp.ones(3), 1.0, float("inf")),
      "^dirichlet_concentration: `beta_weight` is inf",
    ),
    (
      lambda: vicinity.sample_dirichlet_labels(KEY, LABELS[0]),
      "^sample_dirichlet_labels: `concentration` has shape",
    ),
    (
      lambda: vicinity.mean_dirichlet_labels(LABELS.astype(int)),
      "^mean_dirichlet_labels: `concentration` has dtype int32",
    ),
    (
      lambda: vicinity.gaussian_noise(3, IMAGES, 0.1),
      r"^gaussian_noise: `key` is 3 \(int\); expected a PRNG key: jax.random.key\(3\)$",
    ),
    (
      lambda: vicinity.gaussian_noise(KEY, IMAGES, "0.1"),
      "^gaussian_noise: `stddev` is a str; expected a finite number of at least 0$",
    ),
    (
      lambda: vicinity.gaussian_noise(KEY, IMAGES, jnp.ones(3)),
      r"^gaussian_noise: `stddev` is an array of shape \(3,\)",
    ),
    (
      lambda: vicinity.mixup_pairs(KEY, 2.0, 0.2),
      "^mixup_pairs: batch_size is 2.0; expected an integer of at least 1",
    ),
    (
      lambda: vicinity.mix(IMAGES, 0.5, jnp.arange(9)),
      r"^mix: `partners` has shape \(9,\); .* with batch = ",
    ),
  ],
)
def test_wrong_arguments_are_value_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_wrong_shapes_are_found_inside_jit():
  with pytest.raises(ValueError, match="^mixup: `labels` has shape"):
    jax.jit(lambda images, labels: vicinity.mixup(KEY, images, labels, 0.2))(IMAGES, LABELS[:-1])
