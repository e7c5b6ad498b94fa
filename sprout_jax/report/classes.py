"""Tables of single classes under AutoAttack: accuracy of each class, and the confusion."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sprout_jax.report import blocks
from sprout_jax.report import figures
from sprout_jax.report import wording
from sprout_jax.report.runs import Run

MOST_ROWS = 40  # classes of the table; results.json has all
MOST_COLUMNS = 20  # classes of a confusion that is shown
MOST_RUNS = 3  # runs whose confusion is shown


def _found(run: Run) -> Mapping[str, Any] | None:
  """The entry of AutoAttack's details at the run's epsilon that has outcomes of classes."""
  stored = run.results.stored.get("auto_attack")
  specs = [one for one in run.detail("auto_attack", "specs") or () if "classes" in one]
  wanted = None if stored is None else stored.options.get("epsilon")
  return next((one for one in specs if one["epsilon"] == wanted), specs[0] if specs else None)


def accuracies(runs: list[Run]) -> blocks.Table | None:
  """Makes the table of each class before and under AutoAttack; None where no run has it."""
  found = {run: entry for run in runs if (entry := _found(run)) is not None}
  if not found:
    return None
  count = max(len(entry["classes"]["count"]) for entry in found.values())
  threats = dict.fromkeys(_threat(entry) for entry in found.values())
  heading = blocks.Cell(f"correct before and under AutoAttack, {'; '.join(threats)}")
  rows: list[tuple[blocks.Cell, ...]] = [(heading,)]
  for label in range(min(count, MOST_ROWS)):
    cells = (_cell(run, found.get(run), label) for run in runs)
    rows.append((blocks.Cell(figures.class_name(next(iter(found)), label)), *cells))
  more = count - MOST_ROWS
  notes = (f"{more} more of the classes are in results.json.",) if more > 0 else ()
  return blocks.Table(("class", *(run.name for run in runs)), tuple(rows), notes)


def _cell(run: Run, entry: Mapping[str, Any] | None, label: int) -> blocks.Cell:
  classes = None if entry is None else entry["classes"]
  if classes is None or label >= len(classes["count"]) or not classes["count"][label]:
    return blocks.missing(run.missing("auto_attack") if classes is None else "no image")
  count = classes["count"][label]
  shares = [wording.percent(classes[name][label] / count) for name in ("correct", "robust")]
  detail = f"of {wording.plural(count, 'image')}"
  answers = np.array(classes["confusion"][label]) if "confusion" in classes else np.zeros(0, int)
  if len(answers):
    answers[label] = 0
  if answers.any():
    usual = int(answers.argmax())
    detail += f"; {answers[usual]} become {figures.class_name(run, usual)}"
  return blocks.Cell(" to ".join(shares), detail)


def confusions(runs: list[Run]) -> blocks.Table | None:
  """Makes one table with the confusion of each run under AutoAttack, of a few runs and classes."""
  found = [(run, entry) for run in runs if (entry := _found(run)) is not None]
  found = [(run, entry["classes"].get("confusion")) for run, entry in found]
  shown = [(run, matrix) for run, matrix in found if matrix and len(matrix) <= MOST_COLUMNS]
  if not shown or len(shown) > MOST_RUNS:
    return None
  size = max(len(matrix) for _, matrix in shown)
  names = [figures.class_name(shown[0][0], label) for label in range(size)]
  rows: list[tuple[blocks.Cell, ...]] = []
  for run, matrix in shown:
    rows.append((blocks.Cell(f"{run.name}: images of a class (row) that become a class (column)"),))
    for label, answers in enumerate(matrix):
      cells = [blocks.Cell(str(answer)) for answer in answers]
      cells += [blocks.missing()] * (size - len(answers))
      rows.append((blocks.Cell(figures.class_name(run, label)), *cells))
  return blocks.Table(("under AutoAttack", *names), tuple(rows))


def _threat(entry: Mapping[str, Any]) -> str:
  return wording.threat(str(entry["spec"]["norm"]), float(entry["epsilon"]))
