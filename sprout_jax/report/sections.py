"""The sections of the page: one per kind of evaluation, and one per unknown evaluation."""

import base64
import itertools
import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from sprout_jax import results as results_lib
from sprout_jax.report import blocks
from sprout_jax.report import classes
from sprout_jax.report import figures
from sprout_jax.report import tables
from sprout_jax.report import wording
from sprout_jax.report.headline import Measure
from sprout_jax.report.runs import Run
from sprout_jax.report.runs import flat
from sprout_jax.results.checks import CHECKS

Block = blocks.Table | blocks.Figure | blocks.Text
Draw = Callable[[list[Run]], Block | None]
ALL_PAIRS = 5  # most runs of which all pairs are compared; of more, each with the best
GALLERY_BYTES = 900_000  # largest size of all pictures
ELSEWHERE = ("config", "training", "data")  # entries of results.json that other sections show
# Sections of evaluations: title, evaluations, figures. The template has a caption for each title.
ATTACKS = (
  "Accuracy under attack",
  ("auto_attack", "pgd"),
  (figures.robustness, classes.accuracies, classes.confusions),
)
KINDS = (
  ("Stronger attacks", ("strength",), (figures.best_loss,)),
  ("Noise, transfer and sanity", ("noise", "transfer", "sanity", "binarization"), ()),
  ("Transformations", ("invariance",), (figures.invariance,)),
  ("Corruptions", ("corruptions",), (figures.corruptions,)),
  ("Certified accuracy", ("smoothing",), (figures.certified,)),
  ("Calibration", ("calibration",), (figures.reliability,)),
  ("Landscape and gradients", ("landscape", "gradients"), (figures.landscapes,)),
)
KNOWN = [*(name for _, names, _ in (ATTACKS, *KINDS) for name in names), "examples"]


def build(runs: list[Run], measures: list[Measure]) -> list[blocks.Section]:
  """Builds all sections that are not empty, in the order of the page."""
  mentioned = (name for run in runs for name in (*run.results.stored, *run.results.failed))
  unknown = [name for name in dict.fromkeys(mentioned) if name not in (*KNOWN, "clean")]
  made = [
    _evaluations(runs, *ATTACKS),
    comparisons(runs, measures),
    *(_evaluations(runs, *kind) for kind in KINDS),
    examples(runs),
    *(_evaluations(runs, wording.name(name), (name,), ()) for name in unknown),
    training(runs),
    configs(runs),
    checks(runs),
    provenance(runs),
  ]
  return [section for section in made if section.blocks]


def nowhere(runs: list[Run]) -> str:
  """Returns a sentence that names the known evaluations that no run has; else ""."""
  there = {name for run in runs for name in (*run.results.stored, *run.results.failed)}
  names = [wording.name(name) for name in KNOWN if name not in there]
  return f"Not measured for any run: {', '.join(names)}." if names else ""


def _section(title: str, state: str, *parts: Block | None) -> blocks.Section:
  return blocks.Section(title, state, tuple(part for part in parts if part is not None))


def _evaluations(
  runs: list[Run], title: str, names: Sequence[str], draw: Iterable[Draw]
) -> blocks.Section:
  """Makes the section of some evaluations: their numbers and figures."""
  count = sum(any(run.has(name) for name in names) for run in runs)
  state = "" if count == len(runs) else f"{count} of {wording.plural(len(runs), 'run')}"
  drawn = [_guarded(one, runs) for one in draw]
  if names[0] not in KNOWN:
    stored = (run.results.stored.get(names[0]) for run in runs)
    others = ", ".join(sorted({str(key) for one in stored if one for key in one.details}))
    drawn += [blocks.Text((f"Further details in results.json: {others}.",))] if others else []
  return _section(title, state, tables.grid(runs, names), *drawn)


def _guarded(draw: Draw, runs: list[Run]) -> Block | None:
  """Returns what `draw` makes, or a sentence if the stored details have an unexpected form."""
  try:
    return draw(runs)
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    name = wording.name(getattr(draw, "__name__", "this").strip("_"))
    text = f"{name} cannot be shown: the stored details have an unexpected form ({error!r})."
    return blocks.Text((text,))


def comparisons(runs: list[Run], measures: list[Measure]) -> blocks.Section:
  """Makes the section of paired comparisons: each pair of runs, or each run with the best one."""
  parts: list[blocks.Text] = []
  for measure in sorted(measures, key=lambda measure: measure.evaluation != "auto_attack"):
    having = [run for run in runs if run.place in measure.numbers]
    having.sort(key=lambda run: measure.numbers[run.place].value or 0.0, reverse=True)
    pairs = list(itertools.combinations(having, 2))
    if len(runs) > ALL_PAIRS:
      first = [run for run in having if measure.verdicts.get(run.place) == blocks.BEST][:1]
      pairs = [(one, run) for one in first for run in having if run is not one]
    texts = tuple(filter(None, (_sentence(*pair, measure) for pair in pairs)))
    parts += [blocks.Text(texts, measure.title)] if texts else []
  count = wording.plural(sum(len(part.sentences) for part in parts), "comparison")
  return _section("Paired comparisons", count, *parts)


def _sentence(first: Run, second: Run, measure: Measure) -> str | None:
  """Compares two runs in a sentence; None where they do not compare (`results.compare_runs`)."""
  numbers = measure.numbers[first.place], measure.numbers[second.place]
  found = results_lib.compare_runs(first.results, second.results, *numbers)
  if found is None:
    return None
  points, limits = 100 * found.difference, [100 * limit for limit in found.interval]
  if points < 0:
    first, second, points, limits = second, first, -points, [-limits[1], -limits[0]]
  low, high = (f"{round(limit, 1) + 0.0:.1f}" for limit in limits)
  basis = f"95 % interval {low} to {high}, same {wording.plural(found.count, 'image')}"
  if found.differs == (limits[0] <= 0 <= limits[1]):  # the test and the interval disagree
    basis += f", p = {found.p_value:.2g} ({found.test})"
  said = f"{first.name} is {points:.1f} points more {measure.better} than {second.name} ({basis})."
  if not found.differs:
    pair = f"{first.name} and {second.name}"
    said = f"No significant difference between {pair} ({points:.1f} points, {basis})."
  for run in (first, second):
    failed = dict.fromkeys(f.check for f in run.results.failed_checks(measure.numbers[run.place]))
    said += f" Failed checks of the number of {run.key}: {', '.join(failed)}." if failed else ""
  return said


def examples(runs: list[Run]) -> blocks.Section:
  """Makes the section of adversarial images, the same images for all runs."""
  count = sum(run.has("examples") for run in runs)
  state = "" if count == len(runs) else f"{count} of {wording.plural(len(runs), 'run')}"
  return _section("Examples", state, _guarded(_examples, runs) if count else None)


def _examples(runs: list[Run]) -> blocks.Table:
  found: dict[tuple[Run, str, int], dict[str, Any]] = {}
  owners: dict[tuple[str, int], Run] = {}
  rows: list[tuple[blocks.Cell, ...]] = []
  notes: list[str] = []
  size = 0
  for run in runs:
    mine = run.detail("examples", "examples") or ()
    found |= {(run, run.results.test_set, one["index"]): one for one in mine}
    owners |= {(run.results.test_set, one["index"]): run for one in mine}
    if run.has("examples"):
      attack, norm, epsilon = (run.detail("examples", key) for key in ("attack", "norm", "epsilon"))
      count = f"{sum(bool(one['broken']) for one in mine)} of {len(mine)}"
      notes.append(f"{run.key}: {count} broken by {attack} at {wording.threat(norm, epsilon)}.")
  for image, owner in owners.items():
    one = found[owner, *image]
    head = f"image {image[1]}: {figures.class_name(owner, one['label'])}"
    cells = (_example(run, found.get((run, *image))) for run in runs)
    row = (blocks.Cell(head, "", (), _pictures(one, "image")), *cells)
    size += sum(len(png) for cell in row for png in cell.pictures)
    if rows and size > GALLERY_BYTES:
      notes.append(f"{wording.plural(len(owners) - len(rows), 'more image')} in results.json.")
      break
    rows.append(row)
  return blocks.Table(("original", *(run.name for run in runs)), tuple(rows), tuple(notes))


def _example(run: Run, one: Mapping[str, Any] | None) -> blocks.Cell:
  if one is None:
    return blocks.missing(run.missing("examples"))
  said = []
  for when in ("", "adversarial_"):
    share = one[f"{when}confidence"]
    name = figures.class_name(run, one[f"{when}predicted"])
    said.append(f"{name} ({'-' if share is None else f'{100 * share:.0f} %'})")
  state = "broken" if one["broken"] else "not broken"
  state = state if one["predicted"] == one["label"] else "misclassified without an attack"
  kinds = (blocks.FAILED,) if one["broken"] else ()
  pictures = _pictures(one, "adversarial", "perturbation")
  return blocks.Cell(f"{state}: {said[1]}", f"before: {said[0]}", kinds, pictures)


def _pictures(one: Mapping[str, Any], *names: str) -> tuple[bytes, ...]:
  return tuple(figures.picture(base64.b64decode(one[name], validate=True)) for name in names)


def training(runs: list[Run]) -> blocks.Section:
  """Makes the section of the training: its cost, its curves, and beta."""
  drawn = (_guarded(draw, runs) for draw in (figures.training, figures.beta))
  return _section("Training", "", _by_run(runs, map(_training, runs)), *drawn)


def _training(run: Run) -> dict[str, Any]:
  """Returns the rows of a run's training, {name: text}."""
  rows: dict[str, Any] = {}
  for key, entry in run.about("training").items():
    name, is_number = wording.name(key), isinstance(entry, (int, float))
    if is_number and key.endswith("_bytes"):
      rows[name.removesuffix(" bytes")] = f"{entry / 2**30:.2f} GiB"
    elif is_number and key.startswith("seconds"):
      rows[name.replace("seconds", "time")] = wording.seconds(entry)
    elif entry is not None:
      rows[name] = entry
  return rows


def _by_run(runs: list[Run], made: Iterable[Mapping[str, Any]]) -> blocks.Table | None:
  """Makes a table of {name: text} for each run; None if it is empty."""
  columns = list(made)
  cell = lambda text: blocks.missing() if text is None else blocks.Cell(wording.clean(text, 300))
  rows = tuple(
    (blocks.Cell(name), *(cell(column.get(name)) for column in columns))
    for name in dict.fromkeys(name for column in columns for name in column)
  )
  return blocks.Table(("", *(run.name for run in runs)), rows) if rows else None


def configs(runs: list[Run]) -> blocks.Section:
  """Makes the section of the configs: the keys in which they differ; all keys of a single run."""
  found = [{k: json.dumps(v) for k, v in flat(run.about("config")).items() if k} for run in runs]
  names = sorted({name for config in found for name in config})
  kept = [n for n in names if len(runs) == 1 or len({config.get(n) for config in found}) > 1]
  table = _by_run(runs, [{name: config.get(name) for name in kept} for config in found])
  state = f"{len(kept)} of {wording.plural(len(names), 'key')} differ" if len(runs) > 1 else ""
  return _section("Configs", state, table)


def checks(runs: list[Run]) -> blocks.Section:
  """Makes the section of the checks: their state for each run, then the findings, failed first."""
  states = [run.checks() for run in runs]
  kinds = {"failed": (blocks.FAILED,), "not run": (blocks.MISSING,)}
  cell = lambda state: blocks.Cell(state, "", kinds.get(state, ()))
  rows = tuple(
    (blocks.Cell(check.question, name), *(cell(state[name]) for state in states))
    for name, check in CHECKS.items()
  )
  found = [(run, finding) for run in runs for finding in run.results.findings]
  found.sort(key=lambda pair: pair[1].passed)
  word = ("FAILED", "passed")
  said = tuple(f"{run.key}, {one.check}, {word[one.passed]}: {one.text}" for run, one in found)
  table = blocks.Table(("check", *(run.name for run in runs)), rows)
  state = "; ".join(f"{run.key}: {run.checked()}" for run in runs[:6])
  return _section("Checks", state, table, blocks.Text(said, "Findings") if said else None)


def provenance(runs: list[Run]) -> blocks.Section:
  """Makes the section of the provenance: digests, versions, options and times."""
  columns = []
  for run in runs:
    about = {key: found for key, found in run.results.about.items() if key not in ELSEWHERE}
    data = {key: found for key, found in run.about("data").items() if key != "class_names"}
    column = flat({"workdir": run.results.workdir, **about, "data": data})
    for name, one in run.results.stored.items():
      made = {k: v for k, v in one.provenance.items() if run.about("versions").get(k) != v}
      said = f"version {one.version}; {wording.seconds(one.seconds)}; {json.dumps(one.options)}"
      column[f"evaluation.{name}"] = f"{said}; with {json.dumps(made)}" if made else said
    columns.append(column)
  return _section("Provenance", "", _by_run(runs, columns))
