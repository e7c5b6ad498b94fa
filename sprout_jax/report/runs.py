"""The runs of a report: their results, their distinct names, groups that differ in the seed."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from sprout_jax import results as results_lib
from sprout_jax.report import wording
from sprout_jax.results import Number
from sprout_jax.results import Numbers
from sprout_jax.results import Results
from sprout_jax.results.checks import CHECKS
from sprout_jax.results.store import OUTDATED

PARTS = ("name", "method", "model", "data", "seed")  # the parts of a label, in their order
PLACES = ("dataset.data_dir", "dataset.cache_dir")  # keys of a config that change no number
ImagesOf = tuple[str, int | None, bytes | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run of a report.

  Attributes:
    results: the results of the run.
    place: its place among the runs, from 0.
    label: the name of the evaluated model.
    short: the parts of the label that differ between the runs.
  """

  results: Results
  place: int
  label: str
  short: str

  @property
  def key(self) -> str:
    """The letter of the run: A, B, ..., Z, A1, B1, ..."""
    return f"{chr(ord('A') + self.place % 26)}{self.place // 26 or ''}"

  @property
  def name(self) -> str:
    """The letter and the short name."""
    return f"{self.key} {self.short}"

  def about(self, entry: str) -> Mapping[str, Any]:
    """Returns an entry of results.json: "data", "training", ...; {} where it is null."""
    return self.results.about[entry] or {}

  def of(self, evaluation: str, **wanted: Any) -> Numbers:
    """Returns the numbers of one evaluation that have the wanted keys."""
    return self.results.numbers.where(evaluation=evaluation, **wanted)

  def detail(self, evaluation: str, name: str) -> Any:
    """Returns one of the details of an evaluation; None where there is none."""
    stored = self.results.stored.get(evaluation)
    return None if stored is None else stored.details.get(name)

  def has(self, evaluation: str) -> bool:
    """Returns whether an evaluation was measured."""
    return evaluation in self.results.stored or len(self.of(evaluation)) > 0

  def missing(self, evaluation: str) -> str:
    """Returns why a number is missing: "not measured", "outdated", "failed", or "-"."""
    why = self.results.failed.get(evaluation)
    lacks = "not measured" if why is None else "failed"
    lacks = "outdated" if why and why.startswith(OUTDATED) else lacks
    return "-" if self.has(evaluation) else lacks

  def checks(self) -> dict[str, str]:
    """Returns {check: "passed", "failed" or "not run"} for all checks."""
    found = dict.fromkeys(CHECKS, "not run")
    for finding in self.results.findings:
      if found.get(finding.check) != "failed":
        found[finding.check] = "passed" if finding.passed else "failed"
    return found

  def checked(self) -> str:
    """Returns the outcome of the checks, such as "7 passed, 1 failed (gap), 2 not run"."""
    found = self.checks()
    states, failed = list(found.values()), [name for name in found if found[name] == "failed"]
    said = [f"{states.count('passed')} passed"]
    said += [f"{len(failed)} failed ({', '.join(failed)})"] if failed else []
    said += [f"{states.count('not run')} not run"] if "not run" in states else []
    return ", ".join(said)

  def incomplete(self) -> str:
    """Returns a sentence if the training is not finished; else ""."""
    steps, planned = (self.about("training").get(key) for key in ("steps", "planned_steps"))
    if steps is None or planned is None or steps >= planned:
      return ""
    return f"The training is not finished: step {steps} of {planned}."


def read(workdirs: Iterable[pathlib.Path | str]) -> list[Run]:
  """Reads the runs of several workdirs, each workdir once.

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


def _label(results: Results) -> dict[str, str]:
  found = results.about["label"] or {}
  return {part: wording.clean(found[part], 60) for part in PARTS if found.get(part) is not None}


def _shorts(labels: list[dict[str, str]], parts: Sequence[str]) -> list[str]:
  """Returns names of the parts in which the labels differ."""
  differing = [part for part in parts if len({label.get(part) for label in labels}) > 1]
  return [_joined(label, differing or parts[:2]) for label in labels]


def _joined(label: Mapping[str, str], parts: Iterable[str]) -> str:
  words = {**label, "seed": f"seed {label.get('seed')}"}
  return ", ".join(words[part] for part in parts if part in label) or "model"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
  """Flattens nested dictionaries: {"optimizer.learning_rate": 0.1, ...}."""
  if not isinstance(config, Mapping):
    return {prefix[:-1]: config}
  found = (flat(entry, f"{prefix}{key}.") for key, entry in config.items())
  return {name: entry for entries in found for name, entry in entries.items()}


def groups(runs: list[Run]) -> dict[str, list[Run]]:
  """Groups runs that differ only in the seed, by name; {} if no two runs do."""
  found: dict[tuple[str, int], list[Run]] = collections.defaultdict(list)
  often: collections.Counter[tuple[str, str | None]] = collections.Counter()
  for run in runs:
    label = _label(run.results)
    seed = label.pop("seed", None)
    config = {
      key: str(entry)
      for key, entry in flat(run.about("config")).items()
      if key.rpartition(".")[2] != "seed" and key not in PLACES
    }
    alone = run.place if seed is None else None
    data = run.about("data").get("fingerprint"), run.results.test_set  # of training and test images
    shared = str((sorted(label.items()), data, sorted(config.items()), alone))
    found[shared, often[shared, seed]].append(run)  # a group has each seed once
    often[shared, seed] += 1
  members = list(found.values()) if len(found) < len(runs) else []
  shorts = _shorts([_label(same[0].results) for same in members], PARTS[:-1])
  keys = (" ".join(run.key for run in same) for same in members)
  return {f"{key} {short}": same for same, key, short in zip(members, keys, shorts)}


def images(run: Run, number: Number) -> ImagesOf:
  """Returns an identifier of the images of a number: data, count, positions."""
  indices = None if number.indices is None else number.indices.tobytes()
  return run.results.test_set, number.count, indices


def are_same(first: ImagesOf, second: ImagesOf) -> bool:
  """Returns whether two `images` can be the same. Unknown positions can be any."""
  return first[:2] == second[:2] and (None in (first[2], second[2]) or first[2] == second[2])
