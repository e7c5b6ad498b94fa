"""Self-progressing robust training (SPROUT) in JAX, and the evaluation of robustness.

Usage::

    sprout_jax.load("runs/digits")                    # a trained model
    sprout_jax.evaluation.evaluate(predict, ...)      # the robustness of any JAX model
    sprout_jax.verify("bundle", predict)              # whether its evidence holds
    from sprout_jax import vicinity, losses, attacks  # pure functions

`vicinity`, `losses` and `attacks` can be used on their own: of the package they import only each
other and small modules without further imports.

Errors: every wrong argument of a public function raises ValueError. The message says what is wrong,
what was expected and what to type. That holds for shapes and dtypes too, also inside `jax.jit`. No
check is an assertion, so that `python -O` removes none. Subclasses and other errors:

- `errors.UserError`, a ValueError, is raised where configs and command lines are read. The launcher
  prints it without a traceback.
- `errors.TrainingDiverged`, a RuntimeError, says that a loss or a gradient is not finite.
- RuntimeError of `attacks.auto_attack` says that a perturbation exceeds epsilon, a defect of the
  attack.
- OSError says that a file cannot be read or written.
- TypeError says that an object has the wrong type, whatever its value.
"""

from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
  from sprout_jax.evaluation.replay import verify
  from sprout_jax.launcher.trained import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "verify"]


def __getattr__(name: str) -> Any:
  """Imports `load`, `verify` and the modules when they are first used."""
  import importlib

  if name == "load":
    return importlib.import_module("sprout_jax.launcher.trained").load
  if name == "verify":
    return importlib.import_module("sprout_jax.evaluation.replay").verify
  if name in ("attacks", "evaluation", "losses", "methods", "models", "results", "vicinity"):
    return importlib.import_module(f"sprout_jax.{name}")
  raise AttributeError(f"module 'sprout_jax' has no attribute {name!r}")
