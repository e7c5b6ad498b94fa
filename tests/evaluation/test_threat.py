"""threat: images outside the ball or the box are refused; rounding at large radii is allowed."""

import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.evaluation import pgd
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import as_pytree


@pytest.mark.parametrize(
  "adversarial, norm, excess",
  [
    ([[0.5, 0.62]], "linf", 0.02),  # 0.12 from 0.5, of 0.1
    ([[0.5, 0.58]], "linf", -0.02),
    ([[0.56, 0.58]], "l2", 0.0),  # sqrt(0.06^2 + 0.08^2) = 0.1
    ([[1.3, 0.5]], "linf", 0.7),  # 0.8 from 0.5; 0.3 outside the box
  ],
)
def test_excess(adversarial, norm, excess):
  images = np.full((1, 1, 2, 1), 0.5, np.float32)
  moved = np.float32(adversarial).reshape(1, 1, 2, 1)
  found = threat.excess(jnp.asarray(images), jnp.asarray(moved), 0.1, norm)
  np.testing.assert_allclose(found, [excess], atol=1e-6)


@pytest.mark.parametrize("pixel, outside", [(1.05, 0.05), (-0.05, 0.05), (1.0, 0.0), (0.0, 0.0)])
def test_pixels_outside_the_box_are_found_within_the_ball(pixel, outside):
  """The ball of 0.5 around the edge holds them; the box does not."""
  images = np.full((1, 1, 2, 1), round(pixel), np.float32)
  moved = np.float32([pixel, round(pixel)]).reshape(1, 1, 2, 1)
  found = threat.excess(jnp.asarray(images), jnp.asarray(moved), 0.5, "linf")
  np.testing.assert_allclose(found, [outside], atol=1e-6)


def test_rounding_grows_with_the_radius():
  threat.refuse("PGD", np.float32([9e-7]), 0.03)
  threat.refuse("PGD", np.float32([2e-5]), 28.0)
  for excess, epsilon in ((2e-6, 0.03), (5e-5, 28.0), (np.nan, 1.0)):
    with pytest.raises(RuntimeError, match="PGD left its threat model"):
      threat.refuse("PGD", np.float32([0, excess]), epsilon)


def test_large_l2_radii_on_large_images():
  """Numbers near 24 lie 1.9e-6 apart in float32: more than the tolerance at small radii."""
  images = (0.5 + 0.02 * np.random.RandomState(0).randn(4, 64, 64, 3)).astype(np.float32)
  weights = np.float32(1e-3) * np.random.RandomState(1).randn(images[0].size, 3).astype(np.float32)
  bias = np.float32([[100, 0, 0]])
  predict = as_pytree(lambda x: x.reshape(len(x), -1) @ weights + bias)
  subject = Subject(predict, images, np.zeros(4, np.int32), shows_progress=False)
  for epsilon in (12.0, 14.0, 20.0, 24.0):
    attack = pgd.Pgd("l2", 5, epsilon / 4, 1, "cross_entropy", 0)
    (number,) = pgd.curve(subject, subject.select(0), attack, (epsilon,))
    assert number.value == 1.0
