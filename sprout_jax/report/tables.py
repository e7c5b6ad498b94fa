"""Tables of the numbers of several runs, for any evaluation.

A column is a run. A row is a measurement (`results.identity`). The heading of an evaluation has the
keys that all of its rows share, and the head of a row has the others.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from sprout_jax.report import blocks
from sprout_jax.report import headline
from sprout_jax.report import wording
from sprout_jax.report.runs import ImagesOf
from sprout_jax.report.runs import Run
from sprout_jax.report.runs import are_same
from sprout_jax.report.runs import images
from sprout_jax.results import KEYS
from sprout_jax.results import Number
from sprout_jax.results import Numbers
from sprout_jax.results import identity
from sprout_jax.results.comparison import Identity

Row = tuple[Identity, int | None]
MOST_ROWS, MOST_RADII = 40, 6  # per evaluation in a table; report.csv has all numbers
MOST_LINES = 6  # per metric of an evaluation in the terminal
WORDS = [key for key, (kind, _) in KEYS.items() if kind is str and key != "stage"]
SIZES = [key for key, (kind, _) in KEYS.items() if kind is not str]


def transformation(run: Run, number: Number) -> str:
  """Returns the name of a transformation's strength; "" where the strength has no name."""
  rows = run.detail("invariance", "transformations") or {}
  named = rows.get(number["transformation"], {}).get("named", {})
  return next((label for label, at in named.items() if at == number["strength"]), "")


def shown(run: Run, evaluation: str) -> Numbers:
  """Returns the numbers of an evaluation that tables show. Figures and report.csv have all."""
  numbers = run.of(evaluation)
  radii = sorted({n["radius"] for n in numbers if n.metric == "certified_accuracy"})
  few = {*radii[:: -(-len(radii) // MOST_RADII) or 1], headline.certified_radius([run]), None}
  keeps: dict[str, Callable[[Number], Any]] = {
    "invariance": lambda n: transformation(run, n),
    "corruptions": lambda n: n.metric == "mean_accuracy",
    "smoothing": lambda n: n["radius"] in few,
    # The check "gradients" reports shares of 0.
    "sanity": lambda n: n.value or not n.metric.endswith("_gradients"),
  }
  keep = keeps.get(evaluation)
  return Numbers(filter(keep, numbers)) if keep and any(map(keep, numbers)) else numbers


def main(run: Run, evaluation: str) -> Numbers:
  """Returns the numbers of an evaluation that the terminal shows.

  These are all numbers of PGD, the worst cases of AutoAttack, and the certified accuracy of the
  headline. Of other metrics, they are all numbers if there are few, else the lowest and the
  highest.
  """
  numbers = shown(run, evaluation)
  found: list[Number] = []
  radius = headline.certified_radius([run])
  for metric in numbers.values("metric"):
    alike = [n for n in numbers.where(metric=metric, stage=None) if n["radius"] in (None, radius)]
    defined = sorted((n for n in alike if n.value is not None), key=lambda n: n.defined)
    is_long = len(alike) > MOST_LINES and defined and evaluation not in ("pgd", "auto_attack")
    found += [defined[0], defined[-1]] if is_long else alike
  return Numbers(found)


def grid(runs: list[Run], evaluations: Iterable[str]) -> blocks.Table | None:
  """Makes one table of the numbers of some evaluations; None where no run has any."""
  rows: list[tuple[blocks.Cell, ...]] = []
  said: dict[str, dict[str, None]] = collections.defaultdict(dict)  # {note: keys of runs}
  for evaluation in evaluations:
    made = section(runs, {run.place: shown(run, evaluation) for run in runs}, evaluation)
    rows += made
    for row in made:
      for run, cell in zip(runs, row[1:]):
        said.update({f"! {note}": {**said[f"! {note}"], run.key: None} for note in cell.notes})
    for run in runs:
      for note in run.results.stored[evaluation].notes if evaluation in run.results.stored else ():
        said[note][run.key] = None
  notes = tuple(f"{', '.join(keys)}: {note}" for note, keys in said.items())
  return blocks.Table(("", *(run.name for run in runs)), tuple(rows), notes=notes) if rows else None


def section(
  runs: list[Run], chosen: dict[int, Numbers], evaluation: str
) -> list[tuple[blocks.Cell, ...]]:
  """Makes the heading and the rows of one evaluation.

  Args:
    runs: the runs.
    chosen: {place of a run: the numbers to show}.
    evaluation: the evaluation.
  """
  # {(identity, seed or None): {place of a run: number}}
  by_row: dict[Row, dict[int, Number]] = collections.defaultdict(dict)
  for run in runs:
    for number in chosen[run.place]:
      row: Row = identity(number), None
      row = (row[0], number["seed"]) if run.place in by_row[row] else row  # only the seed differs
      by_row[row][run.place] = number
  if not by_row:
    return []
  firsts = {row: next(iter(numbers.values())) for row, numbers in by_row.items()}
  pairs = [(run, row[run.place]) for row in by_row.values() for run in runs if run.place in row]
  shared = {k: v for k, v in pairs[0][1].keys.items() if all(n[k] == v for _, n in pairs)}
  counted = [images(run, number) for run, number in pairs if number.count is not None]
  usual = collections.Counter(counted).most_common(1)[0][0] if counted else None
  seeded = {row[0] for row in by_row if row[1] is not None}
  has_metrics = len({number.metric for _, number in pairs}) > 1
  rows: list[tuple[blocks.Cell, ...]] = []
  for row in sorted(by_row, key=_order(firsts))[:MOST_ROWS]:
    hidden = shared if row[0] in seeded else {**shared, "seed": None}
    own = {key: entry for key, entry in firsts[row].keys.items() if key not in hidden}
    labels = (
      transformation(run, by_row[row][run.place]) for run in runs if run.place in by_row[row]
    )
    head = next(filter(None, labels), "") or wording.describe(own)
    first = firsts[row]  # epsilon 0 can differ from the clean accuracy only by the choice of images
    if head and first["epsilon"] == 0 and usual and usual[1] != runs[0].results.clean.count:
      head = f"{head} (of these {wording.plural(usual[1] or 0, 'image')})"
    is_said = head and (firsts[row].metric == "accuracy" or not has_metrics)
    metric = "" if is_said else wording.name(firsts[row].metric)
    cells = (_cell(run, evaluation, by_row[row].get(run.place), usual) for run in runs)
    rows.append((blocks.Cell(", ".join(filter(None, [metric, head]))), *cells))
  more = len(by_row) - MOST_ROWS
  rows += [(blocks.Cell(f"{wording.plural(more, 'more row')} in report.csv"),)] if more > 0 else []
  title, said = wording.name(evaluation), wording.describe(shared)
  title = said if said.lower().startswith(title.lower()) else ": ".join(filter(None, [title, said]))
  count = wording.plural(usual[1] or 0, "image") if usual else ""
  return [(blocks.Cell(", ".join(filter(None, [title, count]))),), *rows]


def _order(firsts: Mapping[Row, Number]) -> Callable[[Row], Any]:
  """Returns a sort key of rows: words in their first order, then sizes, then stages."""
  text = lambda number: (number.metric, *(number[key] for key in WORDS))
  words = list(dict.fromkeys(map(text, firsts.values())))
  stages = [None, *dict.fromkeys(number["stage"] for number in firsts.values())]

  def key(row: Row) -> Any:
    number = firsts[row]
    sizes = tuple(-1.0 if number[key] is None else number[key] for key in SIZES)
    return words.index(text(number)), sizes, stages.index(number["stage"])

  return key


def _cell(run: Run, evaluation: str, number: Number | None, usual: ImagesOf | None) -> blocks.Cell:
  if number is None:
    return blocks.missing(run.missing(evaluation))
  is_other = False
  if usual is not None and number.count is not None:
    is_other = not are_same(images(run, number), usual)
  failed = tuple(finding.text for finding in run.results.failed_checks(number))
  kinds = [blocks.FAILED] * bool(failed) + [blocks.OTHER] * is_other
  count = wording.plural(number.count or 0, "image") if is_other else ""
  detail = " ".join(filter(None, [wording.interval(number), count]))
  return blocks.Cell(wording.value(number), detail, tuple(kinds), notes=failed)
