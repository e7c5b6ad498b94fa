"""All numbers of several runs as one tidy data frame."""

import json
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sprout_jax.results import store
from sprout_jax.results import summary
from sprout_jax.results.numbers import KEYS

if TYPE_CHECKING:
  import pandas

LABELS = ("name", "method", "model", "data", "seed")


def frame(
  workdirs: Iterable[pathlib.Path | str], *, all_options: bool = False
) -> "pandas.DataFrame":
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

  An evaluation can be stored with several options, such as two norms. results.json has one of these
  measurements: the one with the config's options, else the newest. The folder `evaluation` has
  all. With `all_options`, the numbers of the others follow those of results.json, and there is one
  more column, `options`: the options of the measurement as JSON. Their `passed` is missing, because
  the checks see the numbers of results.json alone.

  Integer columns have the type Int64: they can have missing values.

  Example:
    >>> numbers = results.frame(["runs/sprout", "runs/natural"])
    >>> attacks = numbers.query("evaluation == 'pgd' and metric == 'accuracy'")
    >>> attacks.pivot(index="epsilon", columns="workdir", values="value")
    >>> everything = results.frame(["runs/sprout"], all_options=True)
    >>> everything.query("norm == 'l2'")

  Args:
    workdirs: folders of runs, each with a results.json.
    all_options: whether to add the numbers that were measured with other options.

  Raises:
    UserError: a workdir has no results.json, or a damaged one; or a stored evaluation is damaged.
  """
  import pandas  # slow to import

  rows = []
  for workdir in workdirs:
    run = summary.read(workdir)
    named = {"name": pathlib.Path(workdir).resolve().name, **(run.about["label"] or {})}
    label = {f"run_{part}": named.get(part) for part in LABELS}
    label = {part: None if entry is None else str(entry) for part, entry in label.items()}
    found = [(number, run.stored.get(number.evaluation), run.findings) for number in run.numbers]
    others = store.with_other_options(workdir, run.stored) if all_options else []
    found += [(number, stored, ()) for stored in others for number in stored.numbers]
    for number, stored, findings in found:
      about = [finding.passed for finding in findings if finding.is_about(number)]
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
          "options": None if stored is None else json.dumps(stored.options),
        }
      )
  kinds = {str: "string", int: "Int64", float: "Float64"}
  types = {key: kinds[kind] for key, (kind, _) in KEYS.items()}
  types |= dict.fromkeys(("workdir", "evaluation", "metric", "unit", "options"), "string")
  types |= {f"run_{part}": "string" for part in LABELS}
  types |= {"value": "Float64", "low": "Float64", "high": "Float64", "count": "Int64"}
  types |= {"passed": "boolean"}
  # JSON can hold lone surrogates and pandas cannot: they become "?".
  encodable = lambda v: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v
  rows = [{name: encodable(entry) for name, entry in row.items()} for row in rows]
  columns = ["workdir", *(f"run_{part}" for part in LABELS), "evaluation", "metric", *KEYS]
  columns += [
    "value",
    "unit",
    "count",
    "low",
    "high",
    "passed",
    *(["options"] if all_options else []),
  ]
  return pandas.DataFrame(rows, columns=columns).astype({name: types[name] for name in columns})
