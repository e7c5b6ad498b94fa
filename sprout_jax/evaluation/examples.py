"""Adversarial images to look at."""

import base64
import io
from typing import Annotated

import jax
import numpy as np
from PIL import Image

from sprout_jax import attacks
from sprout_jax.evaluation import threat
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement


def png(pixels: np.ndarray) -> str:
  """Encodes a float image [height, width, channels] in [0, 1] as a PNG file in base64.

  An image with three channels is shown in colour, any other image by its first channel.
  """
  levels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0]).save(file, "png")
  return base64.b64encode(file.getvalue()).decode()


def evaluate_examples(
  subject: Subject,
  *,
  num_examples: Annotated[int, Option("adversarial images to show", 1, 100)] = 6,
  norm: Norm,
  epsilon: Epsilon,
  num_steps: NumSteps,
  step_size: StepSize,
  loss: Loss,
  seed: Seed,
) -> Measurement:
  """Attacks a few images by PGD and keeps their pictures.

  The choice of images is the same for every model, whether the attack succeeds or not. A
  perturbation is shown as 0.5 + delta / (2 epsilon): grey where it is zero.
  """
  images = subject.select(min(num_examples, len(subject.labels)))
  pgd = Pgd(norm, num_steps, step_size, 1, loss, seed)

  def attack_batch(
    predict: Predict,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    key = jax.random.fold_in(root_key(seed), 0)
    adversarial = pgd.attack(
      key, predict, images, labels, epsilon=epsilon, norm=norm, indices=indices
    )
    excess = threat.excess(images, adversarial, epsilon, norm)
    return adversarial, predict(adversarial), excess

  adversarial, logits, excess = subject.map(
    attack_batch,
    images.images,
    images.labels,
    images.indices.astype(np.int32),
    shared=(float(epsilon),),
  )
  threat.refuse(f"{pgd.name} at epsilon {epsilon:g}", excess, epsilon)
  broken = images.correct & np.asarray(attacks.is_wrong(logits, images.labels))
  shown = []
  for place, row in enumerate(images.indices):
    image, clean = to_float(images.images[place]), subject.logits[row]
    delta = adversarial[place] - image
    scale = 2 * max(epsilon if norm == "linf" else np.abs(delta).max(), 1e-12)
    shown.append(
      {
        "index": int(row),
        "label": int(images.labels[place]),
        "predicted": int(clean.argmax()),
        "confidence": _confidence(clean),
        "adversarial_predicted": int(logits[place].argmax()),
        "adversarial_confidence": _confidence(logits[place]),
        "broken": bool(broken[place]),
        "image": png(image),
        "adversarial": png(adversarial[place]),
        "perturbation": png(0.5 + delta / scale),
      }
    )
  text = f"{pgd.name}, {norm}, {loss}, steps of {step_size:g}, one random start"
  details = {"attack": text, "norm": norm, "epsilon": epsilon, "examples": shown}
  return Measurement(Numbers(), details)


def _confidence(logits: np.ndarray) -> float:
  """Returns the largest softmax probability of one image's logits."""
  shifted = logits.astype(np.float64) - logits.max()
  return float(1 / np.exp(shifted).sum())
