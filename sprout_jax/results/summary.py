"""results.json: everything that was measured on one model, in one file.

Its keys are an interface, because other tools read them:

- ``format``: 1.
- ``clean``: {accuracy, count, interval} on the test set.
- ``attacks``: PGD and AutoAttack, a list of {name, norm, epsilon, steps, restarts, seed, count,
  accuracy, interval, ...}. The name is "pgd-STEPS", "autoattack-VERSION", or that of a single
  attack of AutoAttack, such as "apgd-ce".
- ``parameters_sha256``: the digest of the evaluated weights.
- ``config``: the config of the run; the sections model, dataset and evaluation for a file of
  weights; {} for a model that was not trained by this package.
- ``versions``: package versions and devices of the evaluation.
- ``wall_seconds``: the time of all evaluations.
- ``label``: the names of the evaluated model: {method, model, data, seed}, {name, model, data} for
  a file of weights, or {name}.
- ``data``: {name, fingerprint, test_sha256, provenance, class_names, count}. The test sets of two
  results are the same if ``test_sha256`` is the same (`results.comparison.test_set_digest`).
- ``checkpoint``: the evaluated weights: {which, step, selected_by, weights} of a training; {file,
  entry, sha256, form, normalisation, mean, std} of a file of published weights; or null.
- ``training``: the cost of training: {devices, seconds, steps, planned_steps, ...}, or null.
- ``numbers``, ``images``: every number as a record with typed keys (`results.numbers.encode`).
- ``findings``: the findings of the checks (`results.checks.Finding`).
- ``evaluations``: {name: {version, options, seconds, finished, subject, provenance, details,
  notes}}. They have the current options if they were measured with them, else those of the newest
  measurement. Measurements with other options stay in the folder evaluation/, and a note names
  them.
- ``failed``: {name: why there are no current numbers}: the error, or that only an earlier version
  of the evaluation measured it.
- ``sha256``: the digest of all other entries.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from sprout_jax.errors import UserError
from sprout_jax.results import checks
from sprout_jax.results import commands
from sprout_jax.results import files
from sprout_jax.results import numbers as numbers_lib
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.results.checks import Finding
from sprout_jax.results.comparison import Identity
from sprout_jax.results.comparison import identity
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Stored

FORMAT = 1
NAME = "results.json"
PUBLISHED = ("pgd", "auto_attack")  # evaluations whose numbers are also in "attacks"
ABOUT = (
  "parameters_sha256",
  "config",
  "versions",
  "label",
  "data",
  "checkpoint",
  "training",
)


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
  """The results of one model: the content of results.json, and the metrics of its training.

  Attributes:
    workdir: the folder of the run.
    about: the entries `ABOUT` of results.json.
    numbers: all numbers; the first is the clean accuracy (evaluation "clean").
    stored: {evaluation: `Stored`}.
    findings: the findings of the checks.
    failed: {evaluation: why there are no current numbers}.
    metrics: the records of metrics.jsonl.
  """

  workdir: str
  about: Mapping[str, Any]
  numbers: Numbers
  stored: Mapping[str, Stored]
  findings: tuple[Finding, ...]
  failed: Mapping[str, str]
  metrics: tuple[Mapping[str, Any], ...] = ()

  def __repr__(self) -> str:
    """Returns a summary: the numbers of each evaluation, the failed checks, what was not measured.

    Example:
      >>> results.read("runs/digits")
      <Results of runs/digits: clean 96.3 %; numbers: clean 1, pgd 4; 10 findings, failed: none>
    """
    names = self.numbers.values("evaluation")
    listed = ", ".join(f"{name} {len(self.numbers.where(evaluation=name))}" for name in names)
    failed = ", ".join(dict.fromkeys(f.check for f in self.findings if not f.passed)) or "none"
    lacking = f"; not measured: {', '.join(self.failed)}" if self.failed else ""
    return (
      f"<Results of {self.workdir}: clean {100 * self.clean.defined:.1f} %; numbers: {listed}; "
      f"{len(self.findings)} findings, failed: {failed}{lacking}>"
    )

  @property
  def seconds(self) -> float:
    """The time of all evaluations."""
    return sum(stored.seconds for stored in self.stored.values())

  @property
  def clean(self) -> Number:
    """The clean accuracy on the test set.

    Raises:
      ValueError: the results have none.
    """
    found = self.numbers.first(evaluation="clean")
    if found is None:
      raise ValueError(f"the results of {self.workdir} have no clean accuracy")
    return found

  @property
  def test_set(self) -> str:
    """The digest of the test set. Two results share images only if their digests are equal."""
    digest = (self.about["data"] or {}).get("test_sha256")
    return str(digest or f"unknown data of {self.workdir}")

  def measured(self, number: Number) -> tuple[Identity, int | None]:
    """Returns how a number was measured: its identity, and the version of its evaluation."""
    stored = self.stored.get(number.evaluation)
    return identity(number), None if stored is None else stored.version

  def failed_checks(self, number: Number) -> list[Finding]:
    """Returns the failed findings that concern a number."""
    return [f for f in self.findings if not f.passed and f.is_about(number)]


def collect(
  workdir: pathlib.Path | str,
  about: Mapping[str, Any],
  clean: Number,
  stored: Iterable[Stored],
  failed: Mapping[str, str],
) -> Results:
  """Collects the results of a model and derives the findings.

  Args:
    workdir: the folder of the run.
    about: the entries `ABOUT` of results.json.
    clean: the clean accuracy.
    stored: the finished evaluations.
    failed: {evaluation: why there are no current numbers}.
  """
  by_name = {one.name: one for one in stored}
  clean = dataclasses.replace(clean, evaluation="clean")
  numbers = Numbers([clean, *(n for one in by_name.values() for n in one.numbers)])
  found = tuple(checks.findings(checks.Evidence(numbers, by_name)))
  return Results(str(workdir), dict(about), numbers, by_name, found, dict(failed))


def write(results: Results) -> bool:
  """Writes results.json into the workdir, unless the file has this content already.

  If the present file has numbers that the new one lacks, it is kept as results_previous.json.

  Returns:
    Whether the present file was kept as results_previous.json.
  """
  path = pathlib.Path(results.workdir) / NAME
  content = to_json(results)
  earlier = None
  if path.exists():
    try:
      earlier = files.read_sealed(path)
    except files.Damaged:
      earlier = None  # the new file is made from the stored evaluations
  if earlier == content:
    return False
  kept = earlier is not None and not _extends(content, earlier)
  if kept:
    path.replace(path.with_name("results_previous.json"))
  files.write_sealed(path, content)
  return kept


def to_json(results: Results) -> dict[str, Any]:
  """Returns the content of results.json without its digest."""
  clean = results.clean
  return files.plain(
    {
      "format": FORMAT,
      "clean": {"accuracy": clean.value, "count": clean.count, "interval": clean.interval},
      "attacks": [_published(number) for number in results.numbers if _is_published(number)],
      "wall_seconds": results.seconds,
      **{key: results.about.get(key) for key in ABOUT},
      **numbers_lib.encode(results.numbers),
      "findings": [finding.to_json() for finding in results.findings],
      "evaluations": {name: _without_numbers(one) for name, one in results.stored.items()},
      "failed": results.failed,
    }
  )


def read(workdir: pathlib.Path | str) -> Results:
  """Reads a workdir's results.json and metrics.jsonl.

  Raises:
    UserError: there is no results.json, it is damaged, or it has another format.
  """
  path = pathlib.Path(workdir) / NAME
  again = commands.evaluate(workdir)
  if not path.exists():
    raise UserError(f"{workdir} has no results.json; create it with: {again}")
  try:
    content = files.read_sealed(path)
    if content.get("format") != FORMAT:
      raise files.Damaged(f"{path} has format {content.get('format')!r}, expected {FORMAT}")
    return from_json(workdir, content)
  except files.Damaged as error:
    raise files.Damaged(f"{error}; delete it, then create it again with: {again}") from error


def from_json(workdir: pathlib.Path | str, content: Mapping[str, Any]) -> Results:
  """Makes results from the content of results.json, and reads metrics.jsonl of the workdir.

  Raises:
    Damaged: the content is not that of a results.json.
  """
  try:
    numbers = numbers_lib.decode(content)
    if numbers.first(evaluation="clean") is None:
      raise ValueError("it has no clean accuracy")
    for key in ABOUT[1:]:
      if not isinstance(content[key], dict | None):
        raise TypeError(f"{key!r} holds {type(content[key]).__name__}, expected an object or null")
    stored = {
      name: Stored(
        numbers=numbers.where(evaluation=name),
        name=name,
        **{**one, "notes": tuple(one["notes"])},
      )
      for name, one in content["evaluations"].items()
    }
    return Results(
      str(workdir),
      {key: content[key] for key in ABOUT},
      numbers,
      stored,
      tuple(Finding.from_json(finding) for finding in content["findings"]),
      dict(content["failed"]),
      tuple(workdir_lib.read_metrics(workdir)),
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise files.Damaged(
      f"{pathlib.Path(workdir) / NAME} is damaged ({type(error).__name__}: {error})"
    ) from error


def _is_published(number: Number) -> bool:
  is_whole = number["stage"] is None and number.metric == "accuracy"
  return number.evaluation in PUBLISHED and is_whole


def _published(number: Number) -> dict[str, Any]:
  """Returns the entry of "attacks" for a number."""
  version = number["version"]
  name = f"autoattack-{version}" if version in numbers_lib.ENSEMBLES else version
  return {
    "name": name or f"pgd-{number['steps']}",
    "steps": None,  # AutoAttack's attacks differ in them
    "restarts": None,
    **{key: value for key, value in number.keys.items() if key not in ("attack", "version")},
    "count": number.count,
    "accuracy": number.value,
    "interval": number.interval,
  }


def _without_numbers(stored: Stored) -> dict[str, Any]:
  names = (field.name for field in dataclasses.fields(stored))
  return {name: getattr(stored, name) for name in names if name not in ("name", "numbers")}


def _extends(content: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
  """Returns whether a results.json has every number of an earlier one, of the same weights."""
  return content["parameters_sha256"] == earlier.get("parameters_sha256") and all(
    number in content["numbers"] for number in earlier.get("numbers", ())
  )
