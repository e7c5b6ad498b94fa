"""pgd, noise and strength: closed forms on a linear model, restarts, devices, the threat model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.evaluation import pgd as pgd_lib
from sprout_jax.evaluation import randomness
from sprout_jax.evaluation import sanity
from sprout_jax.evaluation import strength
from sprout_jax.evaluation.noise import random_noise
from sprout_jax.evaluation.pgd import Pgd
from tests.evaluation import subjects

PGD = Pgd("linf", 10, 0.02, 1, "cross_entropy", 0)


def outcomes(subject, attack, epsilon=0.05, **options):
  fn = pgd_lib.attack_fn(attack, "linf", 0)
  return pgd_lib.outcomes(subject, subject.select(0), fn, epsilon, name="the attack", **options)


@pytest.mark.parametrize("count", [1, 8])
def test_the_curve_of_a_linear_model_is_the_closed_form(count):
  """x is robust iff its margin exceeds epsilon |w|_1; misclassified images are never robust."""
  epsilons = (0.0, 0.01, 0.02, 0.05, 0.2)
  with subjects.devices(count):
    subject, margin, norm = subjects.two_classes(batch_size=16)
    numbers = pgd_lib.curve(subject, subject.select(0), PGD, epsilons)
  for number, epsilon in zip(numbers, epsilons, strict=True):
    np.testing.assert_array_equal(number.outcomes, margin > max(epsilon * norm, 0))
    assert number.count == 37 and number.matches(**PGD.keys, epsilon=epsilon)
  assert numbers[0].value > numbers[2].value > numbers[4].value == 0


def test_attacks_and_noise_on_a_linear_model():
  """FGSM, PGD and APGD reach the closed form; noise, by the same distances, does not."""
  subject, margin, norm = subjects.two_classes(200)
  exact = margin > 0.05 * norm
  apgd = functools.partial(attacks.apgd, num_steps=20)
  for attack in (sanity.fgsm, PGD.attack, apgd):
    np.testing.assert_array_equal(outcomes(subject, attack), exact)
  assert exact.mean() < outcomes(subject, random_noise).mean() < (margin > 0).mean()


def test_restarts_are_independent_runs_of_which_the_worst_counts():
  """With one short step, starts matter: robust after 4 restarts = robust in each of 4 runs."""
  subject, margin, _ = subjects.two_classes(200)
  weak = Pgd("linf", 1, 0.005, 4, "cross_entropy", 0)
  (number,) = pgd_lib.curve(subject, subject.select(0), weak, (0.05,))
  fn = pgd_lib.attack_fn(weak.attack, "linf", 0)
  arrays = subject.images, subject.labels, np.arange(200, dtype=np.int32)
  runs = np.array(
    [
      subject.map(fn, *arrays, shared=(subject.predict, 0.05, restart))["right"]
      for restart in range(4)
    ]
  )
  np.testing.assert_array_equal(number.outcomes, runs.all(0) & (margin > 0))
  assert number["restarts"] == 4
  assert runs.all(0).sum() < runs.sum(1).min() and not (runs[0] == runs[1]).all()


def test_restarts_differ_and_devices_and_batches_do_not():
  weak = functools.partial(random_noise, num_draws=1)
  subject, _, _ = subjects.two_classes(200)
  one, three = (outcomes(subject, weak, restarts=restarts) for restarts in (1, 3))
  assert (three <= one).all() and three.sum() < one.sum()
  with subjects.devices(1):
    alone, _, _ = subjects.two_classes(200, batch_size=48)
    np.testing.assert_array_equal(outcomes(alone, weak), one)


def test_a_model_that_is_always_wrong_needs_no_attack():
  subject, margin, _ = subjects.two_classes()
  fail = lambda *args, **kwargs: pytest.fail("attacked")
  robust = outcomes(subject, fail, still_right=np.zeros(37, bool))
  assert not robust.any()


def test_what_another_attack_left_is_attacked():
  subject, margin, _ = subjects.two_classes()
  left = np.arange(37) < 20
  robust = outcomes(subject, sanity.fgsm, epsilon=0.0, still_right=left & (margin > 0))
  np.testing.assert_array_equal(robust, left & (margin > 0))


def shifts(key, predict, images, labels, *, epsilon, norm, indices):
  return images + epsilon + 0.01


def test_an_attack_that_leaves_its_threat_model_is_an_error():
  subject, _, _ = subjects.two_classes()
  with pytest.raises(RuntimeError, match="the attack at epsilon 0.05 left .* by 0.01"):
    outcomes(subject, shifts)
  with pytest.raises(RuntimeError, match="left its threat model by nan"):
    outcomes(subject, lambda key, predict, images, labels, **kwargs: images * jnp.nan)
  outside = lambda key, predict, images, labels, **kwargs: images - 0.41
  with pytest.raises(RuntimeError, match="left its threat model by 0.0"):
    outcomes(subject, outside, epsilon=0.42)  # within the ball, below black


def test_accuracies_that_cannot_be_right_are_errors(monkeypatch):
  """At epsilon 0 nothing moves: another outcome there is a defect."""
  subject, margin, _ = subjects.two_classes()
  wrong = {"right": np.zeros(37, bool), "excess": np.zeros(37)}
  monkeypatch.setattr(
    type(subject),
    "map",
    lambda self, fn, images, *rest, **options: jax.tree.map(lambda a: a[: len(images)], wrong),
  )
  subject._known["logits"] = (
    np.stack([margin, -margin], -1) * np.where(subject.labels, -1, 1)[:, None]
  )
  with pytest.raises(RuntimeError, match="PGD at epsilon 0 changes the outcome of 15 of 37 images"):
    pgd_lib.curve(subject, subject.select(0), PGD, (0.0, 0.1))


def test_the_choice_of_images_is_fixed_and_without_repetition():
  rows = randomness.choose(100, 30)
  np.testing.assert_array_equal(rows, np.random.RandomState(0).permutation(100)[:30])
  assert len(set(rows)) == 30 and set(rows) < set(range(100)) and (rows != np.arange(30)).any()
  np.testing.assert_array_equal(randomness.choose(100, 10), rows[:10])
  for count in (0, 100, 200):
    np.testing.assert_array_equal(randomness.choose(100, count), np.arange(100))


def test_random_numbers_hang_on_seeds_and_names():
  data = lambda key: tuple(np.asarray(jax.random.key_data(key)).tolist())
  root = randomness.root_key(3)
  assert data(root) == data(jax.random.fold_in(jax.random.key(3), 4294967295))
  fog = randomness.named_key(root, "fog")
  assert data(fog) == data(jax.random.fold_in(root, 0x82A8ED13))  # the CRC-32 of b"fog"
  keys = {
    data(key) for key in (root, fog, randomness.named_key(root, "snow"), randomness.root_key(4))
  }
  assert len(keys) == 4


# How a run of PGD goes.


def trace(subject, pgd, count=16):
  images = subject.select(0)
  return strength.trace(subject, images, np.arange(count), pgd, strength.trace_fn(pgd), 0.05, 0)


def test_best_losses_of_a_linear_model_by_formula():
  """The lead of the wrong class grows by step * |w|_1 until it ends in a vertex of the ball."""
  subject, margin, norm = subjects.two_classes(16)
  found = trace(subject, Pgd("linf", 40, 0.004, 1, "margin", 0))
  best = found["best_loss"]
  assert best.shape == (16, 41) and (np.diff(best) >= 0).all()
  np.testing.assert_array_equal(found["broken"], best > 0)
  assert (found["size"] <= 0.05 + 1e-6).all() and found["size"][:, 0].min() > 0
  np.testing.assert_allclose(best[:, -1], 0.05 * norm - margin, rtol=1e-4, atol=1e-4)
  assert (best[:, 0] > -0.05 * norm - margin).all()
  # The last of the pixels arrives after at most 2 epsilon / step = 25 steps.
  assert (best[:, 26] == best[:, 40]).all() and (best[:, 10] < best[:, 40]).any()
  # The same run as `attacks.pgd`: its loss after 3 steps.
  adversarial = attacks.pgd(
    jax.random.fold_in(randomness.root_key(0), 0),
    subject.predict,
    subject.images,
    subject.labels,
    epsilon=0.05,
    step_size=0.004,
    num_steps=3,
    loss="margin",
  )
  values = attacks.LOSSES["margin"](subject.predict(adversarial), subject.labels)
  expected = np.maximum(np.asarray(values), -margin)
  np.testing.assert_allclose(np.maximum(best[:, 3], -margin), expected, rtol=1e-4, atol=1e-4)
  right = outcomes(subject, Pgd("linf", 3, 0.004, 1, "margin", 0).attack)
  decided = (margin > 0) & (np.abs(expected) > 1e-3)
  np.testing.assert_array_equal(right[decided], (expected < 0)[decided])
  assert decided.sum() > 3


def wave(weights, images):
  """Steps of PGD jump over its crests."""
  crest = jnp.cos(300 * images.sum((1, 2, 3)))
  return jnp.stack([crest, -crest], -1)


def test_best_losses_never_fall():
  subject, _, _ = subjects.two_classes(16, wave)
  best = trace(subject, Pgd("linf", 20, 0.004, 1, "margin", 0))["best_loss"]
  assert (np.diff(best) >= 0).all() and (np.diff(best) == 0).any()


# Noise.


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_noise_has_the_size_and_stays_in_the_box(norm):
  """Also where the image is black or white: a pixel that would leave the box turns round."""
  images = np.concatenate([np.zeros((20, 4, 4, 1)), np.ones((20, 4, 4, 1))]).astype(np.float32)
  predict = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], -1)
  labels = np.zeros(40, np.int32)
  draw = functools.partial(random_noise, epsilon=0.3, norm=norm, num_draws=2)
  found = np.asarray(draw(jax.random.key(0), predict, images, labels))
  change = (found - images).reshape(40, -1)
  size = np.linalg.norm(change, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=-1)
  np.testing.assert_allclose(size, 0.3, rtol=1e-5)
  assert found.min() >= 0 and found.max() <= 1 and len(np.unique(change)) > 300


def test_noise_keeps_the_first_that_is_wrong():
  """Wrong in one of 64 draws on average: found in most of 200, and still wrong in the end."""
  images = np.full((64, 2, 3, 1), 0.5, np.float32)
  predict = lambda x: jnp.stack([jnp.zeros(len(x)), jnp.all(x > 0.5, (1, 2, 3)) - 0.5], -1)
  labels = np.zeros(64, np.int32)
  found = random_noise(jax.random.key(1), predict, images, labels, epsilon=0.1, num_draws=200)
  assert 0.8 < np.mean(np.argmax(predict(found), -1) == 1) <= 1
