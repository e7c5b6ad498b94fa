"""Accuracy under AutoAttack on images with common corruptions."""

import functools
from typing import Annotated
from typing import Any

import jax
import numpy as np

from sprout_jax import attacks
from sprout_jax.evaluation import auto_attack
from sprout_jax.evaluation import randomness
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.corruptions import corrupt
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import outputs
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def evaluate_corrupted_attack(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  norm: Norm,
  epsilon: Epsilon,
  version: auto_attack.Version = "standard",
  corruptions: Annotated[
    tuple[str, ...], Option("common corruptions", choices=tuple(CORRUPTIONS), example="fog")
  ] = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression"),
  severity: Annotated[int, Option("severity of the corruptions", 1, 5)] = 3,
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under AutoAttack in the ball around corrupted images.

  Each image is corrupted once, as in the evaluation `corruptions` with the same seed. The ball and
  the box are those around the corrupted image.
  """
  images = subject.select(num_examples)
  numbers: list[Number] = []
  with auto_attack.bars(subject) as on_progress:
    for name in corruptions:
      found = subject.memo(
        name,
        functools.partial(
          _measure,
          subject,
          images,
          name,
          severity,
          version,
          norm,
          epsilon,
          seed,
          functools.partial(on_progress, epsilon),
        ),
      )
      at: dict[str, Any] = dict(corruption=name, severity=severity, origin="computed", seed=seed)
      numbers.append(accuracy(found["correct"], images.indices, **at))
      keys: dict[str, Any] = dict(attack="auto_attack", version=version, norm=norm, epsilon=epsilon)
      numbers.append(accuracy(found["robust"], images.indices, **at, **keys))
  return Measurement(Numbers(numbers))


def _measure(
  subject: Subject,
  images: Images,
  name: str,
  severity: int,
  version: str,
  norm: str,
  epsilon: float,
  seed: int,
  on_progress: Any,
) -> dict[str, np.ndarray]:
  """The outcomes of the corrupted images without and with an attack."""
  key = randomness.named_key(randomness.root_key(seed), name)

  def change(
    predict: Predict, severity: jax.Array, images: jax.Array, indices: jax.Array
  ) -> jax.Array:
    del predict
    return corrupt(name, key, images, severity, indices)

  given = images.images, images.indices.astype(np.int32)
  corrupted = np.clip(subject.map(change, *given, shared=(severity,)), 0, 1)
  wrong = attacks.is_wrong(subject.map(outputs, corrupted), images.labels)
  changed = images._replace(images=corrupted, correct=~np.asarray(wrong))
  run = functools.partial(attacks.auto_attack, version=version)
  found = auto_attack.measure(subject, changed, run, norm, epsilon, seed, on_progress, False, name)
  return {"correct": changed.correct, "robust": found["robust"]}
