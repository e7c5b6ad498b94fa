"""gradients: closed forms on linear models, the modules' limits, models without a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.evaluation import gradients
from sprout_jax.evaluation.subject import Subject
from tests.evaluation import subjects

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(9, 3)).astype(np.float32)
IMAGES = RNG.uniform(size=(20, 3, 3, 1)).astype(np.float32)
LABELS = RNG.integers(3, size=20).astype(np.int32)
PREDICTED = (IMAGES.reshape(20, 9) @ KERNEL).argmax(-1).astype(np.int32)
OFF = {"noise_stddev": 0.0, "mixup_alpha": 0, "label_weight": 1e7, "beta_weight": 1e-3}
# One object for each: programs are found again.
PROGRAMS = {}


def three(weights, images):
  """Three classes; `levels` quantises the input. With a `slope` above 0 the gradient is NaN."""
  levels = weights["levels"]
  x = jnp.where(levels > 0, jnp.round(images * levels) / jnp.maximum(levels, 1), images)
  logits = weights["scale"] * (x.reshape(len(x), -1) @ weights["kernel"] + weights["bias"][None])
  pixel = images[:, :1, 0, 0]  # the root's slope at 0 is infinite; times 0 it is NaN
  return logits + 0 * jnp.sqrt(pixel - pixel + weights["offset"])


def make(images=IMAGES, labels=LABELS, beta=None, **changes):
  weights = dict(kernel=KERNEL, bias=np.zeros(3, np.float32), scale=1.0, levels=0.0, offset=1.0)
  weights = jax.tree.map(np.float32, weights | changes)
  predict = subjects.model(weights, three)
  return Subject(predict, images, labels, batch_size=16, beta=beta, programs=PROGRAMS)


def diversity(subject=None, draws=2, seed=0, **changes):
  """The mean cosines, [3, 3], and how many of all gradients have one."""
  subject = make() if subject is None else subject
  options = OFF | dict(num_draws=draws, seed=seed) | changes
  found = gradients.diversity(subject, subject.images, subject.labels, **options)
  assert found.shape == (draws * len(subject.labels), 3, 3)
  defined = found[np.isfinite(found).all((1, 2))]
  return defined.mean(0) if len(defined) else None, len(defined)


def test_modules_that_do_nothing_have_the_same_gradient():
  cosine, count = diversity()
  np.testing.assert_allclose(cosine, np.ones((3, 3)), atol=1e-5)
  assert count == 40


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_dirichlet_alone_by_formula():
  """Constant labels c / sum(c): the gradient is W (softmax(z) - c / sum(c)), that of the others
  W (softmax(z) - y). The draw is all but its mean when the concentration is 1e7."""
  subject = make(beta=np.float32([5e6, 3e6, 2e6]))
  cosine, _ = diversity(subject, label_weight=0.0, beta_weight=1.0)
  p = softmax(IMAGES.reshape(20, 9) @ KERNEL)
  one, two = (p - np.eye(3)[LABELS]) @ KERNEL.T, (p - np.array([0.5, 0.3, 0.2])) @ KERNEL.T
  expected = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
  np.testing.assert_allclose(cosine[0, 2], expected.mean(), atol=2e-3)
  np.testing.assert_allclose(cosine[0, 1], 1, atol=1e-5)


def test_without_a_learned_beta_it_is_ones():
  uniform, _ = diversity(label_weight=0.0, beta_weight=1e7)
  learned, _ = diversity(make(beta=np.ones(3)), label_weight=0.0, beta_weight=1e7)
  np.testing.assert_array_equal(uniform, learned)
  other, _ = diversity(make(beta=np.float32([5, 3, 2])), label_weight=0.0, beta_weight=1e7)
  assert abs(uniform[0, 2] - other[0, 2]) > 0.01


def test_two_classes_of_a_linear_model_are_parallel():
  """Every gradient is a multiple of w_0 - w_1: under noise the cosine is exactly 1, and with soft
  labels only the sign can turn, so that it is 1 or -1 image by image."""
  subject, margin, _ = subjects.two_classes(beta=np.float32([1e7, 1e7]))
  cosine, _ = diversity(subject, noise_stddev=0.3, label_weight=0.0, beta_weight=1.0)
  np.testing.assert_allclose(cosine[0, 1], 1, atol=1e-5)
  # With labels of 1/2 the loss rises towards the class that leads, with the label y away from y:
  # the same way iff y does not lead.
  np.testing.assert_allclose(cosine[0, 2], np.mean(2 * (margin < 0) - 1), atol=0.06)


def test_noise_and_mixup_move_the_gradient_and_devices_do_not():
  moving = dict(noise_stddev=0.5, mixup_alpha=1.0)
  cosine, _ = diversity(**moving)
  np.testing.assert_allclose(cosine, cosine.T, atol=1e-6)
  assert cosine[0, 1] < 0.95 and cosine[0, 2] < 0.99 and cosine[1, 2] < 0.99
  with subjects.devices(1):
    subject = make()
    alone = Subject(subject.predict, IMAGES, LABELS, batch_size=7)
    np.testing.assert_allclose(diversity(alone, **moving)[0], cosine, atol=1e-5)
  other, _ = diversity(seed=1, **moving)
  assert not np.allclose(other, cosine, atol=1e-3)


def test_vanished_gradients_have_no_cosine():
  cosine, count = diversity(make(scale=1e5))
  assert 0 < count < 40 and np.abs(cosine).max() < 1 + 1e-5
  assert diversity(make(levels=4)) == (None, 0)


def test_no_gradient_was_defined():
  """The numbers are None, and the count of those without a gradient is all."""
  found = subjects.measure("gradients", make(levels=4))
  cosines = found.numbers.where(metric="cosine_similarity")
  assert [number.value for number in cosines] == 3 * [None]
  assert [number.count for number in cosines] == 3 * [0]
  undefined = found.numbers.first(metric="undefined_gradients")
  assert (undefined.value, undefined.count, undefined.unit) == (20, 20, "images")


def health(images=IMAGES, labels=PREDICTED, **changes):
  """{loss: (zero, NaN, infinite)}, and how many images were looked at."""
  found = gradients.health(make(images, labels, **changes), images, labels, place="here")
  assert all(n["place"] == "here" and n.unit == "share" for n in found)
  assert [n.metric for n in found] == list(gradients.FAULTS) * (len(found) // 3)
  losses = list(dict.fromkeys(n["loss"] for n in found))
  shares = {loss: tuple(n.value for n in found if n["loss"] == loss) for loss in losses}
  return shares, found[0].count if found else 0


SOUND = 0.0, 0.0, 0.0


def test_a_sound_model_has_all_gradients():
  losses = "cross_entropy", "log_odds", "margin", "dlr"
  assert health() == (dict.fromkeys(losses, SOUND), 20)


def test_scaled_logits_lose_the_gradient_of_the_cross_entropy_alone():
  """Exactly where the label leads by more than float32's smallest number: exp(-lead) = 0."""
  found, _ = health(scale=1e4)
  z = 1e4 * (IMAGES.reshape(20, 9) @ KERNEL).astype(np.float64)
  lead = np.ptp(np.sort(z)[:, 1:], axis=-1)
  assert found["cross_entropy"][0] == np.mean(lead > 110) > 0
  assert found["margin"] == found["dlr"] == found["log_odds"] == SOUND


def test_quantised_input_loses_all_gradients():
  found, _ = health(levels=16)
  assert len(found) == 4 and all(row == (1.0, 0.0, 0.0) for row in found.values())


def test_nan_and_infinite_gradients_are_told_apart():
  assert health(offset=0.0)[0]["margin"] == (0, 1, 0)
  # Class 0 leads by the bias, class 1 has the slope 2 * 3e38.
  kernel, bias = np.float32([[0, 2, 0]] * 9), np.float32([2e-3, 1e-3, 0])
  infinite, _ = health(0 * IMAGES, 0 * LABELS, scale=3e38, kernel=kernel, bias=bias)
  assert infinite["margin"] == (0, 0, 1)


def test_only_what_is_classified_correctly_counts():
  """The DLR of an image whose label ranks third is 1 around it, for any model."""
  worst = (IMAGES.reshape(20, 9) @ KERNEL).argmin(-1).astype(np.int32)
  found, count = health(labels=np.where(np.arange(20) < 15, PREDICTED, worst))
  assert count == 15 and found["dlr"] == SOUND
  assert health(labels=worst) == ({}, 0)


@pytest.mark.parametrize("count", [3, 20])
def test_two_classes_have_no_dlr(count):
  subject, margin, _ = subjects.two_classes(count)
  found = gradients.health(subject, subject.images, subject.labels)
  assert {n["loss"] for n in found} == {"cross_entropy", "log_odds", "margin"}
  assert {n.count for n in found} == {(margin > 0).sum()}
