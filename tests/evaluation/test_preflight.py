"""preflight: problems of a model are reported before the long computations."""

import jax
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


def fails_with(error):
  def predict(images):
    raise error

  return predict


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
    (lambda x: 100 * jax.nn.softmax(logits(x)), r"per cent \(they sum to 100\)"),
    (draws, "rest of its batch"),
    (normalised, r"rest of its batch.*model.eval\(\)"),
    (lambda x: normalised(x) + jnp.array([[1e6, 0.0]]), r"rest of its batch"),
    (fails_with(KeyError("b")), "cannot trace the model .*KeyError: 'b'"),
    (fails_with(RuntimeError("first\nsecond")), r"RuntimeError: first\)\. Give a function"),
  ],
)
def test_models_that_cannot_be_evaluated(predict, message):
  subject = Subject(subject_lib.as_pytree(predict), IMAGES, LABELS.astype(np.int32), batch_size=8)
  with pytest.raises(UserError, match=message):
    preflight.check_subject(subject)


@pytest.mark.parametrize("count, batch_size", [(1, 8), (6, 1), (6, 8), (40, 1), (40, 64)])
@pytest.mark.parametrize("devices", [1, 8])
def test_batch_statistics_are_found_out_in_batches_of_any_size(count, batch_size, devices):
  """Alone in its batch, every image is normalised alike; one image has no other beside it."""
  images = np.random.RandomState(0).uniform(size=(count, 3, 3, 1)).astype(np.float32)
  labels = np.zeros(count, np.int32)
  predict = subject_lib.as_pytree(lambda x: logits(x) - logits(x).mean(0, keepdims=True))
  with subjects.devices(devices):
    subject = Subject(predict, images, labels, batch_size=batch_size)
    with pytest.raises(UserError, match="with the rest of its batch. Is the model in training"):
      preflight.check_subject(subject)


def nnx_model():
  from flax import nnx

  class Model(nnx.Module):
    def __init__(self):
      self.norm, self.drop = nnx.BatchNorm(1, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
      self.dense = nnx.Linear(9, 2, rngs=nnx.Rngs(2))

    def __call__(self, images):
      x = self.drop(self.norm(images))
      return self.dense(x.reshape(len(x), -1))

  return Model()


@pytest.mark.parametrize("count", [6, 40])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x), "nnx.jit"])
def test_an_nnx_model_in_training_mode(wrap, count):
  from flax import nnx

  images = np.random.RandomState(0).uniform(size=(count, 3, 3, 1)).astype(np.float32)
  wrap = (lambda m: nnx.jit(lambda x: m(x))) if wrap == "nnx.jit" else wrap
  model = nnx_model()
  for mode, is_refused in ((model.train, True), (model.eval, False)):
    mode()
    subject = Subject(subject_lib.as_pytree(wrap(model)), images, np.zeros(count, np.int32))
    if is_refused:
      with pytest.raises(UserError, match=r"(?s)training mode.*model.eval\(\)") as error:
        preflight.check_subject(subject)
      assert "random" not in str(error.value)
    else:
      preflight.check_subject(subject)


def linen_model(shape):
  import flax.linen as nn

  class Model(nn.Module):
    @nn.compact
    def __call__(self, images):
      x = nn.Conv(2, (3, 3))(images)
      return nn.Dense(2)(x.reshape(len(x), -1))

  variables = Model().init(jax.random.key(0), np.zeros((1, *shape), np.float32))
  return lambda images: Model().apply(variables, images)


@pytest.mark.parametrize(
  "shape, message",
  [
    ((4, 4, 1), r"ScopeParamShapeError.*images of another size"),
    ((3, 3, 3), "ScopeParamShapeError.*number of channels"),
    ((5, 3, 3), r"accepts \(2, 5, 3, 3\), channels first: .*transpose\(0, 3, 1, 2\)"),
  ],
)
def test_a_model_of_other_images(shape, message):
  images = np.zeros((6, 3, 3, 5 if shape == (5, 3, 3) else 1), np.float32)
  subject = Subject(subject_lib.as_pytree(linen_model(shape)), images, LABELS.astype(np.int32))
  with pytest.raises(UserError, match=message):
    preflight.check_subject(subject)


def said_of(predict, images=None, labels=None, count=40):
  """Returns the warnings about a model that passes."""
  if images is None:
    images = np.random.RandomState(0).uniform(size=(count, 3, 3, 1)).astype(np.float32)
  if labels is None:
    labels = np.asarray(predict(jnp.asarray(images))).argmax(-1)
  said = []
  subject = Subject(subject_lib.as_pytree(predict), images, labels.astype(np.int32))
  preflight.check_subject(subject, said.append)
  return said


def test_what_is_suspicious_but_possible():
  """It is said and not refused."""
  expected = {
    "after a sigmoid": said_of(lambda x: jax.nn.sigmoid(logits(x))),
    "sum to 7 for every image": said_of(lambda x: 7 * jax.nn.softmax(logits(x))),
    "With low precision": said_of(lambda x: logits(x) + 1e-2 * x.mean()),
    "as channels first": said_of(
      lambda x: logits(x[:, 0, :3, :3, None]), np.random.RandomState(0).rand(6, 3, 8, 8)
    ),
    "bytes are 0 to 255": said_of(logits, (IMAGES > 0.5).astype(np.uint8)),
  }
  for text, said in expected.items():
    assert len(said) == 1 and text in said[0], (text, said)


def test_of_what_is_honest_nothing_is_said():
  wide = np.random.RandomState(0).randn(9, 1000).astype(np.float32)
  short = lambda x: x.reshape(len(x), -1).astype(jnp.bfloat16) @ jnp.asarray(wide, jnp.bfloat16)
  assert said_of(logits) == said_of(logits, count=1) == []
  assert said_of(short) == said_of(lambda x: short(x).astype(jnp.float16)) == []
  assert said_of(lambda x: jax.nn.log_softmax(logits(x))) == []
  assert said_of(lambda x: jax.nn.relu(logits(x)) + 0.1) == []
  assert said_of(lambda x: logits(x[:, 0, :, :3, None]), np.random.rand(6, 1, 3, 9)) == []


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_probabilities_of_many_classes(kind):
  """Their sum in bfloat16 is far from 1."""
  wide = np.random.RandomState(0).randn(9, 1000).astype(np.float32)
  predict = lambda x: jax.nn.softmax((x.reshape(len(x), -1) @ (0.1 * wide)).astype(kind))
  with pytest.raises(UserError, match="are probabilities"):
    said_of(predict)


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
  """By the exact binomial test: 60 % of 120 images are no chance at two classes, 55 % can be."""
  images = np.random.RandomState(0).uniform(size=(120, 3, 3, 1)).astype(np.float32)
  right = np.asarray(logits(images)).argmax(-1)
  for flipped, expected in ((60, 1), (54, 1), (45, 0), (36, 0), (0, 0)):
    labels = np.where(np.arange(120) < flipped, 1 - right, right)
    said = said_of(logits, images, labels)
    assert len(said) == expected, flipped
    share = f"{1 - flipped / 120:.1%}"
    assert not expected or f"the clean accuracy is {share}, near chance (50.0%)" in said[0]
  assert said_of(logits, images[:99], 1 - right[:99]) == []  # too few to say


def test_one_answer_for_all_images_is_named():
  """Right for nine of ten."""
  images = np.random.RandomState(0).uniform(size=(120, 3, 3, 1)).astype(np.float32)
  labels = (np.arange(120) % 10 == 0).astype(int)
  (said,) = said_of(lambda x: 0 * logits(x) + jnp.array([[3.0, -3.0]]), images, labels)
  assert "answers class 0 for all 120 images" in said
