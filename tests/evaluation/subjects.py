"""Models as evaluations get them: a small network, which may be linear, and a model of two classes.

All networks are one function of other weights, and options that are compiled in are the same
everywhere: so their programs are compiled once (`conftest`).
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from tests.linear import linear_problem

CLASSES, UNITS = 4, 32
EPSILON, COUNT = 0.01, 40
# PGD that is strong enough for these models.
STRONG = dict(num_steps=40, step_size=0.01, num_restarts=5)


def settings(**changes):
  """Options of all evaluations that take seconds; a dictionary changes a section."""
  found = table.defaults() | STRONG | dict(epsilon=EPSILON, epsilons=(0.0, EPSILON, 0.012))
  small = dict(
    auto_attack=dict(version="apgd-ce", epsilons=(0.012,)),
    strength=dict(steps=(1, 4), restarts=(1, 2)),
    noise=dict(num_draws=5),
    invariance=dict(transformations=("rotation", "brightness")),
    corruptions=dict(corruptions=("gaussian_noise", "contrast")),
    smoothing=dict(num_examples=20, sigma=0.05, n0=20, n=1000, radii=(0.0, 0.02, 0.05)),
    landscape=dict(num_points=5),
    gradients=dict(num_draws=1),
    binarization=dict(num_examples=8, num_inner=100),
    examples=dict(num_examples=3),
    transfer=dict(sources=("there",)),
    redraws=dict(num_examples=20, repeats=2),
    union=dict(version="apgd-ce", linf=0.006, l2=0.05, l1=0.3),
    estimate=dict(version="apgd-ce", million_passes=0.003, group=8),
    extended=dict(first="apgd-ce", extensions=("apgd-malt",)),
    corrupted_attack=dict(num_examples=20, version="apgd-ce", corruptions=("contrast",)),
    probabilistic=dict(num_draws=120),
  )
  for values in (small, changes):
    for key, value in values.items():
      found[key] = found[key] | value if isinstance(value, dict) else value
  return found


def measure(name, subject, **changes):
  """The `Measurement` of an evaluation with small options."""
  return table.EVALUATIONS[name].function(subject, **table.choose(name, settings(**changes)))


def hidden(weights, images):
  """The input of the network's last layer. It is rounded where "levels" are above 0."""
  x = images + 0 * jnp.sqrt(jnp.abs(images[:, :1, :1]) + weights["offset"])
  levels = weights["levels"]
  x = jnp.where(levels > 0, jnp.round(x * levels) / jnp.maximum(levels, 1), x)
  return jax.nn.relu((x - 0.5).reshape(len(x), -1) @ weights["kernel1"] + weights["bias1"][None])


def network(weights, images):
  """Logits [batch, 4] of two layers on 8x8 images."""
  return weights["scale"] * (hidden(weights, images) @ weights["kernel2"] + weights["bias2"][None])


def draw_network(seed):
  """Random weights of a `network`."""
  draw = np.random.RandomState(seed).randn
  return dict(
    kernel1=(draw(64, UNITS) / 8).astype(np.float32),
    bias1=np.zeros(UNITS, np.float32),
    kernel2=(draw(UNITS, CLASSES) / UNITS**0.5).astype(np.float32),
    bias2=np.zeros(CLASSES, np.float32),
    scale=np.float32(1),
    levels=np.float32(0),  # of its input; 0: not rounded
    offset=np.float32(1),  # with 0, its gradient is not a number where the first pixel is black
  )


def linear_network(kernel):
  """Weights of the `network` that is (images - 1/2) @ kernel, whose last class never wins.

  Args:
    kernel: [64, 3].
  """
  shift, classes = 64.0, kernel.shape[1]  # its units are always on
  weights = jax.tree.map(np.zeros_like, draw_network(0))
  weights["kernel1"][:, :classes], weights["bias1"][:classes] = kernel, shift
  weights["kernel2"][:classes, :classes] = np.eye(classes)
  weights["bias2"][:] = [*classes * [-shift], -1000.0]
  return weights | dict(scale=np.float32(1), offset=np.float32(1))


def model(weights, function=network):
  """A function of weights and images as a subject's `predict`."""
  arrays = jax.tree.map(jnp.asarray, weights)
  return subject_lib.as_pytree(jax.tree_util.Partial(function, arrays))


def of_network(weights, images, labels, **changes):
  """A `Subject` that is a `network`."""
  options = dict(features=model(weights, hidden), batch_size=32, shows_progress=False)
  return Subject(model(weights), images, labels, **options | changes)


def kernel(seed=0):
  """float32 [64, 3]: of the linear subject."""
  return np.random.RandomState(seed).randn(64, 3).astype(np.float32)


def other_kernel():
  """Of `source`: near that of the subject."""
  return kernel() + 0.5 * kernel(5)


def source(name):
  """Another linear model, whose adversarial images are tried."""
  predict = subject_lib.place(model(linear_network(other_kernel())))
  return Source(f"another {name}", "abcdef0123456789", predict)


def make(count=COUNT, **changes):
  """The linear subject; its labels are right, but every tenth."""
  images = np.random.RandomState(48).uniform(0.3, 0.7, (count, 8, 8, 1)).astype(np.float32)
  labels = ((images - 0.5).reshape(count, -1) @ kernel()).argmax(-1).astype(np.int32)
  labels[::10] = (labels[::10] + 1) % 3
  weights = linear_network(kernel()) | changes.pop("weights", {})
  return of_network(weights, images, labels, **dict(features=None) | changes)


def margins(subject):
  """Margins of the label over each class, [n, 3], and their largest loss at epsilon 1 in Linf."""
  labels, w = subject.labels, kernel().astype(float)
  logits = (subject.images - 0.5).reshape(len(labels), -1) @ w
  lead = logits[np.arange(len(labels)), labels][:, None] - logits
  return lead, np.abs(w[:, labels][:, :, None] - w[:, None, :]).sum(0)


def exact(subject, epsilon):
  """Bool [n]: robust in Linf by the closed form, away from the edges of the box."""
  lead, cost = margins(subject)
  right = lead - epsilon * cost > 0
  right[np.arange(len(lead)), subject.labels] = True
  return right.all(-1)


def linear(kernel, images):
  """Logits of pixels around grey."""
  return (images - 0.5).reshape(len(images), -1) @ kernel


def two_classes(count=37, function=linear, scale=1.0, **changes):
  """A `Subject` of two classes on 3x3 images, its margins [count], and |w_0 - w_1|_1."""
  split, variables, margin, norm = linear_problem(count)
  weights = scale * variables["params"]["Dense_0"]["kernel"]
  options = dict(batch_size=64, shows_progress=False)
  subject = Subject(model(weights, function), split.images, split.labels, **options | changes)
  return subject, scale * margin, scale * norm


@contextlib.contextmanager
def devices(count):
  """Subjects that are made and used within run on the first `count` devices."""
  mesh = sharding.make_mesh(jax.devices()[:count])
  with mock.patch.object(subject_lib, "_mesh", lambda: mesh):
    yield
