"""Numbers of several runs as one table, whatever evaluation they are from.

A row is what a number is a number of (`runs.identity`), a column is a run. Keys that all rows of an
evaluation share stand in its heading, the others in the heads of the rows.
"""

import collections
from collections.abc import Iterable

from sprout_jax.report import blocks
from sprout_jax.report import headline
from sprout_jax.report import wording
from sprout_jax.report.runs import Run
from sprout_jax.report.runs import are_same
from sprout_jax.report.runs import identity
from sprout_jax.report.runs import images
from sprout_jax.results import KEYS
from sprout_jax.results import Number
from sprout_jax.results import Numbers

MOST_ROWS, MOST_RADII = 40, 6  # of one evaluation in a table; report.csv has all numbers
MOST_LINES = 6  # of one metric of an evaluation in the terminal
WORDS = [key for key, (kind, _) in KEYS.items() if kind is str and key != "stage"]
SIZES = [key for key, (kind, _) in KEYS.items() if kind is not str]


def transformation(run: Run, number: Number) -> str:
  """The name that the evaluation of transformations gives to a strength; "" where it gives none."""
  rows = run.detail("invariance", "transformations") or {}
  named = rows.get(number["transformation"], {}).get("named", {})
  return next((label for label, at in named.items() if at == number["strength"]), "")


def shown(run: Run, evaluation: str) -> Numbers:
  """The numbers of an evaluation that tables show; figures and report.csv have the rest."""
  numbers = run.of(evaluation)
  radii = sorted({n["radius"] for n in numbers if n.metric == "certified_accuracy"})
  few = {*radii[:: -(-len(radii) // MOST_RADII) or 1], headline.certified_radius([run]), None}
  keep = {
    "invariance": lambda n: transformation(run, n),
    "corruptions": lambda n: n.metric == "mean_accuracy",
    "smoothing": lambda n: n["radius"] in few,
    "sanity": lambda n: n.value or not n.metric.endswith("_gradients"),  # a check has the faultless
  }.get(evaluation)
  return Numbers(filter(keep, numbers)) if keep and any(map(keep, numbers)) else numbers


def main(run: Run, evaluation: str) -> Numbers:
  """The numbers of an evaluation that the terminal shows.

  All of PGD, AutoAttack's worst cases, the certified accuracy of the headline. Of another metric
  all numbers if they are few, else the lowest and the highest.
  """
  numbers, found = shown(run, evaluation), []
  radius = headline.certified_radius([run])
  for metric in numbers.values("metric"):
    alike = [n for n in numbers.where(metric=metric, stage=None) if n["radius"] in (None, radius)]
    defined = sorted((n for n in alike if n.value is not None), key=lambda n: n.value)
    is_long = len(alike) > MOST_LINES and defined and evaluation not in ("pgd", "auto_attack")
    found += [defined[0], defined[-1]] if is_long else alike
  return Numbers(found)


def grid(runs: list[Run], evaluations: Iterable[str]) -> blocks.Table | None:
  """The numbers of some evaluations as one table; None where no run has any."""
  rows, said = [], collections.defaultdict(dict)
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
  """The heading and the rows of one evaluation, of the numbers that are chosen of each run."""
  by_row = collections.defaultdict(dict)  # {(identity, seed or None): {place of a run: number}}
  for run in runs:
    for number in chosen[run.place]:
      row = identity(number), None
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
  rows = []
  for row in sorted(by_row, key=_order(firsts))[:MOST_ROWS]:
    hidden = shared if row[0] in seeded else {**shared, "seed": None}
    own = {key: entry for key, entry in firsts[row].keys.items() if key not in hidden}
    labels = (
      transformation(run, by_row[row][run.place]) for run in runs if run.place in by_row[row]
    )
    head = next(filter(None, labels), "") or wording.describe(own)
    is_said = head and (firsts[row].metric == "accuracy" or not has_metrics)
    metric = "" if is_said else wording.name(firsts[row].metric)
    cells = (_cell(run, evaluation, by_row[row].get(run.place), usual) for run in runs)
    rows.append((blocks.Cell(", ".join(filter(None, [metric, head]))), *cells))
  more = len(by_row) - MOST_ROWS
  rows += [(blocks.Cell(f"{wording.plural(more, 'more row')} in report.csv"),)] if more > 0 else []
  title, said = wording.name(evaluation), wording.describe(shared)
  title = said if said.lower().startswith(title.lower()) else ": ".join(filter(None, [title, said]))
  count = wording.plural(usual[1], "image") if usual else ""
  return [(blocks.Cell(", ".join(filter(None, [title, count]))),), *rows]


def _order(firsts):
  """Sorts rows: words in the order in which they came, then numbers by size, then the stages."""
  text = lambda number: (number.metric, *(number[key] for key in WORDS))
  words = list(dict.fromkeys(map(text, firsts.values())))
  stages = [None, *dict.fromkeys(number["stage"] for number in firsts.values())]

  def key(row):
    number = firsts[row]
    sizes = tuple(-1.0 if number[key] is None else number[key] for key in SIZES)
    return words.index(text(number)), sizes, stages.index(number["stage"])

  return key


def _cell(run, evaluation, number, usual):
  if number is None:
    return blocks.missing(run.missing(evaluation))
  is_other = number.count is not None and not are_same(images(run, number), usual)
  failed = tuple(finding.text for finding in run.results.failed_checks(number))
  kinds = [blocks.FAILED] * bool(failed) + [blocks.OTHER] * is_other
  count = wording.plural(number.count, "image") if is_other else ""
  detail = " ".join(filter(None, [wording.interval(number), count]))
  return blocks.Cell(wording.value(number), detail, tuple(kinds), notes=failed)
