"""Accuracy under transferred attacks: adversarial images of other models, found by PGD."""

import functools
from typing import Annotated
from typing import Any

from sprout_jax.errors import UserError
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Loss
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import NumRestarts
from sprout_jax.evaluation.options import NumSteps
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import StepSize
from sprout_jax.evaluation.pgd import Pgd
from sprout_jax.evaluation.pgd import attack_fn
from sprout_jax.evaluation.pgd import outcomes
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def source_digests(subject: Subject, options: dict[str, Any]) -> dict[str, str]:
  """Returns the digest of each source's weights, on which the numbers depend.

  Raises:
    UserError: there is no source, or one cannot be loaded.
  """
  if not options["sources"]:
    raise UserError(
      "the evaluation 'transfer' needs other models: give sources, e.g. "
      "--config.evaluation.transfer.sources=runs/natural"
    )
  return {name: _source(subject, name).digest for name in options["sources"]}


def _source(subject: Subject, name: str) -> Source:
  if subject.find_source is None:
    raise UserError(
      "the evaluation 'transfer' needs other models: type evaluate(..., sources={'NAME': predict})"
    )
  return subject.find_source(name)


def evaluate_transfer(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  num_steps: NumSteps,
  step_size: StepSize,
  num_restarts: NumRestarts,
  loss: Loss,
  sources: Annotated[
    tuple[str, ...], Option("workdirs of other models; their adversarial images are tried")
  ] = (),
  seed: Seed,
) -> Measurement:
  """Measures the accuracy under PGD on other models, and under PGD on the model itself."""
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  images, fn = subject.select(num_examples), attack_fn(pgd.attack, norm, seed)
  found: list[Number] = []
  with subject.progress("transfer", len(sources) + 1, "models") as bar:
    for number, name in enumerate((None, *sources), 1):
      source = None if name is None else _source(subject, name)
      robust = subject.memo(
        "the model itself" if source is None else f"{name} {source.digest}",
        functools.partial(
          outcomes,
          subject,
          images,
          fn,
          epsilon,
          name=pgd.name,
          restarts=num_restarts,
          attacked=None if source is None else source.predict,
        ),
      )
      label = {} if source is None else {"source": f"{source.label} ({source.digest[:12]})"}
      found.append(accuracy(robust, images.indices, epsilon=epsilon, **pgd.keys, **label))
      bar(number, name or "the model itself")
  return Measurement(Numbers(found))
