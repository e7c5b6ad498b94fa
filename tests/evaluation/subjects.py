"""A trained model as evaluations get it: linear, of three classes, on 8x8 images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax.data import Split
from sprout_jax.evaluation import subject as subject_lib

ALONE = sharding.make_mesh(jax.devices()[:1])  # compiles faster than eight


class Dense(nn.Module):
  """One dense layer on pixels around grey, behind `before`."""

  before: callable = lambda x: x

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(3, use_bias=False, name="dense")(
      (self.before(images) - 0.5).reshape(len(images), -1)
    )


def weights(seed=0):
  return np.random.default_rng(seed).normal(size=(64, 3)).astype(np.float32)


def make(
  memo=lambda name, compute: compute(), count=40, model=None, kernel=None, mesh=ALONE, **changes
):
  """A `Subject`; its labels are those of `weights(0)`, but for every tenth."""
  images = np.random.default_rng(1).uniform(0.3, 0.7, (count, 8, 8, 1)).astype(np.float32)
  labels = ((images - 0.5).reshape(count, -1) @ weights()).argmax(-1).astype(np.int32)
  labels[::10] = (labels[::10] + 1) % 3
  test, model = Split(images, labels), model or Dense()
  variables = {
    "params": {"dense": {"kernel": jnp.asarray(weights() if kernel is None else kernel)}}
  }
  return subject_lib.Subject(
    **{
      **dict(
        model=model,
        variables=variables,
        test=test,
        num_classes=3,
        class_names=("a", "b", "c"),
        logits=subject_lib.checked_logits(model, variables, test, 32, mesh),
        batch_size=32,
        mesh=mesh,
        beta=None,
        load=None,
        load_corrupted=None,
        memo=memo,
      ),
      **changes,
    }
  )


def margins(subject):
  """min over wrong k of (z_y - z_k) and of what epsilon 1 in Linf takes of it: exact for this model."""
  logits, labels = subject.logits, subject.test.labels
  kernel = np.asarray(subject.variables["params"]["dense"]["kernel"])
  lead = logits[np.arange(len(labels)), labels][:, None] - logits
  cost = np.abs(kernel[:, labels][:, :, None] - kernel[:, None, :]).sum(0)
  return lead, cost


def exact(subject, epsilon):
  """Bool [n]: robust in Linf, away from the edges of the box."""
  lead, cost = margins(subject)
  right = lead - epsilon * cost > 0
  right[np.arange(len(lead)), subject.test.labels] = True
  return right.all(-1)
