"""store: a complete measurement is found again; parts survive a kill."""

import itertools
import json
import math

import ml_dtypes
import numpy as np
import pytest

from sprout_jax.results import files
from sprout_jax.results import store as store_lib
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement
from sprout_jax.results.store import Memo
from sprout_jax.results.store import Store
from sprout_jax.results.store import Stored


def fail(*args):
  pytest.fail("computed again")


def number(value):
  return Measurement(Numbers([Number("seconds", value, {}, "s")]))


def value(stored):
  return stored.numbers.first().value


def test_other_options_versions_and_subjects_are_other_results(tmp_path):
  store = Store(tmp_path, ["weights"], {})
  one = store.fetch("pgd", 1, {"epsilon": 1}, lambda memo: number(1.0))
  assert value(store.fetch("pgd", 1, {"epsilon": 2}, lambda memo: number(2.0))) == 2
  assert value(store.fetch("pgd", 2, {"epsilon": 1}, lambda memo: number(3.0))) == 3
  found = store.read("pgd", 1, {"epsilon": 1})
  assert found.to_json() == one.to_json() and found.options == {"epsilon": 1}
  assert Store(tmp_path, ["other weights"], {}).read("pgd", 1, {"epsilon": 1}) is None
  assert store.read("noise", 1, {"epsilon": 1}) is None


def test_tuples_and_lists_and_the_order_of_options_are_the_same(tmp_path):
  store = Store(tmp_path, {"a": (1, 2), "b": 3}, {})
  store.fetch("pgd", 1, {"epsilons": (0.1, 0.2), "seed": 0}, lambda memo: number(1.0))
  again = Store(tmp_path, {"b": 3, "a": [1, 2]}, {})
  assert value(again.fetch("pgd", 1, {"seed": 0, "epsilons": [0.1, 0.2]}, fail)) == 1


def test_provenance_decides_nothing(tmp_path):
  Store(tmp_path, [], {"jax": "1"}).fetch("pgd", 1, {}, lambda memo: number(1.0))
  found = Store(tmp_path, [], {"jax": "2"}).fetch("pgd", 1, {}, fail)
  assert found.provenance == {"jax": "1"}  # of the one that measured


def test_stored_numbers_come_back_with_their_evaluation(tmp_path):
  outcomes, indices = np.arange(11) % 3 > 0, np.array([7, 3, 9, 1, 0, 2, 4, 5, 6, 8, 10])
  measured = Measurement(
    Numbers([accuracy(outcomes, indices, epsilon=0.1)]),
    {"curve": np.arange(3).tolist()},
    ("A note.",),
  )
  Store(tmp_path, [], {}).fetch("pgd", 3, {"a": 1}, lambda memo: measured)
  found = Store(tmp_path, [], {}).read("pgd", 3, {"a": 1})
  (back,) = found.numbers
  assert (
    back.evaluation == "pgd" and back.keys == {"epsilon": 0.1} and back.value == outcomes.mean()
  )
  np.testing.assert_array_equal(back.outcomes, outcomes)
  np.testing.assert_array_equal(back.indices, indices)
  assert (found.name, found.version, found.notes) == ("pgd", 3, ("A note.",))
  assert found.details == {"curve": [0, 1, 2]}


def test_numbers_that_are_not_finite_are_none(tmp_path):
  details = {"a": [math.nan, 1.0], "b": {"c": math.inf}}
  found = Store(tmp_path, [], {}).fetch("pgd", 1, {}, lambda memo: Measurement(Numbers(), details))
  assert found.details == {"a": [None, 1.0], "b": {"c": None}}
  again = Store(tmp_path, [], {}).fetch("pgd", 1, {}, fail)
  assert again.details == found.details
  (path,) = (tmp_path / "evaluation").glob("*.json")
  json.loads(path.read_text(), parse_constant=fail)


def damage(path):
  path.write_text(path.read_text().replace("1.5", "1.6"))


def test_a_damaged_file_is_moved_aside_by_the_process_that_writes(tmp_path):
  store = Store(tmp_path, [], {})
  store.fetch("pgd", 1, {}, lambda memo: number(1.5))
  (path,) = (tmp_path / "evaluation").glob("*.json")
  damage(path)
  reader = Store(tmp_path, [], {}, is_writer=False)
  with pytest.warns(UserWarning, match="its digest does not match.*pgd is measured again"):
    assert reader.read("pgd", 1, {}) is None
  assert path.exists()
  with pytest.warns(UserWarning, match=path.name):
    assert value(store.fetch("pgd", 1, {}, lambda memo: number(1.5))) == 1.5
  assert value(store.fetch("pgd", 1, {}, fail)) == 1.5
  assert [p.name for p in path.parent.glob("*.damaged")] == [path.name + ".damaged"]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"numbers": []}'])
def test_what_is_no_stored_evaluation_is_damaged(tmp_path, content):
  store = Store(tmp_path, [], {})
  store.fetch("pgd", 1, {}, lambda memo: number(1.5))
  (path,) = (tmp_path / "evaluation").glob("*.json")
  path.write_text(content)
  with pytest.warns(UserWarning, match="measured again"):
    assert store.read("pgd", 1, {}) is None


def test_a_sealed_file_without_its_fields_is_damaged():
  with pytest.raises(files.Damaged, match="lacks 'details'"):
    Stored.from_json({"numbers": [], "images": {}, "name": "pgd"})
  with pytest.raises(files.Damaged, match="malformed records of numbers"):
    whole = Stored(Numbers([Number("a", 1.0, {})])).to_json()
    Stored.from_json(whole | {"numbers": [{"metric": "a"}]})


# Of several measurements of an evaluation, one counts.


@pytest.fixture
def clock(monkeypatch):
  """Each measurement is finished later than the one before."""
  now = itertools.count(1000.0)
  monkeypatch.setattr(store_lib.time, "time", lambda: next(now))


def test_the_current_options_count_else_the_newest(tmp_path, clock):
  store = Store(tmp_path, ["weights"], {})
  assert store.current("pgd", 1, {"epsilon": 1}) == (None, "")
  for epsilon in (2, 3, 1):
    store.fetch("pgd", 1, {"epsilon": epsilon}, lambda memo, e=epsilon: number(float(e)))
  store.fetch("pgd-mine", 1, {"epsilon": 9}, lambda memo: number(9.0))  # another evaluation
  chosen = {e: store.current("pgd", 1, e and {"epsilon": e})[0] for e in (1, 2, 3, 4, None)}
  assert {e: value(one) for e, one in chosen.items()} == {1: 1, 2: 2, 3: 3, 4: 1, None: 1}
  (note,) = chosen[2].notes
  assert note.startswith("Also measured with other options: epsilon ") and note.endswith(").")
  for epsilon in (1, 3):
    (path,) = [p for p in tmp_path.rglob("pgd-*.json") if f'"epsilon": {epsilon}' in p.read_text()]
    assert f"epsilon {epsilon} (evaluation/{path.name})" in note
  assert "epsilon 2" not in note


def test_a_note_names_a_few_of_many_measurements(tmp_path, clock):
  store = Store(tmp_path, ["weights"], {})
  for seed in range(9):
    store.fetch("pgd", 1, {"seed": seed}, lambda memo: number(1.0))
  (note,) = store.current("pgd", 1, {"seed": 0})[0].notes
  assert note.count("seed") == 3 and note.endswith("; 5 more.")


def test_numbers_of_another_version_or_subject_do_not_count(tmp_path, clock):
  store = Store(tmp_path, ["weights"], {})
  store.fetch("pgd", 1, {}, lambda memo: number(1.0))
  found, why = store.current("pgd", 2, {})
  assert found is None
  assert why == (
    "only another version of the evaluation measured it (version 1, now 2): measure it again"
  )
  assert Store(tmp_path, ["other"], {}).current("pgd", 2, {}) == (None, "")
  store.fetch("pgd", 2, {}, lambda memo: number(2.0))
  found, why = store.current("pgd", 2, {})
  assert value(found) == 2 and found.notes == () and why == ""  # the old one needs no note


def test_a_damaged_measurement_does_not_count(tmp_path, clock):
  store = Store(tmp_path, ["weights"], {})
  store.fetch("pgd", 1, {"a": 1}, lambda memo: number(1.25))
  store.fetch("pgd", 1, {"a": 2}, lambda memo: number(1.5))
  (path,) = [p for p in tmp_path.rglob("*.json") if '"a": 2' in p.read_text()]
  damage(path)
  with pytest.warns(UserWarning, match="its digest does not match"):
    assert value(store.current("pgd", 1, {"a": 2})[0]) == 1.25
  assert path.with_name(path.name + ".damaged").exists()


# Pieces.


def memo(path):
  return Memo(path, is_writer=True)


def test_pieces_are_read_up_to_a_cut_line(tmp_path):
  path = tmp_path / "a.partial.jsonl"
  memo(path)("one", lambda: [1, 2])
  assert not memo(tmp_path / "b.partial.jsonl").seconds
  whole = path.read_text()
  path.write_text(whole + whole.replace("one", "two")[:-20])  # in the middle of a write
  found = memo(path)
  assert found("one", fail) == [1, 2] and found("two", lambda: 4) == 4
  with pytest.warns(UserWarning, match="line 2 of .* is damaged"):  # which lies between others now
    found = memo(path)
  assert found("two", fail) == 4 and found("one", fail) == [1, 2]
  assert found.folder == tmp_path / "a"


def test_a_changed_piece_is_named_and_computed_again(tmp_path):
  path = tmp_path / "a.partial.jsonl"
  for name, entry in (("one", 1.5), ("two", 2.5)):
    memo(path)(name, lambda entry=entry: entry)
  damage(path)
  with pytest.warns(UserWarning, match="line 1 of .*a.partial.jsonl is damaged; it is skipped"):
    found = memo(path)
  assert found("two", fail) == 2.5 and found("one", lambda: 1.5) == 1.5


def test_a_piece_is_the_same_fresh_and_read(tmp_path):
  """Arrays keep type, shape and bits. NaN and infinity stay in arrays and are None elsewhere."""
  path = tmp_path / "a.partial.jsonl"
  arrays = [np.array([True, False]), np.float32([[1.1, np.nan]]), np.arange(3), np.zeros((0, 2))]
  piece = lambda: {"arrays": arrays, "number": math.inf, "numpy": np.int64(3), "tuple": (1, "a")}
  fresh, again = memo(path)("one", piece), memo(path)("one", fail)
  for found in (fresh, again):
    for array, expected in zip(found["arrays"], arrays, strict=True):
      assert array.dtype == expected.dtype
      np.testing.assert_array_equal(array, expected)
    assert (found["number"], found["numpy"], found["tuple"]) == (None, 3, [1, "a"])
  fresh["arrays"][0][:] = False  # it is the caller's own
  assert memo(path)("one", fail)["arrays"][0].any()


def test_types_that_numpy_cannot_read_back_become_float32():
  """Of bfloat16, NumPy's name is that of two bytes without a meaning."""
  values = np.array([1.5, -2.0, 0.0078125])
  for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    found = store_lib.unpack(json.loads(json.dumps(store_lib.pack({"a": values.astype(kind)}))))
    assert found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"], values)


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
  path = tmp_path / "a.partial.jsonl"
  assert Memo(path, is_writer=False)("one", lambda: 1) == 1 and not path.exists()
  store = Store(tmp_path, [], {}, is_writer=False)
  assert value(store.fetch("pgd", 1, {}, lambda memo: number(memo("a", lambda: 2.0)))) == 2
  assert not list((tmp_path / "evaluation").iterdir())


def test_processes_wait_for_one_another_before_the_first_piece_and_after_the_last(tmp_path):
  waited = []

  def wait(name):
    waited.append((name.partition(" is ")[2], len(list(tmp_path.glob("evaluation/pgd-*.json")))))

  store = Store(tmp_path, [], {}, wait=wait)
  store.fetch("pgd", 1, {}, lambda memo: [waited.append("computed"), number(1.0)][1])
  assert waited == [("read", 0), "computed", ("written", 1)]
  store.fetch("pgd", 1, {}, None)  # it is stored: nobody waits
  assert len(waited) == 3


class Killed(Exception):
  pass


def test_time_of_an_interrupted_evaluation_is_that_of_all_its_runs(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(store_lib.time, "monotonic", lambda: now[0])

  def takes(seconds):
    def compute():
      now[0] += seconds
      return seconds

    return compute

  def killed(memo):
    memo("one", takes(5))
    raise Killed

  store = Store(tmp_path, ["weights"], {})
  with pytest.raises(Killed):
    store.fetch("pgd", 1, {}, killed)
  now[0] += 1000
  whole = lambda memo: number(memo("one", takes(5)) + memo("two", takes(7)))
  found = store.fetch("pgd", 1, {}, whole)
  assert found.seconds == 12 and value(found) == 12
  assert not list((tmp_path / "evaluation").glob("*.partial.jsonl"))
