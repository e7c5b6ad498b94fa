"""gradients: closed forms on linear models, the modules' limits, models without a gradient."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import sharding
from sprout_jax.data import Split
from sprout_jax.evaluation import gradients
from tests.linear import Linear
from tests.linear import linear_problem

RNG = np.random.default_rng(0)


class Three(nn.Module):
  """Three classes; `scale` multiplies the logits, `levels` quantises the input."""

  scale: float = 1.0
  levels: int = 0
  no_number: bool = False

  @nn.compact
  def __call__(self, images, train):
    x = jnp.round(images * self.levels) / self.levels if self.levels else images
    logits = self.scale * nn.Dense(3)(x.reshape(len(x), -1))
    pixel = images[:, :1, 0, 0]  # the root's slope at 0 is infinite; times 0 it is NaN
    return logits + jnp.sqrt(pixel - pixel) if self.no_number else logits


KERNEL = RNG.normal(size=(9, 3)).astype(np.float32)
VARIABLES = {"params": {"Dense_0": {"kernel": KERNEL, "bias": np.zeros(3, np.float32)}}}
IMAGES = RNG.uniform(size=(20, 3, 3, 1)).astype(np.float32)
LABELS = RNG.integers(3, size=20).astype(np.int32)
PREDICTED = (IMAGES.reshape(20, 9) @ KERNEL).argmax(-1).astype(np.int32)
ALONE = sharding.make_mesh(jax.devices()[:1])  # compiles faster than eight
OFF = {"stddev": 0.0, "mixup_alpha": 0, "label_weight": 1e7, "beta_weight": 1e-3}


cosine_fn = functools.cache(gradients.cosine_fn)


def diversity(
  model=Three(), variables=VARIABLES, split=None, classes=3, mesh=ALONE, draws=2, seed=0, **kw
):
  split = split or Split(IMAGES, LABELS)
  return gradients.diversity(
    cosine_fn(model, mesh),
    variables,
    split.images,
    split.labels,
    num_classes=classes,
    num_draws=draws,
    seed=seed,
    batch_size=16,
    mesh=mesh,
    **(OFF | kw),
  )


def test_modules_that_do_nothing_have_the_same_gradient():
  found = diversity()
  np.testing.assert_allclose(found["cosine"], np.ones((3, 3)), atol=1e-5)
  assert found["count"] == 40 and found["undefined"] == 0 and found["images"] == 20
  assert found["modules"] == ["gaussian", "mixup", "dirichlet"]


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_dirichlet_alone_by_formula():
  """Constant labels c / sum(c): the gradient is W (softmax(z) - c / sum(c)), that of the others
  W (softmax(z) - y). The draw is all but its mean when the concentration is 1e7."""
  beta = [5e6, 3e6, 2e6]
  found = diversity(label_weight=0.0, beta_weight=1.0, beta=beta)
  p = softmax(IMAGES.reshape(20, 9) @ KERNEL)
  one, two = (p - np.eye(3)[LABELS]) @ KERNEL.T, (p - np.array([0.5, 0.3, 0.2])) @ KERNEL.T
  cosine = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
  np.testing.assert_allclose(found["cosine"][0][2], cosine.mean(), atol=2e-3)
  np.testing.assert_allclose(found["cosine"][0][1], 1, atol=1e-5)
  assert found["beta"] == beta and diversity()["beta"] == [1, 1, 1]


def test_two_classes_of_a_linear_model_are_parallel():
  """Every gradient is a multiple of w_0 - w_1: under noise the cosine is exactly 1, and with soft
  labels only the sign can turn, so that it is 1 or -1 image by image."""
  split, variables, _, _ = linear_problem()
  found = diversity(
    Linear(), variables, split, 2, stddev=0.3, label_weight=0.0, beta_weight=1.0, beta=[1e7, 1e7]
  )
  np.testing.assert_allclose(found["cosine"][0][1], 1, atol=1e-5)
  # Labels of 1/2: the gradient points to the smaller class, that of y away from y: equal iff right.
  z = (split.images.reshape(37, 9) - 0.5) @ variables["params"]["Dense_0"]["kernel"]
  agrees = np.sign(softmax(z)[:, 0] - 0.5) == np.sign(softmax(z)[:, 0] - (split.labels == 0))
  np.testing.assert_allclose(found["cosine"][0][2], np.mean(2 * agrees - 1), atol=0.06)


def test_noise_and_mixup_move_the_gradient_and_devices_do_not():
  found = diversity(stddev=0.5, mixup_alpha=1.0)
  cosine = np.array(found["cosine"])
  np.testing.assert_allclose(cosine, cosine.T, atol=1e-6)
  assert cosine[0, 1] < 0.95 and cosine[0, 2] < 0.99 and cosine[1, 2] < 0.99
  eight = diversity(stddev=0.5, mixup_alpha=1.0, mesh=sharding.make_mesh())
  np.testing.assert_allclose(eight["cosine"], cosine, atol=1e-5)
  other = diversity(stddev=0.5, mixup_alpha=1.0, seed=1)["cosine"]
  assert not np.allclose(other, cosine, atol=1e-3)
  json.dumps(found, allow_nan=False)


def test_vanished_gradients_have_no_cosine():
  found = diversity(Three(scale=1e5))
  assert found["undefined"] > 0 and found["count"] + found["undefined"] == 40
  assert found["count"] > 0 and np.abs(found["cosine"]).max() < 1 + 1e-5
  nothing = diversity(Three(levels=4))
  assert nothing["count"] == 0 and nothing["cosine"] == [[None] * 3] * 3


def health(model, images=IMAGES, labels=PREDICTED, variables=VARIABLES, classes=3):
  return gradients.health(
    gradients.health_fn(model, ALONE), variables, images, labels, classes, 8, ALONE
  )


def test_a_sound_model_has_all_gradients():
  found = health(Three())
  assert found["count"] == 20 and set(found["losses"]) == {
    "cross_entropy",
    "log_odds",
    "margin",
    "dlr",
  }
  assert all(share == 0 for row in found["losses"].values() for share in row.values())


def test_scaled_logits_lose_the_gradient_of_the_cross_entropy_alone():
  """Exactly where the label leads by more than float32's smallest number: exp(-lead) = 0."""
  found = health(Three(scale=1e4))["losses"]
  z = 1e4 * (IMAGES.reshape(20, 9) @ KERNEL).astype(np.float64)
  lead = np.ptp(np.sort(z)[:, 1:], axis=-1)
  assert found["cross_entropy"]["zero"] == np.mean(lead > 110) > 0
  assert found["margin"]["zero"] == found["dlr"]["zero"] == found["log_odds"]["zero"] == 0


def test_quantised_input_loses_all_gradients():
  assert all(
    row == {"zero": 1.0, "nan": 0.0, "infinite": 0.0}
    for row in health(Three(levels=16))["losses"].values()
  )


def test_nan_and_infinite_gradients_are_told_apart():
  nan = health(Three(no_number=True))["losses"]["margin"]
  assert nan == {"zero": 0, "nan": 1, "infinite": 0}
  # Class 0 leads by the bias, class 1 has the slope 2 * 3e38.
  variables = {
    "params": {
      "Dense_0": {"kernel": np.float32([[0, 2, 0]] * 9), "bias": np.float32([2e-3, 1e-3, 0])}
    }
  }
  infinite = health(Three(scale=3e38), 0 * IMAGES, 0 * LABELS, variables)["losses"]["margin"]
  assert infinite == {"zero": 0, "nan": 0, "infinite": 1}


def test_only_what_is_classified_correctly_counts():
  """The DLR of an image whose label ranks third is 1 around it, for any model."""
  worst = (IMAGES.reshape(20, 9) @ KERNEL).argmin(-1).astype(np.int32)
  labels = np.where(np.arange(20) < 15, PREDICTED, worst)
  found = health(Three(), labels=labels)
  assert found["count"] == 15 and found["losses"]["dlr"]["zero"] == 0
  nobody = health(Three(), labels=worst)
  assert nobody["count"] == 0 and nobody["losses"]["dlr"] == {"zero": 0, "nan": 0, "infinite": 0}


@pytest.mark.parametrize("count", [3, 20])
def test_two_classes_have_no_dlr(count):
  split, variables, margin, _ = linear_problem(count)
  found = health(Linear(), split.images, split.labels, variables, 2)
  assert set(found["losses"]) == {"cross_entropy", "log_odds", "margin"}
  assert found["count"] == (margin > 0).sum()
