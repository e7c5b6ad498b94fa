"""Worst-case accuracy under AutoAttack and the attacks that come after it."""

import functools
from typing import Annotated
from typing import Any

from sprout_jax import attacks
from sprout_jax.evaluation import auto_attack
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.subject import Images
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def evaluate_extended(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  first: auto_attack.Version = "standard",
  extensions: Annotated[
    tuple[str, ...],
    Option(
      "attacks after AutoAttack", choices=tuple(attacks.EXTENSIONS), example="apgd-malt,apgd-long"
    ),
  ] = tuple(attacks.EXTENSIONS),
  bundle: auto_attack.LeavesBundle = True,
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under AutoAttack and further attacks on what it leaves robust.

  The accuracy is not called AutoAttack: it can only be lower. The number after the last attack of
  `first` is that of AutoAttack. The checks and the report's table read `auto_attack` only.
  """
  images = subject.select(num_examples)
  with auto_attack.bars(subject) as on_progress:
    found = subject.memo(
      f"epsilon {epsilon!r}",
      functools.partial(
        auto_attack.measure,
        subject,
        images,
        functools.partial(attacks.extended_attack, first=first, extensions=extensions),
        norm,
        epsilon,
        seed,
        functools.partial(on_progress, epsilon),
        bundle,
      ),
    )
  notes = auto_attack.remarks(found, epsilon)
  numbers = _numbers(found, images, norm, epsilon, seed)
  return Measurement(Numbers(numbers), auto_attack.details(found, epsilon), tuple(notes))


def _numbers(
  found: dict[str, Any], images: Images, norm: str, epsilon: float, seed: int
) -> list[Number]:
  """The accuracy after each attack, the worst case, and the gain and cost of each attack."""
  keys: dict[str, Any] = dict(attack="extended", norm=norm, epsilon=epsilon, seed=seed)
  made = [
    accuracy(robust, images.indices, stage=name, **keys)
    for name, robust in found["per_attack"].items()
  ]
  made.append(accuracy(found["robust"], images.indices, **keys))
  for name, gain in found["spec"]["gains"].items():
    at = {**keys, "stage": name}
    count = len(images.labels)
    made.append(Number("images_broken", gain["broken"], at, "images", count))
    made.append(Number("million_passes", gain["passes"] / 1e6, at, "", count))
    per_million = gain["per_million_passes"]
    made.append(Number("images_broken_per_million_passes", per_million, at, "images", count))
  return made
