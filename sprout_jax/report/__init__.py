"""Reports: tables, figures and a page from what lies in workdirs; nothing is measured anew.

    from sprout_jax import report
    print(report.summarize("runs/digits"))                    # results.txt and plots/ of one run
    print(report.compare(["runs/digits", "runs/natural"]))    # the page about several runs

`runs` reads them, through `sprout_jax.results` alone; `headline` compares their first numbers;
`tables` makes a table of any evaluation, `figures` draws, `sections` puts the parts of the page
together; `render` writes page, LaTeX and terminal by the templates.
"""

import pathlib
from collections.abc import Iterable

from sprout_jax import results as results_lib
from sprout_jax.errors import UserError
from sprout_jax.report import figures
from sprout_jax.report import headline
from sprout_jax.report import render
from sprout_jax.report import runs as runs_lib
from sprout_jax.results import files

Path = pathlib.Path | str


def summarize(workdir: Path) -> str:
  """Writes results.txt and plots/*.png of one run into its workdir.

  Returns:
    The table, and the list of the files.

  Raises:
    UserError: the workdir has no results.json, or files cannot be written.
  """
  workdir = pathlib.Path(workdir)
  (run,) = runs_lib.read([workdir])
  table = render.run_table(run)
  written = {workdir / "results.txt": f"{table}\n"}
  for figure in (draw([run]) for draw in (figures.robustness, figures.training, figures.beta)):
    if figure is not None:
      written[workdir / "plots" / f"{figure.name}.png"] = figure.png
  return "\n".join([table, "", *_write(written)])


def compare(workdirs: Iterable[Path], folder: Path | None = None) -> str:
  """Writes the page about one run or several: report.html, report.csv (all numbers), report.tex.

  They go to `folder`, or else to "report" in the first workdir.

  Returns:
    The headline as a table for the terminal, and the list of the files.

  Raises:
    UserError: no workdir, one has no results.json, or files cannot be written.
  """
  runs = runs_lib.read(workdirs)
  if not runs:
    raise UserError("a report needs at least one workdir; name them: --workdir DIR_A,DIR_B")
  folder = pathlib.Path(folder or pathlib.Path(runs[0].results.workdir) / "report")
  measures, groups = headline.measures(runs), runs_lib.groups(runs)
  frame = results_lib.frame(run.results.workdir for run in runs)
  written = {
    folder / "report.html": render.page(runs, measures, groups),
    folder / "report.csv": frame.to_csv(index=False),
    folder / "report.tex": render.latex(runs, measures, groups),
  }
  return "\n".join([render.comparison(runs, measures, groups), "", *_write(written)])


def _write(contents):
  """Writes {path: content}; returns a line for each."""
  for path, content in contents.items():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"{path.parent} cannot be made ({error.strerror or error})") from error
    files.write(path, content)
  return [f"wrote {path}" for path in contents]
