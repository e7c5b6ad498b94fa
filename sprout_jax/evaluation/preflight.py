"""Checks of a model and its test images before anything is measured."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sprout_jax.attacks import inspection
from sprout_jax.errors import UserError
from sprout_jax.evaluation.subject import PASSES
from sprout_jax.evaluation.subject import TOLERANCE
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import outputs

FEW = 32  # images of the repeated passes


def check_data(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Checks test images and labels and returns them as NumPy arrays.

  Args:
    images: [n, height, width, channels], n at least 1, uint8 or floats in [0, 1].
    labels: [n], integers of at least 0.

  Returns:
    The images as uint8 or float32 in [0, 1], the labels as int32.

  Raises:
    UserError: another shape, type or range; the message says what to do.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if images.ndim != 4 or not len(images):
    raise UserError(
      f"images have shape {images.shape}; expected [n, height, width, channels] with n at least 1"
    )
  if labels.ndim == 2 and labels.shape[0] == len(images):
    raise UserError(
      f"labels have shape {labels.shape}, as one-hot or soft labels; expected classes, [n]: give "
      "labels.argmax(-1)"
    )
  if labels.shape != (len(images),):
    raise UserError(
      f"labels have shape {labels.shape}; expected ({len(images)},), one label per image"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise UserError(f"labels are {labels.dtype}; expected integers, the classes 0, 1, ...")
  if labels.min() < 0:
    raise UserError(f"the smallest label is {labels.min()}; expected the classes 0, 1, ...")
  if images.dtype != np.uint8:
    if not np.issubdtype(images.dtype, np.floating):
      raise UserError(f"images are {images.dtype}; expected uint8, or floats in [0, 1]")
    images = images.astype(np.float32)
    low, high = images.min(), images.max()  # NaN if any pixel is NaN
    if not (low >= 0 and high <= 1):
      hint = "divide by 255" if low >= 0 and high <= 255 else "undo the normalisation"
      raise UserError(
        f"pixels range from {low:g} to {high:g}; expected floats in [0, 1]: {hint}, and normalise "
        "inside the model, so that epsilon keeps its unit"
      )
  return images, labels.astype(np.int32)


def check_subject(subject: Subject, say: Callable[[str], None] = warnings.warn) -> None:
  """Checks a model's outputs on the test images. Attacks on a model that fails are meaningless.

  Args:
    subject: the model.
    say: called with a sentence about an output that is suspicious but possible.

  Raises:
    UserError: JAX cannot trace the model; its outputs are not finite logits for these labels; they
      are probabilities; they differ between passes over the same images, or with the rest of the
      batch.
  """
  image = jax.ShapeDtypeStruct((2, *subject.images.shape[1:]), np.float32)
  try:
    shape = jax.eval_shape(subject.predict, image)
  except (jax.errors.JAXTypeError, TypeError, AttributeError, ValueError) as error:
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    raise UserError(
      f"JAX cannot trace the model on images of shape {image.shape} ({type(error).__name__}: "
      f"{reason}). Give a function images -> logits of JAX operations that changes no state"
    ) from error
  if not hasattr(shape, "shape") or shape.ndim != 2 or shape.shape[0] != 2:
    found = jax.tree.map(lambda leaf: getattr(leaf, "shape", type(leaf).__name__), shape)
    raise UserError(
      f"for 2 images the model returns {found}; expected one array of logits of shape (2, classes)"
    )
  logits = subject.logits
  try:
    inspection.check_outputs(logits, subject.labels, "the model")
  except ValueError as error:
    raise UserError(str(error)) from error
  few = min(FEW, len(logits))
  scale = max(1.0, float(np.abs(logits).max()))
  again = [subject.map(outputs, subject.images[:few]) for _ in range(PASSES - 1)]
  differ = max(float(np.abs(found - logits[:few]).max()) for found in again)
  if differ > TOLERANCE * scale:
    raise UserError(
      f"the outputs of {PASSES} passes over the same images differ by up to {differ:.2g}: the "
      "model draws random numbers or is in training mode. Switch it to evaluation mode, or attack "
      "it with attacks.auto_attack(..., version='rand')"
    )
  rows = np.arange(few)[::-1]
  others = subject.map(outputs, subject.images[rows])
  alone = subject.map(outputs, subject.images[:1], batch_size=1)
  differ = max(float(np.abs(others - logits[rows]).max()), float(np.abs(alone - logits[:1]).max()))
  if differ > TOLERANCE * scale:
    raise UserError(
      f"the output for an image changes by up to {differ:.2g} with the rest of its batch. Is the "
      "model in training mode (batch norm, dropout)? Switch it to evaluation mode: model.eval(), "
      "or train=False"
    )
  accuracy, chance = float(subject.correct.mean()), 1 / logits.shape[-1]
  if len(subject.labels) >= 100 and accuracy < 1.5 * chance:
    say(
      f"the clean accuracy is {accuracy:.1%}, near chance ({chance:.1%}). Does the model expect "
      "pixels outside [0, 1], channels first, or other labels?"
    )
