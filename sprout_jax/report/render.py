"""Rendering by templates: the page, the LaTeX table, the tables of the terminal.

Every text that a template shows is cleaned (`wording.clean`) and escaped for its format.
"""

import base64
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any

from sprout_jax.report import blocks
from sprout_jax.report import headline
from sprout_jax.report import sections
from sprout_jax.report import tables
from sprout_jax.report import wording
from sprout_jax.report.headline import Measure
from sprout_jax.report.runs import Run

TEMPLATES = pathlib.Path(__file__).with_name("templates")
COLUMNS, NAMES = 80, 44  # width of the terminal, and of the names of numbers
FIRST = ("clean", "pgd", "auto_attack")  # the first evaluations of a run's table
Groups = dict[str, list[Run]]
MARKS = {"best": "*", "similar": "~", "untested": "?", "other": "+", "failed": "!"}
LATEX = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "±": r"$\pm$",
  **{character: f"\\{character}" for character in "&%$#_{}"},
}


def page(runs: list[Run], measures: list[Measure], groups: Groups) -> str:
  """Renders the page: HTML that opens offline and needs no scripts."""
  return _render(
    "page.html",
    title=f"Robustness of {'one run' if len(runs) == 1 else f'{len(runs)} runs'}",
    summary=headline.summary(runs[0]) if len(runs) == 1 else "",
    headline=headline.group_table(groups, measures) if groups else headline.table(runs, measures),
    each_run=headline.table(runs, measures) if groups else None,
    warnings=headline.warnings(runs, measures),
    nowhere=sections.nowhere(runs),
    sections=sections.build(runs, measures),
  )


def latex(runs: list[Run], measures: list[Measure], groups: Groups) -> str:
  """Renders the headline as a LaTeX tabular without packages; over seeds where there are groups."""
  shown = [measure for measure in measures if measure.numbers]
  table = headline.group_table(groups, shown) if groups else headline.table(runs, shown)
  return _render("report.tex", table=table, is_grouped=bool(groups))


def run_table(run: Run) -> str:
  """Renders the table of one run for the terminal: the main numbers, and failed checks below."""
  measured = run.results.numbers.values("evaluation")
  names = [name for name in dict.fromkeys((*FIRST, *measured)) if name in measured]
  chosen = {name: tables.main(run, name) for name in names}
  shown = [number for numbers in chosen.values() for number in numbers]
  failed = [finding for finding in run.results.findings if not finding.passed]
  return _render(
    "run.txt",
    run=run,
    summary=headline.summary(run),
    sections={name: tables.section([run], {0: chosen[name]}, name) for name in names},
    elsewhere=[finding.text for finding in failed if not any(map(finding.is_about, shown))],
  )


def comparison(runs: list[Run], measures: list[Measure], groups: Groups) -> str:
  """Renders the headline for the terminal."""
  made = [headline.table(runs, measures)]
  made += [headline.group_table(groups, measures)] if groups else []
  header = ["", *(measure.short for measure in measures)]  # groups have long names: fewer columns
  return _render(
    "runs.txt",
    tables=list(zip(made, map(_aligned, made, ([*header, "training"], header)))),
    marks=MARKS,
    runs=runs,
    measures=measures,
    warnings=headline.warnings(runs, measures),
  )


def _aligned(table: blocks.Table, header: list[str]) -> list[str]:
  """Formats a table as lines with aligned columns. If a name is long, each has its own line."""
  rows = [header]
  for head, *cells in (row[: len(header)] for row in table.rows):
    texts = [cell.text.removesuffix(" %").replace(" ± ", "±") for cell in cells]
    marks = ("".join(MARKS.get(kind, "") for kind in cell.kinds) for cell in cells)
    shown = (
      f"{'-' if text.startswith('not ') else text}{mark}" for text, mark in zip(texts, marks)
    )
    rows.append([wording.clean(head.text, COLUMNS - 2), *shown])
  first, *others = (max(map(len, column)) for column in zip(*rows))
  space = COLUMNS - sum(others) - 2 * len(others)
  is_long, lines = first > space, []
  for name, *texts in rows:
    lines += [name] if is_long and name else []
    start = "".ljust(max(space, 0)) if is_long else name.ljust(first)
    lines.append("  ".join([start, *map(str.rjust, texts, others)]))
  return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _line(row: tuple[blocks.Cell, blocks.Cell]) -> str:
  """Formats a row of the table of one run."""
  name, cell = row
  *above, last = textwrap.wrap(wording.clean(name.text, 200), NAMES - 2)
  value = f"  {last:{NAMES - 2}}{cell.text:>14}  {cell.detail}".rstrip()
  return "\n".join([*(f"  {line}" for line in above), value])


def _wrapped(text: str, indent: str = "") -> str:
  """Wraps a text to the width of the terminal, with an indent before its first line."""
  later, text = " " * len(indent), wording.clean(text, 800)
  return textwrap.fill(text, COLUMNS, initial_indent=indent, subsequent_indent=later)


def _tex(text: str) -> str:
  return "".join(LATEX.get(character, character) for character in wording.clean(text, 200))


def _render(template: str, **values: Any) -> str:
  import jinja2  # slow to import

  escapes: dict[str, Callable[[str], str]] = {"page.html": wording.clean, "report.tex": _tex}
  escape = escapes.get(template, str)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=template == "page.html",
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: escape(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {"base64": lambda png: base64.b64encode(png).decode("ascii")}
  environment.filters |= {"wrapped": _wrapped, "line": _line}
  return environment.get_template(template).render(values, wording=wording)
