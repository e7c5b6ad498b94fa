"""summary: results.json has the published keys, comes back whole, and is never half of two."""

import dataclasses
import json

import numpy as np
import pytest

from sprout_jax.errors import UserError
from sprout_jax.results import files
from sprout_jax.results import summary
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Stored

RIGHT = np.arange(20) % 4 > 0
ABOUT = dict.fromkeys(summary.ABOUT) | dict(
  parameters_sha256="abc", config={"seed": 0}, versions={"jax": "1"}, label={"name": "a"}
)
PGD = dict(attack="pgd", norm="linf", steps=20, step_size=0.01, restarts=2, loss="margin", seed=7)
AUTO = dict(attack="auto_attack", version="standard", norm="l2", epsilon=0.5)


def stored(name, *numbers, seconds=1.0, **fields):
  numbers = Numbers(dataclasses.replace(number, evaluation=name) for number in numbers)
  return Stored(numbers, name=name, version=1, seconds=seconds, **fields)


def at(share, **keys):
  return accuracy(np.arange(20) < 20 * share, np.arange(20), **keys)


def pgd(*shares):
  numbers = [at(share, epsilon=0.1 * place, **PGD) for place, share in enumerate(shares)]
  return stored("pgd", *numbers, options={"num_steps": 20})


def collect(workdir, *evaluations, about=ABOUT, failed=None):
  clean = accuracy(RIGHT, np.arange(20))
  return summary.collect(workdir, about, clean, evaluations, failed or {})


def written(workdir):
  return json.loads((workdir / "results.json").read_text())


def test_published_keys(tmp_path):
  """Other people's notebooks read these."""
  auto = stored(
    "auto_attack", at(0.5, stage="square", seed=0, **AUTO), at(0.25, seed=0, **AUTO), seconds=2.5
  )
  noise = stored("noise", at(0.9, attack="noise", norm="linf", epsilon=0.1, draws=5, seed=0))
  summary.write(collect(tmp_path, pgd(0.75, 0.5), auto, noise, failed={"transfer": "no source"}))
  found = written(tmp_path)
  assert found["format"] == 1 and found["wall_seconds"] == 4.5
  assert found["clean"].keys() == {"accuracy", "count", "interval"}
  assert (found["clean"]["accuracy"], found["clean"]["count"]) == (0.75, 20)
  assert found["parameters_sha256"] == "abc" and found["config"] == {"seed": 0}
  assert found["versions"] == {"jax": "1"} and found["failed"] == {"transfer": "no source"}
  first, second, last = found["attacks"]
  required = {
    "name",
    "norm",
    "epsilon",
    "steps",
    "restarts",
    "seed",
    "count",
    "accuracy",
    "interval",
  }
  assert all(required <= entry.keys() for entry in found["attacks"])
  assert last["steps"] is None and last["restarts"] is None and first["steps"] == 20
  assert (first["name"], second["epsilon"], second["accuracy"]) == ("pgd-20", 0.1, 0.5)
  assert (last["name"], last["norm"], last["accuracy"]) == ("autoattack-standard", "l2", 0.25)
  assert first["interval"][0] < 0.75 < first["interval"][1] and first["restarts"] == 2
  assert found["evaluations"]["pgd"]["options"] == {"num_steps": 20}


def test_it_comes_back(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  details, notes = {"curve": [1.0, None]}, ("A note.",)
  some = stored("pgd", at(0.5, epsilon=0.1, **PGD), details=details, notes=notes)
  other = stored("gradients", Number("cosine_similarity", None, {"module": "mixup"}, "", 0))
  results = collect(tmp_path, some, other)
  assert not summary.write(results)
  back = summary.read(tmp_path)
  assert summary.to_json(back) == summary.to_json(results)
  assert back.clean.value == 0.75 and back.clean.evaluation == "clean" and back.seconds == 2
  np.testing.assert_array_equal(back.clean.outcomes, RIGHT)
  assert back.stored["pgd"].details == details and back.stored["pgd"].notes == notes
  assert [n.evaluation for n in back.numbers] == ["clean", "pgd", "gradients"]
  assert back.stored["gradients"].numbers.first().value is None
  assert back.metrics == ({"step": 1, "loss": 2.0},) and back.findings == results.findings


def test_results_are_printed_in_one_line(tmp_path):
  found = collect(tmp_path, pgd(0.75, 0.25, 0.5), failed={"transfer": "no source"})
  assert repr(found) == (
    f"<Results of {tmp_path}: clean 75.0 %; numbers: clean 1, pgd 3; 2 findings, failed: monotone; "
    "not measured: transfer>"
  )


def test_findings_are_derived_from_the_numbers(tmp_path):
  """And a number knows which failed checks concern it."""
  results = collect(tmp_path, pgd(0.75, 0.25, 0.5))
  finding, reach = results.findings
  assert finding.check == "monotone" and not finding.passed
  assert reach.check == "reach" and reach.passed
  highest = results.numbers.first(evaluation="pgd", epsilon=0.2)
  assert results.failed_checks(highest) == [finding]
  assert results.failed_checks(results.clean) == []
  sound = collect(tmp_path, pgd(0.75, 0.5, 0.25))
  assert sound.findings[0].passed and sound.failed_checks(highest) == []


def test_what_is_the_same_is_not_written_again(tmp_path):
  summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  path = tmp_path / "results.json"
  before = path.stat().st_mtime_ns
  assert not summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  assert path.stat().st_mtime_ns == before and not (tmp_path / "results_previous.json").exists()


@pytest.mark.parametrize(
  "later, is_kept",
  [
    (lambda folder: collect(folder, pgd(0.75, 0.5, 0.25)), False),  # more numbers
    (lambda folder: collect(folder, pgd(0.75, 0.5), stored("noise")), False),
    (lambda folder: collect(folder, pgd(0.75, 0.45)), True),  # other numbers
    (lambda folder: collect(folder), True),  # fewer
    (
      lambda folder: collect(folder, pgd(0.75, 0.5), about=ABOUT | {"parameters_sha256": "d"}),
      True,
    ),
  ],
)
def test_numbers_that_the_new_file_lacks_are_kept(tmp_path, later, is_kept):
  summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  before = (tmp_path / "results.json").read_text()
  assert summary.write(later(tmp_path)) == is_kept
  previous = tmp_path / "results_previous.json"
  assert previous.exists() == is_kept and (not is_kept or previous.read_text() == before)
  summary.read(tmp_path)


def test_a_damaged_file_is_made_anew(tmp_path):
  summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  path = tmp_path / "results.json"
  path.write_text(path.read_text().replace("0.75", "0.85"))
  assert not summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  assert summary.read(tmp_path).clean.value == 0.75


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda found: found | {"clean": {"accuracy": 0.99}}, "its digest does not match"),
    (lambda found: sealed(found | {"format": 7}), "has format 7, expected 1"),
    (lambda found: sealed({"format": 1}), "results.json is damaged .*malformed records of num"),
    (lambda found: sealed(found | {"evaluations": {"pgd": {}}}), "results.json is damaged .*notes"),
    (lambda found: sealed(found | {"findings": [{"check": "gap"}]}), "results.json is damaged"),
    (lambda found: sealed(found | {"numbers": [{"value": 1}]}), "malformed records of numbers"),
    (lambda found: sealed(found | {"numbers": found["numbers"][1:]}), "it has no clean accuracy"),
    (lambda found: [found], "expected an object"),
  ],
)
def test_what_is_no_results_json_is_refused(tmp_path, damage, message):
  """The message names the file and says how to make it anew."""
  summary.write(collect(tmp_path, pgd(0.75, 0.5)))
  (tmp_path / "results.json").write_text(json.dumps(damage(written(tmp_path))))
  with pytest.raises(UserError, match=f"(?s)({message}).*create it again with: .*{tmp_path}"):
    summary.read(tmp_path)


def sealed(content):
  content = {key: value for key, value in content.items() if key != files.SEAL}
  return content | {files.SEAL: files.digest(content)}


def test_a_folder_without_results(tmp_path):
  with pytest.raises(UserError, match="has no results.json; create it with: python launch.py"):
    summary.read(tmp_path)


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
  odd = stored("landscape", Number("highest_loss", None, {}, "nats", 3), details={"loss": [[None]]})
  summary.write(collect(tmp_path, odd))
  json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


def test_a_single_attack_of_autoattack_has_its_own_name(tmp_path):
  single = stored("auto_attack", at(0.5, seed=0, **AUTO | {"version": "apgd-ce"}))
  whole = stored("auto_attack", at(0.5, seed=0, **AUTO | {"version": "plus"}))
  names = []
  for one in (single, whole):
    summary.write(collect(tmp_path, one))
    names += [entry["name"] for entry in written(tmp_path)["attacks"]]
  assert names == ["apgd-ce", "autoattack-plus"]
