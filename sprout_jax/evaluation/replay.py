"""Replay of a bundle: does the model fail on the adversarial images, and are the counts right?"""

import dataclasses
import functools
import pathlib
import warnings

import numpy as np

from sprout_jax import attacks
from sprout_jax import intervals
from sprout_jax.errors import UserError
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import outputs
from sprout_jax.results import bundle as bundle_lib


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
  """The outcome of `verify`.

  Attributes:
    problems: a sentence for each problem; empty where the bundle passed.
    images: number of images.
    correct: clean images that the model classifies correctly.
    broken: adversarial images in the bundle.
    confirmed: those that the model misclassifies, within epsilon and the box.
    accuracy: (correct - confirmed) / images: the robust accuracy is at most that.
    interval: its 95 % interval.
    same_model: whether the model has the digest that the bundle names; None where it names none.
      The digest of a plain function changes with its code and with the version of JAX, so that
      another digest is no problem.
  """

  problems: tuple[str, ...]
  images: int
  correct: int
  broken: int
  confirmed: int
  accuracy: float
  interval: tuple[float, float]
  same_model: bool | None

  @property
  def passed(self) -> bool:
    """Whether there is no problem."""
    return not self.problems

  def __bool__(self) -> bool:
    return self.passed

  def __repr__(self) -> str:
    """Returns one line: passed or not, the counts, the first problem."""
    state = "passed" if self.passed else f"FAILED ({self.problems[0]})"
    low, high = (100 * limit for limit in self.interval)
    return (
      f"<Verdict {state}: {self.confirmed} of {self.broken} adversarial images confirmed, robust "
      f"accuracy at most {100 * self.accuracy:.1f} % [{low:.1f}, {high:.1f}] of {self.images} "
      f"images{'; another model than the bundle names' * (self.same_model is False)}>"
    )


def verify(
  folder: pathlib.Path | str, predict: Predict, *, allowed: int = 0, batch_size: int = 256
) -> Verdict:
  """Checks a bundle against a model, with two passes over its images.

  It checks what `sprout_jax.results.bundle.check` does (digests, epsilon, box, outcomes, counts),
  and asks the model: are the clean images classified as the bundle says, and are the adversarial
  images misclassified? Nothing shows that a robust image is robust: the accuracy that is confirmed
  is an upper bound.

  Example::

      verdict = sprout_jax.verify("runs/digits/evidence/...", sprout_jax.load("runs/digits"))
      print(verdict.passed, verdict.problems)

  Args:
    folder: the folder of the bundle.
    predict: the model: images -> logits, as for `evaluate`.
    allowed: number of outcomes that may differ. On another kind of device, rounding can change the
      class of a few images that lie on the boundary between classes.
    batch_size: images per compiled call.

  Returns:
    The `Verdict`. A bundle that cannot be read, or that has other classes than the model, has
    problems and no counts.

  Raises:
    UserError: the model cannot be asked; the message says why.
  """
  try:
    found = bundle_lib.read(folder)
  except UserError as error:
    return _unasked([str(error)])
  problems = [*bundle_lib.problems_of(found), *bundle_lib.published(found)]
  if bundle_lib.shapes_of(found):
    return _unasked(problems)
  shape = found.images.shape[1:]
  model = subject_lib.as_pytree(predict, shape)
  preflight.check_trace("the model", model, shape)
  subject = Subject(model, found.images, found.labels, batch_size=batch_size, shows_progress=False)
  classes = found.about["spec"].get("classes")
  if classes is not None and subject.num_classes != classes:
    problems.append(
      f"the model has {subject.num_classes} classes, but the bundle belongs to a model with "
      f"{classes}; give the model of the bundle"
    )
    return _unasked(problems)
  correct = subject.correct
  differs = int((correct != found.correct).sum())
  if differs > allowed:
    problems.append(
      f"the model classifies {differs} of {len(correct)} clean images not as the bundle says"
    )
  wrong = np.zeros(0, bool)
  rows = np.flatnonzero(found.broken)[: len(found.adversarial)]
  if len(rows):
    logits = subject.map(outputs, found.adversarial[: len(rows)])
    wrong = np.asarray(attacks.is_wrong(logits, found.labels[rows]))
  right = int((~wrong).sum())
  if right > allowed:
    problems.append(
      f"the model classifies {right} of {len(wrong)} adversarial images correctly; if these are "
      f"few and the device is another one, it can be rounding: allowed={right} accepts them"
    )
  wrong &= bundle_lib.within(found)[: len(rows)]
  confirmed = int(wrong.sum())
  left = max(int(correct.sum()) - int((correct[rows] & wrong).sum()), 0)
  share = intervals.proportion(left, len(correct))
  low, high = share["interval"]
  return Verdict(
    tuple(problems),
    len(correct),
    int(correct.sum()),
    len(found.adversarial),
    confirmed,
    share["accuracy"],
    (low, high),
    _is_same(found, predict, functools.partial(subject_lib.digest, model, shape)),
  )


def _unasked(problems: list[str]) -> Verdict:
  """The verdict where the model cannot be asked: nothing is confirmed."""
  return Verdict(tuple(problems), 0, 0, 0, 0, 1.0, (0.0, 1.0), None)


def _is_same(
  found: bundle_lib.Bundle, predict: Predict, digest: functools.partial[str]
) -> bool | None:
  """Whether the model has the digest of the bundle."""
  known = found.about["model"].get("sha256")
  if known is None:
    return None
  if getattr(predict, "sha256", None) == known:  # a trained model has that of its weights
    return True
  try:
    return bool(digest() == known)
  except UserError as error:  # a model with a part on the host has none
    warnings.warn(str(error), stacklevel=3)
    return None
