"""The page about several runs: what stands where, what is marked, what is missing."""

import base64
import dataclasses
import io
import itertools
import statistics

import numpy as np
import pandas
import pytest
import scipy.stats
from PIL import Image

from sprout_jax import report
from sprout_jax import results
from sprout_jax.report import figures
from sprout_jax.results import numbers as numbers_lib
from sprout_jax.results import store
from sprout_jax.results.checks import CHECKS
from sprout_jax.results.numbers import Number
from tests.report import reading
from tests.report import runs

ATTACKS, PAIRED, ORIGINS = (
  "Accuracy under attack",
  "Paired comparisons",
  "Provenance",
)
LIGHT = ("pgd", "auto_attack")  # evaluations that need no slow figures


def make(*workdirs):
  """Writes the page about runs; returns it as it was read back."""
  report.compare(workdirs)
  return reading.read((workdirs[0] / "report" / "report.html").read_text(encoding="utf-8"))


def with_outcomes(name, outcomes, indices=None, **keys):
  """A change that puts these outcomes at epsilon 0.1 in the place of those of PGD or AutoAttack."""
  keys = {
    **runs.PGD,
    **runs.LINF,
    **({"version": "standard"} if name == "auto_attack" else {}),
    **keys,
  }

  def change(evaluations, about):
    where = np.arange(len(outcomes)) if indices is None else indices
    evaluations.add(name, [numbers_lib.accuracy(outcomes, where, **keys)])

  return change


def first(count, right):
  """Outcomes of which the first ones are right."""
  return np.arange(count) < right


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(page, source) of three runs: a complete one, one without some evaluations, a failed one."""
  folder = tmp_path_factory.mktemp("made")

  def fewer(evaluations, about):
    for name in ("smoothing", "examples", "auto_attack", "corruptions"):
      del evaluations[name]
    cosines = [n for n in evaluations["gradients"].numbers if n.unit == ""]
    evaluations.add(
      "gradients", [dataclasses.replace(n, value=None, interval=None) for n in cosines]
    )

  failed = {"corruptions": "no images of them", "auto_attack": "out of memory"}
  workdirs = [
    runs.workdir(folder / "a"),
    runs.workdir(folder / "b", "natural", 0.2, change=fewer, failed=failed),
    runs.workdir(folder / "c", "pgd", 0.7, seed=1, optimizer={"learning_rate": 0.2}),
  ]
  report.compare(workdirs)
  source = (folder / "a" / "report" / "report.html").read_text(encoding="utf-8")
  return reading.read(source), source


def test_the_first_table_has_a_row_for_each_run(made):
  page, _ = made
  table = page.table("")
  assert table["header"] == [
    "clean accuracy",
    "accuracy under PGD, Linf epsilon 0.1",
    "accuracy under AutoAttack, Linf epsilon 0.1",
    "certified accuracy, L2 radius 0.25",
    "mean accuracy under corruptions",
    "cost of training",
    "checks",
  ]
  assert table["A sprout, seed 0"] == [
    "95.0 % [91.0, 97.3] n = 200",
    "50.0 % [43.1, 56.9] n = 200",
    "45.0 % [38.3, 51.9] n = 200",
    "64.0 % [50.1, 75.9] n = 50",
    "75.0 %",
    "61 s 1 x cpu",
    "11 passed",
  ]
  others = ["failed", "not measured", "failed", "61 s 1 x cpu", "9 passed, 2 not run"]
  assert table["B natural, seed 0"][2:] == others
  kinds = page.table("", cells="classes")
  assert kinds["A sprout, seed 0"] == ["best", "", "", "best", "", "", ""]
  assert kinds["B natural, seed 0"][2:5] == ["missing"] * 3
  assert kinds["C pgd, seed 1"][:5] == ["best"] * 5


def test_sections_and_which_of_them_are_open(made):
  page, _ = made
  assert page.titles[:2] == [ATTACKS, PAIRED] == page.opened
  assert page.titles[2:] == [
    "Stronger attacks",
    "Noise, transfer and sanity",
    "Transformations",
    "Corruptions",
    "Certified accuracy",
    "Calibration",
    "Landscape and gradients",
    "Examples",
    "Training",
    "Configs",
    "Checks",
    ORIGINS,
  ]
  drawn = [title for title, source, _ in page.images if len(source) > 10_000]
  assert sorted(set(drawn)) == sorted(
    {ATTACKS, "Stronger attacks", "Landscape and gradients", "Training", *page.titles[4:8]}
  )
  assert "cannot be shown" not in page.text


def test_the_table_of_attacks_begins_with_auto_attack(made):
  table = made[0].table(ATTACKS)
  assert list(table)[:3] == [
    "header",
    "AutoAttack, version standard, Linf, epsilon 0.1, seed 0, 200 images",
    "accuracy",
  ]
  assert table["accuracy"] == ["45.0 % [38.3, 51.9]", "failed", "65.0 % [58.2, 71.3]"]
  pgd = "PGD, Linf, 20 steps, steps of 0.01, 5 restarts, margin loss, seed 0, 200 images"
  assert list(table)[7] == pgd and table["epsilon 0.2"][0] == "5.0 % [2.7, 9.0]"


def test_what_is_missing_and_what_failed_is_seen(made):
  page, _ = made
  assert (
    'B natural, seed 0: the evaluation "corruptions" was not measured: no images of them'
    in page.said("")
  )
  assert page.table("Corruptions")["mean accuracy"][1] == "failed"
  assert page.table("Certified accuracy")["abstentions"] == ["3 images", "not measured", "3 images"]
  assert page.table("Examples")["image 3: digit 3"][1] == "not measured"
  assert page.table("Landscape and gradients")["cosine similarity, gaussian, with mixup"] == [
    "0.5",
    "No gradient was defined",
    "0.5",
  ]


def test_numbers_of_another_version_are_not_shown_and_not_compared(tmp_path):
  why = f"{store.OUTDATED} (version 1, now 2): measure it again"

  def newer(evaluations, about):
    with_outcomes("pgd", first(200, 150))(evaluations, about)
    evaluations["pgd"] = dataclasses.replace(evaluations["pgd"], version=2)

  page = make(
    runs.workdir(tmp_path / "a", "one", only=(), change=with_outcomes("pgd", first(200, 100))),
    runs.workdir(tmp_path / "b", "two", only=(), change=newer),
    runs.workdir(tmp_path / "c", "three", only=(), failed={"pgd": why}),
  )
  assert page.table("")["C three"][1] == "outdated"
  assert f'C three: the evaluation "pgd" was not measured: {why}' in page.said("")
  assert [row[1] for row in page.table("", cells="classes").values()][1:3] == ["", "other"]
  assert not [text for text in page.said(PAIRED) if "robust to PGD" in text]


def test_what_nobody_measured_is_listed(tmp_path):
  page = make(runs.workdir(tmp_path / "a", only=LIGHT))
  (nowhere,) = [text for text in page.said("") if text.startswith("Not measured for any run")]
  assert "smoothing" in nowhere and "transformations" in nowhere and "PGD" not in nowhere


def test_every_check_by_run(made):
  page, _ = made
  table = page.table("Checks")
  assert len(table) == len(CHECKS) + 1
  question = "Is the accuracy under PGD near that under AutoAttack, and never below it? gap"
  assert table[question] == ["passed", "not run", "passed"]
  said = page.said("Checks")
  assert any(
    text.startswith("A, gap, passed: At Linf epsilon 0.1: the accuracy under PGD is 5.0 points")
    for text in said
  )


def test_where_the_numbers_come_from(made):
  table = made[0].table(ORIGINS)
  assert table["parameters_sha256"][0] == f"0{'c0ffee' * 10}"
  assert table["data.provenance"] == ["the official set"] * 3
  assert table["versions.jax"] == ["0.10.2"] * 3
  assert table["evaluation.smoothing"][1] == "-"
  options = '{"num_steps": 20, "num_restarts": 5}'
  assert table["evaluation.smoothing"][0] == f"version 1; 2.5 s; {options}"


def test_provenance_that_differs_is_said(tmp_path):
  def newer(evaluations, about):
    about["versions"] = {"jax": "0.11", "devices": "1 x cpu"}

  page = make(runs.workdir(tmp_path / "a", only=LIGHT, change=newer))
  assert page.table(ORIGINS)["evaluation.pgd"][0].endswith('; with {"jax": "0.10.2"}')


def test_configs_show_what_differs_and_nothing_else(made):
  page, _ = made
  assert page.table("Configs") == {
    "header": ["A sprout, seed 0", "B natural, seed 0", "C pgd, seed 1"],
    "dataset.data_dir": ['"/data/0"', '"/data/0"', '"/data/1"'],
    "method.name": ['"sprout"', '"natural"', '"pgd"'],
    "optimizer.learning_rate": ["0.1", "0.1", "0.2"],
    "seed": ["0", "0", "1"],
  }


def test_training(made):
  table = made[0].table("Training")
  assert table["time"] == ["61 s"] * 3 and table["peak memory"] == ["1.00 GiB"] * 3
  assert table["planned steps"] == ["900"] * 3
  assert "do not compare them" in made[0].said("Training")[0]


def test_nothing_is_loaded(made):
  page, source = made
  assert not page.tags & {"script", "link", "iframe", "object", "form", "a"}
  assert not {name for name in page.attributes if name.startswith("on")}
  assert "url(" not in source and "@import" not in source
  for _, data, text in page.images:
    prefix, encoded = data.split(",")
    assert prefix == "data:image/png;base64" and text
    assert base64.b64decode(encoded, validate=True).startswith(b"\x89PNG")
  assert '<meta name="viewport" content="width=device-width' in source
  assert len(source) < 3e6


# Marks: the best, what does not differ from it, what does not compare.


@pytest.mark.parametrize("name", ["pgd", "auto_attack"])
def test_the_best_is_marked_and_what_does_not_differ_from_it(tmp_path, name):
  """100 right; 95 of the same right: p = 2 / 2^5; 94: p = 2 / 2^6 = 0.03."""
  found = {"best": first(200, 100), "near": first(200, 95), "far": first(200, 94)}
  assert scipy.stats.binomtest(0, 5).pvalue > 0.05 > scipy.stats.binomtest(0, 6).pvalue
  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=with_outcomes(name, outcomes))
    for key, outcomes in found.items()
  ]
  page = make(*folders)
  column = {"pgd": 1, "auto_attack": 2}[name]
  kinds = [row[column] for row in page.table("", cells="classes").values()]
  assert kinds[1:] == ["best", "similar", ""]
  assert page.table("")["B near"][column].startswith("47.5 % ≈")
  better = {"pgd": "robust to PGD", "auto_attack": "robust"}[name]
  said = [text for text in page.said(PAIRED)[1:] if "(0.0 points" not in text]  # clean: the same
  assert said == [
    "No significant difference between A best and B near (2.5 points, 95 % interval 0.1 to 4.8, "
    "same 200 images, p = 0.062 (McNemar)).",
    f"A best is 3.0 points more {better} than C far (95 % interval 0.5 to 5.5, same 200 images).",
    "No significant difference between B near and C far (0.5 points, 95 % interval -0.9 to 1.9, "
    "same 200 images).",
  ]


def test_equal_values_are_all_the_best(tmp_path):
  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=with_outcomes("pgd", first(200, 50)))
    for key in "ab"
  ]
  kinds = make(*folders).table("", cells="classes")
  assert [row[1] for row in kinds.values()][1:] == ["best", "best"]


def test_a_single_run_is_not_the_best(tmp_path):
  page = make(runs.workdir(tmp_path / "a", only=LIGHT))
  assert set(page.table("", cells="classes")["A sprout"]) <= {"", "missing"}
  assert "45.0 % of 200 images are classified correctly under AutoAttack" in page.said("")[0]


def on_other_data(evaluations, about):
  with_outcomes("pgd", first(200, 190))(evaluations, about)
  about["data"].update(test_sha256="0" * 64)


@pytest.mark.parametrize(
  ("odd", "robust", "clean"),
  [
    (with_outcomes("pgd", first(200, 190), steps=40), 0, 2),  # another attack
    (with_outcomes("pgd", first(160, 152)), 2, 2),  # fewer images
    (with_outcomes("pgd", first(200, 190), indices=np.arange(1, 201)), 2, 2),  # as many others
    (on_other_data, 0, 0),
  ],
)
def test_what_was_measured_in_another_way_is_no_best(tmp_path, odd, robust, clean):
  """It is compared, in so many sentences, on the images of both, under the same attack only."""
  usual = with_outcomes("pgd", first(200, 100))
  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=change)
    for key, change in (("one", usual), ("odd", odd), ("two", usual))
  ]
  page = make(*folders)
  table, kinds = page.table(""), page.table("", cells="classes")
  assert [row[1] for row in kinds.values()][1:] == ["best", "other", "best"]
  assert table["B odd"][1].startswith("95.0 % †")
  assert any(text.startswith("† Measured with another attack") for text in page.said(""))
  pairs = [text for text in page.said(PAIRED) if "B odd" in text]
  assert len([text for text in pairs if "robust to PGD" in text]) == robust
  assert len([text for text in pairs if "(0.0 points" in text]) == clean
  has_warning = any("evaluated on different test images" in text for text in page.said(""))
  assert has_warning == (clean == 0)


@pytest.mark.parametrize(
  ("name", "keys", "others"),
  [
    ("pgd", dict(runs.PGD, steps=10, restarts=1), dict(runs.PGD, steps=100, restarts=10)),
    ("auto_attack", dict(version="standard"), dict(version="plus")),
    ("smoothing", dict(sigma=0.1, n=1000), dict(sigma=0.25, n=1000)),
    ("smoothing", dict(sigma=0.1, n=1000), dict(sigma=0.1, n=10)),
  ],
)
def test_other_attacks_and_certificates_are_never_compared(tmp_path, name, keys, others):
  """Neither in a sentence nor by a mark; the same ones are."""
  metric, threat = "accuracy", runs.LINF
  if name == "smoothing":
    metric, threat = "certified_accuracy", {"radius": 0.1}

  def put(right, keys):
    number = numbers_lib.accuracy(first(200, right), np.arange(200), metric, **keys, **threat)
    return lambda evaluations, about: evaluations.add(name, [number])

  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=put(right, keys))
    for key, right, keys in (("weak", 160, keys), ("strong", 100, others), ("same", 130, keys))
  ]
  page = make(*folders)
  said = [text for text in page.said(PAIRED)[1:] if "(0.0 points" not in text]  # clean: the same
  assert len(said) == 1 and said[0].startswith("A weak is 15.0 points more ")
  column = {"pgd": 1, "auto_attack": 2, "smoothing": 3}[name]
  kinds = [row[column] for row in page.table("", cells="classes").values()]
  assert kinds[1:] == ["best", "other", ""]


def test_subsets_of_different_size_are_marked_and_counted(tmp_path):
  one = runs.workdir(tmp_path / "a", "one", only=(), change=with_outcomes("pgd", first(200, 90)))
  two = runs.workdir(tmp_path / "b", "two", only=(), change=with_outcomes("pgd", first(100, 60)))
  page = make(one, two)
  row = page.table(ATTACKS)["accuracy"]
  assert row == ["45.0 % [38.3, 51.9]", "60.0 % † [50.2, 69.1] 100 images"]
  assert page.table("")["A one"][1].endswith("n = 200")
  assert page.table("")["B two"][1].endswith("n = 100")


def test_a_number_that_failed_a_check_is_marked_where_it_stands(tmp_path):
  """PGD 20 points above AutoAttack."""

  def change(evaluations, about):
    with_outcomes("pgd", first(200, 140))(evaluations, about)
    with_outcomes("auto_attack", first(200, 100))(evaluations, about)

  page = make(runs.workdir(tmp_path / "a", "one", only=(), change=change))
  text = "the accuracy under PGD is 20.0 points above that under AutoAttack"
  assert page.table("")["A one"][1] == "70.0 % ! [63.3, 75.9]"
  assert page.table("")["A one"][-1] == "1 passed, 1 failed (gap), 9 not run !"
  assert any(text in said and "check gap" in said for said in page.said(""))
  notes = [said for said in page.said(ATTACKS) if said.startswith("A: !")]
  assert len(notes) == 1 and text in notes[0]


def masked(evaluations, about, pgd=150, strong=10):
  """PGD 70 points above AutoAttack: the check "gap" fails."""
  with_outcomes("pgd", first(200, pgd))(evaluations, about)
  with_outcomes("auto_attack", first(200, strong), attack="auto_attack")(evaluations, about)


def honest(evaluations, about):
  masked(evaluations, about, 100, 96)


def test_a_number_that_failed_a_check_is_not_the_best(tmp_path):
  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=change)
    for key, change in (("masked", masked), ("honest", honest))
  ]
  page = make(*folders)
  kinds = [row[1:3] for row in page.table("", cells="classes").values()][1:]
  assert kinds == [["failed", ""], ["best", "best"]]
  (said,) = [text for text in page.said(PAIRED) if "robust to PGD" in text]
  assert said.startswith("A masked is 25.0 points more robust to PGD than B honest")
  assert said.endswith("Failed checks of the number of A: gap.")
  latex = (folders[0] / "report" / "report.tex").read_text(encoding="utf-8")
  assert r"& 75.0 \%$^!$ &" in latex and r"& \textbf{50.0 \%} &" in latex


def test_a_group_with_a_failed_check_is_not_the_best_and_says_so(tmp_path):
  """In all seeds or in one."""
  folders = [
    runs.workdir(tmp_path / f"{key}{seed}", key, seed=seed, only=(), change=change)
    for key, changes in (
      ("all", (masked, masked)),
      ("one", (masked, honest)),
      ("no", (honest,) * 2),
    )
    for seed, change in enumerate(changes)
  ]
  page = make(*folders)
  table, kinds = page.table(""), page.table("", cells="classes")
  assert [row[1] for row in kinds.values()][1:] == ["failed", "failed", "best"]
  assert [row[1][:8] for row in table.values()][1:3] == ["75.0 ± 0", "62.5 ± 1"]
  assert [row[-1] for row in table.values()][1:] == [
    "1 passed, 1 failed (gap), 9 not run !",
    "1 passed, 1 failed (gap), 9 not run; 2 passed, 9 not run !",
    "2 passed, 9 not run",
  ]
  latex = (folders[0] / "report" / "report.tex").read_text(encoding="utf-8")
  (row,) = [line for line in latex.splitlines() if line.startswith("A B")]
  assert row.count("$^!$") == 2 and r"75.0 $\pm$ 0.0 \%$^!$" in row


def test_means_over_other_corruptions_do_not_compare(tmp_path):
  def corrupted(shares):
    """{corruption: the share of 200 images that is right at each severity}."""

    def change(evaluations, about):
      keys = {"origin": "computed", "seed": 0}
      each = [
        numbers_lib.accuracy(first(200, right), np.arange(200), corruption=name, severity=s, **keys)
        for name, right in shares.items()
        for s in range(1, 6)
      ]
      mean = float(np.mean([number.value for number in each]))
      names = ", ".join(sorted(shares))
      whole = Number("mean_accuracy", mean, {"corruptions": names, **keys}, count=200)
      evaluations.add("corruptions", [whole, *each])

    return change

  found = {
    "best": {"fog": 140, "snow": 120},
    "near": {"fog": 141, "snow": 118},
    "far": {"fog": 100, "snow": 100},
    "easy": {"fog": 190},
  }
  folders = [
    runs.workdir(tmp_path / key, key, only=(), change=corrupted(shares))
    for key, shares in found.items()
  ]
  page = make(*folders)
  kinds = [row[4] for row in page.table("", cells="classes").values()][1:]
  assert kinds == ["best", "similar", "", "other"]
  said = [text for text in page.said(PAIRED)[1:] if "(0.0 points" not in text]
  assert [text.partition(" (")[0] for text in said] == [
    "No significant difference between A best and B near",
    "A best is 15.0 points more accurate on corrupted images than C far",
    "B near is 14.8 points more accurate on corrupted images than C far",
  ]
  differences = np.mean([first(200, k) * 1.0 - first(200, 100) for k in (140, 120)], axis=0)
  low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
  assert f"95 % interval {100 * low:.1f} to {100 * high:.1f}, same 200 images" in said[1]
  rows = page.table("Corruptions")
  assert rows["mean over 2 corruptions: fog, snow"][3] == "-"
  assert rows["mean over 1 corruption: fog"][3] == "95.0 %"


def test_many_runs_are_compared_with_the_best(tmp_path):
  folders = [
    runs.workdir(
      tmp_path / f"{k}", f"m{k}", only=(), change=with_outcomes("pgd", first(200, 20 * k))
    )
    for k in range(7)
  ]
  page = make(*folders)
  pairs = [text for text in page.said(PAIRED) if "robust to PGD" in text]
  assert len(pairs) == 6 and all(text.startswith("G m6 is ") for text in pairs)


# Seeds.


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
  """(page, folder, numbers of right images): three methods with three seeds, one with one."""
  folder = tmp_path_factory.mktemp("seeds")
  right = {"near": (100, 110, 120), "best": (112, 118, 124), "far": (60, 61, 63), "lone": (50,)}
  workdirs = [
    runs.workdir(
      folder / f"{method}_{seed}",
      method,
      seed=seed,
      only=(),
      change=with_outcomes("pgd", first(200, count)),
    )
    for method, counts in right.items()
    for seed, count in enumerate(counts)
  ]
  return make(*workdirs), workdirs[0] / "report", right


def test_runs_that_differ_in_the_seed_only_are_grouped(seeds):
  page, _, right = seeds
  table = page.table("")
  names = ["A B C near n = 3", "D E F best n = 3", "G H I far n = 3", "J lone n = 1"]
  assert list(table)[1:] == names
  for name, counts in zip(names, right.values()):
    shares = [100 * count / 200 for count in counts]
    spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    assert table[name][1].startswith(f"{np.mean(shares):.1f}{spread} %")
  kinds = [row[1] for row in page.table("", cells="classes").values()][1:]
  p_values = [
    scipy.stats.ttest_ind(right["best"], right[other], equal_var=False).pvalue
    for other in ("near", "far")
  ]
  assert p_values[0] > 0.05 > p_values[1]
  assert kinds == ["similar", "best", "", "untested"]  # one seed: no test is possible


@pytest.mark.parametrize(
  ("ours", "theirs", "kinds"),
  [
    ((190, 190, 190), (190,), ["best", "best"]),  # the mean of three differs by rounding
    ((100, 100, 100), (101, 104, 99), ["similar", "best"]),  # one group is constant
    ((100, 100, 100), (120, 121, 122), ["", "best"]),
    ((100, 100), (101, 101), ["untested", "best"]),  # no spread
    ((100, 104, 99), (90,), ["best", "untested"]),  # one seed
  ],
)
def test_groups_that_are_equal_constant_or_of_one_seed(tmp_path, ours, theirs, kinds):
  assert statistics.fmean([0.95] * 3) != 0.95
  folders = [
    runs.workdir(
      tmp_path / f"{key}{seed}",
      key,
      seed=seed,
      only=(),
      change=with_outcomes("pgd", first(200, right)),
    )
    for key, counts in (("one", ours), ("two", theirs))
    for seed, right in enumerate(counts)
  ]
  page = make(*folders)
  assert [row[1] for row in page.table("", cells="classes").values()][1:] == kinds
  has_legend = any(text.startswith("? No test of the difference") for text in page.said(""))
  assert has_legend == ("untested" in kinds)


def test_each_table_of_the_terminal_has_its_own_legend(tmp_path):
  """Runs are compared by McNemar's test, groups by Welch's."""
  folders = [
    runs.workdir(
      tmp_path / f"{key}{seed}", key, seed=seed, only=(), change=with_outcomes("pgd", first(200, k))
    )
    for key, counts in (("one", (100, 104, 99)), ("two", (101, 102, 97)))
    for seed, k in enumerate(counts)
  ]
  text = " ".join(report.compare(folders).split())
  single, groups = text.split("clean PGD AutoAttack certified corrupted", 2)[1:]
  assert "(McNemar's exact test on the same images" in single and "Welch" not in single
  assert "(Welch's t-test over seeds, 5 % level)" in groups and "McNemar" not in groups


def test_each_run_of_a_group_has_its_row_as_well(seeds):
  page, _, right = seeds
  assert page.titles[0] == "Single runs"
  rows = page.table("Single runs")
  assert len(rows) == 11 and rows["C near, seed 2"][1].startswith("60.0 % ≈")  # 4 images of 200


def test_the_csv_has_every_number_of_every_run(seeds):
  _, folder, right = seeds
  found = pandas.read_csv(folder / "report.csv")
  pgd = found.query("evaluation == 'pgd' and epsilon == 0.1")
  assert (pgd["value"] * 200).round().tolist() == list(itertools.chain(*right.values()))
  whole = results.frame(pgd["workdir"])
  assert list(found.columns) == list(whole.columns) and len(found) == len(whole)


def test_the_latex_table_has_the_groups(seeds):
  _, folder, _ = seeds
  lines = (folder / "report.tex").read_text(encoding="utf-8").splitlines()
  rows = [line.removesuffix(" \\\\").split(" & ") for line in lines if line.endswith("\\\\")]
  assert {len(row) for row in rows} == {5} and "\\begin{tabular}{lrrrr}" in lines
  pgd = {row[0]: row[2] for row in rows}
  assert pgd["D E F best (n = 3)"] == r"\textbf{59.0 $\pm$ 3.0 \%}"
  assert pgd["A B C near (n = 3)"] == r"55.0 $\pm$ 5.0 \%$^\approx$"
  assert lines[-1] == r"\end{tabular}" and "booktabs" not in "".join(lines)


@pytest.mark.parametrize(
  "change",
  [
    lambda about: about["config"].update(batch_size=1),
    lambda about: about["data"].update(fingerprint="0"),
  ],
)
def test_what_differs_in_more_than_the_seed_is_no_group(tmp_path, change):
  one = runs.workdir(tmp_path / "a", only=LIGHT)
  two = runs.workdir(tmp_path / "b", seed=1, only=LIGHT, change=lambda e, about: change(about))
  page = make(one, two)
  assert list(page.table(""))[1:] == ["A seed 0", "B seed 1"]


def test_the_same_seed_counts_once(tmp_path):
  """Two runs of one seed are no two seeds; runs of one name are told apart by their folders."""
  folders = [runs.workdir(tmp_path / key / "run", only=LIGHT) for key in "ab"]
  page = make(*folders)
  assert [name[:10] for name in page.table("")][1:] == ["A sprout, ", "B sprout, "]
  assert all(str(folder)[-12:] in name for folder, name in zip(folders, list(page.table(""))[1:]))


def test_a_workdir_that_is_named_twice_is_there_once(tmp_path):
  folder = runs.workdir(tmp_path / "a", only=LIGHT)
  assert len(make(folder, folder).table("")) == 2


# What the report does not know, and what is damaged.


def test_an_evaluation_that_someone_added_has_a_section(tmp_path):
  def added(evaluations, about):
    numbers = [evaluations.accuracy(0.5, runs.FEW, radius=k / 100) for k in range(50)]
    numbers.append(Number("sharpness", 1.5, {}, "nats", 7))
    evaluations.add("ink_blots", numbers, {"blots": [1], "sizes": []}, ["Blots are not cats."])

  one = runs.workdir(tmp_path / "a", "one", only=LIGHT, change=added)
  two = runs.workdir(tmp_path / "b", "two", only=LIGHT, failed={"ink_blots": "no ink"})
  page = make(one, two)
  table = page.table("ink blots")
  assert table["L2 radius 0.01"] == ["50.0 % [36.6, 63.4]", "failed"]
  assert list(table)[-1] == "11 more rows in report.csv"
  assert page.said("ink blots") == [
    "A: Blots are not cats.",
    "Further details in results.json: blots, sizes.",
  ]
  assert 'B two: the evaluation "ink_blots" was not measured: no ink' in page.said("")


@pytest.mark.parametrize("name", ["strength", "invariance", "calibration", "landscape", "examples"])
def test_details_of_another_form_are_said(tmp_path, name):
  def change(evaluations, about):
    numbers, details = getattr(evaluations, name)()
    evaluations.add(name, numbers, {key: {"x": {"y": "z"}} for key in details})

  page = make(runs.workdir(tmp_path / "a", only=(*LIGHT, name), change=change))
  texts = [text for text in page.text.splitlines() if "cannot be shown" in text]
  assert len(texts) == 1 and "the stored details have an unexpected form" in texts[0]


def test_examples_are_the_same_images_broken_or_not(made):
  page, _ = made
  table = page.table("Examples")
  assert list(table)[1:] == ["image 0: digit 3", "image 3: digit 3", "image 7: digit 3"]
  assert table["image 3: digit 3"] == [
    "broken: digit 5 (71 %) before: digit 3 (93 %)",
    "not measured",
    "not broken: digit 3 (71 %) before: digit 3 (93 %)",
  ]
  notes = page.said("Examples")[1:]
  assert notes[0] == "A: 2 of 3 broken by PGD-20, one random start at Linf epsilon 0.1."
  assert notes[1].startswith("C: 1 of 3 broken")
  assert len([1 for title, *_ in page.images if title == "Examples"]) == 3 * (1 + 2 * 2)


def test_the_gallery_is_bounded(tmp_path):
  """Five runs with pictures as of ImageNet: the page stays small, and says what it leaves out."""
  pictures = {side: runs.png(side, side) for side in (224, 225, 226)}

  def large(evaluations, about):
    _, details = evaluations.examples()
    rows = [
      {
        **details["examples"][0],
        "index": k,
        **dict(zip(("image", "adversarial", "perturbation"), pictures.values())),
      }
      for k in range(12)
    ]
    evaluations.add("examples", [], {**details, "examples": rows})

  folders = [
    runs.workdir(tmp_path / f"{k}", f"m{k}", only=("pgd", "examples"), change=large)
    for k in range(5)
  ]
  page = make(*folders)
  shown = len(page.table("Examples")) - 1
  assert 1 <= shown < 12
  assert page.said("Examples")[-1] == f"{12 - shown} more images in results.json."
  assert (folders[0] / "report" / "report.html").stat().st_size < 3e6


def test_a_picture_is_decoded_and_made_small():
  pixels = np.random.RandomState(0).randint(0, 256, (200, 100)).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG")
  shown = Image.open(io.BytesIO(figures.picture(stream.getvalue())))
  assert shown.size == (48, 96) and shown.mode == "RGB"
  small = base64.b64decode(runs.png(3))
  same = np.asarray(Image.open(io.BytesIO(figures.picture(small))))
  np.testing.assert_array_equal(same, np.asarray(Image.open(io.BytesIO(small))))


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"<svg onload='alert(1)'/>",
    b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    base64.b64decode(runs.png(0))[:60],
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    + (100_000).to_bytes(4)
    + (100_000).to_bytes(4)
    + b"\x08\2\0\0\0",
  ],
)
def test_what_is_no_picture_is_refused(data):
  with pytest.raises(ValueError, match="PNG"):
    figures.picture(data)


def test_a_picture_of_too_many_pixels_is_refused():
  stream = io.BytesIO()
  Image.new("L", (4097, 1)).save(stream, "PNG")
  with pytest.raises(ValueError, match="not a PNG of at most 4096 pixels per side"):
    figures.picture(stream.getvalue())


def test_another_folder(tmp_path):
  folder = runs.workdir(tmp_path / "a", only=LIGHT)
  text = report.compare([folder], tmp_path / "there" / "it")
  names = sorted(path.name for path in (tmp_path / "there" / "it").iterdir())
  assert names == ["report.csv", "report.html", "report.tex"]
  assert text.splitlines()[-3] == f"wrote {tmp_path / 'there' / 'it' / 'report.html'}"
  assert not (folder / "report").exists()


def test_the_terminal_fits_and_marks_the_best(tmp_path):
  found = {"best": 100, "near": 95, "a_method_of_a_long_name_that_goes_on": 94}
  folders = [
    runs.workdir(tmp_path / key[:4], key, only=(), change=with_outcomes("pgd", first(200, count)))
    for key, count in found.items()
  ]
  text = report.compare(folders)
  lines = text.splitlines()
  assert max(len(line) for line in lines[:5]) <= 80
  # One name is long: each name has a line of its own, whole, and the numbers are below it.
  assert lines[2:8:2] == ["A best", "B near", "C a_method_of_a_long_name_that_goes_on"]
  assert [line.split()[1] for line in lines[3:9:2]] == ["50.0*", "47.5~", "47.0"]
  assert all(line[: lines[0].index("clean")].strip() == "" for line in lines[3:9:2])
  assert "* The best of its column. A number that failed a check cannot be the best." in lines
  assert "~ Not significantly different from the best (McNemar's exact test" in text
  assert "PGD: accuracy under PGD, Linf epsilon 0.1, 200 images" in lines


def test_short_names_stand_beside_their_numbers(tmp_path):
  folders = [runs.workdir(tmp_path / key, key, only=("pgd",)) for key in ("one", "two")]
  text = report.compare(folders)
  lines = text.splitlines()
  assert [line.split()[:3] for line in lines[2:4]] == [
    [key, name, "95.0*"] for key, name in (("A", "one"), ("B", "two"))
  ]
  assert max(map(len, lines[:4])) <= 80
  for key in "AB":
    assert f"{key}: " in text and "Checks: 2 passed, 9 not run." in " ".join(text.split())


def test_a_run_that_was_measured_elsewhere_says_where(tmp_path):
  """The column has one norm and one epsilon."""

  def in_l1(evaluations, about):
    keys = {**runs.PGD, "norm": "l1"}
    evaluations.add("pgd", [evaluations.accuracy(0.6, **keys, epsilon=e) for e in (0.0, 5.0)])

  folders = [runs.workdir(tmp_path / key, key, only=("pgd",)) for key in ("one", "two")]
  folders.append(runs.workdir(tmp_path / "c", "c", only=("pgd",), change=in_l1))
  page = make(*folders)
  assert page.table("")["C c"][1:3] == ["- measured at L1 epsilon 5", "not measured"]
  legend = "No number: not measured, or not with the norm and epsilon of this column."
  assert f"- {legend}" in page.said("") and f"- {legend}" in report.compare(folders).splitlines()
  assert f"% - {legend}" in (folders[0] / "report" / "report.tex").read_text(encoding="utf-8")


def test_the_accuracy_without_attack_of_fewer_images_names_them(tmp_path):
  """It can differ from the clean accuracy, which is that of all images."""

  def few(evaluations, about):
    keys = {**runs.PGD, "norm": "linf"}
    at = [
      evaluations.accuracy(share, runs.FEW, **keys, epsilon=e)
      for e, share in ((0.0, 1.0), (0.1, 0.5))
    ]
    evaluations.add("pgd", at)

  folder = runs.workdir(tmp_path / "a", only=("pgd",), change=few)
  page = make(folder)
  assert page.table(ATTACKS)["epsilon 0 (of these 50 images)"] == ["100.0 % [92.9, 100.0]"]
  assert "epsilon 0 (of these 50 images)" in report.summarize(folder)
  whole = make(runs.workdir(tmp_path / "b", only=("pgd",)))
  assert "epsilon 0" in whole.table(ATTACKS) and "of these" not in whole.text


def test_more_runs_than_letters():
  places = (0, 25, 26, 53)
  keys = [report.runs_lib.Run(None, place, "", "").key for place in places]
  assert keys == ["A", "Z", "A1", "B2"]
