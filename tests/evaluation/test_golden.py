"""Golden numbers: an evaluation whose numbers move needs another version.

Else what was stored before would be found again.

golden.json was measured on one device in batches of 16; here it is eight in batches of 32.
"""

import dataclasses
import functools

import numpy as np
import pytest

from sprout_jax.evaluation.table import EVALUATIONS
from tests.evaluation import make_golden


@pytest.fixture(scope="module")
def golden():
  return make_golden.read()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_numbers_are_those_of_their_version(golden, name):
  row = EVALUATIONS[name]
  assert golden.get(name, {}).get("version") == row.version, (
    f"golden.json has no numbers of {name!r}, version {row.version}; make them: "
    "python tests/evaluation/make_golden.py"
  )
  known = {key: value for key, value in golden[name].items() if key != "version"}
  text = make_golden.moved(name, make_golden.measure(name), known)
  assert text is None, text


def test_golden_json_has_no_other_evaluations(golden):
  assert golden.keys() == EVALUATIONS.keys()


def test_the_golden_numbers_say_something(golden):
  """Neither all images nor none, and not the same images everywhere."""
  for name in ("pgd", "auto_attack", "strength", "noise", "transfer", "invariance", "corruptions"):
    found = {n["right"] for n in golden[name]["numbers"] if "right" in n}
    assert len(found) > 1 and all("0" in right for right in found), name
    assert any("1" in right for right in found), name


def shifted(function, by):
  """An evaluation whose first number with a value is larger by so much."""

  @functools.wraps(function)
  def changed(subject, **options):
    found = function(subject, **options)
    numbers = list(found.numbers)
    place = next(i for i, number in enumerate(numbers) if number.value is not None)
    numbers[place] = dataclasses.replace(numbers[place], value=numbers[place].value + by)
    return dataclasses.replace(found, numbers=numbers)

  return changed


@pytest.mark.parametrize("name", ["calibration", "landscape"])
def test_a_change_of_a_thousandth_is_seen(golden, monkeypatch, name):
  row = EVALUATIONS[name]

  def install(by, version):
    changed = dataclasses.replace(row, function=shifted(row.function, by), version=version)
    monkeypatch.setitem(EVALUATIONS, name, changed)

  install(1e-7, row.version)  # rounding
  test_numbers_are_those_of_their_version(golden, name)
  install(1e-3, row.version)
  with pytest.raises(AssertionError, match=f"The numbers of '{name}' moved: .*raise the version"):
    test_numbers_are_those_of_their_version(golden, name)
  install(1e-3, row.version + 1)
  with pytest.raises(AssertionError, match="make them: python tests/evaluation/make_golden.py"):
    test_numbers_are_those_of_their_version(golden, name)


@pytest.mark.parametrize("name", ["pgd", "auto_attack", "transfer", "sanity", "binarization"])
def test_every_evaluation_s_numbers_are_compared(golden, name):
  """Its value, its keys, and one outcome of one image."""
  first = golden[name]["numbers"][0]
  right = first.get("right", "1")
  flipped = right[:-1] + str(1 - int(right[-1]))
  for change in ({"value": first["value"] + 1e-3}, {"epsilon": 0.1}, {"right": flipped}):
    other = golden[name] | {"numbers": [first | change, *golden[name]["numbers"][1:]]}
    assert repr(name) in make_golden.moved(name, other, golden[name])
  shorter = golden[name] | {"numbers": golden[name]["numbers"][1:]}
  assert make_golden.moved(name, shorter, golden[name])
  assert make_golden.moved(name, golden[name], golden[name]) is None


def test_what_moved_is_not_written_under_the_same_version(golden, monkeypatch, tmp_path, capsys):
  path = tmp_path / "golden.json"
  monkeypatch.setattr(make_golden, "PATH", path)
  row = EVALUATIONS["calibration"]
  for other in EVALUATIONS.keys() - {"calibration"}:
    monkeypatch.delitem(EVALUATIONS, other)
  make_golden.make()
  written = make_golden.read()
  assert written.keys() == {"calibration"}  # another processor may round its numbers otherwise
  assert make_golden.moved("calibration", written["calibration"], golden["calibration"]) is None
  moved = dataclasses.replace(row, function=shifted(row.function, 1e-3))
  monkeypatch.setitem(EVALUATIONS, "calibration", moved)
  before = path.read_text()
  with pytest.raises(SystemExit, match=r"(?s)Nothing was written.*'calibration' moved"):
    make_golden.make()
  assert path.read_text() == before
  monkeypatch.setitem(EVALUATIONS, "calibration", dataclasses.replace(moved, version=2))
  make_golden.make()
  written = make_golden.read()["calibration"]
  assert written["version"] == 2
  np.testing.assert_allclose(
    written["numbers"][0]["value"], golden["calibration"]["numbers"][0]["value"] + 1e-3
  )
