"""preflight: what cannot be evaluated is named before minutes are spent."""

import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.errors import UserError
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.subject import Subject
from tests.evaluation import subjects

IMAGES = np.random.RandomState(0).uniform(size=(6, 3, 3, 1)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize(
  "images, labels, message",
  [
    (IMAGES[0], LABELS, r"images have shape \(3, 3, 1\); expected \[n, height"),
    (IMAGES[:0], LABELS[:0], "n at least 1"),
    (IMAGES, np.eye(2)[LABELS], r"one-hot or soft labels; expected classes, .*labels.argmax\(-1\)"),
    (IMAGES, LABELS[:5], r"expected \(6,\), one label per image"),
    (IMAGES, LABELS.astype(float), "labels are float64; expected integers"),
    (IMAGES, LABELS - 1, "the smallest label is -1"),
    (255 * IMAGES, LABELS, r"divide by 255, and normalise inside the model"),
    (IMAGES - 0.5, LABELS, "undo the normalisation"),
    (np.where(IMAGES > 0.5, np.nan, IMAGES), LABELS, "pixels range from nan to nan"),
    ((255 * IMAGES).astype(np.int32), LABELS, "images are int32; expected uint8, or floats"),
  ],
)
def test_data_that_cannot_be_meant(images, labels, message):
  with pytest.raises(UserError, match=message):
    preflight.check_data(images, labels)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.float32, np.uint8])
def test_data_in_order_keeps_its_values(kind):
  images = (IMAGES * (255 if kind == np.uint8 else 1)).astype(kind)
  found, labels = preflight.check_data(images.tolist() if kind == np.float64 else images, LABELS)
  assert found.dtype == (np.uint8 if kind == np.uint8 else np.float32)
  np.testing.assert_array_equal(found, images.astype(found.dtype))
  assert labels.dtype == np.int32 and labels.tolist() == LABELS.tolist()


KERNEL = np.random.RandomState(1).randn(9, 2).astype(np.float32)
logits = lambda x: subjects.linear(KERNEL, x)
calls = []


def draws(x):
  """Another answer in each program: its compiled calls agree, so noise hangs on the batch's sum."""
  return logits(x) + jnp.sin(1e3 * x.sum()) * jnp.array([[1.0, 0.0]])


def normalised(x):
  """Batch norm in training mode."""
  z = logits(x)
  return (z - z.mean(0, keepdims=True)) / z.std(0, keepdims=True)


@pytest.mark.parametrize(
  "predict, message",
  [
    (
      lambda x: logits(np.asarray(x)),
      r"JAX cannot trace the model on images of shape \(2, 3, 3, 1\)",
    ),
    (lambda x: logits(x) if x.sum() > 0 else 0, "cannot trace .*TracerBool"),
    (lambda x: x.nothing, "cannot trace .*AttributeError"),
    (lambda x: logits(x).argmax(-1), r"for 2 images the model returns \(2,\)"),
    (lambda x: {"logits": logits(x)}, "expected one array of logits"),
    (lambda x: logits(x)[:1], "expected one array of logits"),
    (lambda x: logits(x) / 0, "the model.* not finite"),
    (lambda x: jnp.ones((len(x), 2)) / 2 + 0 * logits(x), "the model.* probabilities"),
    (lambda x: logits(x)[:, :1], "the model.*class"),
    (draws, "rest of its batch"),
    (normalised, r"rest of its batch.*model.eval\(\)"),
  ],
)
def test_models_that_cannot_be_evaluated(predict, message):
  subject = Subject(subject_lib.as_pytree(predict), IMAGES, LABELS.astype(np.int32), batch_size=8)
  with pytest.raises(UserError, match=message):
    preflight.check_subject(subject)


def test_a_model_that_draws_random_numbers_is_refused(monkeypatch):
  """Each pass gives another answer."""
  subject = Subject(subject_lib.as_pytree(logits), IMAGES, LABELS.astype(np.int32), batch_size=8)
  draws, original = np.random.RandomState(0), Subject.map

  def noisy(self, fn, *arrays, **options):
    found = original(self, fn, *arrays, **options)
    return found + draws.randn(*found.shape).astype(np.float32)

  monkeypatch.setattr(Subject, "map", noisy)
  with pytest.raises(UserError, match="5 passes over the same images differ by up to"):
    preflight.check_subject(subject)


def test_an_accuracy_near_chance_is_said_to_be_suspicious():
  count, said = 120, []
  images = np.random.RandomState(0).uniform(size=(count, 3, 3, 1)).astype(np.float32)
  right = np.asarray(logits(images)).argmax(-1)
  for flipped, expected in ((60, 1), (0, 0)):
    labels = np.where(np.arange(count) < flipped, 1 - right, right).astype(np.int32)
    subject = Subject(subject_lib.as_pytree(logits), images, labels, batch_size=128)
    said.clear()
    preflight.check_subject(subject, said.append)
    assert len(said) == expected
    assert not expected or "the clean accuracy is 50.0%, near chance (50.0%)" in said[0]
