"""Reports: reads result files only, draws tables and plots."""

import pathlib

from sprout_jax.errors import UserError
from sprout_jax.records import read_results
from sprout_jax.report import plots
from sprout_jax.report import tables


def run(workdir):
  """Writes results.txt and plots/*.png of one run; returns the table and what was written."""
  workdir = pathlib.Path(workdir)
  results = read_results(workdir)
  table = tables.run(results)
  (workdir / "results.txt").write_text(table + "\n")
  (workdir / "plots").mkdir(exist_ok=True)
  written = [plots.robustness({tables.label(results): results}, workdir / "plots" / "robustness.png"),
             *plots.training(workdir, workdir / "plots")]
  return "\n".join([table, "", *(f"wrote {path}" for path in (
      workdir / "results.json", workdir / "results.txt", *written))])


def compare(workdirs):
  """One table for several runs and one plot with all their curves; returns the text.

  Raises:
    UserError: a workdir has no results.json.
  """
  results = {}
  for workdir in dict.fromkeys(workdirs):
    found = read_results(workdir)
    if found is None:
      raise UserError(f"{workdir} has no results.json; finish it with: python launch.py --mode "
                      f"evaluate --workdir {workdir}")
    results[f"{tables.label(found)} ({workdir})"] = found
  folder = pathlib.Path(workdirs[0]) / "plots"
  folder.mkdir(exist_ok=True)
  path = plots.robustness(results, folder / "comparison.png")
  return f"{tables.comparison(results)}\n\nwrote {path}"
