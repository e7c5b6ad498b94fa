"""All numbers of several runs as one tidy data frame."""

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sprout_jax.results import summary
from sprout_jax.results.numbers import KEYS

if TYPE_CHECKING:
  import pandas

LABELS = ("name", "method", "model", "data", "seed")


def frame(workdirs: Iterable[pathlib.Path | str]) -> "pandas.DataFrame":
  """Returns all numbers of several workdirs as a data frame, one row per number.

  Columns, in this order:

  - `workdir`: the folder of the run.
  - `run_name`, `run_method`, `run_model`, `run_data`, `run_seed`: the evaluated model. The name
    of a trained run is that of its folder.
  - `evaluation`, `metric`: the evaluation, and what it measured.
  - the keys of `sprout_jax.results.KEYS` (`attack`, `norm`, `epsilon`, ...): the conditions of the
    measurement. A key that a number does not have is missing (`pandas.NA`).
  - `value`, `unit`, `count`, `low`, `high`: the value, its unit, the number of images, and the 95 %
    interval.
  - `passed`: False where a check that concerns the number failed, True where all passed, missing
    where no check concerns it.

  Integer columns have the type Int64: they can have missing values.

  Example:
    >>> numbers = results.frame(["runs/sprout", "runs/natural"])
    >>> attacks = numbers.query("evaluation == 'pgd' and metric == 'accuracy'")
    >>> attacks.pivot(index="epsilon", columns="workdir", values="value")

  Args:
    workdirs: folders of runs, each with a results.json.

  Raises:
    UserError: a workdir has no results.json, or a damaged one.
  """
  import pandas  # slow to import

  rows = []
  for workdir in workdirs:
    run = summary.read(workdir)
    named = {"name": pathlib.Path(workdir).resolve().name, **(run.about["label"] or {})}
    label = {f"run_{part}": named.get(part) for part in LABELS}
    label = {part: None if found is None else str(found) for part, found in label.items()}
    for number in run.numbers:
      about = [finding.passed for finding in run.findings if finding.is_about(number)]
      low, high = number.interval or (None, None)
      rows.append(
        {
          "workdir": run.workdir,
          **label,
          "evaluation": number.evaluation,
          "metric": number.metric,
          **{key: number[key] for key in KEYS},
          "value": number.value,
          "unit": number.unit,
          "count": number.count,
          "low": low,
          "high": high,
          "passed": all(about) if about else None,
        }
      )
  kinds = {str: "string", int: "Int64", float: "Float64"}
  types = {key: kinds[kind] for key, (kind, _) in KEYS.items()}
  types |= dict.fromkeys(("workdir", "evaluation", "metric", "unit"), "string")
  types |= {f"run_{part}": "string" for part in LABELS}
  types |= {"value": "Float64", "low": "Float64", "high": "Float64", "count": "Int64"}
  types |= {"passed": "boolean"}
  # JSON can hold lone surrogates and pandas cannot: they become "?".
  encodable = lambda v: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v
  rows = [{name: encodable(entry) for name, entry in row.items()} for row in rows]
  columns = ["workdir", *(f"run_{part}" for part in LABELS), "evaluation", "metric", *KEYS]
  columns += ["value", "unit", "count", "low", "high", "passed"]
  return pandas.DataFrame(rows, columns=columns).astype(types)
