"""Reports: reads result files only, draws tables and plots, writes one page about several runs.

`measures` has every number, `findings` the checks; `sections` and `parts` make them a `document`,
which `page` writes as HTML and `markdown` as Markdown, so that the two cannot disagree.
"""

import pathlib

from sprout_jax.report import curves
from sprout_jax.report import markdown
from sprout_jax.report import page
from sprout_jax.report import plots
from sprout_jax.report import runs as runs_lib
from sprout_jax.report import sections
from sprout_jax.report import tables


def run(workdir):
  """Writes results.txt and plots/*.png of one run; returns the table and what was written."""
  workdir = pathlib.Path(workdir)
  found = runs_lib.read([workdir])
  table = tables.run(found[0].results)
  (workdir / "results.txt").write_text(table + "\n", encoding="utf-8")
  (workdir / "plots").mkdir(exist_ok=True)
  written = [
    plots.save(curves.robustness(found), workdir / "plots" / "robustness.png"),
    *plots.training(found[0].metrics, workdir / "plots"),
  ]
  return "\n".join(
    [
      table,
      "",
      *(f"wrote {path}" for path in (workdir / "results.json", workdir / "results.txt", *written)),
    ]
  )


def compare(workdirs):
  """One table for several runs, or one; the page about them and its Markdown go to the first.

  Writes plots/comparison.png, report/report.html, report/report.md and report/plots/*.png in the
  first workdir.

  Returns:
    The table and what was written.

  Raises:
    UserError: a workdir has no results.json.
  """
  runs = runs_lib.read(workdirs)
  first = pathlib.Path(runs[0].workdir)
  (first / "plots").mkdir(exist_ok=True)
  written = [
    plots.save(curves.robustness(runs), first / "plots" / "comparison.png"),
    *write(sections.build(runs), first / "report"),
  ]
  table = tables.comparison(
    {f"{tables.label(run.results)} ({run.workdir})": run.results for run in runs}
  )
  return "\n".join([table, "", *(f"wrote {path}" for path in written)])


def write(document, folder):
  """Writes a document as report.html, and as report.md with its pictures; returns the two paths."""
  plots_folder = folder / "plots"
  plots_folder.mkdir(parents=True, exist_ok=True)
  for picture in plots_folder.glob("*.png"):  # of an earlier report, about other runs
    picture.unlink()
  for picture in document.pictures():
    (plots_folder / f"{picture.name}.png").write_bytes(picture.png)
  written = folder / "report.html", folder / "report.md"
  for path, text in zip(written, (page.render(document), markdown.render(document, "plots"))):
    path.write_text(text, encoding="utf-8")
  return written
