"""Results: numbers as records with typed keys, their files, comparisons and checks. No JAX.

    from sprout_jax import results
    run = results.read("runs/digits")                 # everything that was measured of a run
    run.numbers.where(evaluation="pgd", epsilon=0.1)  # queries on keys, never on text
    results.frame(["runs/digits", "runs/natural"])    # all numbers as one tidy data frame

The files: `numbers` (a number, its keys, its outcome for each image), `store` (stored evaluations
of a workdir), `summary` (results.json), `table` (the data frame), `checks` (findings, derived from
stored numbers), `comparison` (two models on the same images), `workdir` (the files of a run's
folder), `bundle` (evidence that others can check), `files` (files written atomically, with a
digest).
"""

from sprout_jax.results.comparison import Comparison
from sprout_jax.results.comparison import compare
from sprout_jax.results.comparison import compare_means
from sprout_jax.results.comparison import compare_runs
from sprout_jax.results.comparison import identity
from sprout_jax.results.comparison import paired
from sprout_jax.results.numbers import KEYS
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement
from sprout_jax.results.summary import Results
from sprout_jax.results.summary import read
from sprout_jax.results.table import frame

__all__ = [
  "KEYS",
  "Comparison",
  "Measurement",
  "Number",
  "Numbers",
  "Results",
  "compare",
  "compare_means",
  "compare_runs",
  "frame",
  "identity",
  "paired",
  "read",
]
