"""The table of one run: what it says, what stands below which number, which files it writes."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sprout_jax import report
from sprout_jax import results
from sprout_jax.errors import UserError
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import accuracy
from tests.report import runs

ROOT = pathlib.Path(__file__).parents[2]
LIGHT = ("pgd", "auto_attack", "sanity")  # evaluations that are enough for most tests


def words(text):
  """The lines of a text without their padding."""
  return [" ".join(line.split()) for line in text.splitlines()]


def section(text, start):
  """The lines from the one that starts with a text to the next that is not indented."""
  lines = text.splitlines()
  (first,) = [k for k, line in enumerate(lines) if line.startswith(start)]
  last = next(k for k in range(first + 1, len(lines)) if not lines[k].startswith(" "))
  while not lines[first + 1].startswith(" "):  # a heading of two lines
    first, last = first + 1, next(k for k in range(first + 2, len(lines)) if lines[k][:1] != " ")
  return [" ".join(line.split()) for line in lines[first + 1 : last]]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """(workdir, text) of a run with everything."""
  folder = runs.workdir(tmp_path_factory.mktemp("complete") / "a")
  return folder, report.summarize(folder)


def test_files_are_written_and_named(complete):
  folder, text = complete
  names = ("results.txt", "plots/robustness.png", "plots/training.png", "plots/beta.png")
  assert text.splitlines()[-4:] == [f"wrote {folder / name}" for name in names]
  table = text.partition(f"\n\nwrote {folder}")[0]
  assert (folder / "results.txt").read_text(encoding="utf-8") == table + "\n"
  for name in names[1:]:
    pixels = np.asarray(Image.open(folder / name).convert("L"))
    assert pixels.shape[1] > 600 and pixels.std() > 10  # something is drawn


def test_the_summary_quotes_auto_attack(complete):
  assert "45.0 % of 200 images are classified correctly under AutoAttack (standard) at Linf " in (
    " ".join(words(complete[1]))
  )
  assert "upper bound" not in complete[1]
  assert "Without an attack: 95.0 % of 200 images." in " ".join(words(complete[1]))


def test_the_clean_accuracy_is_that_of_the_attacked_images(tmp_path):
  chosen = []

  def fewer(evaluations, about):
    numbers = evaluations["pgd"].numbers
    few = np.sort(np.argsort(next(iter(numbers)).outcomes, kind="stable")[:40])  # the wrong ones
    chosen.append(few)
    evaluations.add(
      "pgd", [accuracy(n.outcomes[few], n.indices[few], n.metric, **n.keys) for n in numbers]
    )

  folder = runs.workdir(tmp_path / "a", only=("pgd",), change=fewer)
  clean = results.read(folder).clean
  share = clean.outcomes[np.isin(clean.indices, chosen[0])].mean()
  assert share != clean.value
  text = " ".join(words(report.summarize(folder)))
  assert f"Without an attack: {100 * share:.1f} % of 40 images." in text


def test_without_auto_attack_pgd_is_an_upper_bound(tmp_path):
  def one_attack(evaluations, about):  # of AutoAttack: that is none
    numbers = evaluations["auto_attack"].numbers
    changed = [dataclasses.replace(n, keys={**n.keys, "version": "square"}) for n in numbers]
    evaluations.add("auto_attack", changed)

  for name, options in {
    "pgd": {"only": ("pgd",)},
    "square": {"only": ("pgd", "auto_attack"), "change": one_attack},
  }.items():
    text = " ".join(words(report.summarize(runs.workdir(tmp_path / name, **options))))
    assert "50.0 % of 200 images are classified correctly under PGD at Linf epsilon 0.1" in text
    assert "This is an upper bound: AutoAttack was not measured and may lower it" in text


def test_without_an_attack_it_says_so(tmp_path):
  folder = runs.workdir(tmp_path / "a", only=("calibration",))
  (folder / "metrics.jsonl").unlink()
  text = report.summarize(folder)
  assert "Neither AutoAttack nor PGD was measured." in " ".join(words(text))
  names = ("results.txt", "plots/robustness.png")  # the figure has the clean accuracy
  assert text.splitlines()[-2:] == [f"wrote {folder / name}" for name in names]
  assert not (folder / "plots" / "training.png").exists()


def test_checks_are_counted_of_all_that_there_are(complete, tmp_path):
  assert "Checks: 11 passed." in complete[1].splitlines()
  hardly = report.summarize(runs.workdir(tmp_path / "a", only=("pgd",)))
  assert "Checks: 2 passed, 9 not run." in hardly.splitlines()  # "monotone" and "reach"


def test_a_failed_check_stands_below_each_number_that_it_concerns(tmp_path):
  def rising(evaluations, about):
    at = {0.0: 0.95, 0.05: 0.4, 0.1: 0.5, 0.2: 0.1}
    keys = {**runs.PGD, "norm": "linf"}
    numbers = [evaluations.accuracy(share, **keys, epsilon=e) for e, share in at.items()]
    evaluations.add("pgd", numbers, notes=["The start was random."])

  text = report.summarize(runs.workdir(tmp_path / "a", only=("pgd",), change=rising))
  assert "Checks: 1 passed, 1 failed (monotone), 9 not run." in text
  lines = section(text, "PGD, Linf")
  assert lines[:3] == [
    "epsilon 0 95.0 % [91.0, 97.3]",
    "epsilon 0.05 40.0 % [33.5, 46.9]",
    "epsilon 0.1 50.0 % [43.1, 56.9]",
  ]
  assert lines[3].startswith("! Accuracy rises by 10.00 points when epsilon grows to 0.1")
  assert lines[-2:] == ["epsilon 0.2 10.0 % [6.6, 14.9]", "note: The start was random."]
  assert text.count("Accuracy rises") == 1


def test_a_failed_check_without_a_number_is_said_all_the_same(tmp_path):
  def grey_is_right(evaluations, about):  # it concerns numbers of PGD, which was not run
    keys = {**runs.PGD, "norm": "linf", "epsilon": 0.5}
    large = evaluations.accuracy(0.5, runs.FEW, "accuracy_at_large_radius", **keys)
    evaluations.add("sanity", [large])

  folder = runs.workdir(tmp_path / "a", only=("sanity",), change=grey_is_right)
  assert "! 50.0% of 50 images are still" in report.summarize(folder)


def test_every_evaluation_has_its_numbers(complete):
  _, text = complete
  assert section(text, "AutoAttack, version") == ["accuracy 45.0 % [38.3, 51.9]"]
  assert section(text, "stronger attacks") == [
    "200 steps, cross-entropy loss 48.0 % [34.8, 61.5]",  # the lowest of 8
    "100 steps, margin loss 54.0 % [40.4, 67.0]",  # the highest
  ]
  assert section(text, "transformations")[0] == "rotation by 10 degrees 78.5 % [72.3, 83.6]"
  assert section(text, "corruptions")[:2] == ["mean accuracy 75.0 %", "severity 1 85.0 %"]
  certified = section(text, "randomised smoothing: seed 0, noise of standard deviation 0.1")
  assert certified[0] == "certified accuracy, L2 radius 0.25 64.0 % [50.1, 75.9]"
  assert certified[2:] == [
    "abstentions 3 images",
    "mean certified radius 0.21 pixels",
    "largest certifiable radius 0.246 pixels",
  ]
  assert "expected calibration error 4.3 %" in section(text, "calibration: 5 bins, 200 images")
  assert section(text, "loss landscape") == ["highest loss 3 nats"]
  starts = ("clean, 200 images", "PGD, Linf, 20 steps", "AutoAttack, version standard")
  places = [next(k for k, line in enumerate(words(text)) if line.startswith(s)) for s in starts]
  assert places == sorted(places)
  for evaluation in runs.EVALUATIONS:
    title = report.wording.name(evaluation)
    is_there = any(line.startswith(title) for line in text.splitlines())
    assert is_there or evaluation == "examples", evaluation  # examples are no numbers


def test_nothing_is_wider_than_a_terminal(complete):
  table = complete[1].partition("\n\nwrote")[0]
  assert max(map(len, table.splitlines())) <= 80


def test_an_evaluation_that_someone_added(tmp_path):
  def added(evaluations, about):
    few = [Number("chi_by_eye", 1.23 + k, {"seed": k}, "sigmas", 9) for k in range(2)]
    many = [Number("share_of_ink", k / 20, {"draws": k}, "share", 9) for k in range(20)]
    none = Number("depth", None, {})
    evaluations.add("ink_blots", [*few, *many, none], {"blots": [1, 2]}, ["Blots are not cats."])

  folder = runs.workdir(tmp_path / "b", only=("pgd",), change=added)
  assert section(report.summarize(folder), "ink blots") == [
    "chi by eye, seed 0 1.23 sigmas",
    "chi by eye, seed 1 2.23 sigmas",
    "share of ink, 0 draws 0.0 %",
    "share of ink, 19 draws 95.0 %",
    "depth not defined",
    "note: Blots are not cats.",
  ]


def test_what_failed_and_what_was_trained_halfway_is_said(tmp_path):
  def halfway(evaluations, about):
    about["training"]["steps"] = 450

  failed = {"transfer": "runs/other is gone; name another"}
  folder = runs.workdir(tmp_path / "a", only=("pgd",), change=halfway, failed=failed)
  text = report.summarize(folder)
  last = 'The evaluation "transfer" was not measured: runs/other is gone; name another'
  assert last in " ".join(words(text))
  assert "The training is not finished: step 450 of 900." in text.splitlines()


def test_a_model_that_was_not_trained_here(tmp_path):
  def from_elsewhere(evaluations, about):
    about |= {"config": {}, "training": None, "checkpoint": None, "label": {"name": "mine"}}
    about["data"] |= {"provenance": None, "class_names": None}

  folder = runs.workdir(tmp_path / "a", change=from_elsewhere)
  (folder / "metrics.jsonl").unlink()
  text = report.summarize(folder)
  assert text.splitlines()[0] == "mine" and "training:" not in text and "weights:" not in text
  assert "not trained here" in (
    report.compare([folder]) and (folder / "report" / "report.html").read_text(encoding="utf-8")
  )


def test_radii_are_in_255ths_where_that_is_shorter(tmp_path):
  def of_cifar(evaluations, about):
    keys = {**runs.PGD, "step_size": 2 / 255, "norm": "l2"}
    evaluations.add("pgd", [evaluations.accuracy(0.3, **keys, epsilon=8 / 255)])

  text = report.summarize(runs.workdir(tmp_path / "a", only=("pgd",), change=of_cifar))
  assert "under PGD at L2 epsilon 8/255" in " ".join(words(text))
  assert "PGD, L2, epsilon 8/255, 20 steps, steps of 2/255" in " ".join(words(text))


def test_no_results_is_an_error(tmp_path):
  with pytest.raises(UserError, match="--mode evaluate"):
    report.summarize(tmp_path)
  with pytest.raises(UserError, match="at least one workdir"):
    report.compare([])


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
  folder = runs.workdir(tmp_path / "a", only=("pgd",))
  (folder / "plots").write_text("")
  with pytest.raises(UserError, match="plots"):
    report.summarize(folder)


@pytest.mark.parametrize("backend", ["module://nowhere.at_all", "nonsense", ""])
def test_the_users_matplotlib_does_not_matter(tmp_path, backend):
  """A backend of a notebook that is not installed here; a style that needs LaTeX."""
  folder = runs.workdir(tmp_path / "a", only=("pgd",))
  settings = tmp_path / "settings"
  settings.mkdir()
  (settings / "matplotlibrc").write_text("text.usetex: True\nfont.family: no_such_font\n")
  code = (
    "import os, sys; from sprout_jax import report\n"
    f"report.summarize({str(folder)!r}); report.compare([{str(folder)!r}])\n"
    "slow = ('jax', 'flax', 'tensorflow', 'matplotlib.pyplot')\n"
    "print([name for name in slow if name in sys.modules], os.environ.get('MPLBACKEND'))"
  )
  environment = {**os.environ, "MPLBACKEND": backend, "MPLCONFIGDIR": str(settings)}
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == f"[] {backend}".strip()
  assert (folder / "plots" / "robustness.png").exists()


def test_a_backend_that_is_installed_stays_the_users():
  code = (
    "from sprout_jax.report import figures\n"
    "with figures._matplotlib(): pass\n"
    "import matplotlib; print(matplotlib.rcParams['backend'])"
  )
  environment = {**os.environ, "MPLBACKEND": "svg"}
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.stdout.strip() == "svg", done.stderr
