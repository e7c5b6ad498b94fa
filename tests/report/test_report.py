"""report: from files alone; what the tables say and which plots there are."""

import json

import pytest
from scipy.stats import norm

from sprout_jax import report
from sprout_jax.errors import UserError
from sprout_jax.evaluation import smoothing
from sprout_jax.report import measures
from tests.report import synthetic


def write_run(
  folder,
  method="sprout",
  accuracy=0.5,
  restarts=1,
  with_beta=True,
  fingerprint="f",
  steps=9,
  **config,
):
  interval = [accuracy - 0.1, accuracy + 0.1]
  attack = {
    "name": "pgd-20",
    "norm": "linf",
    "steps": 20,
    "step_size": 0.007,
    "restarts": restarts,
    "loss": "margin",
    "seed": 3,
    "count": 1000,
    "accuracy": accuracy,
    "interval": interval,
  }
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(
    json.dumps(
      {
        "clean": {"accuracy": 0.9, "count": 10000, "interval": [0.89, 0.91]},
        "attacks": [attack | {"epsilon": 0.0}, attack | {"epsilon": 0.03}],
        "config": {
          "seed": 5,
          "method": {"name": method},
          "model": {"name": "vgg16", "dtype": "bfloat16"},
          "dataset": {"name": "cifar10"},
          "evaluation": {},
          **config,
        },
        "dataset": {
          "name": "cifar10",
          "fingerprint": fingerprint,
          "provenance": "pixels may differ from the official set",
        },
        "checkpoint": {"which": "best", "step": 7, "weights": "ema"},
        "training": {"seconds": 61.0, "steps": steps, "planned_steps": 9},
        "versions": {"devices": "1 x cpu"},
      }
    )
  )
  beta = {"beta": [0.5, 0.7]} if with_beta else {}
  (folder / "metrics.jsonl").write_text(
    "".join(
      json.dumps(record) + "\n"
      for record in (
        {
          "step": 1,
          "split": "train",
          "steps": 1,
          "epoch": 0.5,
          "loss": 2.0,
          "accuracy": 0.3,
          **beta,
        },
        {
          "step": 2,
          "split": "train",
          "steps": 1,
          "epoch": 1.0,
          "loss": 1.0,
          "accuracy": 0.4,
          **beta,
        },
        {"step": 2, "split": "validation", "epoch": 1.0, "accuracy": 0.35},
      )
    )
  )
  return folder


def test_autoattack_stands_beside_pgd(tmp_path):
  folder = write_run(tmp_path / "a")
  results = json.loads((folder / "results.json").read_text())
  results["attacks"].append(
    {
      "name": "autoattack-standard",
      "norm": "linf",
      "epsilon": 0.03,
      "steps": 100,
      "restarts": 1,
      "seed": 3,
      "count": 1000,
      "accuracy": 0.25,
      "interval": [0.2, 0.3],
      "per_attack": {"apgd-ce": 0.3, "square": 0.25},
      "spec": {"notes": ["apgd-t: few classes"]},
    }
  )
  (folder / "results.json").write_text(json.dumps(results))
  text = report.run(folder)
  for part in (
    "AutoAttack (standard), epsilon 0.03       25.0 % [20.0, 30.0]    1000",
    "AutoAttack (standard) Linf, the worst of apgd-ce, square, seed 3",
    "note: AutoAttack (standard): apgd-t: few",
    "PGD-20, epsilon 0.03",
  ):
    assert part in text, text
  assert "upper bound" not in text
  table = report.compare([folder, write_run(tmp_path / "b", accuracy=0.6)])
  header, first = table.splitlines()[0], table.splitlines()[2]
  assert "PGD-20 0.03" in header and "AutoAttack" not in header  # one of the two has none
  assert "50.0 %" in first


def test_every_evaluation_has_a_line_and_failed_checks_stand_below_their_number(tmp_path):
  content = synthetic.results()
  content["checks"] += [
    synthetic.finding("monotone", False, "pgd", "Accuracy rises.", concerns=["epsilon 0.01"]),
    synthetic.finding("effort", False, text="Ten restarts lowered it.")
    | {"beside": ["pgd", "epsilon 0.01"]},
    synthetic.finding("large_radius", False, text="Grey is right.")
    | {"beside": ["pgd", "epsilon 0.123"]},
    synthetic.finding("converged", False, "strength", "It still moved."),
  ]
  text = report.run(synthetic.write(tmp_path / "a", content))
  lines = [" ".join(line.split()) for line in text.splitlines()]
  place = lines.index("PGD-20, epsilon 0.01 46.0 % [45.5, 46.5] 1000")
  assert lines[place + 1 : place + 3] == ["! Accuracy rises.", "! Ten restarts lowered it."]
  place = lines.index("AutoAttack (standard), epsilon 0.03 35.0 % [34.5, 35.5] 1000")
  assert lines[place + 1 : place + 14] == [
    "! Square broke 3.1 points more: gradients are probably masked.",
    "lowest PGD Linf, epsilon 0.03, dlr loss, 200 steps, 10 starts 34.0 % [33.5, 34.5] 1000",
    "! It still moved.",
    "random noise, epsilon 0.07 78.0 % [77.5, 78.5] 1000",
    "transferred from natural, vgg16, epsilon 0.03 60.0 % [59.5, 60.5] 1000",
    "rotation by 10 degrees 86.8 % [86.3, 87.3] 1000",
    "brightness x1.5 88.8 % [88.2, 89.2] 1000",
    "contrast x2 87.5 % [87.0, 88.0] 1000",
    "grayscale 85.0 % [84.5, 85.5] 1000",
    "mean over 15 corruptions 72.0 %",
    "certified at L2 radius 0.5, noise 0.1 36.0 % [35.5, 36.5] 500",
    "expected calibration error 4.3 %",
    "! Grey is right.",
  ]  # it stands beside no number that is there
  assert "7 of 12 checks passed." in lines and "upper bound" not in "".join(lines)


def test_a_finding_stands_beside_its_radius_alone(tmp_path):
  """Of two radii of AutoAttack."""
  content = synthetic.results()
  (ensemble,) = [entry for entry in content["attacks"] if "per_attack" in entry]
  content["attacks"].append(ensemble | {"epsilon": 0.05})
  content["checks"] = [
    synthetic.finding("square", False, "auto_attack", "Square broke more.")
    | {"where": "epsilon 0.05", "beside": ["auto_attack", "epsilon 0.05"]}
  ]
  text = report.run(synthetic.write(tmp_path / "a", content)).splitlines()
  (place,) = [number for number, line in enumerate(text) if "Square broke more" in line]
  assert "AutoAttack (standard), epsilon 0.05" in text[place - 1]


def test_what_is_added_to_a_method_is_named(tmp_path):
  text = report.run(write_run(tmp_path / "a", penalty={"name": "gradient_norm"}, awp_gamma=0.005))
  assert text.startswith("sprout + gradient_norm + AWP 0.005, vgg16, cifar10, seed 5")


def test_the_table_of_a_run_names_attack_data_and_intervals(tmp_path):
  text = report.run(write_run(tmp_path / "a"))
  for part in (
    "clean",
    "90.0 % [89.0, 91.0]   10000",
    "epsilon 0.03",
    "50.0 % [40.0, 60.0]    1000",
    "PGD-20 Linf, margin loss, 20 steps of 0.007, 1 random start(s), seed 3",
    "pixels may differ",
    "best checkpoint (step 7, by clean validation accuracy), ema",
    "computing in bfloat16",
    "upper bound",
  ):
    assert part in text, text
  for name in ("robustness", "training", "beta"):
    assert (tmp_path / "a" / "plots" / f"{name}.png").stat().st_size > 5000


def test_without_beta_there_is_no_plot_of_it(tmp_path):
  assert "beta.png" not in report.run(write_run(tmp_path / "a", with_beta=False))
  assert not (tmp_path / "a" / "plots" / "beta.png").exists()


def test_comparison_of_runs(tmp_path):
  one, two = write_run(tmp_path / "a"), write_run(tmp_path / "b", "natural", 0.2)
  text = report.compare([one, two])
  rows = [line.split() for line in text.splitlines()]
  assert [
    "sprout,",
    "vgg16,",
    "cifar10,",
    "seed",
    "5",
    f"({one})",
    "90.0",
    "%",
    "50.0",
    "%",
    "50.0",
    "%",
  ] in rows
  assert [
    "natural,",
    "vgg16,",
    "cifar10,",
    "seed",
    "5",
    f"({two})",
    "90.0",
    "%",
    "20.0",
    "%",
    "20.0",
    "%",
  ] in rows
  assert "CAUTION" not in text
  assert (one / "plots" / "comparison.png").exists()


def test_comparison_of_different_attacks_says_so(tmp_path):
  text = report.compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", restarts=5)])
  assert "CAUTION: the runs were attacked differently" in text


def test_seeds_in_folders_of_the_same_name_are_all_there(tmp_path):
  folders = [write_run(tmp_path / seed / "run") for seed in ("0", "1")]
  text = report.compare(folders)
  assert all(f"({folder})" in text for folder in folders)


def test_comparison_on_different_data_says_so(tmp_path):
  text = report.compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", fingerprint="g")])
  assert "CAUTION: the runs have different data" in text


def test_a_run_that_is_not_finished_says_so(tmp_path):
  text = report.run(write_run(tmp_path / "a", steps=4))
  assert "TRAINING IS INCOMPLETE: step 4 of 9" in text
  assert "INCOMPLETE" not in report.run(write_run(tmp_path / "b"))


def test_a_run_without_results_is_an_error(tmp_path):
  with pytest.raises(UserError, match="--mode evaluate"):
    report.compare([tmp_path])


def test_no_certificate_exceeds_the_largest_radius():
  """That of an image on which all draws agree, by the bound that certificates are made with."""
  sigma, n, alpha = 0.25, 2000, 0.01
  largest = measures.largest_radius({"sigma": sigma, "n": n, "alpha": alpha})
  assert largest == pytest.approx(sigma * norm.ppf(smoothing.lower_bound(n, n, alpha)), rel=1e-9)
