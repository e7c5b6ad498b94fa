"""Accuracy under transferred attacks: PGD on other models, tried on this one."""

from typing import Annotated

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
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement


def source_digests(subject: Subject, options: dict) -> dict[str, str]:
  """The weights of each source: with others, a transfer is another measurement."""
  if not options["sources"]:
    raise UserError(
      "the evaluation 'transfer' needs other models: give sources, e.g. "
      "--config.evaluation.transfer.sources=runs/natural"
    )
  if subject.find_source is None:
    raise UserError("the evaluation 'transfer' needs other models: give evaluate(..., sources={})")
  return {name: subject.find_source(name).digest for name in options["sources"]}


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
    tuple[str, ...], Option("workdirs whose models are attacked in place of this one")
  ] = (),
  seed: Seed,
) -> Measurement:
  """Measures accuracy under PGD on other models, beside that under PGD on the model itself."""
  pgd = Pgd(norm, num_steps, step_size, num_restarts, loss, seed)
  images, fn, found = subject.select(num_examples), attack_fn(pgd.attack, norm, seed), []
  with subject.progress("transfer", len(sources) + 1, "models") as bar:
    for number, name in enumerate((None, *sources), 1):
      source = None if name is None else subject.find_source(name)
      robust = subject.memo(
        "the model itself" if source is None else f"{name} {source.digest}",
        lambda source=source: outcomes(
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
