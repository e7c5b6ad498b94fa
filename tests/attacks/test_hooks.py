"""Hooks: outputs and gradients by hand; defences that are broken look robust only without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from tests import defences

KEY = jax.random.key(3)
RNG = np.random.RandomState(0)
IMAGES = RNG.uniform(size=(6, 4, 4, 1)).astype(np.float32)
WEIGHTS, OTHER = RNG.normal(size=(2, 16, 3)).astype(np.float32)
part = jax.tree_util.Partial


def linear(weights, images):
  return (images - 0.5).reshape(len(images), -1) @ weights


def stepped(weights, images):
  return linear(weights, jnp.round(4 * images) / 4)


def noisy(weights, images, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  return linear(weights, images + 0.2 * noise) ** 2


def total(model):
  return lambda images, *keys: jnp.sum(jnp.sin(model(images, *keys)))


@pytest.mark.parametrize("kind", ["functions", "pytrees"])
def test_outputs_are_the_model_s_and_gradients_the_surrogate_s(kind):
  models = part(stepped, WEIGHTS), part(linear, OTHER)
  if kind == "functions":
    models = tuple(functools.partial(m.func, *m.args) for m in models)
  hook = attacks.with_surrogate(*models)
  np.testing.assert_array_equal(hook(IMAGES), stepped(WEIGHTS, IMAGES))
  # The loss is taken at the outputs of the model: cos(z) W' with z of the model, W' of the other.
  expected = jnp.cos(stepped(WEIGHTS, IMAGES)) @ OTHER.T
  for gradient in (jax.grad(total(hook)), jax.jit(jax.grad(total(hook)))):
    np.testing.assert_allclose(gradient(IMAGES).reshape(6, -1), expected, rtol=1e-5, atol=1e-5)
  assert not jax.grad(total(models[0]))(IMAGES).any()  # rounding has no gradient
  with_argument = jax.jit(lambda hook, images: hook(images))(hook, IMAGES)
  np.testing.assert_allclose(with_argument, hook(IMAGES), rtol=1e-6)


def test_the_average_of_draws_by_hand():
  model = attacks.averaged(part(noisy, WEIGHTS), 3, key=KEY)

  def draw(number, images):
    key = jax.random.fold_in(KEY, number)
    return noisy(WEIGHTS, images, jnp.broadcast_to(key, (len(images),)))

  np.testing.assert_allclose(
    model(IMAGES), sum(draw(n, IMAGES) for n in range(3)) / 3, rtol=1e-5, atol=1e-5
  )
  weight = RNG.normal(size=(6, 3))
  mean = jax.grad(lambda x: jnp.sum(weight * model(x)))(IMAGES)
  each = [jax.grad(lambda x, n=n: jnp.sum(weight * draw(n, x)))(IMAGES) for n in range(3)]
  np.testing.assert_allclose(mean, sum(each) / 3, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(model(IMAGES[2:4]), model(IMAGES)[2:4], rtol=1e-5)  # of no batch


def test_other_draws_are_those_of_another_key():
  model = attacks.averaged(part(noisy, WEIGHTS), 2)
  other = model.redrawn(KEY)
  np.testing.assert_array_equal(other(IMAGES), attacks.averaged(model.predict, 2, key=KEY)(IMAGES))
  assert np.abs(other(IMAGES) - model(IMAGES)).max() > 0.1
  assert jax.tree.structure(other) == jax.tree.structure(model)  # programs are found again


def test_both_together():
  """A random model with a surrogate: gradients are means of the surrogate's."""
  hook = attacks.with_surrogate(
    lambda images, keys: jnp.round(noisy(WEIGHTS, images, keys)), part(noisy, WEIGHTS)
  )
  both, smooth = attacks.averaged(hook, 2), attacks.averaged(part(noisy, WEIGHTS), 2)
  weight = RNG.normal(size=(6, 3))
  gradients = [jax.grad(lambda x, m=m: jnp.sum(weight * m(x)))(IMAGES) for m in (both, smooth)]
  np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(2 * both(IMAGES), jnp.round(2 * both(IMAGES)), atol=1e-5)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: attacks.with_surrogate(WEIGHTS, linear), "with_surrogate: `predict` is a ndarray"),
    (lambda: attacks.with_surrogate(linear, 3), "with_surrogate: `predict` is a int"),
    (lambda: attacks.averaged(noisy, 0), "averaged: draws is 0; expected an integer"),
    (lambda: attacks.averaged(noisy, 2, key=7), r"averaged: `key` is 7 .*jax.random.key\(7\)"),
    (lambda: attacks.averaged(noisy, 2).redrawn(7), "redrawn: `key` is 7"),
    (
      lambda: jax.grad(
        total(attacks.with_surrogate(part(linear, WEIGHTS), part(linear, WEIGHTS[:, :2])))
      )(IMAGES),
      r"with_surrogate: `surrogate` returns shape \(6, 2\), `predict` \(6, 3\)",
    ),
  ],
)
def test_wrong_arguments(make, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    make()


# Broken defences.

COUNT = 60
NAMES = [
  "quantised input",
  "JPEG-like rounding",
  "thermometer code",
  "random resizing",
  "logits times 10,000",
  "k winners take all",
  "stochastic ensemble",
]


def test_all_defences_are_tested():
  assert list(defences.defences()) == NAMES


@functools.partial(jax.jit, static_argnames="loss")  # models of one kind share a program
def attacked(model, images, labels, epsilon, loss):
  """Adversarial images of PGD."""
  options = dict(epsilon=epsilon, step_size=epsilon / 4, num_steps=20, loss=loss)
  return attacks.pgd(KEY, model, images, labels, **options)


def accuracy(model, judge, epsilon, loss="cross_entropy"):
  """The share of images that are right after PGD on a model."""
  _, _, images, labels = defences.digits()
  images, labels = images[:COUNT], labels[:COUNT]
  adversarial = attacked(model, images, labels, epsilon, loss)
  return (np.asarray(judge(adversarial)).argmax(-1) == labels).mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_defence_falls_with_its_hook(name):
  """Without it looks robust; with it, it is as easy to break as the undefended network."""
  defence = defences.defences()[name]
  epsilon = defence.epsilon
  without = accuracy(defence.seen, defence.judge, epsilon, defence.loss)
  found = accuracy(defence.hook, defence.judge, epsilon)
  undefended = accuracy(defence.undefended, defence.undefended, epsilon)
  assert found <= undefended + 0.1 and without >= found + 0.15, (without, found, undefended)


def test_auto_attack_follows_the_hook():
  """Square finds what gradients miss; with the hook the gradients find it themselves."""
  _, _, images, labels = defences.digits()
  defence = defences.defences()["quantised input"]
  options = dict(epsilon=defences.EPSILON, version="apgd-ce", batch_size=32)
  plain, hooked = (
    attacks.auto_attack(KEY, model, images[:30], labels[:30], **options)
    for model in (defence.seen, defence.hook)
  )
  assert plain.robust.mean() > 0.7 and hooked.robust.mean() < 0.1
  assert plain.spec["clean"] == hooked.spec["clean"]
