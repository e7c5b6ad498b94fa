"""SPROUT: sampled labels against the closed form, its ingredients, its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sprout_jax import methods
from sprout_jax import vicinity
from sprout_jax.errors import UserError
from sprout_jax.losses import soft_cross_entropy
from sprout_jax.methods import sprout as sprout_lib
from tests import stepping

KEY = jax.random.key(11)


def options(method, variant="paper", **changes):
  values = default.get_config(method, variant).method.to_dict()
  del values["name"]
  return values | changes


def batch(size=6, classes=4):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.random((size, 2, 2, 1)), jnp.float32),
    jax.nn.one_hot(rng.integers(classes, size=size), classes),
  )


@pytest.mark.parametrize("label_draws", [1, 2])
@pytest.mark.parametrize("concentration", sprout_lib.CONCENTRATIONS)
def test_average_of_sampled_gradients_is_the_closed_form(concentration, label_draws):
  """Cross-entropy is linear in the label: E grad(sampled) = grad(mean), for theta and for beta."""
  common = dict(
    concentration=concentration, label_draws=label_draws, noise_stddev=0.0, mixup_alpha=0
  )
  sampled, mean = (
    methods.create("sprout", options("sprout", draw=draw, **common)) for draw in ("sample", "mean")
  )
  images, labels = batch()
  # beta = 1: concentrations down to alpha = 0.01, where draws are nearly one-hot.
  beta, weights = (
    jnp.array([1.0, 2.0, 0.5, 1.5]),
    jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32),
  )

  def gradient(method, key):
    def loss(beta, weights):
      x, y = method.vicinity(key, images, labels, {"beta": beta})
      return jnp.mean(soft_cross_entropy(x.reshape(6, -1) @ weights, y))

    return jnp.concatenate([g.ravel() for g in jax.grad(loss, (0, 1))(beta, weights)])

  draws = np.asarray(
    jax.jit(jax.vmap(lambda key: gradient(sampled, key)))(jax.random.split(KEY, 6_000))
  )
  exact = np.asarray(gradient(mean, KEY))
  error = draws.std(0) / np.sqrt(len(draws))
  np.testing.assert_array_less(np.abs(draws.mean(0) - exact), 5 * error + 1e-6)
  assert (5 * error[:4] < np.abs(exact[:4]).max()).all()  # a gradient of zero fails here


def test_two_draws_differ_from_one_but_have_the_same_mean():
  images, labels = batch()
  adversary = {"beta": jnp.array([1.0, 2.0, 0.5, 1.5])}
  one, two = (
    methods.create(
      "sprout", options("sprout", "released", label_draws=n, mixup_alpha=2.0, draw="mean")
    )
    for n in (1, 2)
  )
  np.testing.assert_allclose(
    one.vicinity(KEY, images, labels, adversary)[1],
    two.vicinity(KEY, images, labels, adversary)[1],
    atol=1e-6,
  )
  # All labels are of one class, so that the partner does not matter: at lambda near 1/2, mixing two
  # independent draws halves the variance.
  labels = jnp.broadcast_to(labels[:1], labels.shape)
  keys, spread = jax.random.split(KEY, 500), []
  for n in (1, 2):
    method = methods.create(
      "sprout", options("sprout", "released", label_draws=n, mixup_alpha=100.0)
    )
    draws = jax.jit(jax.vmap(lambda key, m=method: m.vicinity(key, images, labels, adversary)[1]))(
      keys
    )
    spread.append(np.asarray(draws).var(0).mean())
  assert 0.4 < spread[1] / spread[0] < 0.6


def test_sprout_is_its_ingredients():
  """Noise first, then mixup of the noisy images and of the labels, then the mean label."""
  images, labels = batch()
  method = methods.create(
    "sprout", options("sprout", draw="mean", noise_stddev=0.3, mixup_alpha=5.0)
  )
  x, y = method.vicinity(KEY, images, labels, {"beta": jnp.full(4, 2.0)})
  key_noise, key_mixup, *_ = jax.random.split(KEY, 4)
  noisy = vicinity.gaussian_noise(key_noise, images, 0.3)
  weight, partners = vicinity.mixup_pairs(key_mixup, 6, 5.0)
  assert 0.1 < weight < 0.9
  np.testing.assert_allclose(x, weight * noisy + (1 - weight) * noisy[partners], atol=1e-6)
  mixed = np.asarray(weight * labels + (1 - weight) * labels[partners])
  np.testing.assert_allclose(y, (0.99 * mixed + 0.02) / 1.07, atol=1e-6)


def test_beta_starts_as_its_option_says():
  uniform, ones = (
    methods.create(
      "sprout", options("sprout", beta=options("sprout")["beta"] | {"init": init})
    ).adversary.init
    for init in ("uniform", "ones")
  )
  np.testing.assert_array_equal(ones(KEY, 5, ())["beta"], np.ones(5))
  draws = np.asarray([uniform(key, 500, ())["beta"] for key in jax.random.split(KEY, 2)])
  assert draws.min() >= 1e-3 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.05
  assert not np.allclose(draws[0], draws[1])


def test_the_floor_of_beta_does_nothing_in_released():
  """Beta ascends from 1. So the released code's cut of the concentration at 0 changes nothing."""
  found = [
    stepping.run_steps(
      stepping.make_config(
        {"method.beta.minimum": floor, "method.draw": "mean"}, "sprout", "released"
      ),
      stepping.Mlp(),
      num_steps=4,
    )[2].adversary["beta"]
    for floor in (1e-3, 1e-6)
  ]
  np.testing.assert_array_equal(*found)
  assert found[0].min() > 0.99 and found[0].max() > 1


@pytest.mark.parametrize(
  "concentration, expected",
  [("paper", [0.99 + 0.02, 0.02]), ("algorithm1", [0.01 + 1.98, 1.98]), ("released", [12.0, 2.0])],
)
def test_concentration_weights(concentration, expected):
  weights = sprout_lib.CONCENTRATIONS[concentration](0.01)
  got = vicinity.dirichlet_concentration(jnp.array([[1.0, 0.0]]), jnp.array([2.0, 2.0]), *weights)
  np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_without_noise_mixup_and_alpha_nothing_changes():
  images, labels = batch()
  for draw in sprout_lib.DRAWS:
    sprout = methods.create(
      "sprout", options("sprout", draw=draw, noise_stddev=0.0, mixup_alpha=0, alpha=0.0)
    )
    x, y = sprout.vicinity(KEY, images, labels, {"beta": jnp.ones(4)})
    np.testing.assert_array_equal(x, images)
    np.testing.assert_allclose(y, labels, atol=1e-6)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(alpha=1.5), "alpha"),
    (dict(alpha=-0.1), "alpha"),
    (dict(noise_stddev=-1.0), "noise_stddev"),
    (dict(noise_stddev=float("nan")), "noise_stddev"),
    (dict(mixup_alpha=-0.2), "mixup_alpha"),
    (dict(concentration="papper"), "algorithm1, paper, released"),
    (dict(draw="median"), "mean, sample"),
    (dict(label_draws=3), "1, 2"),
    (dict(beta_batch="dirty"), "clean, same"),
    (dict(concentration="released", alpha=0.01), "has no alpha"),
  ],
)
def test_wrong_options_are_errors(changes, message):
  with pytest.raises(UserError, match=message):
    methods.create("sprout", options("sprout", **changes))
