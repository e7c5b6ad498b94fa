"""table: all numbers of several runs as one tidy data frame."""

import dataclasses
import json

import numpy as np
import pandas
import pytest

from sprout_jax import results
from sprout_jax.errors import UserError
from sprout_jax.results import summary
from sprout_jax.results.numbers import KEYS
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement
from sprout_jax.results.store import Store
from sprout_jax.results.store import Stored


def make(workdir, label, *shares):
  """A run whose accuracy under PGD is this along epsilon."""
  numbers = [
    accuracy(np.arange(20) < 20 * share, np.arange(20), attack="pgd", epsilon=0.1 * place, steps=5)
    for place, share in enumerate(shares)
  ]
  numbers.append(Number("highest_loss", None, {"seed": 3}, "nats", 7))
  numbers = Numbers(dataclasses.replace(number, evaluation="pgd") for number in numbers)
  about = dict.fromkeys(summary.ABOUT) | {"label": label, "parameters_sha256": "a"}
  clean = accuracy(np.ones(20, bool), np.arange(20))
  workdir.mkdir()
  summary.write(
    summary.collect(workdir, about, clean, [Stored(numbers, name="pgd", version=1)], {})
  )
  return workdir


@pytest.fixture
def frame(tmp_path):
  trained = {"method": "sprout", "model": "cnn", "data": "digits", "seed": 1}
  first = make(tmp_path / "a", trained, 0.75, 0.5)
  second = make(tmp_path / "b", {"name": "mine"}, 0.5, 0.75)
  return results.frame([first, second])


def test_columns_and_types(frame):
  names = ["workdir", "run_name", "run_method", "run_model", "run_data", "run_seed"]
  names += ["evaluation", "metric", *KEYS, "value", "unit", "count", "low", "high", "passed"]
  assert list(frame.columns) == names
  kinds = {str: "string", int: "Int64", float: "Float64"}
  for key, (kind, _) in KEYS.items():
    assert frame[key].dtype == kinds[kind], key
  assert frame["count"].dtype == "Int64" and frame["passed"].dtype == "boolean"
  assert frame["value"].dtype == frame["low"].dtype == "Float64"


def test_one_row_for_each_number(frame):
  assert frame["evaluation"].tolist() == 2 * ["clean", "pgd", "pgd", "pgd"]
  assert frame["epsilon"].tolist()[1:3] == [0.0, 0.1] and frame["steps"].tolist()[1] == 5
  np.testing.assert_allclose(frame["value"].iloc[:3].astype(float), [1, 0.75, 0.5])
  low, high = frame["low"].iloc[1], frame["high"].iloc[1]
  assert low < 0.75 < high and frame["count"].tolist()[:4] == [20, 20, 20, 7]
  assert frame["run_method"].tolist()[:4] == 4 * ["sprout"] and frame["run_seed"].iloc[0] == "1"
  assert frame["run_name"].tolist() == 4 * ["a"] + 4 * ["mine"]  # the folder's name by default


def test_what_is_missing_is_na(frame):
  assert frame["epsilon"].iloc[0] is pandas.NA and frame["run_method"].iloc[4] is pandas.NA
  assert frame["value"].iloc[3] is pandas.NA and frame["low"].iloc[3] is pandas.NA
  assert frame["seed"].iloc[3] == 3 and frame["seed"].iloc[1] is pandas.NA


def test_passed_is_that_of_the_checks_that_concern_a_number(frame):
  """In the second run accuracy rises; nothing is known of the clean accuracy."""
  passed = frame["passed"].tolist()
  assert passed[0] is pandas.NA and passed[1:3] == [True, True]
  assert passed[5] is pandas.NA and passed[6] is False


def test_a_pivot_of_the_documentation(frame):
  attacks = frame.query("evaluation == 'pgd' and metric == 'accuracy'")
  table = attacks.pivot(index="epsilon", columns="workdir", values="value")
  np.testing.assert_allclose(table.to_numpy(dtype=float), [[0.75, 0.5], [0.5, 0.75]])


def test_numbers_of_other_options_are_read_on_request(tmp_path):
  """Those of the same weights and of the same version of the evaluation."""
  found = {}

  def measure(norm, weights="a", version=1, name="pgd"):
    one = accuracy(np.arange(20) < 10, np.arange(20), attack="pgd", norm=norm, epsilon=0.1)
    place = Store(tmp_path / "a", weights, {})
    options = {"norm": norm, "num_steps": 5}
    found[norm] = place.fetch(name, version, options, lambda memo: Measurement(Numbers([one])))

  measure("l1")
  measure("l2", weights="b")
  measure("l2", version=2)
  measure("l2", name="noise")
  measure("linf")
  about = dict.fromkeys(summary.ABOUT) | {"parameters_sha256": "a"}
  clean = accuracy(np.ones(20, bool), np.arange(20))
  summary.write(summary.collect(tmp_path / "a", about, clean, [found["linf"]], {}))
  usual = results.frame([tmp_path / "a"])
  assert usual["norm"].tolist() == [pandas.NA, "linf"] and "options" not in usual.columns
  every = results.frame([tmp_path / "a"], all_options=True)
  pandas.testing.assert_frame_equal(every.iloc[:2].drop(columns="options"), usual)
  assert every["norm"].tolist()[1:] == ["linf", "l1"]
  assert every["passed"].iloc[2] is pandas.NA and every["options"].iloc[0] is pandas.NA
  assert json.loads(every["options"].iloc[2]) == {"norm": "l1", "num_steps": 5}
  (path,) = [
    path for path in (tmp_path / "a" / "evaluation").glob("pgd-*") if '"l1"' in path.read_text()
  ]
  path.write_text(path.read_text().replace('"l1"', '"l2"'))
  with pytest.raises(UserError, match=f"{path.name} was changed after it was written"):
    results.frame([tmp_path / "a"], all_options=True)


def test_no_workdir_and_a_wrong_one(tmp_path):
  empty = results.frame([])
  assert len(empty) == 0 and "epsilon" in empty.columns and empty["steps"].dtype == "Int64"
  with pytest.raises(UserError, match="has no results.json"):
    results.frame([tmp_path])
