"""The headline numbers of each run, the best run, and the significance of differences from it."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping

import numpy as np

from sprout_jax import results as results_lib
from sprout_jax.report import blocks
from sprout_jax.report import wording
from sprout_jax.report.runs import Run
from sprout_jax.report.runs import images
from sprout_jax.results import Number
from sprout_jax.results import comparison
from sprout_jax.results.numbers import ENSEMBLES
from sprout_jax.results.numbers import accuracy

LAST = ("cost of training", "checks")  # columns of the headline


@dataclasses.dataclass(frozen=True)
class Measure:
  """One headline number of all runs: a column of the headline.

  Attributes:
    title: the title of the column.
    short: the title of a narrow column.
    evaluation: the evaluation that measures it.
    better: what a run with a higher number is: "accurate", "robust", ...
    numbers: {place of a run: its number}; runs without the number are missing.
    verdicts: {place of a run: `BEST`, `SIMILAR` (not significantly different from the best on the
      same images), `UNTESTED`, `OTHER` (another attack, other images or other data than most runs)
      or ""}. A number that failed a check has none, or is `OTHER`.
  """

  title: str
  short: str
  evaluation: str
  better: str
  numbers: Mapping[int, Number]
  verdicts: Mapping[int, str]

  @property
  def counts(self) -> list[int]:
    """The distinct numbers of images, ascending."""
    return sorted({n.count for n in self.numbers.values() if n.count is not None})


def threat(runs: list[Run]) -> tuple[str | None, float | None]:
  """Returns the threat model (norm, epsilon) of most evaluations.

  Of several with equally many evaluations, it prefers one that is an option of an evaluation.
  Without any attack, both are None.
  """
  attacked = {
    (run.place, number.evaluation, number["norm"], number["epsilon"])
    for run in runs
    for number in run.results.numbers
    if number["norm"] and number["epsilon"] and number.metric == "accuracy"
  }
  totals = collections.Counter((norm, epsilon) for *_, norm, epsilon in attacked)
  most = max(totals.values(), default=0)
  often = sorted(threat for threat, count in totals.items() if count == most)
  options = [one.options for run in runs for one in run.results.stored.values()]
  named = {(some.get("norm"), some.get("epsilon")) for some in options}
  often = [threat for threat in often if threat in named] or often
  return often[(len(often) - 1) // 2] if often else (None, None)


def certified_radius(runs: list[Run]) -> float | None:
  """Returns the radius whose certified accuracy is shown: the middle of the measured radii."""
  radii = {n["radius"] for run in runs for n in run.of("smoothing", metric="certified_accuracy")}
  return statistics.median_low(sorted(radii)) if radii else None


def auto_attack(run: Run, norm: str | None, epsilon: float | None) -> Number | None:
  """Returns the accuracy under AutoAttack; None where only a single attack of it was measured."""
  found = run.of("auto_attack", metric="accuracy", stage=None, norm=norm, epsilon=epsilon)
  return next((number for number in found if number["version"] in ENSEMBLES), None)


def measures(runs: list[Run]) -> list[Measure]:
  """Returns the headline numbers, measured or not: clean, PGD, AutoAttack, certified, corrupted."""
  norm, epsilon = threat(runs)
  radius = certified_radius(runs)
  at = f", {wording.threat(norm, epsilon)}" if norm and epsilon else ""
  within = "" if radius is None else f", L2 radius {radius:g}"
  pgd = lambda run: run.of("pgd", metric="accuracy").first(norm=norm, epsilon=epsilon)
  strong = lambda run: auto_attack(run, norm, epsilon)
  certified = lambda run: run.of("smoothing", metric="certified_accuracy").first(radius=radius)
  corrupted = lambda run: run.of("corruptions", metric="mean_accuracy").first(severity=None)
  on_corrupted = "accurate on corrupted images"
  rows: tuple[tuple[str, str, str, str, Callable[[Run], Number | None]], ...] = (
    ("clean accuracy", "clean", "clean", "accurate", lambda run: run.results.clean),
    (f"accuracy under PGD{at}", "PGD", "pgd", "robust to PGD", pgd),
    (f"accuracy under AutoAttack{at}", "AutoAttack", "auto_attack", "robust", strong),
    (f"certified accuracy{within}", "certified", "smoothing", "often certified", certified),
    ("mean accuracy under corruptions", "corrupted", "corruptions", on_corrupted, corrupted),
  )
  made = []
  for title, short, evaluation, better, find in rows:
    numbers = {run.place: number for run in runs if (number := find(run)) is not None}
    made.append(Measure(title, short, evaluation, better, numbers, _verdicts(runs, numbers)))
  return made


def _verdicts(runs: list[Run], numbers: Mapping[int, Number]) -> dict[int, str]:
  kinds = {
    run.place: (run.results.measured(numbers[run.place]), images(run, numbers[run.place]))
    for run in runs
    if run.place in numbers and numbers[run.place].value is not None
  }
  usual = collections.Counter(kinds.values()).most_common(1)
  alike = [run for run in runs if run.place in kinds and kinds[run.place] == usual[0][0]]
  found = {place: "" if kinds[place] == usual[0][0] else blocks.OTHER for place in kinds}
  sound = [run for run in alike if not run.results.failed_checks(numbers[run.place])]
  if len(alike) < 2 or not sound:
    return found
  best = max(sound, key=lambda run: numbers[run.place].defined)
  for run in sound:
    pair = numbers[best.place], numbers[run.place]
    compared = results_lib.compare_runs(best.results, run.results, *pair)
    if math.isclose(*(number.defined for number in pair)):
      found[run.place] = blocks.BEST
    elif compared is None:
      found[run.place] = blocks.UNTESTED
    elif not compared.differs:
      found[run.place] = blocks.SIMILAR
  return found


def table(runs: list[Run], found: list[Measure]) -> blocks.Table:
  """Makes the headline, one row per run."""
  counted = [(run, m.numbers[run.place]) for m in found for run in runs if run.place in m.numbers]
  is_same = len({images(run, number) for run, number in counted if number.count is not None}) < 2
  rows = []
  for run in runs:
    cells = [_cell(run, measure, is_same) for measure in found]
    rows.append((blocks.Cell(run.name), *cells, _cost([run]), _checks([run])))
  test = "McNemar's exact test on the same images; for means a paired t-test"
  return blocks.Table(("run", *(m.title for m in found), *LAST), tuple(rows), test=test)


def _cost(runs: list[Run]) -> blocks.Cell:
  found = (run.about("training").get("seconds") for run in runs)
  spent = [seconds for seconds in found if seconds is not None]
  if len(spent) < len(runs):
    return blocks.missing("not trained here")
  devices = dict.fromkeys(str(run.about("training").get("devices") or "") for run in runs)
  return blocks.Cell(wording.seconds(statistics.fmean(spent)), ", ".join(devices)[:60])


def _checks(runs: list[Run]) -> blocks.Cell:
  text = "; ".join(dict.fromkeys(run.checked() for run in runs))
  return blocks.Cell(text, "", (blocks.FAILED,) if "failed" in text else ())


def _cell(run: Run, measure: Measure, is_same: bool) -> blocks.Cell:
  number = measure.numbers.get(run.place)
  if number is None:
    other = run.of(measure.evaluation, metric="accuracy")
    threats = dict.fromkeys(wording.threat(n["norm"], n["epsilon"]) for n in other if n["epsilon"])
    at = f"measured at {', '.join(list(threats)[:3])}" if threats else ""
    return blocks.Cell(run.missing(measure.evaluation), at, (blocks.MISSING,))
  count = "" if number.count is None or is_same else f"n = {number.count:,}"
  failed = blocks.FAILED if run.results.failed_checks(number) else ""
  detail = " ".join(filter(None, [wording.interval(number), count]))
  kinds = tuple(filter(None, [measure.verdicts.get(run.place), failed]))
  return blocks.Cell(wording.value(number), detail, kinds)


def group_table(groups: Mapping[str, list[Run]], found: list[Measure]) -> blocks.Table:
  """Makes the headline over seeds: one row per group of runs, means and standard deviations."""
  columns = [_over_seeds(groups.values(), measure) for measure in found]
  rows = []
  for (name, runs), *cells in zip(groups.items(), *columns):
    rows.append((blocks.Cell(name, f"n = {len(runs)}"), *cells, _cost(runs), _checks(runs)))
  header = ("runs", *(measure.title for measure in found), *LAST)
  return blocks.Table(header, tuple(rows), test="Welch's t-test over seeds")


def _over_seeds(groups: Collection[list[Run]], measure: Measure) -> list[blocks.Cell]:
  """Makes the cells of a measure, one per group.

  The best is one of the groups that were measured alike and failed no check in any run.
  """
  values: list[list[float]] = []
  marks: list[list[str]] = []
  for runs in groups:
    numbers = {run: measure.numbers[run.place] for run in runs if run.place in measure.numbers}
    defined = [number.value for number in numbers.values() if number.value is not None]
    values.append(defined if len(defined) == len(runs) else [])
    is_other = any(measure.verdicts.get(run.place) == blocks.OTHER for run in runs)
    is_failed = any(run.results.failed_checks(number) for run, number in numbers.items())
    marks.append([blocks.OTHER] * is_other + [blocks.FAILED] * is_failed)
  count = sum(bool(one) and blocks.OTHER not in kinds for one, kinds in zip(values, marks))
  sound = [one for one, kinds in zip(values, marks) if one and not kinds]
  best = max(sound, key=statistics.fmean, default=[])
  cells: list[blocks.Cell] = []
  for one, kinds in zip(values, marks):
    if one:
      kind = [_against(best, one)] if best and not kinds and count > 1 else []
      spread = f" ± {100 * statistics.stdev(one):.1f}" if len(one) > 1 else ""
      text = f"{100 * statistics.fmean(one):.1f}{spread} %"
      cells.append(blocks.Cell(text, "", tuple(filter(None, [*kind, *kinds]))))
    else:
      cells.append(blocks.missing("not in all runs"))
  return cells


def _against(best: list[float], one: list[float]) -> str:
  """Returns a group's verdict by Welch's t-test over seeds."""
  if math.isclose(statistics.fmean(one), statistics.fmean(best)):
    return blocks.BEST
  p_value = comparison.welch(best, one)
  similar = blocks.SIMILAR if p_value is not None and p_value >= comparison.LEVEL else ""
  return blocks.UNTESTED if p_value is None else similar


def summary(run: Run) -> str:
  """Summarises a run: the accuracy under AutoAttack, or else that under PGD as an upper bound."""
  (norm, epsilon), clean = threat([run]), run.results.clean
  strong = auto_attack(run, norm, epsilon)
  number = strong or run.of("pgd", metric="accuracy").first(norm=norm, epsilon=epsilon)
  share = lambda n: f"{wording.percent(n.value)} of {wording.plural(n.count, 'image')}"
  if number is None or norm is None or epsilon is None:
    return f"{share(clean)} are classified correctly. Neither AutoAttack nor PGD was measured."
  name = f"AutoAttack ({strong['version']})" if strong else "PGD"
  bound = "" if strong else " This is an upper bound: AutoAttack was not measured and may lower it."
  under = f"under {name} at {wording.threat(norm, epsilon)}"
  limits = f"95 % interval {wording.interval(number)}"
  without = f"Without an attack: {share(_on_images_of(clean, number))}."
  return f"{share(number)} are classified correctly {under} ({limits}).{bound} {without}"


def _on_images_of(clean: Number, number: Number) -> Number:
  """The clean accuracy on the images of another number, where both have outcomes."""
  if clean.outcomes is None or clean.indices is None or number.indices is None:
    return clean
  rows = np.isin(clean.indices, number.indices)
  return accuracy(clean.outcomes[rows], clean.indices[rows]) if rows.any() else clean


def warnings(runs: list[Run], found: list[Measure]) -> list[str]:
  """Returns the warnings about the headline numbers, a sentence each."""
  said = ["The runs were evaluated on different test images. Do not compare their numbers."]
  said = said if len({run.results.test_set for run in runs}) > 1 else []
  for run in runs:
    said += [f"{run.name}: {run.incomplete()}"] if run.incomplete() else []
    for name, reason in run.results.failed.items():
      why = wording.clean(reason, 300)
      said.append(f'{run.name}: the evaluation "{wording.clean(name, 60)}" was not measured: {why}')
    shown = [measure.numbers[run.place] for measure in found if run.place in measure.numbers]
    for finding in run.results.findings:
      is_elsewhere = any(map(finding.is_about, run.results.numbers)) and not any(
        map(finding.is_about, shown)
      )
      if not finding.passed and not is_elsewhere:
        said.append(f"{run.name}, check {finding.check}: {finding.text}")
    if not run.results.findings:
      said.append(f"{run.name}: no check was run. Accuracies under attack are upper bounds.")
  return said
