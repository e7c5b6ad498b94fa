"""Adversarial images for people to look at."""

import base64
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness


def png(pixels):
  """A float image [height, width, 1 or 3] in [0, 1] as a PNG file, in base64."""
  levels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, "png")
  return base64.b64encode(file.getvalue()).decode()


def attacked_fn(model, attack, norm, seed, mesh):
  """Compiles (variables, epsilon, images, labels, indices) -> [batch, 1 + values + classes].

  By how much the perturbation is too large, the adversarial image, its logits.
  """

  def run(variables, epsilon, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    adversarial = attack(
      jax.random.fold_in(robustness.root_key(seed), 0),
      predict,
      images,
      labels,
      epsilon=epsilon,
      norm=norm,
      indices=indices,
    )
    logits = predict(adversarial)
    beyond = robustness.excess(images, adversarial, epsilon, norm)
    # One array: what `map_batches` takes.
    return jnp.concatenate([beyond[:, None], adversarial.reshape(len(images), -1), logits], axis=-1)

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def evaluate(subject, *, num_examples, norm, epsilon, num_steps, step_size, loss, seed):
  """Row "examples" of `EVALUATIONS`: the first images that are classified correctly, attacked by PGD.

  The perturbation is drawn as 0.5 + delta / (2 epsilon): grey where nothing changed.
  """
  whole = subject.select(0)
  rows = np.flatnonzero(whole.clean_correct)[:num_examples]
  images, labels = to_float(whole.split.images[rows]), whole.split.labels[rows]
  attack = functools.partial(attacks.pgd, step_size=step_size, num_steps=num_steps, loss=loss)
  compiled = attacked_fn(subject.model, attack, norm, seed, subject.mesh)
  found = (
    []
    if not len(rows)
    else accuracy.map_batches(
      lambda *batch: compiled(subject.variables, np.float32(epsilon), *batch),
      (images, labels, rows.astype(np.int32)),
      subject.batch_size,
      subject.mesh,
    )
  )
  shown = []
  for row, image, label, flat in zip(rows, images, labels, found):
    robustness.refuse_excess(f"PGD at epsilon {epsilon:g}", flat[0])
    adversarial, logits = flat[1 : 1 + image.size].reshape(image.shape), flat[1 + image.size :]
    scale = 2 * max(epsilon if norm == "linf" else np.abs(adversarial - image).max(), 1e-12)
    shown.append(
      {
        "index": int(row),
        "label": int(label),
        "predicted": int(subject.logits[row].argmax()),
        "confidence": _confidence(subject.logits[row]),
        "adversarial_predicted": int(logits.argmax()),
        "adversarial_confidence": _confidence(logits),
        "image": png(image),
        "adversarial": png(adversarial),
        "perturbation": png(0.5 + (adversarial - image) / scale),
      }
    )
  return {
    "epsilon": epsilon,
    "norm": norm,
    "examples": shown,
    "attack": f"PGD-{num_steps}, {norm}, {loss}, steps of {step_size:g}, one random start",
  }


def _confidence(logits):
  """The largest softmax probability."""
  shifted = logits.astype(np.float64) - logits.max()
  return float(1 / np.exp(shifted).sum())
