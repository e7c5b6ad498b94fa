"""What an evaluation is given: a trained model, the test images, and what to compute with."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from sprout_jax.attacks import inspection
from sprout_jax.data import Split
from sprout_jax.data import to_float
from sprout_jax.errors import UserError
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness
from sprout_jax.progress import Progress

PASSES = 5  # over the same images, which must agree
TOLERANCE = 1e-4  # by which they may differ, relative to the largest logit


class Images(NamedTuple):
  """A choice of the test images.

  Attributes:
    split: the images and labels.
    rows: int [n], their positions in the whole test set.
    clean_correct: bool [n], which of them are classified correctly.
  """

  split: Split
  rows: np.ndarray
  clean_correct: np.ndarray


@dataclasses.dataclass(frozen=True)
class Subject:
  """A trained model under evaluation.

  Attributes:
    model: the Flax module; variables: its variables.
    test: the whole test set. num_classes, class_names: of the data set.
    logits: host array [n, classes], of the whole test set.
    batch_size: images per compiled call, over all devices. mesh: the mesh of devices.
    beta: [classes], what SPROUT has learned; None for other methods.
    load: workdir -> `Source`, the selected weights of another run.
    load_corrupted: (corruption, severity) -> Split, of the set that TFDS has prepared.
    memo: `store.Memo` of the evaluation that is running.
  """

  model: Any
  variables: Any
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  logits: np.ndarray
  batch_size: int
  mesh: Any
  beta: list[float] | None
  load: Callable
  load_corrupted: Callable
  memo: Callable

  @property
  def correct(self):
    """Bool [n]: which images of the test set are classified correctly."""
    return self.logits.argmax(-1) == self.test.labels

  def select(self, num_examples):
    """The fixed random choice of test images, as `Images`; 0 takes all."""
    rows = robustness.select(len(self.test.labels), num_examples)
    return Images(Split(self.test.images[rows], self.test.labels[rows]), rows, self.correct[rows])

  @contextlib.contextmanager
  def progress(self, name, total, unit="images"):
    """Shows a bar; gives a function (done, text) that moves it."""
    bar = Progress(total, 0, unit, name, enabled=jax.process_index() == 0)
    try:
      yield bar.update
    finally:
      bar.close()


class Source(NamedTuple):
  """Another run, which perturbations are transferred from."""

  workdir: str
  label: str
  sha256: str
  model: Any
  variables: Any


def checked_logits(model, variables, test, batch_size, mesh):
  """The model's outputs on the test set, after checks that they can be evaluated at all.

  Returns:
    Host array [n, classes], float32.

  Raises:
    UserError: outputs that are not finite, that are probabilities, that do not fit the labels, or
      that another pass over the same images changes: attacks on such a model mean nothing.
  """
  compiled = accuracy.logits_fn(model, mesh)
  fn = lambda images: compiled(variables, to_float(images))
  logits = accuracy.map_batches(fn, (test.images,), batch_size, mesh)
  few = min(batch_size, len(logits))
  passes = [
    accuracy.map_batches(fn, (test.images[:few],), batch_size, mesh) for _ in range(PASSES - 1)
  ]
  differ = max(np.abs(found - logits[:few]).max() for found in passes)
  if differ > TOLERANCE * max(1, np.abs(logits[:few]).max()):
    raise UserError(
      f"{PASSES} passes over the same images differ by up to {differ:.2g}: the model draws "
      "random numbers; evaluate it without, or attack it with attacks.auto_attack(..., "
      "version='rand')"
    )
  try:
    inspection.check_outputs(logits, test.labels, "the trained model")
  except ValueError as error:
    raise UserError(str(error)) from error
  return logits
