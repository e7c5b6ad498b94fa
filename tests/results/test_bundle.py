"""Bundles: what is written passes; one changed pixel, label, outcome or count does not."""

import io
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.errors import UserError
from sprout_jax.results import bundle
from sprout_jax.results import files

COUNT, EPSILON = 6, 0.1
RNG = np.random.RandomState(0)
IMAGES = RNG.uniform(0.2, 0.8, (COUNT, 4, 4, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
CORRECT = np.array([True, True, True, True, True, False])
AFTER = {
  "apgd-ce": np.array([True, False, True, True, False, False]),
  "square": np.array([True, False, False, True, False, False]),
}
SPEC = {"norm": "linf", "epsilon": EPSILON, "version": ["apgd-ce", "square"], "classes": 3}


def outcomes_of(version):
  """Outcomes of a version's attacks, all of which come from its first attack."""
  return dict.fromkeys(bundle.VERSIONS[version], AFTER["square"])


def moved(norm="linf", size=EPSILON):
  """Images at a distance of their originals."""
  away = RNG.choice([-1.0, 1.0], IMAGES.shape).astype(np.float32)
  length = {"linf": 1, "l2": np.sqrt(16), "l1": 16}[norm]
  return (IMAGES + np.float32(size) * away / np.float32(length)).astype(np.float32)


def write(folder, **changes):
  """The bundle of six images, of which three broke."""
  given = dict(
    images=IMAGES,
    labels=LABELS,
    correct=CORRECT,
    robust=AFTER["square"],
    per_attack=AFTER,
    adversarial=moved(),
    spec=SPEC,
    indices=np.arange(10, 10 + COUNT),
    model={"name": "small", "sha256": "ab"},
  )
  return bundle.write(folder, **given | changes)


def rewrite(folder, arrays=None, about=None, redo=False):
  """Changes arrays and the description; with `redo` their digests are made anew."""
  found = bundle.read(folder)
  stored = {name: getattr(found, name).copy() for name in bundle.TYPES}
  stored |= arrays(stored) if arrays else {}
  described = json.loads(json.dumps(found.about))
  if redo:
    for name, array in stored.items():
      described["arrays"][name]["sha256"] = bundle._digest(array)
  if about:
    about(described)
  np.savez_compressed(folder / bundle.ARRAYS, **stored)
  files.write_sealed(folder / bundle.DESCRIPTION, described)


def test_what_is_written_is_read_and_passes(tmp_path):
  folder = write(tmp_path / "a" / "bundle")
  assert bundle.check(folder) == []
  found = bundle.read(folder)
  assert found.adversarial.dtype == np.float32 and found.adversarial.shape == (3, 4, 4, 1)
  np.testing.assert_array_equal(found.broken, [False, True, True, False, True, False])
  np.testing.assert_array_equal(found.images, IMAGES)
  assert found.about["counts"] == {
    "images": 6,
    "correct": 5,
    "robust": 2,
    "broken": 3,
    "after": {"apgd-ce": 3, "square": 2},
  }
  assert found.about["accuracy"]["robust"]["accuracy"] == 2 / 6
  assert repr(found) == f"<Bundle {folder}: linf epsilon 0.1, 33.3 % of 6 images robust>"
  assert sorted(path.name for path in folder.iterdir()) == [
    "arrays.npz",
    "bundle.json",
    "robustbench.json",
  ]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_ball_in_each_norm(tmp_path, norm):
  spec = SPEC | {"norm": norm}
  write(tmp_path / "in", spec=spec, adversarial=moved(norm))
  with pytest.raises(UserError, match=f"is not written.*in {norm} is larger than epsilon 0.1"):
    write(tmp_path / "out", spec=spec, adversarial=moved(norm, 1.001 * EPSILON))
  assert not (tmp_path / "out").exists()


def test_bytes_stay_bytes(tmp_path):
  images = (255 * IMAGES).astype(np.uint8)
  pixels = images.astype(np.float32) / np.float32(255)
  found = bundle.read(write(tmp_path, images=images, adversarial=pixels + np.float32(0.09)))
  assert found.images.dtype == np.uint8 and bundle.check(tmp_path) == []


def test_too_large_a_bundle_is_not_written(tmp_path, monkeypatch):
  """The images, of 4 bytes or 1, three adversarial images, and less than 32 bytes of outcomes."""
  least = 4 * 16 * (COUNT + 3) + COUNT * (4 + 8 + 1 + 1 + 2)
  assert least <= bundle.size(IMAGES, 3) <= least + 32 * COUNT
  bytes_ = (255 * IMAGES).astype(np.uint8)
  assert bundle.size(IMAGES, 3) - bundle.size(bytes_, 3) == 3 * 16 * COUNT
  monkeypatch.setattr(bundle, "LARGEST", bundle.size(IMAGES, 3) - 1)
  with pytest.raises(UserError, match="would have 0.0 GiB; the largest has 0 GiB: give fewer"):
    write(tmp_path / "bundle")
  assert not (tmp_path / "bundle").exists()


def changed(array, place, value):
  array[place] = value
  return array


# What was changed in the arrays, whether digests were made anew, and what is found.
CHANGES = {
  "a pixel": (
    lambda a: {"adversarial": changed(a["adversarial"], (0, 1, 1, 0), 0.5)},
    False,
    "the array 'adversarial' was changed",
  ),
  "a pixel beyond epsilon, with its digest": (
    lambda a: {"adversarial": changed(a["adversarial"], (0, 1, 1, 0), 1.0)},
    True,
    "is larger than epsilon 0.1",
  ),
  "a pixel that is not a number": (
    lambda a: {"adversarial": changed(a["adversarial"], (0, 1, 1, 0), np.nan)},
    True,
    "a perturbation of inf",
  ),
  "a clean pixel": (
    lambda a: {"images": changed(a["images"], (5, 1, 1, 0), 0.5)},
    True,
    "the digest of the test images does not match",
  ),
  "a label": (lambda a: {"labels": changed(a["labels"], 0, 1)}, False, "'labels' was changed"),
  "a label, with its digest": (
    lambda a: {"labels": changed(a["labels"], 0, 1)},
    True,
    "the digest of the test images does not match",
  ),
  "a label that is no class": (
    lambda a: {"labels": changed(a["labels"], 0, 3)},
    True,
    "labels range from 0 to 3",
  ),
  "an outcome": (
    lambda a: {"correct": changed(a["correct"], 5, True)},
    True,
    "but 4 images are broken",
  ),
  "an outcome before the last attack": (
    lambda a: {"after": changed(a["after"], (0, 3), False)},
    True,
    "robust after an attack, but not before it",
  ),
  "an outcome of the last attack": (
    lambda a: {"after": changed(a["after"], (1, 3), False)},
    True,
    "are not the worst case",
  ),
  "an index": (lambda a: {"indices": changed(a["indices"], 0, 11)}, True, "there twice"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_found(tmp_path, change):
  write(tmp_path)
  arrays, redo, message = CHANGES[change]
  rewrite(tmp_path, arrays, redo=redo)
  assert message in " ".join(bundle.check(tmp_path))


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda d: d["counts"].update(robust=3), "the counts are .*'robust': 3.* give .*'robust': 2"),
    (lambda d: d["counts"]["after"].update(square=3), "the counts are"),
    (lambda d: d["accuracy"]["robust"].update(accuracy=0.5), "the robust accuracy is"),
    (lambda d: d["accuracy"]["clean"].update(count=7), "the clean accuracy is"),
    (lambda d: d["threat"].update(epsilon=0.05), "is larger than epsilon 0.05"),
    (lambda d: d["threat"].update(epsilon=0.2), "epsilon 0.1, but the bundle gives 0.2"),
    (lambda d: d["threat"].update(norm="l7"), "wrong ones: threat"),
    (lambda d: d.pop("threat"), "wrong ones: threat"),
    (lambda d: d.update(attacks="square"), "wrong ones: attacks"),
    (lambda d: d["attacks"].__setitem__(0, "fab"), r"\['fab', 'square'\]"),
    (lambda d: d["counts"].pop("images"), "wrong ones: counts"),
    (lambda d: d["accuracy"].pop("clean"), "wrong ones: accuracy"),
    (lambda d: d["accuracy"].update(robust=0.3), "wrong ones: accuracy"),
    (lambda d: d["spec"].update(epsilon=0.2), "epsilon 0.2, but the bundle gives 0.1"),
    (lambda d: d["spec"].pop("norm"), "norm None, but the bundle gives linf"),
    (lambda d: d["spec"].update(classes="3"), "wrong ones: spec"),
    (lambda d: d["spec"].update(version="standard"), "version 'standard'.* are those of"),
    (lambda d: d["spec"].update(version="square"), "version 'square'.* are those of"),
    (lambda d: d["spec"].update(attacks={"square": {}}), "are those of"),
    (lambda d: d["spec"].update(attacks=2), "attacks 2, but the outcomes"),
    (lambda d: d["spec"].update(examples=7), "examples 7, but the bundle gives 6"),
    (lambda d: d["spec"].update(robust={"accuracy": 1.0}), "robust {'accuracy': 1.0}, but"),
    (lambda d: d["spec"].update(clean=None), "clean None, but"),
    (lambda d: d["spec"].update(per_attack={}), "per_attack {}, but"),
    (lambda d: d["spec"].update(largest_perturbation=0.09), "largest_perturbation 0.09, but"),
    (lambda d: d["attacks"].append("fab"), "outcomes after attacks have shape"),
    (lambda d: d.update(kind="another"), "kind 'another'; expected 1"),
    (lambda d: d.update(format=2), "has format 2"),
    (lambda d: d["arrays"]["labels"].update(dtype="object"), "labels is object"),
    (lambda d: d["arrays"]["images"].update(shape=[10**6] * 4), "more than 8 GiB"),
    (lambda d: d["arrays"]["images"].update(shape=[5, 4, 4, 1]), r"shape \(6, 4, 4, 1\); bundle"),
    (lambda d: d["arrays"].pop("robust"), "lists the arrays"),
  ],
)
def test_a_changed_description_is_found(tmp_path, change, message):
  write(tmp_path)
  rewrite(tmp_path, about=change)
  (found, *_) = bundle.check(tmp_path)
  assert re.search(message, found), found


def test_intervals_of_other_libraries_pass(tmp_path):
  """Their formulas differ in the last digit."""
  write(tmp_path)

  def nudge(about):
    for share in about["accuracy"].values():
      share["interval"] = [float(np.nextafter(limit, 1)) for limit in share["interval"]]

  rewrite(tmp_path, about=nudge)
  assert bundle.check(tmp_path) == []


def test_robustbench_s_file_is_checked(tmp_path):
  write(tmp_path)
  path = tmp_path / bundle.ROBUSTBENCH
  good = json.loads(path.read_text())
  path.write_text(json.dumps(good | {"authors": "A. Author", "reported": "50.00"}))
  assert bundle.check(tmp_path) == []
  for key, value in (("clean_acc", "99.00"), ("autoattack_acc", "33.33"), ("eps", "8/255")):
    path.write_text(json.dumps(good | {key: value}))
    (found,) = bundle.check(tmp_path)
    assert f"{key} is {value!r}" in found
  path.unlink()
  assert "robustbench.json cannot be read" in bundle.check(tmp_path)[0]


def test_the_versions_are_those_of_the_attacks():
  assert bundle.VERSIONS == attacks.VERSIONS
  assert set(attacks.ATTACKS) == {name for names in bundle.VERSIONS.values() for name in names}
  assert set(bundle.NORMS) == set(attacks.NORMS)


def test_a_description_without_its_digest_is_found(tmp_path):
  write(tmp_path)
  path = tmp_path / bundle.DESCRIPTION
  path.write_text(path.read_text().replace('"robust": 2', '"robust": 3'))
  assert "was changed after it was written" in bundle.check(tmp_path)[0]
  path.unlink()
  assert "cannot be read" in bundle.check(tmp_path)[0]


def with_members(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    for name, content in members.items():
      file.writestr(name, content)


def npy(array, **options):
  raw = io.BytesIO()
  np.lib.format.write_array(raw, array, **options)
  return raw.getvalue()


class Evil:
  def __reduce__(self):
    return print, ("executed",)


def test_files_of_others_are_not_trusted(tmp_path, capsys):
  """No pickle is loaded, nothing large is unpacked, foreign bytes are named."""
  write(tmp_path)
  path = tmp_path / bundle.ARRAYS
  with np.load(path) as stored:
    good = {f"{name}.npy": npy(stored[name]) for name in stored.files}
  evil = npy(np.array([Evil()] * 6, object), allow_pickle=True)
  for members, message in (
    (good | {"labels.npy": evil}, "Object arrays cannot be loaded"),
    (good | {"labels.npy": npy(np.zeros(10**6, np.int32))}, "larger than its type and shape say"),
    (good | {"more.npy": npy(np.zeros(3))}, "expected one file for each array"),
    ({"labels.npy": b"x"}, "expected one file for each array"),
  ):
    with_members(path, members)
    (found,) = bundle.check(tmp_path)
    assert message in found
  path.write_bytes(b"no archive")
  assert "cannot be read as the arrays of a bundle" in bundle.check(tmp_path)[0]
  path.unlink()
  assert "cannot be read" in bundle.check(tmp_path)[0]
  assert "executed" not in capsys.readouterr().out


def test_robustbench_s_layout(tmp_path):
  """The keys of model_info/cifar10/Linf/Wang2023Better_WRN-28-10.json there."""
  pixels = IMAGES + np.float32(8 / 255)
  for epsilon, text in ((8 / 255, "8/255"), (0.05, "0.05")):
    spec = SPEC | {"epsilon": epsilon, "version": "standard"}
    write(tmp_path, spec=spec, adversarial=pixels, per_attack=outcomes_of("standard"))
    found = json.loads((tmp_path / bundle.ROBUSTBENCH).read_text())
    assert found["eps"] == text
  assert found.keys() >= {"link", "name", "authors", "additional_data", "number_forward_passes"}
  assert found.keys() >= {"dataset", "venue", "architecture", "footnote", "unreliable"}
  assert (found["clean_acc"], found["autoattack_acc"], found["reported"]) == (
    "83.33",
    "33.33",
    "33.33",
  )
  write(tmp_path, spec=SPEC | {"version": "plus"}, per_attack=outcomes_of("plus"))
  assert json.loads((tmp_path / bundle.ROBUSTBENCH).read_text())["autoattack_acc"] is None


def test_the_check_from_a_terminal(tmp_path, capsys):
  good, bad = write(tmp_path / "good"), write(tmp_path / "bad")
  rewrite(bad, CHANGES["a label"][0])
  assert bundle.main([str(good)]) == 0
  assert "no problem found; the model was not asked" in capsys.readouterr().out
  assert bundle.main([str(good), str(bad)]) == 1
  assert "bad: the array 'labels' was changed" in capsys.readouterr().out
  assert bundle.main([]) == 2


def test_the_check_needs_numpy_only(tmp_path):
  """As `python -m sprout_jax.results.bundle FOLDER` runs it."""
  code = """
import runpy, sys
try:
  runpy.run_module("sprout_jax.results.bundle", run_name="__main__", alter_sys=True)
except SystemExit as end:
  assert end.code == 0
assert "jax" not in sys.modules and "scipy" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code, write(tmp_path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
