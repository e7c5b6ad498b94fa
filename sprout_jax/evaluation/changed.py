"""Accuracy on changed images: transformations over a range of strengths, and common corruptions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.errors import UserError
from sprout_jax.evaluation import randomness
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.corruptions import SEVERITIES
from sprout_jax.evaluation.corruptions import corrupt
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import data_digest
from sprout_jax.evaluation.transformations import TRANSFORMATIONS
from sprout_jax.evaluation.transformations import Transformation
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

Change = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Outcomes = list[np.ndarray]  # bool [n] of each of the five severities


def right_fn(change: Change) -> BatchFunction:
  """Makes the function, for `Subject.map`, that classifies changed images.

  Args:
    change: (images, strength, indices) -> images.

  Returns:
    (predict, strength, images, labels, indices) -> bool [batch].
  """

  def classify(
    predict: Predict,
    strength: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
  ) -> jax.Array:
    return ~attacks.is_wrong(predict(change(images, strength, indices)), labels)

  return classify


def right(subject: Subject, images: Images, fn: BatchFunction, strength: float | int) -> np.ndarray:
  """Returns which changed images are classified correctly, bool [n]; `fn` is from `right_fn`."""
  return subject.map(
    fn, images.images, images.labels, images.indices.astype(np.int32), shared=(strength,)
  )


def evaluate_invariance(
  subject: Subject,
  *,
  num_examples: NumExamples = 0,
  transformations: Annotated[
    tuple[str, ...],
    Option("transformations of the images", choices=tuple(TRANSFORMATIONS), example="rotation"),
  ] = tuple(TRANSFORMATIONS),
) -> Measurement:
  """Measures the accuracy at each strength of each transformation's grid.

  Transformations of colour apply to images of 1 or 3 channels only; a note names those left out.
  """
  channels = subject.images.shape[-1]
  skipped = [
    name
    for name in transformations
    if channels not in (TRANSFORMATIONS[name].channels or (channels,))
  ]
  text = f"images have {channels} channels; these transformations need 1 or 3 and were not measured"
  notes = (f"{text}: {', '.join(skipped)}.".capitalize(),) if skipped else ()
  transformations = tuple(name for name in transformations if name not in skipped)
  if not transformations:
    raise UserError(f"invariance: {text}: {', '.join(skipped)}; name others, e.g. rotation")
  images = subject.select(num_examples)
  numbers: list[Number] = []
  details: dict[str, Any] = {}
  with subject.progress("invariance", len(transformations), "transformations") as bar:
    for number, name in enumerate(transformations, 1):
      row = TRANSFORMATIONS[name]
      strengths = sorted({*row.grid, *row.named.values()})

      def compute(
        row: Transformation = row, strengths: list[float] = strengths
      ) -> list[np.ndarray]:
        fn = right_fn(lambda x, strength, _: row.apply(x, strength))
        return [right(subject, images, fn, float(strength)) for strength in strengths]

      for strength, outcome in zip(strengths, subject.memo(name, compute), strict=True):
        keys: dict[str, Any] = dict(transformation=name, strength=strength)
        numbers.append(accuracy(outcome, images.indices, **keys))
      details[name] = {"unit": row.unit, "identity": row.identity, "named": dict(row.named)}
      bar(number, name)
  return Measurement(Numbers(numbers), {"transformations": details}, notes)


def evaluate_corruptions(
  subject: Subject,
  *,
  num_examples: NumExamples = 0,
  corruptions: Annotated[
    tuple[str, ...], Option("common corruptions", choices=tuple(CORRUPTIONS), example="fog")
  ] = tuple(CORRUPTIONS),
  origin: Annotated[
    str,
    Option(
      "computed from the test images, or read from the prepared TFDS set NAME_corrupted",
      choices=("computed", "tfds"),
    ),
  ] = "computed",
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under each corruption and severity, and the means."""
  images = subject.select(num_examples)
  numbers: list[Number] = []
  measure = {"computed": _computed, "tfds": _prepared}[origin]
  keys: dict[str, Any] = {"origin": origin} | ({"seed": seed} if origin == "computed" else {})
  with subject.progress("corruptions", len(corruptions), "corruptions") as bar:
    for number, name in enumerate(corruptions, 1):
      found = subject.memo(name, functools.partial(measure, subject, name, images, seed))
      for severity, outcome in zip(SEVERITIES, found, strict=True):
        at: dict[str, Any] = dict(corruption=name, severity=severity, **keys)
        one = accuracy(outcome, images.indices, **at)
        if origin == "tfds":  # positions in the prepared set are none in the test set
          one = dataclasses.replace(one, indices=None, outcomes=None)
        numbers.append(one)
      bar(number, name)
  return Measurement(Numbers([*_means(numbers, keys), *numbers]))


def _means(numbers: list[Number], keys: dict[str, Any]) -> list[Number]:
  """Makes the mean over all corruptions and severities, then the mean at each severity.

  The key "corruptions" names the corruptions: means over other corruptions do not compare.
  """
  mean = lambda some: float(np.mean([number.defined for number in some]))
  names = sorted({number["corruption"] for number in numbers})
  keys = {"corruptions": ", ".join(names), **keys}
  count = min(number.count or 0 for number in numbers)
  return [
    Number("mean_accuracy", mean(numbers), keys, count=count),
    *(
      Number(
        "mean_accuracy",
        mean([number for number in numbers if number["severity"] == severity]),
        {"severity": severity, **keys},
        count=count,
      )
      for severity in SEVERITIES
    ),
  ]


def _computed(subject: Subject, name: str, images: Images, seed: int) -> Outcomes:
  """Measures the outcomes at the five severities of a corruption that is computed here."""
  key = randomness.named_key(randomness.root_key(seed), name)
  fn = right_fn(lambda x, severity, indices: corrupt(name, key, x, severity, indices))
  return [right(subject, images, fn, severity) for severity in SEVERITIES]


def prepared_digests(subject: Subject, options: dict[str, Any]) -> dict[str, str] | None:
  """Returns the digests of the prepared sets, on which the numbers depend; None for computed ones.

  Raises:
    UserError: there is no prepared set.
  """
  if options["origin"] != "tfds":
    return None

  def compute(name: str, severity: int) -> str:
    return data_digest(*_find(subject, name, severity))

  return {
    f"{name} {severity}": subject.known(
      f"prepared {name} {severity}", functools.partial(compute, name, severity)
    )
    for name in options["corruptions"]
    for severity in SEVERITIES
  }


def _find(subject: Subject, name: str, severity: int) -> tuple[np.ndarray, np.ndarray]:
  if subject.find_corrupted is None:
    raise UserError(
      "corruptions: origin is 'tfds', but there is no prepared set; use origin 'computed'"
    )
  return subject.find_corrupted(name, severity)


def _prepared(subject: Subject, name: str, images: Images, seed: int) -> Outcomes:
  """Measures the outcomes at the five severities of a corruption, on images of a prepared set.

  The prepared set has an order of its own: its images are not those of the test set at the same
  positions. As many are taken as there are chosen test images.
  """
  del seed
  fn, found = right_fn(lambda x, strength, indices: x), []
  for severity in SEVERITIES:
    corrupted, labels = _find(subject, name, severity)
    if corrupted.shape[1:] != subject.images.shape[1:]:
      raise UserError(
        f"the prepared set of {name} has images of shape {corrupted.shape[1:]}, the test set has "
        f"{subject.images.shape[1:]}; use --config.evaluation.corruptions.origin=computed"
      )
    rows = randomness.choose(len(labels), len(images.labels))
    chosen = Images(corrupted[rows], labels[rows], rows, np.ones(len(rows), bool))
    found.append(right(subject, chosen, fn, 0.0))
  return found
