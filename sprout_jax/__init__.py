"""Self-progressing robust training (SPROUT) in JAX: training without attacks, honest evaluation.

`vicinity`, `losses` and `attacks` are pure functions that can be used on their own; importing them
imports nothing else of the package.
"""

__version__ = "0.1.0"
