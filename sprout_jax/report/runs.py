"""The runs of a report: their results, the names that tell them apart, groups of seeds."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from sprout_jax import results as results_lib
from sprout_jax.report import wording
from sprout_jax.results import Number
from sprout_jax.results import Numbers
from sprout_jax.results import Results
from sprout_jax.results.checks import CHECKS

PARTS = ("name", "method", "model", "data", "seed")  # of a label, in the order of their mention
PLACES = ("dataset.data_dir", "dataset.cache_dir")  # keys of a config that decide about no number


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run: its results, its place among the runs, what was evaluated, and what tells it apart."""

  results: Results
  place: int
  label: str
  short: str

  @property
  def key(self) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return f"{chr(ord('A') + self.place % 26)}{self.place // 26 or ''}"

  @property
  def name(self) -> str:
    """The key and the short name."""
    return f"{self.key} {self.short}"

  def about(self, entry: str) -> Mapping[str, Any]:
    """What results.json says of the run: "data", "training", ...; {} where it says nothing."""
    return self.results.about[entry] or {}

  @property
  def data(self) -> str:
    """What tells data sets apart: images of two runs are the same only where it is the same."""
    return str(self.about("data").get("fingerprint"))

  def of(self, evaluation: str, **wanted: Any) -> Numbers:
    """The numbers of one evaluation that match."""
    return self.results.numbers.where(evaluation=evaluation, **wanted)

  def detail(self, evaluation: str, name: str) -> Any:
    """One of the details of an evaluation; None where there is none."""
    stored = self.results.stored.get(evaluation)
    return None if stored is None else stored.details.get(name)

  def has(self, evaluation: str) -> bool:
    """Whether an evaluation was made."""
    return evaluation in self.results.stored or len(self.of(evaluation)) > 0

  def missing(self, evaluation: str) -> str:
    """Why there is no number: "not measured", "failed", or, if the evaluation was made, "-"."""
    lacks = "failed" if evaluation in self.results.failed else "not measured"
    return "-" if self.has(evaluation) else lacks

  def checks(self) -> dict[str, str]:
    """{check: "passed", "failed" or "not made"} of all checks that there are."""
    found = dict.fromkeys(CHECKS, "not made")
    for finding in self.results.findings:
      if found.get(finding.check) != "failed":
        found[finding.check] = "passed" if finding.passed else "failed"
    return found

  def passed(self) -> str:
    """How many of all checks passed: "9 of 10"."""
    return f"{list(self.checks().values()).count('passed')} of {len(CHECKS)}"

  def incomplete(self) -> str:
    """Says so if the training was not finished; else ""."""
    steps, planned = (self.about("training").get(key) for key in ("steps", "planned_steps"))
    is_done = None in (steps, planned) or steps >= planned
    return "" if is_done else f"The training is not finished: step {steps} of {planned}."


def read(workdirs: Iterable[pathlib.Path | str]) -> list[Run]:
  """Reads the runs, each workdir once.

  Raises:
    UserError: a workdir has no results.json, or a damaged one.
  """
  found = [results_lib.read(workdir) for workdir in dict.fromkeys(map(str, workdirs))]
  labels = [_label(results) for results in found]
  shorts = _shorts(labels, PARTS)
  often = collections.Counter(shorts)
  for place, (short, results) in enumerate(zip(shorts, found)):
    if often[short] > 1:
      shorts[place] = f"{short}, {wording.clean(results.workdir[-40:])}"  # where paths differ
  names = (_joined(label, PARTS) for label in labels)
  return [Run(*made) for made in zip(found, range(len(found)), names, shorts)]


def _label(results):
  found = results.about["label"] or {}
  return {part: wording.clean(found[part], 60) for part in PARTS if found.get(part) is not None}


def _shorts(labels, parts):
  """What tells labels apart."""
  differing = [part for part in parts if len({label.get(part) for label in labels}) > 1]
  return [_joined(label, differing or parts[:2]) for label in labels]


def _joined(label, parts):
  words = {**label, "seed": f"seed {label.get('seed')}"}
  return ", ".join(words[part] for part in parts if part in label) or "model"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
  """{"optimizer.learning_rate": 0.1, ...} of nested dictionaries."""
  if not isinstance(config, Mapping):
    return {prefix[:-1]: config}
  found = (flat(entry, f"{prefix}{key}.") for key, entry in config.items())
  return {name: entry for entries in found for name, entry in entries.items()}


def groups(runs: list[Run]) -> dict[str, list[Run]]:
  """Puts runs that differ in the seed only together, by name; {} where no two of them do."""
  found, often = collections.defaultdict(list), collections.Counter()
  for run in runs:
    label = _label(run.results)
    seed = label.pop("seed", None)
    config = {
      key: str(entry)
      for key, entry in flat(run.about("config")).items()
      if key.rpartition(".")[2] != "seed" and key not in PLACES
    }
    alone = run.place if seed is None else None
    shared = str((sorted(label.items()), run.data, sorted(config.items()), alone))
    found[shared, often[shared, seed]].append(run)  # a seed counts once in a group
    often[shared, seed] += 1
  members = list(found.values()) if len(found) < len(runs) else []
  shorts = _shorts([_label(same[0].results) for same in members], PARTS[:-1])
  keys = (" ".join(run.key for run in same) for same in members)
  return {f"{key} {short}": same for same, key, short in zip(members, keys, shorts)}


def images(run: Run, number: Number) -> tuple:
  """What tells the images of a number apart from those of another: data, count, positions."""
  indices = None if number.indices is None else number.indices.tobytes()
  return run.data, number.count, indices


def are_same(first: tuple, second: tuple) -> bool:
  """Whether two numbers can be about the same `images`; one without positions fits any."""
  return first[:2] == second[:2] and (None in (first[2], second[2]) or first[2] == second[2])


def identity(number: Number) -> tuple:
  """What a number is a number of, but for the seed of its random draws."""
  keys = tuple(sorted((key, entry) for key, entry in number.keys.items() if key != "seed"))
  return number.evaluation, number.metric, keys
