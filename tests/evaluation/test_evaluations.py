"""EVALUATIONS: one contract for all rows, on a linear model; and what its answers must be."""

import base64
import dataclasses
import io
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from sprout_jax.errors import UserError
from sprout_jax.evaluation import changed
from sprout_jax.evaluation import session
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.results import summary
from sprout_jax.results.numbers import KEYS
from sprout_jax.results.numbers import encode
from sprout_jax.results.store import Store
from sprout_jax.results.store import Stored
from tests.evaluation import subjects
from tests.evaluation.subjects import EPSILON

UNITS = {"share", "nats", "pixels", "images", ""}


# What all must do.


@pytest.mark.parametrize("name", EVALUATIONS)
def test_contract(results, name):
  stored = results[name]
  assert stored.name == name and stored.version == EVALUATIONS[name].version >= 1
  assert EVALUATIONS[name].title and EVALUATIONS[name].function.__doc__
  for number in stored.numbers:
    assert number.evaluation == name and number.metric and number.unit in UNITS
    assert all(type(value) is KEYS[key][0] for key, value in number.keys.items())
    assert number.value is None or (type(number.value) in (int, float) and number.count >= 1)
    assert number.value is None or number.unit != "share" or 0 <= number.value <= 1
    if number.outcomes is not None:
      assert number.outcomes.dtype == bool and number.value == number.outcomes.mean()
      assert number.count == len(number.outcomes) == len(set(number.indices.tolist()))
      assert set(number.indices.tolist()) <= set(range(40))
      assert number.interval[0] <= number.value <= number.interval[1]
  # A number is known by its keys: no two have the same.
  known = {(number.metric, *sorted(number.keys.items())) for number in stored.numbers}
  assert len(known) == len(stored.numbers)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_is_stored_comes_back(results, name):
  text = json.dumps(results[name].to_json(), allow_nan=False)
  back = Stored.from_json(json.loads(text))
  assert json.dumps(back.to_json(), allow_nan=False) == text
  for field in dataclasses.fields(Stored):
    if field.name != "numbers":
      assert getattr(back, field.name) == getattr(results[name], field.name), field.name
  for number, other in zip(results[name].numbers, back.numbers, strict=True):
    fields = "evaluation", "metric", "value", "unit", "count", "interval", "keys"
    assert all(getattr(number, field) == getattr(other, field) for field in fields)
    np.testing.assert_array_equal(number.outcomes, other.outcomes)
    np.testing.assert_array_equal(number.indices, other.indices)


@pytest.mark.parametrize(
  "name", sorted(EVALUATIONS.keys() - {"calibration", "gradients", "examples"})
)
def test_killed_before_its_last_piece_and_continued(results, tmp_path, name):
  """It measures that piece alone, and finds what it finds at once; then nothing is left to do."""
  expected = results[name]
  *kept, last = results.pieces[name].read_text().splitlines(keepends=True)
  folder = tmp_path / "evaluation"
  folder.mkdir()
  partial = folder / results.pieces[name].name
  partial.write_text("".join(kept) + last[: len(last) // 2])  # in the middle of a write
  row, chosen = EVALUATIONS[name], table.choose(name, subjects.settings())
  subject, computed = subjects.make(find_source=subjects.source), []

  def measure(memo):
    def counting(piece, compute):
      return memo(piece, lambda: [computed.append(piece), compute()][1])

    counting.folder = memo.folder
    return row.function(subject.start(counting), **chosen)

  store = Store(tmp_path, ["the linear subject"], {})
  found = store.fetch(name, row.version, chosen, measure)
  assert computed == [json.loads(last)["piece"]] and not partial.exists()
  assert found.seconds >= sum(json.loads(line)["seconds"] for line in kept)
  assert encode(found.numbers) == encode(expected.numbers) and found.notes == expected.notes
  assert without_seconds(found.details) == without_seconds(expected.details)
  again = store.fetch(name, row.version, chosen, lambda memo: pytest.fail("measured again"))
  assert again.to_json() == found.to_json()


def without_seconds(details):
  """AutoAttack's details say what it took."""
  if isinstance(details, dict):
    return {key: without_seconds(value) for key, value in details.items() if key != "seconds"}
  return [without_seconds(value) for value in details] if isinstance(details, list) else details


def test_an_evaluation_without_pieces_is_quick(results):
  """Those that are left out above keep none."""
  for name in EVALUATIONS:
    assert results[name].name == name
  assert results.pieces.keys() == EVALUATIONS.keys() - {"calibration", "gradients", "examples"}


# What each must find on a linear model.


@pytest.mark.parametrize("name, attack", [("pgd", "pgd"), ("auto_attack", "auto_attack")])
def test_attacks_find_the_closed_form(results, name, attack):
  """x is robust iff the label's lead over each other class exceeds epsilon |w_y - w_k|_1."""
  subject = subjects.make()
  for epsilon in (EPSILON, 0.012):
    number = results[name].numbers.first(attack=attack, epsilon=epsilon, stage=None)
    np.testing.assert_array_equal(number.outcomes, subjects.exact(subject, epsilon))
    np.testing.assert_array_equal(number.indices, np.arange(40))
    assert 0.1 < number.value < 0.9  # so that it says something


def test_pgd_s_curve_starts_at_the_clean_accuracy(results):
  numbers = results["pgd"].numbers
  assert numbers.values("epsilon") == [0.0, EPSILON, 0.012] and len(numbers) == 3
  assert numbers.first(epsilon=0.0).value == 0.9
  expected = dict(attack="pgd", norm="linf", steps=40, step_size=0.01, restarts=5, seed=0)
  assert all(n.matches(loss="cross_entropy", **expected) for n in numbers)


def test_auto_attack_says_what_ran(results):
  numbers, spec = results["auto_attack"].numbers, results["auto_attack"].details["specs"][0]
  assert [n["epsilon"] for n in numbers] == [EPSILON, 0.012]
  assert all(n.matches(version="apgd-ce", steps=100, restarts=1, seed=0) for n in numbers)
  assert spec["epsilon"] == EPSILON and spec["spec"]["examples"] == 40


def fake(robust, per_attack, spec):
  """A result of AutoAttack."""
  more = dict(correct=np.ones(40, bool), predicted=np.zeros(40, int))
  return types.SimpleNamespace(robust=robust, per_attack=per_attack, spec=spec, **more)


@pytest.mark.parametrize(
  "version, entry, keys",
  [
    ("apgd-t", {"steps": 100, "runs": 9, "targeted": True}, {"steps": 100, "restarts": None}),
    ("fab", {"steps": 100, "runs": 1, "targeted": False}, {"steps": 100, "restarts": 1}),
    ("square", {"steps": 5000, "runs": 1}, {"steps": None, "restarts": None}),
  ],
)
def test_targets_and_queries_are_not_called_restarts_and_steps(monkeypatch, version, entry, keys):
  right = np.arange(40) < 20
  spec = {"attacks": {version: entry}, "notes": [], "not_misclassified_again": 0, "not_finite": 0}
  result = fake(right, {version: right}, spec)
  monkeypatch.setattr("sprout_jax.attacks.auto_attack", lambda *args, **kwargs: result)
  found = subjects.measure("auto_attack", subjects.make(), auto_attack={"version": version})
  assert len(found.numbers) == 2 and all(n.matches(**keys) for n in found.numbers)


def test_auto_attack_continues_within_an_attack(results, tmp_path, monkeypatch):
  """Its state outlives a kill between two pieces: with it there is nothing left to attack."""

  def memo(piece, compute):
    return compute()

  memo.folder = tmp_path / "auto_attack"
  run = lambda: subjects.measure(
    "auto_attack", subjects.make(memo=memo), auto_attack={"epsilons": ()}
  )
  first = run()
  assert [path.name for path in memo.folder.iterdir()] == [f"epsilon-{EPSILON!r}.npz"]
  monkeypatch.setattr(
    "sprout_jax.attacks.slots.attack_examples", lambda *args: pytest.fail("attacked again")
  )
  (number,) = run().numbers
  np.testing.assert_array_equal(number.outcomes, first.numbers.first().outcomes)


@pytest.mark.parametrize("damage", ["damaged", "another call"])
def test_auto_attack_begins_anew_where_its_state_cannot_be_used(results, tmp_path, damage):
  def memo(piece, compute):
    return compute()

  memo.folder = tmp_path / "auto_attack"
  run = lambda **changes: subjects.measure(
    "auto_attack", subjects.make(memo=memo), auto_attack={"epsilons": ()}, **changes
  )
  first = run(**({} if damage == "damaged" else {"seed": 1}))
  path = memo.folder / f"epsilon-{EPSILON!r}.npz"
  content = path.read_bytes()
  if damage == "damaged":
    content = content[: len(content) // 2]
    path.write_bytes(content)
  with pytest.warns(UserWarning, match=rf"{path.name}.damaged; the attack starts again"):
    found = run()
  assert path.with_name(path.name + ".damaged").read_bytes() == content
  expected = results["auto_attack"].numbers.first(epsilon=EPSILON).outcomes
  np.testing.assert_array_equal(found.numbers.first().outcomes, expected)
  run()  # without a warning: the new state is whole
  assert len(first.numbers) == 1


def test_auto_attack_does_not_depend_on_the_caller_s_precision(tmp_path):
  """The state of a call in another context continues."""

  def memo(piece, compute):
    return compute()

  memo.folder = tmp_path / "auto_attack"
  for precision in ("bfloat16", "highest"):
    with jax.default_matmul_precision(precision):
      found = subjects.measure(
        "auto_attack", subjects.make(memo=memo), auto_attack={"epsilons": ()}
      )
    assert found.details["specs"][0]["spec"]["matmul_precision"] == "highest"


def test_auto_attack_of_several_attacks_has_a_number_after_each(monkeypatch):
  """The last is the worst case; remarks become notes."""
  right = {"apgd-ce": np.arange(40) < 30, "square": np.arange(40) < 20}
  spec = {
    "attacks": {
      "apgd-ce": {"steps": 100, "runs": 5, "targeted": False},
      "square": {"steps": 5000, "runs": 1},
    },
    "notes": ["few classes"],
  }
  spec |= {"not_misclassified_again": 2, "not_finite": 0}
  result = fake(right["square"], right, spec)
  monkeypatch.setattr("sprout_jax.attacks.auto_attack", lambda *args, **kwargs: result)
  found = subjects.measure("auto_attack", subjects.make(), auto_attack={"version": "plus"})
  at = [(n["epsilon"], n["stage"], n.value) for n in found.numbers]
  assert at[:3] == [(EPSILON, "apgd-ce", 0.75), (EPSILON, "square", 0.5), (EPSILON, None, 0.5)]
  assert len(at) == 6 and found.numbers.first().matches(steps=100, restarts=5, version="plus")
  later = list(found.numbers)[1:3]  # after Square, and the worst of all attacks
  assert all(n.matches(steps=None, restarts=None, version="plus") for n in later)
  assert found.notes[0] == "few classes" and found.notes[1].startswith(
    "At epsilon 0.01, 2 adversarial"
  )
  assert len(found.notes) == 3  # each once


def test_more_steps_and_restarts_break_more(results):
  numbers = results["strength"].numbers
  assert numbers.values("loss") == ["cross_entropy", "margin", "dlr"] and len(numbers) == 12
  subject = subjects.make()
  for loss in numbers.values("loss"):
    by = {(n["steps"], n["restarts"]): n.outcomes for n in numbers.where(loss=loss)}
    assert by.keys() == {(1, 1), (4, 1), (1, 2), (4, 2)}
    for weaker, stronger in [((1, 1), (4, 1)), ((1, 1), (1, 2)), ((4, 1), (4, 2))]:
      assert not (by[stronger] & ~by[weaker]).any()
    assert by[4, 1].sum() < by[1, 1].sum()
    if loss != "dlr":  # on DLR PGD may follow the class that is harder to reach
      np.testing.assert_array_equal(by[4, 2], subjects.exact(subject, EPSILON))
    curve = results["strength"].details["best_loss"][loss]
    assert len(curve) == 5 and curve == sorted(curve) and curve[0] < curve[-1]


def test_strength_is_that_of_runs_of_their_own(results):
  """One run of 4 steps and 2 restarts tells what PGD of 1 step finds."""
  subject = subjects.make()
  (_, number, _) = subjects.measure("pgd", subject, num_steps=1, num_restarts=2).numbers
  found = results["strength"].numbers.first(loss="cross_entropy", steps=1, restarts=2)
  np.testing.assert_array_equal(found.outcomes, number.outcomes)


def test_of_two_classes_there_is_no_dlr():
  subject, _, _ = subjects.two_classes()
  found = subjects.measure("strength", subject, strength=dict(steps=(2,), restarts=(1,)))
  assert found.numbers.values("loss") == ["cross_entropy", "margin"]
  assert found.notes == (
    "PGD with the DLR loss was not measured: it needs 3 classes, there are 2.",
  )


def test_noise_is_weaker_than_attacks_and_at_radius_0_nothing(results):
  noise, pgd = results["noise"].numbers, results["pgd"].numbers
  assert noise.first(epsilon=0.0).value == 0.9
  assert noise.first(epsilon=EPSILON).value > pgd.first(epsilon=EPSILON).value
  assert all(n.matches(attack="noise", norm="linf", draws=5, seed=0) for n in noise)


def test_more_draws_of_noise_find_more():
  one, many = (
    subjects.measure("noise", subjects.make(), epsilon=0.1, epsilons=(), noise={"num_draws": draws})
    for draws in (1, 200)
  )
  assert many.numbers.first().value < one.numbers.first().value - 0.05


def test_transfer_is_the_source_s_attack_on_this_model(results):
  """A linear source's adversarial image is x - epsilon sign(w_y - w_k): try it by hand."""
  own, other = results["transfer"].numbers
  assert own["source"] is None and other["source"] == "another there (abcdef012345)"
  subject, kernel = subjects.make(), subjects.other_kernel()
  np.testing.assert_array_equal(own.outcomes, subjects.exact(subject, EPSILON))
  assert own.value < other.value < 0.9
  robust = subject.correct.copy()
  for row in np.flatnonzero(robust):
    image, label = subject.images[row].ravel(), subject.labels[row]
    # What the attack keeps: misclassified by the source if it can be, else of the highest loss.
    moved = [
      image - EPSILON * np.sign(kernel[:, label] - kernel[:, k]) for k in range(3) if k != label
    ]
    leads = [
      np.delete((x - 0.5) @ kernel, label).max() - ((x - 0.5) @ kernel)[label] for x in moved
    ]
    robust[row] = ((moved[np.argmax(leads)] - 0.5) @ subjects.kernel()).argmax() == label
  # Of two wrong classes PGD may prefer the other.
  assert np.sum(robust != other.outcomes) <= 2 and (robust != own.outcomes).any()


def test_transformed_images(results):
  subject, found = subjects.make(), results["invariance"]
  at = lambda name, strength: found.numbers.first(transformation=name, strength=strength)
  assert at("rotation", 0.0).value == at("brightness", 1.0).value == 0.9
  logits = (np.clip(1.5 * subject.images, 0, 1) - 0.5).reshape(40, -1) @ subjects.kernel()
  np.testing.assert_array_equal(at("brightness", 1.5).outcomes, logits.argmax(-1) == subject.labels)
  for name, row in found.details["transformations"].items():
    strengths = [n["strength"] for n in found.numbers.where(transformation=name)]
    assert strengths == sorted(strengths) and row["identity"] in strengths
    assert set(row["named"].values()) <= set(strengths)
  assert found.details["transformations"]["rotation"]["named"] == {"rotation by 10 degrees": 10.0}


def test_corruptions_and_their_means(results):
  numbers = results["corruptions"].numbers
  each = numbers.where(metric="accuracy")
  assert each.values("corruption") == ["gaussian_noise", "contrast"]
  shares = np.array([n.value for n in each]).reshape(2, 5)
  assert [n["severity"] for n in each] == 2 * [1, 2, 3, 4, 5]
  means = numbers.where(metric="mean_accuracy")
  np.testing.assert_allclose(means.first(severity=None).value, shares.mean())
  np.testing.assert_allclose([n.value for n in means if n["severity"]], shares.mean(0))
  assert shares[0, 0] > shares[0, 4]  # more noise
  assert all(n.matches(origin="computed", seed=0) and n.count == 40 for n in numbers)


def test_the_order_of_corruptions_and_transformations_does_not_matter(results):
  """Their random numbers hang on their names."""
  subject = subjects.make()
  turned = subjects.measure(
    "corruptions", subject, corruptions={"corruptions": ("contrast", "gaussian_noise")}
  )
  assert turned.numbers.values("corruption") == ["contrast", "gaussian_noise"]
  alone = subjects.measure("corruptions", subject, corruptions={"corruptions": ("gaussian_noise",)})
  for some in (turned, alone):
    for number in some.numbers.where(metric="accuracy"):
      expected = results["corruptions"].numbers.first(**number.keys)
      np.testing.assert_array_equal(number.outcomes, expected.outcomes)


def test_the_order_of_the_tables_does_not_matter(results, monkeypatch):
  """Neither that of the evaluations nor those of the transformations, corruptions and losses."""
  from sprout_jax import attacks
  from sprout_jax.evaluation import transformations

  tables = (EVALUATIONS, changed.CORRUPTIONS, transformations.TRANSFORMATIONS, attacks.LOSSES)
  for rows in tables:
    turned = dict(reversed(rows.items()))
    for name in turned:
      monkeypatch.delitem(rows, name)
    for name, row in turned.items():
      monkeypatch.setitem(rows, name, row)
    assert list(rows) == list(turned)
  for name in ("noise", "corruptions", "invariance"):
    found = subjects.measure(name, subjects.make())
    for number, expected in zip(found.numbers, results[name].numbers, strict=True):
      assert number.keys == expected.keys and number.value == expected.value
      np.testing.assert_array_equal(number.outcomes, expected.outcomes)


def test_corrupted_images_that_are_prepared():
  """Of another order than the test set: counted on their own labels; as many as were asked for."""
  whole, asked = subjects.make(), []

  def find_corrupted(name, severity):
    asked.append((name, severity))
    order = np.random.RandomState(severity).permutation(40)
    images = whole.images if severity < 5 else np.full_like(whole.images, 0.5)
    return images[order], whole.labels[order]

  def evaluate(find, **options):
    section = dict(origin="tfds", corruptions=("fog",)) | options
    return subjects.measure("corruptions", subjects.make(find_corrupted=find), corruptions=section)

  each = evaluate(find_corrupted).numbers.where(metric="accuracy")
  assert asked == [("fog", severity) for severity in (1, 2, 3, 4, 5)]
  assert [n.value for n in each][:4] == 4 * [0.9]
  assert each.first(severity=5).value == np.mean(whole.labels == 0)  # all logits are equal
  assert all(n["origin"] == "tfds" and n["seed"] is None for n in each)
  # Positions in the prepared set are none in the test set.
  assert all(n.indices is None and n.outcomes is None and n.interval for n in each)
  assert {n.count for n in evaluate(find_corrupted, num_examples=10).numbers} == {10}
  wrong = np.zeros((40, 9, 9, 1), np.float32), whole.labels
  with pytest.raises(UserError, match="origin=computed"):
    evaluate(lambda name, severity: wrong)
  with pytest.raises(UserError, match="there is no prepared set"):
    evaluate(None)


def test_another_prepared_set_is_another_measurement(tmp_path):
  """And the same is not: its digest decides. It is loaded once for it."""
  whole, asked = subjects.make(), []

  def measure(shift):
    def find_corrupted(name, severity):
      asked.append(severity)
      return np.clip(whole.images + np.float32(shift), 0, 1), whole.labels

    results, *_ = session.measure(
      subjects.make(find_corrupted=find_corrupted),
      ("corruptions", "calibration"),
      subjects.settings(corruptions=dict(origin="tfds", corruptions=("fog",))),
      workdir=tmp_path,
      identity="same",
      about=dict.fromkeys(summary.ABOUT),
      say=lambda text: None,
    )
    return results.numbers.first(evaluation="corruptions", metric="mean_accuracy").value

  assert measure(0.0) == 0.9 and len(asked) == 10  # for the digests, and to measure
  assert measure(0.5) < 0.9
  asked.clear()
  assert measure(0.0) == 0.9 and len(asked) == 5
  assert len(list((tmp_path / "evaluation").glob("corruptions-*.json"))) == 2


def test_colours_of_images_without_colours_are_left_out():
  """A note names them; the rest is measured."""
  images = np.random.RandomState(0).uniform(size=(8, 8, 8, 4)).astype(np.float32)
  predict = lambda images: images.reshape(len(images), -1)[:, :3]
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  subject = Subject(subject_lib.as_pytree(predict), images, labels, shows_progress=False)
  names = ("rotation", "contrast", "grayscale", "saturation", "brightness")
  found = subjects.measure("invariance", subject, invariance=dict(transformations=names))
  assert found.numbers.values("transformation") == ["rotation", "brightness"]
  assert found.details["transformations"].keys() == {"rotation", "brightness"}
  (note,) = found.notes
  assert note.startswith("Images have 4 channels") and "contrast, grayscale, saturation." in note
  with pytest.raises(UserError, match="invariance: images have 4 channels.* name others"):
    subjects.measure("invariance", subject, invariance=dict(transformations=("contrast",)))
  assert subjects.measure("invariance", subjects.make()).notes == ()


def test_an_image_is_certified_alike_whichever_others_are_chosen(results):
  """Its draws are those of its place in the test set. (The formulas: test_smoothing.py.)"""
  subject = subjects.make()
  whole = subjects.measure("smoothing", subject, smoothing={"num_examples": 0})
  rows = subject.select(20).indices
  assert sorted(rows) != list(range(20))
  for name in ("radii", "predictions"):
    expected = [whole.details[name][row] for row in rows]
    assert results["smoothing"].details[name] == expected


def test_smoothing_agrees_with_the_model_where_it_is_sure(results):
  found, subject = results["smoothing"], subjects.make()
  rows = subject.select(20).indices
  right = [p == subject.labels[row] for p, row in zip(found.details["predictions"], rows)]
  np.testing.assert_array_equal(found.numbers.first(metric="smoothed_accuracy").outcomes, right)
  agree = [
    p == subject.logits[row].argmax()
    for p, row in zip(found.details["predictions"], rows)
    if p is not None
  ]
  assert np.mean(agree) > 0.9 and len(agree) > 10


def test_calibration_is_that_of_the_logits(results):
  """(By hand: test_calibration.py.)"""
  numbers, subject = results["calibration"].numbers, subjects.make()
  z = subject.logits.astype(float)
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  nll = -log_p[np.arange(40), subject.labels].mean()
  np.testing.assert_allclose(numbers.first(metric="negative_log_likelihood").value, nll)
  np.testing.assert_allclose(
    numbers.first(metric="mean_confidence").value, np.exp(log_p).max(-1).mean()
  )
  assert numbers.first(metric="accuracy").value == 0.9 and numbers.values("bins") == [15]
  assert sum(b["count"] for b in results["calibration"].details["bins"]) == 40


def test_landscape_rises_along_the_sign_of_the_gradient(results):
  found = results["landscape"]
  surface = np.array(found.details["loss"])
  assert surface.shape == (5, 5) and found.numbers.first().value == surface.max()
  assert surface[4].mean() > surface[2].mean() > surface[0].mean()
  assert found.details["sign_gradient"][0] == -np.float32(EPSILON)
  assert found.numbers.first().count == 40  # fewer than the 64 that it would take


def test_landscape_of_an_l2_model_stays_in_the_ball():
  found = subjects.measure("landscape", subjects.make(), norm="l2", epsilon=0.8)
  np.testing.assert_allclose(found.details["sign_gradient"][-1], 0.8 / 8, rtol=1e-6)  # 64 values


def test_examples_show_the_perturbation(results):
  details, subject = results["examples"].details, subjects.make()
  assert details["attack"] == "PGD-40, linf, cross_entropy, steps of 0.01, one random start"
  assert [one["index"] for one in details["examples"]] == subject.select(3).indices.tolist()
  exact, correct = subjects.exact(subject, EPSILON), subject.correct
  for one in details["examples"]:
    row = one["index"]
    assert one["label"] == subject.labels[row] and one["predicted"] == subject.logits[row].argmax()
    assert one["broken"] == (correct[row] and not exact[row])
    p = np.exp(subject.logits[row].astype(float))
    np.testing.assert_allclose(one["confidence"], p.max() / p.sum(), rtol=1e-5)
    image, adversarial, change = (
      np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(one[key])))).astype(float)
      for key in ("image", "adversarial", "perturbation")
    )
    np.testing.assert_array_equal(image, np.round(255 * subject.images[row, ..., 0]))
    assert np.abs(adversarial - image).max() <= round(255 * EPSILON) + 1
    if one["broken"]:  # every pixel was moved by epsilon
      assert set(np.unique(change)) == {0, 255}
      np.testing.assert_array_equal(change == 255, adversarial > image)


def test_examples_are_broken_where_pgd_says_so():
  """Outputs that are not numbers are wrong, whatever their largest entry is."""
  subject = subjects.make(weights={"offset": np.float32(0)})
  first = np.float32(0.3) * (subject.images[:, :1, :1] > 0.5)  # black or not
  images = subject.images.copy()
  images[:, :1, :1] = first
  known = jnp.asarray(images)

  def predict(images):
    """Not a number where an image is none of those."""
    moved = jnp.abs(images[:, None] - known[None]).max((2, 3, 4)).min(1) > 1e-6
    logits = subjects.linear(subjects.kernel(), images)
    return jnp.where(moved[:, None], jnp.nan, logits)

  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  subject = Subject(subject_lib.as_pytree(predict), images, labels, shows_progress=False)
  options = dict(num_steps=1, num_restarts=1, epsilons=())
  found = subjects.measure("examples", subject, examples=dict(num_examples=40), **options)
  assert all(one["broken"] for one in found.details["examples"])
  assert subjects.measure("pgd", subject, **options).numbers.first(epsilon=EPSILON).value == 0


def test_sanity_compares_attacks_at_one_radius(results):
  """The closed form for those that reach it, and the large radius by itself."""
  found, subject = results["sanity"].numbers, subjects.make()
  exact = subjects.exact(subject, EPSILON)
  by = {(n["attack"], n["steps"], n["restarts"]): n for n in found.where(metric="accuracy")}
  assert by.keys() == {
    ("noise", None, None),
    ("fgsm", None, None),
    ("pgd", 40, 5),
    ("apgd-ce + apgd-dlr", 100, 5),
    ("pgd", 80, 5),
    ("pgd", 40, 10),
  }
  for key, number in by.items():
    if key[0] != "noise":
      np.testing.assert_array_equal(number.outcomes, exact)
  assert exact.mean() < by["noise", None, None].value <= 0.9
  assert by["noise", None, None]["draws"] == 100
  large = found.first(metric="accuracy_at_large_radius")
  assert large["epsilon"] == 0.5 and large["steps"] == 50 and large.value == 0
  faults = [n for n in found if n.metric.endswith("_gradients")]
  assert len(faults) == 3 * 4 * 3 and all(n.value == 0 and n.count == 36 for n in faults[:12])
  assert [n["place"] for n in faults[::12]] == [
    "at the images",
    "at the start of PGD",
    "halfway through PGD",
  ]
  curve = results["sanity"].details["best_loss"]
  assert len(curve) == 41 and curve == sorted(curve)


def test_gradients_say_what_is_compared(results):
  numbers = results["gradients"].numbers
  pairs = [(n["module"], n["other_module"]) for n in numbers.where(metric="cosine_similarity")]
  assert pairs == [("gaussian", "mixup"), ("gaussian", "dirichlet"), ("mixup", "dirichlet")]
  assert all(-1 <= n.value <= 1 and n.count == 40 for n in numbers if n.unit == "")
  assert numbers.first(metric="undefined_gradients").value == 0


def test_sources_of_one_label_are_told_apart():
  """By their weights: the one that breaks more is seen."""
  kernels = {"same": subjects.kernel(), "useless": 0 * subjects.kernel()}
  kernels = {name: subjects.linear_network(kernel) for name, kernel in kernels.items()}
  subject = subjects.make(
    weights={"levels": np.float32(50)},
    find_source=lambda name: Source("one label", name, subjects.model(kernels[name])),
  )
  found = subjects.measure(
    "transfer", subject, num_restarts=1, transfer={"sources": ("useless", "same")}
  )
  assert found.numbers.values("source") == ["one label (useless)", "one label (same)"]
  values = {number["source"]: number.value for number in found.numbers}
  assert values["one label (same)"] < values[None] <= values["one label (useless)"]
  assert values["one label (useless)"] == subject.correct.mean()


def test_all_corruptions_are_measured_unless_told_otherwise():
  from sprout_jax.evaluation.corruptions import CORRUPTIONS

  assert table.defaults()["corruptions"]["corruptions"] == tuple(CORRUPTIONS)
  assert set(session.USUAL) <= set(EVALUATIONS)
  assert math.isfinite(sum(row.version for row in EVALUATIONS.values()))
