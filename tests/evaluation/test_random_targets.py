"""random_targets: the classes that are drawn, and PGD towards them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation import random_targets
from tests.evaluation import subjects

KEY = jax.random.key(3)


def test_targets_are_wrong_classes_equally_often_and_of_each_image_alone():
  labels = jnp.arange(6_000) % 4
  targets = np.asarray(random_targets.random_targets(KEY, labels, jnp.arange(6_000), 4))
  shifts = (targets - np.asarray(labels)) % 4
  counts = np.bincount(shifts, minlength=4)
  assert counts[0] == 0 and (np.abs(counts[1:] - 2_000) < 5 * np.sqrt(6_000 * 2 / 9)).all()
  some = np.array([17, 5, 4_000])
  again = random_targets.random_targets(KEY, labels[some], jnp.asarray(some), 4)
  np.testing.assert_array_equal(again, targets[some])


def linear_subject(num_classes, count=300):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(64, num_classes)).astype(np.float32)
  images = rng.uniform(0.4, 0.6, (count, 8, 8, 1)).astype(np.float32)  # away from the box's faces
  logits = (images - 0.5).reshape(count, -1) @ kernel
  labels = logits.argmax(-1).astype(np.int32)
  predict = lambda kernel, x: (x - 0.5).reshape(len(x), -1) @ kernel
  subject = subjects.of_network(subjects.draw_network(0), images, labels)
  return subject, kernel, logits, subjects.model(kernel, predict)


def test_on_a_linear_model_of_two_classes_it_is_the_closed_form():
  """The target is the other class. It is reached where the margin is below eps |w_0 - w_1|_1."""
  subject, kernel, logits, predict = linear_subject(2)
  subject = dataclasses.replace(subject, predict=predict, features=None)
  epsilon = 0.01
  margins = np.abs(logits[:, 0] - logits[:, 1])
  reach = epsilon * np.abs(kernel[:, 0] - kernel[:, 1]).sum()
  expected = margins > reach
  assert 0.1 < expected.mean() < 0.9 and (np.abs(margins - reach) > 1e-4).all()
  found = subjects.measure(
    "random_targets", subject, epsilon=epsilon, epsilons=(0.0,), num_steps=10, step_size=0.005
  )
  clean, right, reached = found.numbers
  assert clean.value == 1 and clean.keys["epsilon"] == 0
  np.testing.assert_array_equal(right.outcomes, expected)
  np.testing.assert_allclose(reached.value, 1 - expected.mean())
  assert (right.keys["attack"], reached.metric) == ("pgd_random_targets", "target_share")


def test_outputs_that_are_not_finite_are_wrong_and_reach_nothing():
  predict = lambda x: jnp.full((len(x), 3), jnp.nan) + 0 * x.sum()
  fn = random_targets.attack_fn("linf", 2, 0.01, 0, 3)
  images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.array([0, 0, 1, 2])
  found = fn(predict, jnp.float32(0.02), images, labels, jnp.arange(4))
  assert not found["right"].any() and not found["reached"].any()


def test_it_is_weaker_than_pgd_on_the_true_class():
  subject = subjects.make()
  options = dict(epsilon=0.012, epsilons=())
  towards = subjects.measure("random_targets", subject, **options).numbers
  (away,) = subjects.measure("pgd", subject, **options).numbers
  right, reached = towards
  assert away.value < right.value < 1 and 0 < reached.value <= 1 - right.value
