"""Tables with a row per number and a column per run, failed checks as footnotes of the numbers."""

from sprout_jax.report import findings
from sprout_jax.report import wording
from sprout_jax.report.document import Cell
from sprout_jax.report.document import Footnotes
from sprout_jax.report.document import Group
from sprout_jax.report.document import Row
from sprout_jax.report.document import Table


def numbers(caption, runs, measure, placed=None, remarks=lambda results: ()):
  """Rows are numbers that were measured alike; a run without one is "not measured" there.

  Args:
    caption: of the table.
    runs: the runs, a column each.
    measure: content of a results.json -> list of `Measure`.
    placed: the failed checks of a results.json to show here; None for those of the measures'
      evaluations. Those that concern no number here are marked at the head of the run's column.
    remarks: content of a results.json -> sentences that belong below the table.

  Returns:
    A `Table`; None if no run has a number.
  """
  columns = [measure(run.results) for run in runs]
  if not any(columns):
    return None
  footnotes = Footnotes()
  marks = [_marks(run, column, placed, footnotes) for run, column in zip(runs, columns)]
  lines = []
  for group, keys in _groups(columns).items():
    lines.append(Group(group))
    for key in keys:
      lines.append(
        Row(
          Cell(key),
          tuple(_cell(column, marked, group, key) for column, marked in zip(columns, marks)),
        )
      )
  header = (
    Cell(""),
    *(Cell(run.key, run.short, marked["head"]) for run, marked in zip(runs, marks)),
  )
  notes = footnotes.notes() + tuple(
    ("", f"{run.name}: {text}") for run in runs for text in dict.fromkeys(remarks(run.results))
  )
  return Table(caption, header, tuple(lines), notes)


def _marks(run, column, placed, footnotes):
  """{number of a measure, or "head": marks of the failed checks that concern it}."""
  evaluations = {measure.evaluation for measure in column}
  shown = (
    placed(run.results)
    if placed
    else [
      finding for finding in findings.failed(run.results) if finding["evaluation"] in evaluations
    ]
  )
  found = {"head": ()}
  for finding in shown:
    mark = footnotes.mark(f"{run.name}: {finding['text']}")
    places = [column.index(measure) for measure in findings.beside(finding, column)] or ["head"]
    for place in places:
      found[place] = (*found.get(place, ()), mark)
  return found


def _groups(columns):
  """{group: rows in order}, of all runs together, in the order in which they first appear."""
  found = {}
  for column in columns:
    for measure in column:
      found.setdefault(measure.group, {}).setdefault(measure.row, measure.order)
  return {group: sorted(rows, key=rows.get) for group, rows in found.items()}


def _cell(column, marked, group, row):
  for number, measure in enumerate(column):
    if (measure.group, measure.row) == (group, row):
      return Cell(measure.text, measure.detail, marked.get(number, ()))
  return Cell(wording.NOT_MEASURED)


def plain(caption, corner, runs, rows):
  """A table of strings, a column for each run; the first of each row is its head."""
  return Table(
    caption,
    (Cell(corner), *(Cell(run.key, run.short) for run in runs)),
    tuple(Row(Cell(row[0]), tuple(map(Cell, row[1:]))) for row in rows),
  )


def checks(runs):
  """The matrix of all checks: check x run, with value and threshold, failed ones with footnotes."""
  footnotes, lines, last = Footnotes(), [], None
  found = [_placed(run.results["checks"]) for run in runs]
  for key in sorted(dict.fromkeys(key for column in found for key in column)):
    evaluation, name, where, number = key
    if evaluation != last:
      lines.append(Group(f"of the evaluation {evaluation}"))
      last = evaluation
    sentence, unit = findings.question(name)
    lines.append(
      Row(
        Cell(
          sentence + (f", {where}" if where else "") + (f" ({number + 1})" if number else ""),
          unit and f"(in {unit})",
        ),
        tuple(_verdict(run, column.get(key), footnotes) for run, column in zip(runs, found)),
      )
    )
  header = (Cell(""), *(Cell(run.key, run.short) for run in runs))
  return Table(
    "Every check of every run: the outcome, the value, and in brackets the limit: what is allowed at most (of "
    "planted adversarial examples: what must be found at least).",
    header,
    tuple(lines),
    footnotes.notes(),
  )


def _placed(checks_of_run):
  """{(evaluation, name, where, 0, 1, ...): finding}; one check may be made several times."""
  found = {}
  for finding in checks_of_run:
    key, number = (finding["evaluation"], finding["name"], finding.get("where", "")), 0
    while (*key, number) in found:
      number += 1
    found[*key, number] = finding
  return found


def _verdict(run, finding, footnotes):
  if finding is None:
    return Cell("not run")
  value = "–" if finding["value"] is None else f"{finding['value']:.3g}"
  detail = f"{value} ({finding['threshold']:.3g})"
  if finding["passed"]:
    return Cell("passed", detail)
  return Cell("FAILED", detail, (footnotes.mark(f"{run.name}: {finding['text']}"),))
