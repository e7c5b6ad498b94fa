"""The page about several runs: what it says, beside which number, and that nothing is missing."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from sprout_jax import report
from tests.report import reading
from tests.report import synthetic

ROOT = pathlib.Path(__file__).parents[2]
ATTACKS = "Accuracy under attack"


def make(*workdirs):
  """Writes the report of runs; returns (page, Markdown, folder, page as text)."""
  text = report.compare(workdirs)
  folder = pathlib.Path(workdirs[0]) / "report"
  assert text.splitlines()[-2:] == [
    f"wrote {folder / 'report.html'}",
    f"wrote {folder / 'report.md'}",
  ]
  source = (folder / "report.html").read_text(encoding="utf-8")
  return (
    reading.page(source),
    reading.markdown((folder / "report.md").read_text(encoding="utf-8")),
    folder,
    source,
  )


def changed(folder, change, **options):
  """A complete workdir whose results were changed in place by a function."""
  content = synthetic.results(**options)
  change(content)
  return synthetic.write(folder, content, synthetic.metrics("sprout", 0.4))


def light(content):
  """Leaves what needs no plots, which are slow."""
  content["evaluations"] = {name: content["evaluations"][name] for name in ("transfer", "sanity")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A complete run, one without some evaluations, and one of an earlier version."""
  folder = tmp_path_factory.mktemp("report")

  def fewer(content):
    for name in ("smoothing", "examples", "transfer"):
      del content["evaluations"][name]
    content["evaluations"]["strength"]["best_loss"]["dlr"] = None
    content["checks"] = [synthetic.finding("monotone", evaluation="pgd")]

  old = shutil.copytree(
    ROOT / "benchmarks" / "results" / "methods" / "cifar10_pgd_0", folder / "old"
  )
  return make(
    synthetic.workdir(folder / "a"),
    changed(folder / "b", fewer, method="natural", level=0.3, optimizer={"learning_rate": 0.2}),
    old,
  )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return make(synthetic.workdir(tmp_path_factory.mktemp("alone") / "a"))


def test_page_and_markdown_say_the_same(made):
  page, markdown, _, _ = made
  assert page.titles == markdown.titles
  assert "Radar chart" in page.titles and "Attacked images" in page.titles
  assert len(page.tables) == len(markdown.tables) > 10
  for (title, rows), other in zip(page.tables, markdown.tables):
    assert (title, [[cell.strip() for cell in row] for row in rows]) == other
  assert len(page.images) == len(markdown.images)


def test_every_image_is_inside_the_page_and_beside_the_markdown(made):
  page, markdown, folder, _ = made
  assert len(page.images) > 10
  for source, alternative in page.images:
    prefix, data = source.split(",")
    assert prefix == "data:image/png;base64" and alternative
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
  assert {path.name for path in (folder / "plots").iterdir()} == {
    path.removeprefix("plots/") for path in markdown.images
  }


def test_nothing_is_loaded_and_links_lead_somewhere(made):
  page, _, _, source = made
  assert not page.tags & {"script", "link", "iframe", "object"} and "url(" not in source
  assert all(link.startswith("#") for link in page.links)
  assert {link[1:] for link in page.links} <= set(page.ids) and len(set(page.ids)) == len(page.ids)
  assert '<meta name="viewport"' in source


def test_pictures_of_an_earlier_report_go(tmp_path):
  workdir = shutil.copytree(
    ROOT / "benchmarks" / "results" / "methods" / "cifar10_pgd_0", tmp_path / "a"
  )
  stale = workdir / "report" / "plots" / "radar.png"
  stale.parent.mkdir(parents=True)
  stale.write_bytes(b"")
  make(workdir)
  assert not stale.exists() and (stale.parent / "attacks.png").exists()


def test_configs_show_what_differs_and_nothing_else(tmp_path):
  one = changed(tmp_path / "a", light)
  two = changed(
    tmp_path / "b",
    light,
    method="natural",
    optimizer={"learning_rate": 0.2},
    evaluation={"num_steps": 50, "new": 1},
    dataset={"name": "cifar10", "data_dir": "/elsewhere", "cache_dir": ""},
  )
  page, *_ = make(one, two)
  assert page.table("Configs") == {
    "header": ["A sprout paper sample", "B natural"],
    "method.concentration": ["paper", "–"],
    "method.draw": ["sample", "–"],
    "method.name": ["sprout", "natural"],
    "optimizer.learning_rate": ["0.1", "0.2"],
  }
  assert page.table("Where the numbers come from", 1) == {
    "header": ["A sprout paper sample", "B natural"],
    "evaluation.num_steps": ["20", "50"],
  }


def test_numbers_stand_with_intervals_and_all_that_defines_the_attack(made):
  page, *_ = made
  table = page.table(ATTACKS)
  assert table["clean"] == ["70.0 % [69.5, 70.5]", "65.0 % [64.5, 65.5]", "45.2 % [44.2, 46.2]"]
  assert table["epsilon 0.03 after apgd-ce"] == ["39.0 %", "29.0 %", "not measured"]
  for group in (
    "PGD-20 Linf, cross_entropy loss, 20 steps of 0.007, 1 random start(s), seed 0, 1000 images",
    "PGD-50 Linf, cross_entropy loss, 50 steps of 0.003, 5 random start(s), seed 0, 1000 images",
    "AutoAttack (standard) Linf, the worst of apgd-ce, apgd-t, fab-t, square, seed 0, 1000 images",
  ):
    assert table[group] == []
  assert (
    page.table("Noise, transfer and sanity", 2)[
      "Linf, epsilon 0.03, pgd: 20 steps of 0.007, 1 start(s), margin loss, seed 4, 500 images"
    ]
    == []
  )
  strength = page.table("Stronger attacks")  # of the last loss, dlr
  assert strength["200 steps, 10 starts"][0] == "34.0 % [33.5, 34.5]"
  assert page.table("Corruptions")["mean over all"] == ["72.0 %", "69.0 %", "not measured"]
  assert page.table("Calibration")["expected calibration error"] == [
    "4.3 %",
    "4.3 %",
    "not measured",
  ]
  assert page.table("Training")["time per epoch"] == ["2.00 s", "2.00 s", "not measured"]


def test_what_was_not_measured_is_named(made):
  page, *_ = made
  b, c = "B natural, vgg16", "C pgd, small_cnn"
  for sentence in (
    f"Not measured (certified accuracy): {b}, {c}.",
    f"Not measured (corruptions): {c}.",
    f"Not measured (adversarial examples): {b}, {c}.",
    f"Not measured (random noise): {c}.",
    f"Not measured (axes of the chart): {c}.",
    f"Without a learned beta: {c}.",
    f"No records of the training (metrics.jsonl): {c}.",
    f"Nothing was checked for {c}: take the robust accuracies as upper bounds.",
  ):
    assert sentence in page.text, sentence
  assert "one random start, epsilon 0.03; broken: 2 of 2." in page.text
  assert page.table("Certified accuracy")["smoothed accuracy"] == ["80.0 % [79.5, 80.5]"] + 2 * [
    "not measured"
  ]


def test_what_nobody_measured_has_no_section(tmp_path):
  methods = ROOT / "benchmarks" / "results" / "methods"
  page, *_ = make(
    *(
      shutil.copytree(methods / name, tmp_path / name)
      for name in ("cifar10_pgd_0", "cifar10_cure_0")
    )
  )
  assert page.titles == [
    "Runs",
    "Configs",
    ATTACKS,
    "Training",
    "Checks",
    "Where the numbers come from",
  ]
  assert "Not measured for any run: attacks of more strength, random noise" in page.text
  assert page.table(ATTACKS)["epsilon 0.03"] == ["27.3 % [24.6, 30.1]", "18.1 % [15.8, 20.6]"]
  assert "stronger attacks may lower it (no AutoAttack: A pgd, B natural + cure)" in page.text


def test_a_failed_check_stands_beside_its_number(tmp_path):
  def fails(content):
    light(content)
    content["checks"] = [
      synthetic.finding("monotone", False, "pgd", "Accuracy rises.", concerns=["epsilon 0.01"]),
      synthetic.finding(
        "square", False, "auto_attack", "Square broke more.", 3.14, 0.2, ["square"]
      ),
      synthetic.finding(
        "effort", False, text="Ten restarts lowered it.", concerns=["twice the steps"]
      ),
      synthetic.finding("order", False, text="PGD missed one.", concerns=["fgsm over pgd"]),
      synthetic.finding("black_box", False, "transfer", "A transfer broke more."),
      synthetic.finding("gap", evaluation="pgd", value=1.0, threshold=10.0, text="Never shown."),
    ]

  page, markdown, *_ = make(
    changed(tmp_path / "a", fails), changed(tmp_path / "b", light, method="natural")
  )
  for found in (page, markdown):
    table = found.table(ATTACKS)
    assert table["epsilon 0.01"][0].startswith("46.0 %a [") and table["epsilon 0.07"][0].startswith(
      "22.0 % ["
    )
    assert (
      table["epsilon 0.03"][0] == "35.0 %b [34.5, 35.5]"
    )  # AutoAttack's, the later row of that name
    assert table["epsilon 0.03 after square"][0] == "35.0 %b"
    assert table["epsilon 0.03 after fab-t"][0] == "37.0 %"
    assert table["header"][0] == "Acd sprout paper sample" and table["header"][1] == "B natural"
    sanity = found.table("Noise, transfer and sanity", 1)
    assert sanity["twice the steps"][0].startswith("40.0 %a") and sanity["apgd"][0].startswith(
      "39.0 % ["
    )
    assert sanity["fgsm"][0].startswith("45.0 %b") and sanity["pgd"][0].startswith("40.0 %b")
    assert found.table("Noise, transfer and sanity", 0)["epsilon 0.03"][0].startswith("60.0 %a")
    assert found.table("Checks")[
      "Square finds nothing that the white-box attacks missed (in points)"
    ] == ["FAILEDa 3.14 (0.2)", "FAILEDb 3.1 (0.2)"]
    assert found.table("Checks")["PGD is near AutoAttack (in points)"] == [
      "passed 1 (10)",
      "passed 5 (10)",
    ]
    assert "Never shown" not in found.text
  between = page.text.split("Each group of rows is one attack")[1].split("Stronger attacks")[0]
  for note in (
    "a A sprout paper sample: Accuracy rises.",
    "b A sprout paper sample: Square broke more.",
    "c A sprout paper sample: Ten restarts lowered it.",
  ):
    assert note in between
  assert "Checks failed: A sprout paper sample (5 of 6)" in page.text


def test_other_attacks_and_data_are_a_caution_at_the_top(tmp_path):
  def other(content):
    light(content)
    content["dataset"]["fingerprint"] = "0"
    content["training"]["steps"] = 4
    for entry in content["attacks"][:4]:
      entry["restarts"] = 5

  page, markdown, *_ = make(
    changed(tmp_path / "a", light), changed(tmp_path / "b", other, method="natural")
  )
  for found in (page, markdown):
    top = found.text.split("Learned labels")[0]
    assert (
      "CAUTION: the runs have different data" in top and "CAUTION: the runs were attacked" in top
    )
    assert "B natural: TRAINING IS INCOMPLETE: step 4 of 900" in top
  assert page.table(ATTACKS)["epsilon 0.01"] == [
    "not measured",
    "46.0 % [45.5, 46.5]",
  ]  # the later group


def test_text_of_files_is_escaped(tmp_path):
  evil = '$x_{$<script>alert("x")</script> & | `*_[a](b)'

  def names(content):
    content["dataset"]["provenance"] = evil
    content["dataset"]["class_names"] = [evil] * 10
    content["checks"] = [synthetic.finding("square", False, "auto_attack", evil)]

  page, markdown, folder, source = make(
    changed(tmp_path / "a", names, model={"name": evil, "dtype": "x"})
  )
  assert "<script" not in source and not page.tags & {"script"}
  assert not re.search(r"<script|(?<!\\)[$`]", (folder / "report.md").read_text(encoding="utf-8"))
  for found in (page, markdown):
    assert found.text.count(evil) >= 5
    assert found.table("Where the numbers come from")["data"] == [evil]


def test_a_single_run_has_its_config_and_no_radar_chart(alone):
  page, *_ = alone
  assert "Radar chart" not in page.titles and "Corruptions" in page.titles
  table = page.table("Configs")
  assert table["optimizer.learning_rate"] == ["0.1"] and "dataset.data_dir" not in table
  assert page.table(ATTACKS)["clean"] == ["70.0 % [69.5, 70.5]"]


def test_labels_that_are_the_same_are_told_apart_by_the_folder(tmp_path):
  folders = [
    shutil.copytree(ROOT / "benchmarks" / "results" / "methods" / "cifar10_pgd_0", tmp_path / name)
    for name in ("a", "b")
  ]
  page, *_ = make(*folders)
  assert (
    page.table("Runs")["A"][0] == f"pgd, small_cnn, cifar10, seed 0 ({folders[0]}) {folders[0]}"
  )
  assert page.table(ATTACKS)["header"] == [
    f"{key} pgd ({folder})" for key, folder in zip("AB", folders)
  ]


def test_twelve_runs_and_examples_of_none(tmp_path):
  surfaces = iter([[[1.0, float("inf")]] + [[None, None]] * 6, *(11 * [[[None] * 2] * 7])])

  def bare(content):
    content["evaluations"] = {
      "examples": {**content["evaluations"]["examples"], "examples": []},
      "gradients": {**content["evaluations"]["gradients"], "cosine": None},
      "landscape": {
        **content["evaluations"]["landscape"],
        "rademacher": [0, 1],
        "loss": next(surfaces),
      },
    }

  page, *_ = make(*(changed(tmp_path / str(seed), bare, seed=seed) for seed in range(12)))
  assert page.table(ATTACKS)["header"][11] == "L seed 11"
  assert "no image is classified correctly" in page.text
  assert "No gradient was defined to compare: A seed 0" in page.text
  assert "The loss around images is nowhere finite: B seed 1" in page.text


def test_a_report_needs_no_jax(tmp_path):
  synthetic.write(
    tmp_path / "a",
    json.loads(
      (ROOT / "benchmarks" / "results" / "methods" / "cifar10_pgd_0" / "results.json").read_text()
    ),
  )
  code = (
    f"import sys; from sprout_jax import report; report.compare([{str(tmp_path / 'a')!r}])\n"
    "print([name for name in ('jax', 'flax', 'tensorflow') if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"
