"""pgd_trace against runs of pgd with fewer steps, and models whose outputs are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks

KEY = jax.random.key(9)
STEPS = 4
RNG = np.random.RandomState(3)
FIRST = RNG.normal(size=(18, 12)).astype(np.float32)
SECOND = RNG.normal(size=(12, 4)).astype(np.float32)
IMAGES = RNG.uniform(size=(16, 3, 3, 2)).astype(np.float32)


def predict(images):
  """A model whose loss falls again along the gradient's path."""
  bumpy = images - 0.5 + 0.03 * jnp.sin(90 * images)
  return jnp.tanh(bumpy.reshape(len(images), -1) @ FIRST) @ SECOND


LABELS = np.asarray(predict(IMAGES)).argmax(-1)


def losses(logits):
  """Margin and log odds, in NumPy."""
  logits = np.asarray(logits, float)
  others = np.where(np.arange(4) == LABELS[:, None], -np.inf, logits)
  true = logits[np.arange(16), LABELS]
  return {"margin": others.max(-1) - true, "cross_entropy": np.log(np.exp(others).sum(-1)) - true}


@pytest.mark.parametrize("norm, loss", [("linf", "margin"), ("l2", "cross_entropy")])
def test_each_column_equals_a_run_of_so_many_steps(norm, loss):
  """The same path step by step, in NumPy except for the gradient."""
  radius = {"linf": 0.06, "l2": 0.2}[norm]
  options = dict(epsilon=radius, step_size=radius / 3, num_steps=STEPS, norm=norm, loss=loss)
  indices = np.arange(20, 36)
  trace = attacks.pgd_trace(KEY, predict, IMAGES, LABELS, indices=indices, **options)
  best = attacks.pgd(KEY, predict, IMAGES, LABELS, indices=indices, **options)
  np.testing.assert_allclose(trace.images, best, atol=1e-6)

  def size(away):
    away = away.reshape(16, -1)
    return np.abs(away).max(-1) if norm == "linf" else np.linalg.norm(away, axis=-1)

  def project(points):
    away = points - IMAGES
    if norm == "linf":
      away = np.clip(away, -radius, radius)
    else:
      away = away * np.minimum(1, radius / size(away))[:, None, None, None]
    return np.clip(IMAGES + away, 0, 1)

  gradient = jax.jit(jax.grad(lambda x: attacks.LOSSES[loss](predict(x), LABELS).sum()))
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, 0), i))(indices)
  points = project(IMAGES + np.asarray(attacks.NORMS[norm].start(keys, IMAGES, radius)))
  highest, broken, fell, healed = np.full(16, -np.inf), np.zeros(16, bool), 0, 0
  for step in range(STEPS + 1):
    logits = np.asarray(predict(points))
    value, wrong = losses(logits)[loss], logits.argmax(-1) != LABELS
    fell, healed = fell + (value < highest - 1e-3).sum(), healed + (broken & ~wrong).sum()
    highest, broken = np.maximum(highest, value), broken | wrong
    np.testing.assert_allclose(trace.best_loss[:, step], highest, atol=1e-4)
    np.testing.assert_array_equal(trace.broken[:, step], broken)
    np.testing.assert_allclose(trace.size[:, step], size(points - IMAGES), atol=1e-5)
    direction = np.asarray(gradient(points))
    if norm == "linf":
      direction = np.sign(direction)
    else:
      direction = direction / size(direction)[:, None, None, None]
    points = project(points + radius / 3 * direction)
  assert 0 < broken.sum() < 16 and fell and healed


def fragile(images):
  """Right at the grey image, NaN where a pixel moves by more than 0.01."""
  far = jnp.abs(images - 0.5).max((1, 2, 3)) > 0.01
  clean = jnp.array([[2.0, 0.0]]) + 0 * images.sum((1, 2, 3))[:, None]
  return jnp.where(far[:, None], jnp.nan, clean)


def test_outputs_that_are_no_numbers_are_wrong_and_found():
  """The label is class 0, which is the argmax of NaNs."""
  images, labels = np.full((3, 3, 3, 2), 0.5, np.float32), np.zeros(3, np.int32)
  options = dict(epsilon=0.1, step_size=0.02, num_steps=2)
  trace = attacks.pgd_trace(KEY, fragile, images, labels, **options)
  assert trace.broken.all() and not jnp.isnan(trace.best_loss).any()
  found = attacks.pgd(KEY, fragile, images, labels, **options)
  assert attacks.is_wrong(fragile(found), labels).all() and jnp.isfinite(found).all()


def test_a_finite_mistake_is_preferred_to_no_number():
  """Of a wrong finite output (below 0.5) and NaN (above 0.6), the finite one is returned."""

  def model(images):
    value = images.mean((1, 2, 3))
    finite = jnp.stack([jnp.zeros_like(value), 0.5 - value], -1)
    return jnp.where(value[:, None] > 0.6, jnp.nan, finite)

  images = np.full((32, 1, 1, 1), 0.5, np.float32)  # a quarter of the random starts is above 0.6
  found = attacks.pgd(
    KEY,
    model,
    images,
    np.zeros(32, np.int32),
    epsilon=0.2,
    step_size=0.05,
    num_steps=8,
    num_restarts=6,
  )
  assert jnp.isfinite(model(found)).all()
  assert attacks.is_wrong(model(found), np.zeros(32, np.int32)).all()
