"""The table of evaluations.

To add an evaluation, write a file with a function (subject, *, options) -> `Measurement`, a row
here, and a test. The options are the function's keyword arguments (see `options`). The config
section, its validation, the documentation, the table of the terminal and the report's section
follow from the row.

Raise the version of a row when its numbers change for the same model, data and options. Results of
an earlier version are then measured again. `tests/evaluation/test_golden.py` fails if numbers
change without a new version.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import Protocol

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.evaluation import options as options_lib
from sprout_jax.evaluation.auto_attack import evaluate_auto_attack
from sprout_jax.evaluation.binarization import evaluate_binarization
from sprout_jax.evaluation.binarization import features_digest
from sprout_jax.evaluation.calibration import evaluate_calibration
from sprout_jax.evaluation.changed import evaluate_corruptions
from sprout_jax.evaluation.changed import evaluate_invariance
from sprout_jax.evaluation.changed import prepared_digests
from sprout_jax.evaluation.corrupted_attack import evaluate_corrupted_attack
from sprout_jax.evaluation.estimate import evaluate_estimate
from sprout_jax.evaluation.examples import evaluate_examples
from sprout_jax.evaluation.extended import evaluate_extended
from sprout_jax.evaluation.gradients import evaluate_gradients
from sprout_jax.evaluation.landscape import evaluate_landscape
from sprout_jax.evaluation.noise import evaluate_noise
from sprout_jax.evaluation.pgd import evaluate_pgd
from sprout_jax.evaluation.probabilistic import evaluate_probabilistic
from sprout_jax.evaluation.random_targets import evaluate_random_targets
from sprout_jax.evaluation.redraws import evaluate_redraws
from sprout_jax.evaluation.sanity import evaluate_sanity
from sprout_jax.evaluation.smoothing import evaluate_smoothing
from sprout_jax.evaluation.strength import evaluate_strength
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.transfer import evaluate_transfer
from sprout_jax.evaluation.transfer import source_digests
from sprout_jax.evaluation.union import evaluate_union
from sprout_jax.results.store import Measurement


class EvaluationFunction(Protocol):
  """The function of an evaluation: (subject, *, options) -> `Measurement`."""

  def __call__(self, subject: Subject, /, *args: Any, **options: Any) -> Measurement:
    """Measures the evaluation."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A row of `EVALUATIONS`.

  Attributes:
    function: the function of the evaluation. Its keyword arguments are the options.
    version: the version of the numbers; raised when they change.
    title: the name for readers.
    depends: (subject, options) -> JSON that determines the numbers besides the subject and the
      options; None where there is nothing else.
  """

  function: EvaluationFunction
  version: int
  title: str
  depends: Callable[[Subject, dict[str, Any]], Any] | None = None


EVALUATIONS: dict[str, Evaluation] = {
  "pgd": Evaluation(evaluate_pgd, 1, "accuracy under PGD"),
  "auto_attack": Evaluation(evaluate_auto_attack, 5, "accuracy under AutoAttack"),
  "strength": Evaluation(evaluate_strength, 1, "PGD with more steps, restarts and losses"),
  "noise": Evaluation(evaluate_noise, 1, "accuracy under random noise"),
  "transfer": Evaluation(
    evaluate_transfer, 1, "accuracy under transferred attacks", source_digests
  ),
  "invariance": Evaluation(evaluate_invariance, 1, "accuracy on transformed images"),
  "corruptions": Evaluation(
    evaluate_corruptions, 2, "accuracy under common corruptions", prepared_digests
  ),
  "smoothing": Evaluation(evaluate_smoothing, 1, "certified accuracy"),
  "calibration": Evaluation(evaluate_calibration, 1, "calibration"),
  "landscape": Evaluation(evaluate_landscape, 1, "loss landscape"),
  "gradients": Evaluation(evaluate_gradients, 1, "input gradients of SPROUT's modules"),
  "sanity": Evaluation(evaluate_sanity, 1, "attacks for the checks"),
  "binarization": Evaluation(evaluate_binarization, 1, "binarisation test", features_digest),
  "examples": Evaluation(evaluate_examples, 2, "adversarial images"),
  "redraws": Evaluation(evaluate_redraws, 2, "spread over the draws of a randomised model"),
  "extended": Evaluation(evaluate_extended, 2, "AutoAttack and the attacks after it"),
  "union": Evaluation(evaluate_union, 3, "accuracy in Linf, L2 and L1 at once"),
  "estimate": Evaluation(evaluate_estimate, 3, "AutoAttack within a budget of passes"),
  "corrupted_attack": Evaluation(evaluate_corrupted_attack, 1, "AutoAttack on corrupted images"),
  "random_targets": Evaluation(
    evaluate_random_targets, 1, "accuracy under PGD towards random classes"
  ),
  "probabilistic": Evaluation(
    evaluate_probabilistic, 1, "random perturbations that fool the model"
  ),
}


def defaults() -> dict[str, Any]:
  """Returns the default options: the shared keys, and the section of each evaluation."""
  shared: dict[str, Any] = {name: default for name, (_, default) in options_lib.SHARED.items()}
  sections = {name: options_lib.own(row.function) for name, row in EVALUATIONS.items()}
  return shared | {name: section for name, section in sections.items() if section}


def choose(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the keyword arguments of one evaluation; `settings` has the form of `defaults`."""
  section = settings.get(name, {})
  return options_lib.choose(EVALUATIONS[name].function, settings, section)


def check_settings(where: str, settings: Mapping[str, Any]) -> None:
  """Checks the options of all evaluations.

  Args:
    where: the name that the user knows, such as "config.evaluation".
    settings: the options, in the form of `defaults`.

  Raises:
    UserError: a value has another type or is out of range; the message names it.
  """
  for name, (annotation, _) in options_lib.SHARED.items():
    options_lib.check(f"{where}.{name}", settings[name], annotation)
  for name, row in EVALUATIONS.items():
    section = settings.get(name, {})
    for option, (annotation, _) in options_lib.declared(row.function).items():
      if option in section:
        options_lib.check(f"{where}.{name}.{option}", section[option], annotation)
    chosen = choose(name, settings)
    if "epsilon" in chosen:
      norm = chosen["norm"]
      options_lib.check_budgets(f"{where}.epsilon", norm, [chosen["epsilon"]])
      options_lib.check_budgets(f"{where}.epsilons", norm, chosen.get("epsilons", ()))


def check_names(where: str, names: Collection[str]) -> None:
  """Raises UserError, with the valid names, for an unknown evaluation or one named twice."""
  for name in names:
    check_choice(f"{where}: an entry", name, EVALUATIONS)
  if len(set(names)) < len(names):
    raise UserError(f"{where} is {tuple(names)}; name each evaluation once")
