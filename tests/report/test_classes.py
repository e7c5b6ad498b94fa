"""Tables of single classes: shares and confusions by hand, and what is there without them."""

import pytest

from sprout_jax import report
from sprout_jax.report import classes
from sprout_jax.report import runs as runs_lib
from tests.report import reading
from tests.report import runs

CONFUSION = [[6, 2, 4], [0, 0, 0], [1, 7, 0]]
COUNTS = {"count": [12, 0, 8], "correct": [11, 0, 8], "robust": [6, 0, 0]}


def with_classes(found, epsilon=0.1):
  """A change of AutoAttack's details, at two radii."""

  def change(evaluations, about):
    numbers, _ = evaluations.auto_attack()
    spec = {"norm": "linf"}
    other = {"epsilon": 0.05, "spec": spec, "classes": {**COUNTS, "correct": [0, 0, 0]}}
    specs = [other, {"epsilon": epsilon, "spec": spec, "classes": found}]
    evaluations.add("auto_attack", numbers, {"specs": specs}, options={"epsilon": 0.1})

  return change


def read(tmp_path, *changes):
  folders = [
    runs.workdir(tmp_path / f"run{k}", only=("pgd", "auto_attack"), seed=k, change=change)
    for k, change in enumerate(changes)
  ]
  return folders, runs_lib.read(folders)


def test_each_class_before_and_under_attack(tmp_path):
  folders, (run, other) = read(tmp_path, with_classes(COUNTS | {"confusion": CONFUSION}), None)
  table = classes.accuracies([run, other])
  assert table.header == ("class", run.name, other.name)
  texts = [[(cell.text, cell.detail) for cell in row] for row in table.rows]
  assert texts[0] == [("correct before and under AutoAttack, Linf epsilon 0.1", "")]
  assert texts[1][:2] == [
    ("digit 0", ""),
    ("91.7 % to 50.0 %", "of 12 images; 4 become digit 2"),
  ]
  assert texts[2][1] == ("no image", "")
  assert texts[3][1] == ("100.0 % to 0.0 %", "of 8 images; 7 become digit 1")
  assert classes.accuracies([other]) is None and classes.confusions([other]) is None


def test_the_confusion_as_it_is_stored(tmp_path):
  folders, found = read(tmp_path, with_classes(COUNTS | {"confusion": CONFUSION}))
  report.compare(folders)
  page = reading.read((folders[0] / "report" / "report.html").read_text(encoding="utf-8"))
  table = page.table("Accuracy under attack", 2)
  assert table["header"] == ["digit 0", "digit 1", "digit 2"]
  assert [table[f"digit {k}"] for k in range(3)] == [list(map(str, row)) for row in CONFUSION]
  assert page.table("Accuracy under attack", 1)["digit 2"] == [
    "100.0 % to 0.0 % of 8 images; 7 become digit 1"
  ]


@pytest.mark.parametrize("size", [30, 60])
def test_of_many_classes_some_are_shown_and_no_confusion(tmp_path, size):
  many = {name: [4] * size for name in COUNTS}
  matrix = [[0] * size for _ in range(size)]
  _, (run,) = read(tmp_path, with_classes(many | {"confusion": matrix}))
  table = classes.accuracies([run])
  assert len(table.rows) == 1 + min(size, 40)
  assert table.notes == (() if size == 30 else ("20 more of the classes are in results.json.",))
  assert classes.confusions([run]) is None


def test_without_a_confusion_there_are_shares(tmp_path):
  _, (run,) = read(tmp_path, with_classes(COUNTS))
  assert classes.accuracies([run]).rows[1][1].detail == "of 12 images"
  assert classes.confusions([run]) is None
