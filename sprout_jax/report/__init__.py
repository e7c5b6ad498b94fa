"""Reports: tables, figures and a page from the stored results of workdirs. Nothing is measured.

    from sprout_jax import report
    print(report.summarize("runs/digits"))                    # results.txt and plots/ of one run
    print(report.compare(["runs/digits", "runs/natural"]))    # the page about several runs

The files: `runs` reads the runs, through `sprout_jax.results`. `headline` compares their main
numbers. `tables` makes a table of any evaluation. `figures` draws. `sections` builds the sections
of the page. `render` fills the templates of the page, the LaTeX table and the terminal's tables.
"""

import pathlib
from collections.abc import Iterable
from collections.abc import Mapping

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

  Args:
    workdir: the folder of the run.

  Returns:
    The table for the terminal, and a line for each written file.

  Raises:
    UserError: the workdir has no results.json, or a file cannot be written.
  """
  workdir = pathlib.Path(workdir)
  (run,) = runs_lib.read([workdir])
  table = render.run_table(run)
  written: dict[pathlib.Path, str | bytes] = {workdir / "results.txt": f"{table}\n"}
  for figure in (draw([run]) for draw in (figures.robustness, figures.training, figures.beta)):
    if figure is not None:
      written[workdir / "plots" / f"{figure.name}.png"] = figure.png
  return "\n".join([table, "", *_write(written)])


def compare(workdirs: Iterable[Path], folder: Path | None = None) -> str:
  """Writes the report about one or several runs: report.html, report.csv (all numbers), report.tex.

  Args:
    workdirs: the folders of the runs.
    folder: the folder for the files; default: "report" in the first workdir.

  Returns:
    The headline as a table for the terminal, and a line for each written file.

  Raises:
    UserError: there is no workdir, one has no results.json, or a file cannot be written.
  """
  runs = runs_lib.read(workdirs)
  if not runs:
    raise UserError("a report needs at least one workdir; name them: --workdir DIR_A,DIR_B")
  folder = pathlib.Path(folder or pathlib.Path(runs[0].results.workdir) / "report")
  measures, groups = headline.measures(runs), runs_lib.groups(runs)
  frame = results_lib.frame(run.results.workdir for run in runs)
  written: dict[pathlib.Path, str | bytes] = {
    folder / "report.html": render.page(runs, measures, groups),
    folder / "report.csv": frame.to_csv(index=False),
    folder / "report.tex": render.latex(runs, measures, groups),
  }
  return "\n".join([render.comparison(runs, measures, groups), "", *_write(written)])


def _write(contents: Mapping[pathlib.Path, str | bytes]) -> list[str]:
  """Writes {path: content} and returns a line for each file."""
  for path, content in contents.items():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"the folder {path.parent} cannot be created ({error.strerror or error}); free space or "
        "change permissions"
      ) from error
    files.write(path, content)
  return [f"wrote {path}" for path in contents]
