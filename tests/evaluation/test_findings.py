"""Findings end to end: each fires on a model built for it, none on one trained against PGD."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sprout_jax import attacks
from sprout_jax import data
from sprout_jax import losses
from sprout_jax import vicinity
from sprout_jax.evaluation import table
from sprout_jax.results import checks
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Stored
from tests.evaluation import subjects

EPSILON = 0.1
ALPHA, NOISE = 0.99, 0.3  # of the smoothed model: strong
CLASSES = (3, 5, 8, 9)  # digits that are taken for each other


def digits(split):
  keep = np.isin(split.labels, CLASSES)
  labels = np.searchsorted(CLASSES, split.labels[keep]).astype(np.int32)
  return split.images[keep], labels


def natural(key, predict, images, one_hot, labels):
  return images, one_hot


def adversarial(key, predict, images, one_hot, labels):
  attacked = attacks.pgd(
    key, predict, images, labels, epsilon=EPSILON, step_size=EPSILON / 3, num_steps=5, keep="last"
  )
  return attacked, one_hot


def smoothed(key, predict, images, one_hot, labels):
  noisy = vicinity.gaussian_noise(key, images, NOISE)
  return noisy, (1 - ALPHA) * one_hot + ALPHA / len(CLASSES)


@functools.cache
def train(vicinity_of):
  """Weights of a `subjects.network` after 300 steps of Adam on all digits of `CLASSES` at once."""
  images, labels = map(jnp.asarray, digits(data.load("digits").train))
  weights = subjects.draw_network(0)
  fixed = {name: weights.pop(name) for name in ("scale", "levels", "offset")}
  predict = lambda weights, x: subjects.network(weights | fixed, x)
  one_hot, optimizer = jax.nn.one_hot(labels, len(CLASSES)), optax.adam(3e-3)

  def step(carry, key):
    weights, state = carry
    x, y = vicinity_of(key, functools.partial(predict, weights), images, one_hot, labels)
    loss = lambda weights: losses.soft_cross_entropy(predict(weights, x), y).mean()
    updates, state = optimizer.update(jax.grad(loss)(weights), state)
    return (optax.apply_updates(weights, updates), state), None

  def run(carry):
    return jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), 300))[0]

  return jax.tree.map(np.asarray, jax.jit(run)((weights, optimizer.init(weights)))[0]) | fixed


def measure(rows, weights, **changes):
  """All findings of these evaluations together, and their numbers."""
  images, labels = digits(data.load("digits").test)
  subject = subjects.of_network(weights, images[: subjects.COUNT], labels[: subjects.COUNT])
  standard = dict(version="standard", epsilons=())
  settings = subjects.settings(
    epsilon=EPSILON,
    epsilons=(0.0, EPSILON),
    **dict(auto_attack=standard, binarization=dict(num_examples=16)) | changes,
  )
  stored = {}
  for name in rows:
    options = table.choose(name, settings)
    found = table.EVALUATIONS[name].function(subject, **options)
    numbers = Numbers(dataclasses.replace(number, evaluation=name) for number in found.numbers)
    stored[name] = Stored(numbers, found.details, found.notes, name, 1, options)
  numbers = Numbers(number for one in stored.values() for number in one.numbers)
  return checks.findings(checks.Evidence(numbers, stored)), numbers


def failed(findings):
  return {finding.check for finding in findings if not finding.passed}


def test_a_model_trained_against_pgd_raises_no_finding():
  rows = ("pgd", "sanity", "binarization", "auto_attack")
  found, numbers = measure(rows, train(adversarial))
  assert not failed(found), [finding.text for finding in found if not finding.passed]
  assert {finding.check for finding in found} == checks.CHECKS.keys()
  assert numbers.first(evaluation="auto_attack", stage=None).value > 0.7  # it is worth something


def test_smoothed_labels_and_noise_look_robust_to_pgd_with_one_start():
  """AutoAttack breaks the images that PGD on the cross-entropy leaves robust."""
  found, numbers = measure(("pgd", "auto_attack"), train(smoothed), num_restarts=1)
  pgd = numbers.first(evaluation="pgd", epsilon=EPSILON)
  ensemble = numbers.first(evaluation="auto_attack", stage=None)
  assert failed(found) == {"gap"} and pgd["restarts"] == 1
  (gap,) = [finding for finding in found if finding.check == "gap"]
  np.testing.assert_allclose(gap.value, 100 * (pgd.value - ensemble.value))
  assert gap.value > 10 and gap.is_about(pgd) and not gap.is_about(ensemble)
  assert "Report the accuracy under AutoAttack." in gap.text
  # Its neighbour without smoothing has no such gap.
  found, _ = measure(("pgd", "auto_attack"), train(natural), num_restarts=1)
  assert "gap" not in failed(found)


def test_a_model_behind_rounding_has_no_gradients_and_is_found_out():
  rounded = train(natural) | {"levels": np.float32(10)}
  found, numbers = measure(("pgd", "sanity", "auto_attack"), rounded, num_restarts=1)
  assert failed(found) >= {"gradients", "black_box", "large_radius", "square", "gap"}
  texts = " ".join(finding.text for finding in found)
  assert "zero for cross_entropy in 100.0%" in texts and "Square lowers the accuracy by" in texts
  assert "The gradients are probably masked." in texts
  hints = {f.check for f in found if "attacks.with_surrogate" in f.text}
  assert hints == {"gradients", "black_box", "large_radius", "square"}  # and only where they fire
  assert all(not f.passed for f in found if f.check in hints and "with_surrogate" in f.text)
  pgd = numbers.first(evaluation="pgd", epsilon=EPSILON)
  assert {f.check for f in found if f.is_about(pgd) and not f.passed} >= {"gradients", "gap"}


def test_a_model_whose_logits_are_blown_up_has_no_gradient_of_the_cross_entropy():
  found, numbers = measure(("sanity",), train(natural) | {"scale": np.float32(1e4)})
  gradients = [f for f in found if f.check == "gradients"]
  assert len(gradients) == 3 and not any(f.passed for f in gradients)
  for place in ("at the images", "at the start of PGD", "halfway through PGD"):
    (finding,) = [f for f in gradients if place in f.text]
    concerned = [n for n in numbers if finding.is_about(n)]
    assert concerned and all(
      n["loss"] == "cross_entropy" and n["place"] == place for n in concerned
    )
    assert "log_odds" not in finding.text  # which is what attacks follow


def test_gradients_that_are_nan_in_a_pixel_are_found_out_and_spoil_no_attack():
  """The square root has no slope at 0, which the first pixel of all digits is."""
  rows = ("pgd", "sanity", "strength")
  found, numbers = measure(rows, train(natural) | {"offset": np.float32(0)})
  gradients = [f for f in found if f.check == "gradients"]
  assert gradients and not any(f.passed for f in gradients)
  assert "not a number for cross_entropy in 100.0%" in gradients[0].text
  _, usual = measure(rows, train(natural))
  for number in numbers.where(metric="accuracy"):  # of 40 images; one pixel less to change
    other = usual.first(evaluation=number.evaluation, metric="accuracy", **number.keys)
    assert abs(number.value - other.value) <= 0.05


def test_an_attack_that_is_too_weak_is_found_out():
  """Few short steps: more find more, the loss still rises, and planted examples are missed."""
  weak = dict(num_steps=10, step_size=0.004, num_restarts=1)
  found, _ = measure(("sanity", "binarization"), train(adversarial), **weak)
  assert failed(found) == {"effort", "converged", "binarization", "order"}
  # The large radius has long steps of its own.
  (effort,) = [f for f in found if f.check == "effort"]
  assert "20 steps" in effort.text and effort.value > checks.EFFORT_POINTS


def test_without_gradients_there_are_no_cosines():
  """None, and the count says so: no number is invented."""
  found, numbers = measure(("gradients",), train(natural) | {"levels": np.float32(10)})
  cosines = numbers.where(metric="cosine_similarity")
  assert len(cosines) == 3 and all(n.value is None and n.count == 0 for n in cosines)
  undefined = numbers.first(metric="undefined_gradients")
  assert undefined.value == undefined.count == subjects.COUNT and not found
