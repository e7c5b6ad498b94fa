"""Subject: batches, padding and devices do not matter; values by hand; the digest of a model."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import sharding
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.subject import Subject
from tests.evaluation import subjects


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_right_with_padding_on_one_and_eight_devices(batch_size, count):
  with subjects.devices(count):
    subject, margin, _ = subjects.two_classes(batch_size=batch_size)
    np.testing.assert_array_equal(subject.correct, margin > 0)
    lead = (
      subject.logits[np.arange(37), subject.labels]
      - subject.logits[np.arange(37), 1 - subject.labels]
    )
    np.testing.assert_allclose(lead, margin, rtol=1e-4, atol=1e-5)


def test_a_mesh_that_the_caller_has_set_is_not_used():
  subject, margin, _ = subjects.two_classes()
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:2])):
    np.testing.assert_array_equal(subject.correct, margin > 0)


def test_bytes_and_floats_are_the_same_images():
  subject, _, _ = subjects.two_classes()
  levels = np.round(subject.images * 255).astype(np.uint8)
  found = [
    Subject(subject.predict, images, subject.labels).logits
    for images in (levels, levels.astype(np.float32) / 255)
  ]
  np.testing.assert_array_equal(*found)


def test_what_is_not_finite_is_not_right():
  subject, _, _ = subjects.two_classes(scale=np.nan)
  assert not subject.correct.any()


def add_index(predict, shared, images, numbers):
  return {"sum": predict(images).sum(-1) * 0 + images.sum((1, 2, 3)) + shared, "number": numbers}


@pytest.mark.parametrize("count", [1, 8])
def test_map_gives_every_row_its_own_result(count):
  """Pytrees, shared numbers, fewer rows than a batch, a report after each batch."""
  with subjects.devices(count):
    subject, _, _ = subjects.two_classes(batch_size=16)
    done = []
    found = subject.map(
      add_index, subject.images, np.arange(37), shared=(2.0,), on_batch=done.append
    )
    np.testing.assert_allclose(found["sum"], subject.images.sum((1, 2, 3)) + 2, rtol=1e-5)
    np.testing.assert_array_equal(found["number"], np.arange(37))
    assert done == [16, 32, 37]
    one = subject.map(add_index, subject.images[:1], np.arange(1), shared=(2.0,))
    np.testing.assert_allclose(one["sum"], found["sum"][:1], rtol=1e-5)


def test_another_number_is_no_other_program():
  subject, _, _ = subjects.two_classes()
  traced = []

  def fn(predict, shared, images):
    traced.append(images.shape)
    return predict(images) * shared

  for number in (1.0, 2.0, 0.5):
    subject.map(fn, subject.images, shared=(number,))
  assert len(traced) == 1
  # A model with other weights shares them as well.
  other = dataclasses.replace(subject, predict=jax.tree.map(lambda leaf: 2 * leaf, subject.predict))
  doubled = other.map(fn, subject.images, shared=(1.0,))
  assert len(traced) == 1
  np.testing.assert_allclose(doubled, 2 * subject.map(fn, subject.images, shared=(1.0,)), rtol=1e-6)


def test_small_sets_get_small_batches_of_few_sizes():
  subject, _, _ = subjects.two_classes(batch_size=256)
  sizes = []

  def fn(predict, images):
    sizes.append(len(images))
    return images.sum((1, 2, 3))

  for count in (1, 8, 31, 32, 33, 37):
    subject.map(fn, subject.images[:count])
  assert sizes == [32, 64]


def test_a_choice_of_images_keeps_their_own_outcomes():
  subject = subjects.make()
  images = subject.select(15)
  assert len(set(images.indices)) == 15 and sorted(images.indices) != list(range(15))
  for field, whole in (("correct", subject.correct), ("labels", subject.labels)):
    np.testing.assert_array_equal(getattr(images, field), whole[images.indices])
  np.testing.assert_array_equal(images.images, subject.images[images.indices])
  assert subject.correct[images.indices].tolist() != subject.correct[:15].tolist()  # so it matters
  np.testing.assert_array_equal(subject.select(0).indices, np.arange(40))


def test_products_are_in_full_precision():
  """TF32 and bfloat16 products would make gradients that flatter a model (seen in the program)."""
  subject, _, _ = subjects.two_classes()
  images = jnp.asarray(subject.images)
  for predict in (
    subject.predict,
    subject_lib.as_pytree(lambda x: subjects.linear(jnp.ones((9, 2)), x)),
  ):
    assert "HIGHEST" in jax.jit(predict).lower(images).as_text()
    gradient = jax.jit(jax.grad(lambda x, predict=predict: predict(x).sum()))
    assert "HIGHEST" in gradient.lower(images).as_text()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
  """A model as a pytree with an array, a number and a name."""

  kernel: jax.Array
  shift: float
  name: str = dataclasses.field(metadata={"static": True})

  def __call__(self, images):
    return (images - self.shift).reshape(len(images), -1) @ self.kernel


def test_the_weights_of_a_module_are_leaves():
  """The arrays of a module are leaves, and its Python numbers are not. A function has no leaves."""
  kernel = np.random.RandomState(0).randn(9, 2).astype(np.float32)
  images = np.random.RandomState(1).uniform(size=(5, 3, 3, 1)).astype(np.float32)
  expected = (images - 0.5).reshape(5, 9) @ kernel
  module = subject_lib.as_pytree(Module(kernel, 0.5, "a"))
  partial = subject_lib.as_pytree(jax.tree_util.Partial(subjects.linear, kernel))
  function = subject_lib.as_pytree(lambda x: subjects.linear(kernel, x))
  for predict, count in ((module, 1), (partial, 1), (function, 0)):
    leaves = jax.tree.leaves(predict)
    assert len(leaves) == count and all(leaf.shape == (9, 2) for leaf in leaves)
    np.testing.assert_allclose(jax.jit(lambda p, x: p(x))(predict, images), expected, rtol=1e-5)


ONES = np.ones((9, 2), np.float32)
MODEL = """
import jax.numpy as jnp

def predict(kernel, images):
  x = images.reshape(len(images), -1)
  return x @ kernel
"""


def test_the_digest_is_of_weights_and_operations(tmp_path):
  """Comments, names and places of the code do not count; another operation, weight or type does."""
  numbers = iter(range(10))

  def digest(source=MODEL, kernel=ONES, shape=(3, 3, 1)):
    path = tmp_path / f"model{next(numbers)}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    predict = jax.tree_util.Partial(module.predict, jnp.asarray(kernel))
    return subject_lib.digest(subject_lib.as_pytree(predict), shape)

  same = MODEL.replace("x =", "# A comment.\n\n  y =").replace("return x", "return y")
  assert digest(same) == digest()
  kernel = ONES.copy()
  kernel[8, 1] = np.nextafter(np.float32(1), 2)
  others = [
    digest(MODEL.replace("@ kernel", "@ (kernel + 1)")),
    digest(kernel=kernel),
    digest(kernel=np.ones((9, 2), np.float16)),
    digest(kernel=np.ones((9, 3), np.float32)),
  ]
  assert len({digest(), *others}) == 5


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit])
@pytest.mark.parametrize("shape", [None, (3, 3, 1)])
def test_the_digest_sees_weights_in_a_closure(wrap, shape):
  """(More kinds of closures: tests/attacks/test_fingerprint.py.)"""
  digests = set()
  for value in (1.0, 2.0):
    kernel = jnp.full((9, 2), value)
    function = wrap(lambda x, kernel=kernel: subjects.linear(kernel, x))
    predict = subject_lib.as_pytree(function, shape)
    digests.add(subject_lib.digest(predict, (3, 3, 1)))
    plain = subject_lib.as_pytree(lambda x, kernel=kernel: subjects.linear(kernel, x))
    digests.add(subject_lib.digest(plain, (3, 3, 1)))  # jit makes no other model
  assert len(digests) == 2


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_weights_of_few_bits(kind):
  kernel = jnp.asarray(np.random.RandomState(0).randn(9, 2), kind)
  call = lambda kernel, x: x.reshape(len(x), -1).astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)
  digests = {
    subject_lib.digest(subject_lib.as_pytree(model), (3, 3, 1))
    for sign in (1, -1)
    for model in (
      jax.tree_util.Partial(call, sign * kernel),
      lambda x, kernel=sign * kernel: call(kernel, x),
    )
  }
  assert len(digests) == 4
  subject = Subject(
    subject_lib.as_pytree(jax.tree_util.Partial(call, kernel)),
    np.random.RandomState(1).uniform(size=(5, 3, 3, 1)).astype(np.float32),
    np.zeros(5, np.int32),
  )
  assert subject.logits.dtype == np.float32 and np.isfinite(subject.logits).all()


def test_equal_functions_share_programs_while_they_compute_the_same():
  """With a shape; and without one, where the function is that of a `Partial`."""
  scale, kernel = [1.0], np.ones((9, 2), np.float32)
  function = lambda x: subjects.linear(scale[0] * kernel, x)
  pure = lambda kernel, x: subjects.linear(kernel, x)
  structure = lambda *args: jax.tree.structure(subject_lib.as_pytree(*args))
  first = structure(function, (3, 3, 1))
  assert first == structure(function, (3, 3, 1))
  assert structure(function) != structure(function)
  scale[0] = 2.0
  assert first != structure(function, (3, 3, 1))
  partials = [jax.tree_util.Partial(pure, by * kernel) for by in (1, 2)]
  assert structure(partials[0]) == structure(partials[1])
  assert structure(partials[0], (3, 3, 1)) == structure(partials[1], (3, 3, 1))


def test_the_digest_of_data():
  images, labels = np.zeros((4, 3, 3, 1), np.uint8), np.zeros(4, np.int32)
  digests = {
    subject_lib.data_digest(*pair)
    for pair in (
      (images, labels),
      (images.astype(np.float32), labels),
      (images.reshape(4, 9, 1, 1), labels),
      (images, labels + 1),
      (images + np.uint8(1), labels),
    )
  }
  assert len(digests) == 5
  assert subject_lib.data_digest(images[::-1], labels) in digests  # equal bytes, another stride


def test_a_subject_is_shown_in_one_line():
  subject = subjects.make()
  assert repr(subject) == "<Subject: 40 images 8x8x1 float32>"
  assert subject.num_classes == 4
  assert repr(subject) == "<Subject: 40 images 8x8x1 float32, 4 classes>"
