"""collect: results.json keeps the numbers of all evaluations of a subject."""

import dataclasses
import json

import numpy as np

from sprout_jax import results as results_lib
from sprout_jax.evaluation import evaluate
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.results import comparison
from tests.evaluation import subjects


def call(workdir, *evaluations, **options):
  """Measures evaluations of the linear model; returns {evaluation: its numbers in results.json}."""
  subject = subjects.make()
  options = {"images": subject.images, "epsilon": 0.02, "epsilons": (0.02,), **options}
  options |= {"num_steps": 1, "num_restarts": 1, "workdir": workdir, "progress": False}
  evaluate(
    subject.predict, options.pop("images"), subject.labels, evaluations=evaluations, **options
  )
  run = results_lib.read(workdir)
  found = {name: run.numbers.where(evaluation=name) for name in run.numbers.values("evaluation")}
  return run, found


def test_an_option_of_another_evaluation_loses_no_numbers(tmp_path):
  """Nor does another number of images, which is an option of all."""
  _, before = call(tmp_path, "pgd", num_examples=20)
  run, after = call(tmp_path, "calibration", num_examples=8)
  assert after.keys() == {"clean", "pgd", "calibration"}
  assert after["pgd"].first().value == before["pgd"].first().value
  assert after["pgd"].first().count == 20 and run.stored["pgd"].options["num_examples"] == 20
  text = (tmp_path / "results.txt").read_text()
  assert "under PGD at Linf epsilon 0.02" in " ".join(text.split())
  assert "Neither AutoAttack nor PGD" not in text


def test_of_several_options_the_current_ones_count_and_the_others_are_named(tmp_path):
  epsilons = lambda found: found["noise"].values("epsilon")
  for epsilon in (0.03, 0.02):
    run, found = call(tmp_path, "noise", epsilon=epsilon, epsilons=(epsilon,))
    assert epsilons(found) == [epsilon]
  (note,) = run.stored["noise"].notes
  (other,) = [p for p in (tmp_path / "evaluation").glob("noise-*.json") if "0.03" in p.read_text()]
  assert "epsilon 0.03" in note and f"evaluation/{other.name}" in note
  assert note in " ".join((tmp_path / "results.txt").read_text().split())
  _, found = call(tmp_path, "calibration", epsilon=0.01, epsilons=(0.01,))
  assert epsilons(found) == [0.02]  # the newest
  _, found = call(tmp_path, "calibration", epsilon=0.03, epsilons=(0.03,))
  assert epsilons(found) == [0.03]  # the current ones


def test_another_version_is_no_current_number(tmp_path, monkeypatch):
  call(tmp_path, "noise", "calibration")
  raised = dataclasses.replace(EVALUATIONS["noise"], version=99)
  monkeypatch.setitem(EVALUATIONS, "noise", raised)
  run, found = call(tmp_path, "calibration")
  assert found.keys() == {"clean", "calibration"}
  version = "(version 1, now 99): measure it again"
  assert run.failed["noise"].endswith(version)
  assert "measure it again" in " ".join((tmp_path / "results.txt").read_text().split())
  run, found = call(tmp_path, "noise")
  assert "noise" in found and not run.failed


def test_other_weights_share_nothing(tmp_path):
  call(tmp_path, "noise")
  subject = subjects.make()
  evaluate(
    lambda images: -subject.predict(images),
    subject.images,
    subject.labels,
    workdir=tmp_path,
    evaluations=("calibration",),
    progress=False,
  )
  assert results_lib.read(tmp_path).stored.keys() == {"calibration"}


def test_the_test_set_is_named_by_its_pixels(tmp_path):
  """Images as bytes and as floats are the same images, and a comparison knows it."""
  pixels = np.random.RandomState(0).randint(0, 256, subjects.make().images.shape).astype(np.uint8)
  digests = [
    call(tmp_path / name, "calibration", images=images)[0].about["data"]["test_sha256"]
    for name, images in (("bytes", pixels), ("floats", pixels / np.float32(255)))
  ]
  assert digests[0] == digests[1]
  assert digests[0] == comparison.test_set_digest(pixels, subjects.make().labels)
  assert json.loads((tmp_path / "bytes" / "results.json").read_text())["data"]["test_sha256"]


def test_a_measurement_says_when_it_was_finished(tmp_path):
  run, _ = call(tmp_path, "calibration")
  assert run.stored["calibration"].finished > 1.6e9
