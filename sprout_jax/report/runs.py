"""The runs of a report: their files, and the names that tell them apart."""

import collections
import dataclasses

from sprout_jax.errors import UserError
from sprout_jax.records import read_metrics
from sprout_jax.records import read_results
from sprout_jax.report import wording


@dataclasses.dataclass(frozen=True)
class Run:
  """One run: `label` says what was trained, `short` only what tells it from the other runs."""

  number: int
  label: str
  short: str
  workdir: str
  results: dict
  metrics: list

  @property
  def key(self):
    return wording.letters(self.number)

  @property
  def name(self):
    """The key and the short name, for legends and the heads of columns."""
    return f"{self.key} {self.short}"

  @property
  def evaluations(self):
    return self.results["evaluations"]

  def class_name(self, label):
    names = self.results["dataset"].get("class_names")  # runs of earlier versions have none
    return names[label] if names else f"class {label}"


def read(workdirs):
  """Reads the runs, each workdir once.

  Raises:
    UserError: a workdir has no results.json.
  """
  found = {}
  for workdir in dict.fromkeys(str(workdir) for workdir in workdirs):
    found[workdir] = read_results(workdir)
    if found[workdir] is None:
      raise UserError(
        f"{workdir} has no results.json; finish it with: python launch.py --mode "
        f"evaluate --workdir {workdir}"
      )
  labels = [wording.label(results) for results in found.values()]
  return [
    Run(number, unique, short, workdir, found[workdir], read_metrics(workdir))
    for number, (workdir, unique, short) in enumerate(
      zip(found, _unique(labels, found), _unique(_short(labels), found))
    )
  ]


def _short(labels):
  """The comma-separated parts of the labels that are not the same for all; of one label the first."""
  parts = [label.split(", ") for label in labels]
  differing = [
    column for column in range(len(parts[0])) if len({part[column] for part in parts}) > 1
  ]
  return [", ".join(part[column] for column in differing or [0]) for part in parts]


def _unique(names, workdirs):
  """Adds the workdir to names that several runs have."""
  often = collections.Counter(names)
  return [
    f"{name} ({workdir})" if often[name] > 1 else name for name, workdir in zip(names, workdirs)
  ]
