"""Checks of a model and its test images before anything is measured."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sprout_jax.attacks import inputs
from sprout_jax.attacks import inspection
from sprout_jax.errors import UserError
from sprout_jax.evaluation.subject import PASSES
from sprout_jax.evaluation.subject import TOLERANCE
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import outputs
from sprout_jax.evaluation.subject import to_float

FEW = 32  # images of the repeated passes
ROUNDING = 0.05  # largest difference that can be rounding, in standard deviations of an output
ENOUGH = 100  # images from which on the accuracy is compared with chance
ENOUGH_FOR_ONE_ANSWER = 50  # images from which on one answer for all is named
SIGNIFICANCE = 0.01  # of the exact binomial test against chance


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
  if images.ndim == 3 and len(images):
    raise UserError(
      f"images have shape {images.shape}; expected [n, height, width, channels]. For grey images "
      "give images[..., None]; for a single image give images[None]"
    )
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


def check_trace(what: str, predict: Predict, image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  """Checks that JAX can trace a model and that it returns one array, a row per image.

  Args:
    what: the name of the model in messages.
    predict: from `as_pytree`.
    image_shape: (height, width, channels).

  Returns:
    The type of the outputs for two images.

  Raises:
    UserError: the model fails on images of this shape, changes a state, or returns something else.
  """
  image = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
  try:
    shape = jax.eval_shape(lambda images: predict(images), image)
  except Exception as error:  # the code is the user's and can raise anything
    reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:300]
    raise UserError(
      f"JAX cannot trace {what} on images of shape {image.shape} ({type(error).__name__}: "
      f"{reason}). {_advice(error, predict, image)}"
    ) from error
  if not hasattr(shape, "shape") or shape.ndim != 2 or shape.shape[0] != 2:
    found = jax.tree.map(lambda leaf: getattr(leaf, "shape", type(leaf).__name__), shape)
    expected = "features of shape (2, n)" if what == "features" else "logits of shape (2, classes)"
    raise UserError(f"for 2 images {what} returns {found}; expected one array of {expected}")
  return shape


def _advice(error: Exception, predict: Predict, image: jax.ShapeDtypeStruct) -> str:
  """Says what to type after an error in the trace of a model."""
  if "TraceContext" in type(error).__name__:  # of Flax NNX
    return (
      "The model changes its state, as in training mode. Switch it to evaluation mode with "
      "model.eval(), or train=False"
    )
  turned = _accepted(predict, image, (0, 3, 1, 2))
  if turned:
    return (
      f"It accepts {turned}, channels first: give "
      "lambda images: model(images.transpose(0, 3, 1, 2))"
    )
  turned = _accepted(predict, image, (0, 2, 3, 1))
  if turned:
    return f"It accepts {turned}. The images are channels first: give images.transpose(0, 2, 3, 1)"
  is_of_jax = isinstance(error, jax.errors.JAXTypeError)  # their messages name shapes, too
  text = f"{type(error).__name__} {error}".lower()
  if ("shape" in text or "feature dimension" in text) and not is_of_jax:
    return (
      "Is it a model of images of another size or number of channels? Give images of its size, or "
      "resize them within the function"
    )
  return inputs.advice(error)


def _accepted(
  predict: Predict, image: jax.ShapeDtypeStruct, axes: tuple[int, ...]
) -> tuple[int, ...] | None:
  """Returns the shape of images with other axes, if the model accepts it."""
  shape = tuple(image.shape[axis] for axis in axes)
  try:
    jax.eval_shape(lambda images: predict(images), jax.ShapeDtypeStruct(shape, image.dtype))
  except Exception:  # the code is the user's and can raise anything
    return None
  return shape


def check_subject(subject: Subject, say: Callable[[str], None] = warnings.warn) -> None:
  """Checks a model's outputs on the test images. Attacks on a model that fails are meaningless.

  Args:
    subject: the model.
    say: called with a sentence about something that is suspicious but possible.

  Raises:
    UserError: JAX cannot trace the model; its outputs are not finite logits for these labels; they
      are probabilities; they differ between passes over the same images, or with the rest of the
      batch.
  """
  check_trace("the model", subject.predict, subject.images.shape[1:])
  logits = subject.logits
  try:
    inspection.check_outputs(logits, subject.labels, "the model")
  except ValueError as error:
    raise UserError(str(error)) from error
  _check_passes(subject, say)
  _check_normalised(logits, say)
  _check_images(subject.images, say)
  _check_accuracy(subject, say)


def _check_normalised(logits: np.ndarray, say: Callable[[str], None]) -> None:
  """Finds probabilities in per cent, and names outputs of a sigmoid or with a constant sum."""
  sums = logits.astype(np.float64).sum(-1)
  is_constant = len(sums) > 1 and (logits >= 0).all() and np.ptp(sums) < 0.01 * sums.mean()
  if is_constant and abs(sums.mean() - 100) < 1:
    raise UserError(
      "the outputs of the model are probabilities in per cent (they sum to 100); return the logits "
      "before the softmax. The gradients of probabilities vanish, and the model looks robust"
    )
  if is_constant:
    say(
      f"the outputs sum to {sums.mean():g} for every image. Are they scaled probabilities? Give "
      "the logits before the softmax"
    )
  elif 0 <= logits.min() < logits.max() <= 1:
    say(
      f"all outputs are from {logits.min():.3g} to {logits.max():.3g}. Are they probabilities "
      "after a sigmoid? Give the logits before it: gradients vanish behind it, and the model looks "
      "robust"
    )


def _check_passes(subject: Subject, say: Callable[[str], None]) -> None:
  """Compares passes over the same images, then over the same images in other batches."""
  few = min(FEW, len(subject.labels))
  expected = subject.logits[:few]
  # One image per device would hide batch statistics. More may not fit into the memory.
  size = max(subject.batch_size, 2 * jax.device_count())
  again = [subject.map(outputs, subject.images[:few], batch_size=size) for _ in range(PASSES)]
  allowed = TOLERANCE * np.maximum(1.0, np.abs(subject.logits).max(0))  # of each class
  differ = np.max([np.abs(_wide(found) - _wide(again[0])).max(0) for found in again], 0)
  if (differ > allowed).any():
    raise UserError(
      f"the outputs of {PASSES} passes over the same images differ by up to {differ.max():.2g}: "
      "the model draws random numbers. Switch it to evaluation mode; or give the mean of draws, "
      "attacks.averaged(predict, draws=20), of a function predict(images, keys)"
    )
  first = to_float(subject.images[:1])
  mixed = to_float(subject.images[:few])[::-1]
  if few < FEW:  # so that one image has another beside it
    mixed = np.concatenate([mixed, 1 - first])
  others = [
    _wide(again[0]) - expected,
    _wide(subject.map(outputs, mixed, batch_size=size))[:few][::-1] - expected,
    _wide(subject.map(outputs, first, batch_size=1)) - expected[:1],
  ]
  differ = np.max([np.abs(found).max(0) for found in others], 0)
  if not (differ > allowed).any():
    return
  if (differ > ROUNDING * expected.std(0))[differ > allowed].any():
    raise UserError(
      f"the output for an image changes by up to {differ.max():.2g} with the rest of its batch. Is "
      "the model in training mode (batch norm, dropout)? Switch it to evaluation mode: "
      "model.eval(), or train=False. If the model was trained further after jax.jit, call jax.jit "
      "again"
    )
  say(
    f"the output for an image changes by up to {differ.max():.2g} with the rest of its batch. With "
    "low precision (bfloat16) that is rounding; otherwise the model may be in training mode"
  )


def _check_images(images: np.ndarray, say: Callable[[str], None]) -> None:
  """Names images that seem to be channels first, and bytes that seem to be floats."""
  _, first, second, last = images.shape
  if first in (1, 3) and last > 4 and second > 4:
    say(
      f"images have shape {images.shape}, as channels first; expected [n, height, width, "
      "channels]. Give images.transpose(0, 2, 3, 1) and lambda images: "
      "model(images.transpose(0, 3, 1, 2))"
    )
  if images.dtype == np.uint8 and images.max() <= 1:
    say(
      f"images are uint8 and the largest value is {images.max()}, but bytes are 0 to 255. If they "
      "are in [0, 1], give images.astype(np.float32)"
    )


def _check_accuracy(subject: Subject, say: Callable[[str], None]) -> None:
  """Names an accuracy that chance can explain, and a model with one answer for all images."""
  import scipy.stats  # slow to import

  count, classes = len(subject.labels), subject.num_classes
  if count < ENOUGH_FOR_ONE_ANSWER:
    return
  chance = 1 / classes
  by_chance = scipy.stats.binom.sf(int(subject.correct.sum()) - 1, count, chance)
  answers = np.unique(subject.logits.argmax(-1))
  if len(answers) == 1 and len(np.unique(subject.labels)) > 1:
    say(
      f"the model answers class {answers[0]} for all {count} images. Does it expect pixels outside "
      "[0, 1], or channels first?"
    )
  elif count >= ENOUGH and by_chance > SIGNIFICANCE:
    say(
      f"the clean accuracy is {subject.correct.mean():.1%}, near chance ({chance:.1%}). Does the "
      "model expect pixels outside [0, 1], channels first, or other labels?"
    )


def _wide(logits: np.ndarray) -> np.ndarray:
  return logits.astype(np.float64)
