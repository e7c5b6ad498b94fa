"""verify: bundles of evaluations pass with their model; forged ones and other models do not."""

import json
import warnings

import jax
import numpy as np
import pytest

import sprout_jax
from sprout_jax import attacks
from sprout_jax import evaluation
from sprout_jax.results import bundle
from sprout_jax.results import files
from tests.evaluation import subjects

EPSILON = 0.01
PARTIAL = jax.tree_util.Partial(subjects.linear, subjects.kernel())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """A workdir with an evaluation of a linear model, and its bundle."""
  workdir = tmp_path_factory.mktemp("run")
  subject = subjects.make()
  evaluation.evaluate(
    PARTIAL,
    subject.images,
    subject.labels,
    workdir=workdir,
    name="linear",
    evaluations=("auto_attack",),
    epsilon=EPSILON,
    auto_attack={"version": "apgd-ce"},
    progress=False,
  )
  (folder,) = (workdir / "evidence").iterdir()
  return workdir, folder


def test_an_evaluation_leaves_a_bundle(measured):
  workdir, folder = measured
  found = bundle.read(folder)
  assert folder.name.startswith("auto_attack-apgd-ce-linf-0.01-")
  assert bundle.check(folder) == []
  assert found.about["model"]["name"] == "linear" and found.about["threat"]["epsilon"] == EPSILON
  results = sprout_jax.results.read(workdir)
  number = results.numbers.first(evaluation="auto_attack", epsilon=EPSILON)
  np.testing.assert_array_equal(found.robust, number.outcomes)
  np.testing.assert_array_equal(found.indices, number.indices)
  details = results.stored["auto_attack"].details["specs"][0]
  assert workdir / details["bundle"] == folder


def test_the_model_of_the_bundle_passes(measured):
  subject = subjects.make()
  verdict = sprout_jax.verify(measured[1], PARTIAL)
  assert verdict.passed and verdict and verdict.problems == () and verdict.same_model
  robust = subjects.exact(subject, EPSILON) & subject.correct
  assert verdict.images == 40 and verdict.correct == 36
  assert verdict.confirmed == verdict.broken == 36 - robust.sum()
  assert verdict.accuracy == robust.mean()
  assert repr(verdict).startswith(f"<Verdict passed: {verdict.broken} of {verdict.broken} advers")


def test_another_model_does_not_pass(measured):
  """Its weights are a little different: some images change their class."""
  other = jax.tree_util.Partial(subjects.linear, subjects.other_kernel())
  verdict = sprout_jax.verify(measured[1], other)
  assert not verdict.passed and not verdict and not verdict.same_model
  assert verdict.confirmed < verdict.broken
  text = " ".join(verdict.problems)
  assert "clean images not as the bundle says" in text
  assert "adversarial images correctly; if these are few" in text
  assert "FAILED" in repr(verdict)
  wrong = verdict.broken - verdict.confirmed
  assert sprout_jax.verify(measured[1], other, allowed=wrong - 1).problems
  verdict = sprout_jax.verify(measured[1], lambda images: PARTIAL(images)[:, :2])
  assert "the model has 2 classes, but the bundle belongs to a model with 3" in verdict.problems[0]


def test_another_model_with_the_same_outcomes_is_said(measured):
  """Larger logits change no outcome, so the bundle holds for this model too."""
  verdict = sprout_jax.verify(measured[1], lambda images: 3 * PARTIAL(images))
  assert verdict.passed and verdict.same_model is False
  assert "another model than the bundle names" in repr(verdict)


@pytest.mark.parametrize(
  "arrays, about",
  [
    (lambda a: {"labels": a["labels"][1:]}, lambda d: None),
    (lambda a: {"images": a["images"][1:]}, lambda d: None),
    (lambda a: {"adversarial": a["adversarial"][:, 1:]}, lambda d: None),
    (lambda a: {"images": a["images"][:0]}, lambda d: None),
    (lambda a: {name: array[..., :0] for name, array in a.items()}, lambda d: None),
    (lambda a: {}, lambda d: d.pop("spec")),
    (lambda a: {}, lambda d: d.pop("threat")),
    (lambda a: {}, lambda d: d.pop("counts")),
    (lambda a: {}, lambda d: d["spec"].update(classes=4)),
    (lambda a: {}, lambda d: d["arrays"].update(labels=3)),
  ],
)
def test_a_bad_bundle_raises_no_error(measured, tmp_path, arrays, about):
  found = bundle.read(forged(measured[1], tmp_path, lambda arrays, adversarial: None))
  stored = {name: getattr(found, name) for name in bundle.TYPES}
  stored |= arrays(stored)
  described = json.loads(json.dumps(found.about))
  for name, array in stored.items():
    described["arrays"][name] |= {"shape": list(array.shape), "sha256": bundle._digest(array)}
  about(described)
  np.savez_compressed(tmp_path / bundle.ARRAYS, **stored)
  files.write_sealed(tmp_path / bundle.DESCRIPTION, described)
  verdict = sprout_jax.verify(tmp_path, PARTIAL)
  assert verdict.problems and not verdict.passed and verdict.accuracy == 1.0


SHARES = ("clean", "robust", "per_attack")


def forged(folder, target, change):
  """A copy of a bundle with other arrays, and all digests and counts made anew."""
  found = bundle.read(folder)
  arrays = {name: getattr(found, name).copy() for name in bundle.TYPES}
  adversarial = found.images.copy()
  adversarial[found.broken] = arrays.pop("adversarial")
  change(arrays, adversarial)
  return bundle.write(
    target,
    images=arrays["images"],
    labels=arrays["labels"],
    correct=arrays["correct"],
    robust=arrays["robust"],
    per_attack={"apgd-ce": arrays["robust"]},
    adversarial=adversarial,
    spec={key: value for key, value in found.about["spec"].items() if key not in SHARES},
    model=found.about["model"],
  )


def test_forged_bundles_pass_the_check_but_not_the_model(measured, tmp_path):
  """Whoever makes all digests anew cannot make the model misclassify a clean image."""
  broken = np.flatnonzero(bundle.read(measured[1]).broken)
  robust = np.flatnonzero(bundle.read(measured[1]).robust)

  def pixels(arrays, adversarial):
    adversarial[broken[0]] = arrays["images"][broken[0]]

  def label(arrays, adversarial):
    arrays["labels"][robust[0]] = (arrays["labels"][robust[0]] + 1) % 3

  def outcome(arrays, adversarial):
    arrays["robust"][robust[0]] = False

  for change, problem in (
    (pixels, "classifies 1 of"),
    (label, "1 of 40 clean images not as"),
    (outcome, "classifies 1 of"),
  ):
    folder = forged(measured[1], tmp_path / change.__name__, change)
    assert bundle.check(folder) == []
    verdict = sprout_jax.verify(folder, PARTIAL)
    assert problem in " ".join(verdict.problems) and not verdict.passed


@pytest.mark.parametrize("what", ["pixel", "label", "count"])
def test_one_changed_thing_does_not_pass(measured, tmp_path, what):
  folder = forged(measured[1], tmp_path, lambda arrays, adversarial: None)
  found = bundle.read(folder)
  arrays = {name: getattr(found, name).copy() for name in bundle.TYPES}
  about = dict(found.about)
  if what == "pixel":
    arrays["adversarial"][0, 3, 3, 0] += 1e-4
  if what == "label":
    arrays["labels"][3] = (arrays["labels"][3] + 1) % 3
  if what == "count":
    about["counts"] = about["counts"] | {"robust": about["counts"]["robust"] + 1}
  np.savez_compressed(folder / bundle.ARRAYS, **arrays)
  files.write_sealed(folder / bundle.DESCRIPTION, about)
  assert not sprout_jax.verify(folder, PARTIAL).passed


def test_what_cannot_be_read_does_not_pass(tmp_path):
  verdict = sprout_jax.verify(tmp_path, PARTIAL)
  assert not verdict.passed and "cannot be read" in verdict.problems[0]
  assert verdict.accuracy == 1.0 and verdict.same_model is None


def test_a_result_of_auto_attack_is_a_bundle(tmp_path):
  subject = subjects.make()
  result = attacks.auto_attack(
    jax.random.key(0), PARTIAL, subject.images, subject.labels, epsilon=EPSILON, version="apgd-ce"
  )
  np.testing.assert_array_equal(result.correct, subject.correct)
  np.testing.assert_array_equal(
    result.predicted, np.asarray(PARTIAL(result.images)).argmax(-1).astype(np.int32)
  )
  folder = bundle.write(
    tmp_path,
    images=subject.images,
    labels=subject.labels,
    correct=result.correct,
    robust=result.robust,
    per_attack=result.per_attack,
    adversarial=result.images,
    spec=result.spec,
  )
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    verdict = sprout_jax.verify(folder, PARTIAL)
  assert verdict.passed and verdict.same_model is None


def test_too_large_a_bundle_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr(bundle, "LARGEST", 100)
  subject = subjects.make(folder=tmp_path)
  found = subjects.measure("auto_attack", subject, auto_attack={"epsilons": ()})
  assert found.notes == ("At epsilon 0.01, no bundle was left in evidence: it would have 0 GiB.",)
  assert not list(tmp_path.iterdir())


def test_no_bundle_where_none_is_wanted(tmp_path):
  subject = subjects.make()
  evaluation.evaluate(
    PARTIAL,
    subject.images,
    subject.labels,
    workdir=tmp_path,
    evaluations=("auto_attack",),
    epsilon=EPSILON,
    auto_attack={"version": "apgd-ce", "bundle": False},
    progress=False,
  )
  assert not (tmp_path / "evidence").exists()
