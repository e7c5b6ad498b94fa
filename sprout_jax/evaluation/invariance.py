"""Accuracy on images that were changed, by transformations with a strength or by corruptions."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import data
from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.data import to_float
from sprout_jax.errors import UserError
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.corruptions import SEVERITIES
from sprout_jax.evaluation.corruptions import corrupt
from sprout_jax.evaluation.transformations import TRANSFORMATIONS


def changed_fn(model, change, mesh):
  """Compiles (variables, strength, images, labels, indices) -> [batch] bool: right on changed images.

  Args:
    model: the Flax module.
    change: function (images, strength, indices) -> images; the strength is traced.
    mesh: the mesh of devices.
  """

  def right(variables, strength, images, labels, indices):
    logits = accuracy.predict_fn(model, variables)(change(images, strength, indices))
    return (jnp.argmax(logits, -1) == labels) & jnp.all(jnp.isfinite(logits), -1)

  return jax.jit(right, out_shardings=sharding.replicated(mesh))


def accuracy_under(compiled, subject, images, strength):
  """The accuracy, with its interval, at one strength."""
  right = accuracy.map_batches(
    lambda *batch: compiled(subject.variables, strength, to_float(batch[0]), *batch[1:]),
    (images.split.images, images.split.labels, images.rows.astype(np.int32)),
    subject.batch_size,
    subject.mesh,
  )
  return statistics.proportion(right.sum(), len(right))


def evaluate_invariance(subject, *, num_examples, transformations):
  """Row "invariance" of `EVALUATIONS`: accuracy over each transformation's grid of strengths."""
  images, found = subject.select(num_examples), {}
  with subject.progress("invariance", len(transformations), "transformations") as bar:
    for name in transformations:
      row = TRANSFORMATIONS[name]
      compiled = changed_fn(
        subject.model, lambda x, strength, _, row=row: row.apply(x, strength), subject.mesh
      )
      named = {strength: label for label, strength in row.named.items()}
      found[name] = {
        "unit": row.unit,
        "identity": row.identity,
        "points": subject.memo(
          name,
          lambda row=row, compiled=compiled, named=named: [
            {
              "strength": strength,
              "named": named.get(strength, ""),
              **accuracy_under(compiled, subject, images, np.float32(strength)),
            }
            for strength in sorted({*row.grid, *named})
          ],
        ),
      }
      bar(len(found), name)
  return {"transformations": found}


def evaluate_corruptions(subject, *, num_examples, corruptions, source, seed):
  """Row "corruptions" of `EVALUATIONS`: accuracy per corruption and severity, and the means.

  With source "computed" the test images are corrupted here (`corruptions` says what differs from the
  published files); with "tfds" the images are those of the prepared set NAME_corrupted of TFDS.
  """
  images, found = subject.select(num_examples), {}
  with subject.progress("corruptions", len(corruptions), "corruptions") as bar:
    for name in corruptions:
      found[name] = subject.memo(
        name, lambda name=name: SOURCES[source](subject, name, images, seed)
      )
      bar(len(found), name)
  shares = np.array([[entry["accuracy"] for entry in entries] for entries in found.values()])
  return {
    "source": source,
    "corruptions": found,
    "mean": float(shares.mean()),
    "mean_per_severity": shares.mean(0).tolist(),
  }


def computed(subject, name, images, seed):
  """Accuracies at the five severities of one corruption, computed here."""
  key = jax.random.fold_in(robustness.root_key(seed), sorted(CORRUPTIONS).index(name))
  compiled = changed_fn(
    subject.model,
    lambda x, severity, indices: corrupt(name, key, x, severity, indices),
    subject.mesh,
  )
  return [
    {"severity": severity, **accuracy_under(compiled, subject, images, np.int32(severity))}
    for severity in SEVERITIES
  ]


def prepared(subject, name, images, seed):
  """Accuracies at the five severities of one corruption, on as many images of the set that TFDS has.

  Its order is its own: these are not copies of `images`.
  """
  del seed
  entries, compiled = [], accuracy.correct_fn(subject.model, subject.mesh)
  for severity in SEVERITIES:
    split = subject.load_corrupted(name, severity)
    if split.images.shape[1:] != subject.test.images.shape[1:]:
      raise UserError(
        f"the prepared set of {name} has images of shape {split.images.shape[1:]}, the test set "
        f"{subject.test.images.shape[1:]}; use --config.evaluation.corruptions.source=computed"
      )
    rows = robustness.select(len(split.labels), len(images.rows))
    right = accuracy.evaluate(
      compiled,
      subject.variables,
      data.Split(split.images[rows], split.labels[rows]),
      subject.batch_size,
      subject.mesh,
    )
    entries.append({"severity": severity, **statistics.proportion(right.sum(), len(right))})
  return entries


SOURCES = {"computed": computed, "tfds": prepared}
