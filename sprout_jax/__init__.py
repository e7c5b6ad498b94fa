"""Self-progressing robust training (SPROUT) in JAX: training without attacks, honest evaluation.

    sprout_jax.load("runs/digits")                    # a trained model
    sprout_jax.evaluation.evaluate(predict, ...)      # how robust any JAX model is
    from sprout_jax import vicinity, losses, attacks  # pure functions

`vicinity`, `losses` and `attacks` can be used on their own: they import no other room of the
package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sprout_jax.launcher.trained import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name):
  """Imports `load` and the rooms when they are first used."""
  import importlib

  if name == "load":
    return importlib.import_module("sprout_jax.launcher.trained").load
  if name in ("attacks", "evaluation", "losses", "methods", "models", "results", "vicinity"):
    return importlib.import_module(f"sprout_jax.{name}")
  raise AttributeError(f"module 'sprout_jax' has no attribute {name!r}")
