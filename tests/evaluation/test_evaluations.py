"""EVALUATIONS: every row on a linear model whose answers are known; killed, continued, not repeated."""

import dataclasses
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sprout_jax import sharding
from sprout_jax.data import Split
from sprout_jax.errors import UserError
from sprout_jax.evaluation import EVALUATIONS
from sprout_jax.evaluation import options
from sprout_jax.evaluation import store as store_lib
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.store import Memo
from sprout_jax.evaluation.store import Store
from tests.evaluation import subjects

EPSILON = 0.01


def small_config():
  """An evaluation config that takes seconds."""
  config = default.get_config("natural").evaluation
  config.unlock()
  config.update(
    epsilon=EPSILON,
    epsilons=(0.0, EPSILON, 0.012),
    num_steps=10,
    step_size=0.0025,
    auto_attack=dict(version="apgd-ce", epsilons=(EPSILON, 0.012)),
    strength=dict(steps=(2, 10), restarts=(1, 2)),
    noise=dict(num_draws=5),
    invariance=dict(transformations=("rotation", "brightness")),
    corruptions=dict(corruptions=("gaussian_noise", "contrast")),
    smoothing=dict(num_examples=20, n0=20, n=2000, radii=(0.0, 0.1)),
    landscape=dict(num_points=5),
    gradients=dict(num_draws=2),
    binarization=dict(num_examples=8, num_inner=20),
    examples=dict(num_examples=3),
    transfer=dict(sources=(("there", "abc"),)),
  )
  return config


def other_model(workdir):
  subject = subjects.make()
  kernel = subjects.weights() + 0.5 * subjects.weights(5)
  return subject_lib.Source(
    workdir,
    f"another in {workdir}",
    "abc",
    subject.model,
    {"params": {"dense": {"kernel": kernel}}},
  )


def evaluate(name, config=None, memo=None, **changes):
  subject = subjects.make(load=other_model, **({"memo": memo} if memo else {}), **changes)
  return EVALUATIONS[name](subject, **options.options(name, config or small_config())), subject


class Folder:
  """A memo that keeps nothing, with a folder."""

  def __init__(self, folder):
    self.folder = folder

  def __call__(self, name, compute):
    return compute()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  """{name: what the evaluation found}, each computed once."""
  folder = tmp_path_factory.mktemp("evaluations")
  return {name: evaluate(name, memo=Folder(folder / name))[0] for name in EVALUATIONS}


def test_every_row_is_json_and_its_options_are_config_keys(results):
  config = default.get_config("natural").evaluation
  for name, found in results.items():
    json.dumps(found, allow_nan=False)
    assert options.options(name, config).keys()
    for finding in found.get("findings", ()):
      assert finding["passed"] or finding["concerns"], finding


def test_every_key_of_a_section_is_an_option_of_its_row():
  config = default.get_config("natural").evaluation
  for name in EVALUATIONS:
    section = set(config[name]) if name in config else set()
    assert section <= options.options(name, config).keys(), name
  shared = {key for name in EVALUATIONS for key in options.options(name, config)}
  rest = set(config) - set(EVALUATIONS) - shared
  assert rest == {"checkpoint", "use_ema", "batch_size", "after_training", "evaluations"}


def test_a_section_comes_before_the_shared_key():
  config = small_config()
  config.num_examples, config.sanity.num_examples = 7, 9
  assert options.options("pgd", config)["num_examples"] == 7
  assert options.options("sanity", config)["num_examples"] == 9
  assert options.options("auto_attack", config)["epsilons"] == (EPSILON, 0.012)


def test_attacks_reach_the_closed_form(results):
  """PGD, APGD, every loss and number of restarts: what a linear model leaves is known."""
  subject = subjects.make()
  exact = {epsilon: subjects.exact(subject, epsilon).mean() for epsilon in (0.0, EPSILON, 0.012)}
  assert exact[0.0] == subject.correct.mean() == 0.9 and 0.2 < exact[EPSILON] < 0.8
  found = {e["epsilon"]: e["accuracy"] for e in results["pgd"]["entries"]}
  assert (found[0.0], found[EPSILON]) == (0.9, exact[EPSILON])
  # At an edge, the cross-entropy's gradient mixes the wrong classes: one image short.
  assert exact[0.012] <= found[0.012] <= exact[0.012] + 1 / 40
  ensemble = [e["accuracy"] for e in results["auto_attack"]["entries"]]
  assert ensemble[0] == exact[EPSILON] and exact[0.012] <= ensemble[1] <= exact[0.012] + 1 / 40
  entries = results["strength"]["entries"]
  assert {(e["steps"], e["restarts"], e["loss"]) for e in entries} == {
    (steps, restarts, loss)
    for steps in (2, 10)
    for restarts in (1, 2)
    for loss in ("cross_entropy", "margin", "dlr")
  }
  for entry in entries:
    if entry["steps"] == 10:
      assert entry["accuracy"] == exact[EPSILON], entry
    else:  # 2 steps of a quarter of epsilon do not arrive
      assert exact[EPSILON] <= entry["accuracy"] <= 0.9
  for name in ("pgd", "apgd-ce and apgd-dlr", "twice the steps", "10 restarts"):
    assert results["sanity"]["robust"][name]["accuracy"] == exact[EPSILON]
  assert all(f["passed"] for f in results["sanity"]["findings"]), results["sanity"]["findings"]


def test_strength_counts_what_that_pgd_would_have_found():
  """Two steps, two restarts: the entry of a PGD of just these, from a run of ten."""
  config = small_config()
  found, _ = evaluate("strength", config)
  for steps, restarts in ((2, 1), (2, 2)):
    config.update(num_steps=steps, num_restarts=restarts, epsilons=(EPSILON,))
    ((pgd,),) = [evaluate("pgd", config)[0]["entries"]]
    (entry,) = [
      e
      for e in found["entries"]
      if (e["steps"], e["restarts"], e["loss"]) == (steps, restarts, "cross_entropy")
    ]
    assert entry == pgd


def test_best_losses_rise_with_the_steps(results):
  for loss, curve in results["strength"]["best_loss"].items():
    assert len(curve) == 11 and (np.diff(curve) >= 0).all() and curve[-1] > curve[0], loss


def test_two_classes_have_no_dlr():
  found, _ = evaluate("strength", num_classes=2)
  assert {e["loss"] for e in found["entries"]} == {"cross_entropy", "margin"}
  assert "DLR loss needs 3 classes" in found["notes"][0]


def test_noise_is_weaker_than_attacks_and_at_radius_0_nothing(results):
  accuracies = [e["accuracy"] for e in results["noise"]["entries"]]
  assert accuracies[0] == 0.9 and accuracies[1] > results["pgd"]["entries"][1]["accuracy"]


def test_transfer_is_the_source_s_attack_on_this_model(results):
  """A linear source's adversarial image is x - epsilon sign(w_y - w_k): try it by hand."""
  found = results["transfer"]["sources"][0]
  assert (found["workdir"], found["label"], found["parameters_sha256"]) == (
    "there",
    "another in there",
    "abc",
  )
  (entry,) = found["entries"]
  white = results["transfer"]["white_box"]["accuracy"]
  assert entry["name"] == "transfer-pgd-10" and white < entry["accuracy"] < 0.9
  subject = subjects.make()
  kernel = np.asarray(other_model("")[4]["params"]["dense"]["kernel"])
  robust = subject.correct.copy()
  for row in np.flatnonzero(robust):
    image, label = subject.test.images[row].ravel(), subject.test.labels[row]
    # What the source's attack keeps: misclassified by the source if it can be, else of the highest loss.
    moved = [
      image - EPSILON * np.sign(kernel[:, label] - kernel[:, k]) for k in range(3) if k != label
    ]
    leads = [
      np.delete((x - 0.5) @ kernel, label).max() - ((x - 0.5) @ kernel)[label] for x in moved
    ]
    best = moved[int(np.argmax(leads))]
    robust[row] = ((best - 0.5) @ subjects.weights()).argmax() == label
  assert (
    abs(robust.mean() - entry["accuracy"]) <= 2 / 40
  )  # of two wrong classes PGD may prefer the other
  assert results["transfer"]["findings"][0]["name"] == "black_box"


def test_a_transfer_that_beats_the_white_box_is_a_finding():
  """On a model behind rounding PGD sees nothing; the same weights without it do."""
  subject = subjects.make(model=subjects.Dense(lambda x: jnp.round(x * 50) / 50))
  smooth = subjects.make()
  subject = dataclasses.replace(
    subject,
    load=lambda workdir: subject_lib.Source(
      workdir, "smooth", "abc", smooth.model, smooth.variables
    ),
  )
  found = EVALUATIONS["transfer"](subject, **options.options("transfer", small_config()))
  (finding,) = found["findings"]
  assert not finding["passed"] and finding["concerns"] == ["transfer from smooth (abc)"]


def test_changed_images(results):
  subject = subjects.make()
  points = {
    name: {p["strength"]: p for p in row["points"]}
    for name, row in results["invariance"]["transformations"].items()
  }
  assert points["rotation"][0.0]["accuracy"] == points["brightness"][1.0]["accuracy"] == 0.9
  assert (
    points["rotation"][10.0]["named"] == "rotation by 10 degrees"
    and not points["rotation"][5.0]["named"]
  )
  logits = (np.clip(1.5 * subject.test.images, 0, 1) - 0.5).reshape(40, -1) @ subjects.weights()
  assert points["brightness"][1.5]["accuracy"] == np.mean(logits.argmax(-1) == subject.test.labels)
  assert list(points["rotation"]) == sorted(points["rotation"])


def test_corruptions_and_their_means(results):
  found = results["corruptions"]
  assert list(found["corruptions"]) == ["gaussian_noise", "contrast"]
  shares = np.array([[e["accuracy"] for e in row] for row in found["corruptions"].values()])
  assert [e["severity"] for e in found["corruptions"]["contrast"]] == [1, 2, 3, 4, 5]
  np.testing.assert_allclose(found["mean"], shares.mean())
  np.testing.assert_allclose(found["mean_per_severity"], shares.mean(0))
  assert shares[0, 0] > shares[0, 4]  # more noise


def test_corrupted_images_that_tfds_has_prepared():
  """Of another order than the test set: counted on their own labels; as many as were asked for."""
  whole, asked = subjects.make().test, []

  def load_corrupted(name, severity):
    asked.append((name, severity))
    order = np.random.default_rng(severity).permutation(40)
    images = whole.images if severity < 5 else np.full_like(whole.images, 0.5)
    return Split(images[order], whole.labels[order])

  config = small_config()
  config.corruptions.update(source="tfds", corruptions=("fog",), num_examples=0)
  found, subject = evaluate("corruptions", config, load_corrupted=load_corrupted)
  assert asked == [("fog", severity) for severity in (1, 2, 3, 4, 5)] and found["source"] == "tfds"
  assert [e["accuracy"] for e in found["corruptions"]["fog"][:4]] == 4 * [0.9]
  assert found["corruptions"]["fog"][4]["accuracy"] == np.mean(
    whole.labels == 0
  )  # all logits equal
  config.corruptions.num_examples = 10
  assert (
    evaluate("corruptions", config, load_corrupted=load_corrupted)[0]["corruptions"]["fog"][0][
      "count"
    ]
    == 10
  )
  with pytest.raises(UserError, match="source=computed"):
    evaluate(
      "corruptions",
      config,
      load_corrupted=lambda name, severity: Split(
        np.zeros((40, 9, 9, 1), np.float32), whole.labels
      ),
    )


def test_a_choice_of_images_keeps_their_own_outcomes():
  subject = subjects.make()
  images = subject.select(15)
  assert len(set(images.rows)) == 15 and sorted(images.rows) != list(range(15))
  np.testing.assert_array_equal(images.clean_correct, subject.correct[images.rows])
  np.testing.assert_array_equal(images.split.labels, subject.test.labels[images.rows])
  assert (
    subject.correct[images.rows].tolist() != subject.correct[:15].tolist()
  )  # so that it matters


def test_more_draws_of_noise_find_more():
  accuracies = []
  for draws in (1, 200):
    config = small_config()
    config.epsilons, config.noise.num_draws = (0.1,), draws
    (entry,) = evaluate("noise", config)[0]["entries"]
    accuracies.append(entry["accuracy"])
  assert accuracies[1] < accuracies[0] - 0.05


def test_an_image_is_certified_alike_whichever_others_are_chosen(results):
  """Its draws are those of its place in the test set."""
  config = small_config()
  config.smoothing.num_examples = 0
  whole, subject = evaluate("smoothing", config)
  np.testing.assert_array_equal(
    results["smoothing"]["radii"], np.array(whole["radii"])[subject.select(20).rows]
  )


def test_smoothing_agrees_with_the_model_where_it_is_sure(results):
  """(Radii against the closed form: test_smoothing.py.)"""
  found, subject = results["smoothing"], subjects.make()
  rows = subject.select(20).rows
  right = [p == subject.test.labels[row] for p, row in zip(found["predictions"], rows)]
  assert found["count"] == 20 and found["smoothed"]["accuracy"] == np.mean(right)
  agree = [
    p == subject.logits[row].argmax() for p, row in zip(found["predictions"], rows) if p is not None
  ]
  assert np.mean(agree) > 0.9 and len(agree) > 10


def test_landscape_examples_and_gradients(results):
  surface = np.array(results["landscape"]["loss"])
  assert surface.shape == (5, 5) and "per_image" not in results["landscape"]
  assert (
    surface[4].mean() > surface[2].mean() > surface[0].mean()
  )  # it rises along the sign of the gradient
  assert results["landscape"]["sign_gradient"][0] == -np.float32(EPSILON)
  shown = results["examples"]["examples"]
  assert len(shown) == 3 and all(e["label"] == e["predicted"] for e in shown)
  assert results["gradients"]["beta"] == [1, 1, 1]
  assert evaluate("gradients", beta=[0.5, 0.6, 0.7])[0]["beta"] == [
    np.float32(v) for v in (0.5, 0.6, 0.7)
  ]


def test_examples_show_the_perturbation(results):
  import base64
  import io

  from PIL import Image

  shown = results["examples"]["examples"][0]
  image, adversarial, change = (
    np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[key])))).astype(float)
    for key in ("image", "adversarial", "perturbation")
  )
  test = subjects.make().test
  np.testing.assert_array_equal(image, np.round(255 * test.images[shown["index"], ..., 0]))
  assert np.abs(adversarial - image).max() <= round(255 * EPSILON) + 1
  assert set(np.unique(change)) == {0, 255}  # every pixel is moved by epsilon
  np.testing.assert_array_equal(change == 255, adversarial > image)


def test_devices_do_not_matter():
  config, eight = small_config(), sharding.make_mesh()
  for name in ("pgd", "noise", "strength"):
    assert (
      evaluate(name, config)[0]["entries"] == evaluate(name, config, mesh=eight)[0]["entries"]
    ), name


class Killed(Exception):
  pass


@pytest.mark.parametrize(
  "name, pieces",
  [
    ("pgd", 2),
    ("auto_attack", 1),
    ("strength", 2),
    ("noise", 1),
    ("invariance", 1),
    ("corruptions", 1),
    ("smoothing", 2),
    ("sanity", 4),
    ("transfer", 1),
    ("binarization", 0),
  ],
)
def test_killed_after_some_pieces_and_continued(results, tmp_path, name, pieces):
  config = small_config()

  def run(pieces):
    """Runs until `pieces` pieces are computed; returns the result and how many there were."""
    computed = []

    def compute(memo):
      def counting(piece, fn):
        def call():
          if len(computed) == pieces:
            raise Killed
          value = fn()
          computed.append(piece)
          return value

        return memo(piece, call)

      counting.folder = memo.folder
      return evaluate(name, config, memo=counting)[0]

    return Store(tmp_path, ["weights"]).run(name, options.options(name, config), compute), len(
      computed
    )

  with pytest.raises(Killed):
    run(pieces)
  for partial in (tmp_path / "evaluation").glob("*.partial.jsonl"):
    assert len(partial.read_text().splitlines()) == pieces
    partial.write_text(partial.read_text() + '["cut')  # in the middle of a write
  found, later = run(math.inf)
  expected = json.loads(json.dumps(results[name]))
  for entry in [*expected.get("entries", ()), *found.get("entries", ())]:
    entry.pop("spec", None)  # which has AutoAttack's seconds
  assert {key: found[key] for key in expected} == expected
  assert later >= 1 and not list((tmp_path / "evaluation").glob("*.partial.jsonl"))
  again, _ = run(0)  # nothing is computed again
  assert again["wall_seconds"] == found["wall_seconds"]


def test_other_options_are_another_result(tmp_path):
  store = Store(tmp_path, ["weights"])
  one = store.run("pgd", {"epsilon": 1}, lambda memo: {"value": 1})
  assert store.run("pgd", {"epsilon": 2}, lambda memo: {"value": 2})["value"] == 2
  assert store.read("pgd", {"epsilon": 1}) == one and one["options"] == {"epsilon": 1}
  assert Store(tmp_path, ["other weights"]).read("pgd", {"epsilon": 1}) is None
  assert store.read("noise", {"epsilon": 1}) is None


def test_memo_reads_up_to_a_cut_line(tmp_path):
  path = tmp_path / "a.partial.jsonl"
  Memo(path)("one", lambda: [1, 2])
  assert not Memo(tmp_path / "b.partial.jsonl").seconds
  path.write_text(path.read_text() + '["two", 3')
  memo = Memo(path)
  assert memo("one", lambda: pytest.fail("again")) == [1, 2] and memo("two", lambda: 4) == 4
  assert Memo(path)("two", lambda: pytest.fail("again")) == 4
  assert memo.folder == pathlib.Path(tmp_path / "a")


@pytest.mark.parametrize(
  "logits, message",
  [
    (lambda x: x * np.nan, "not finite"),
    (lambda x: np.ones_like(x) / x.shape[-1], "probabilities"),
  ],
)
def test_outputs_that_cannot_be_evaluated(logits, message):
  class Model(subjects.Dense):
    def __call__(self, images, train):
      return logits(np.ones((1, 3), np.float32)) + 0 * images.sum((1, 2, 3))[:, None]

  with pytest.raises(UserError, match=f"the trained model: .*{message}"):
    subjects.make(model=Model())


def test_a_model_that_draws_random_numbers_is_refused(monkeypatch):
  draws = np.random.default_rng(0)
  original = subject_lib.accuracy.map_batches
  monkeypatch.setattr(
    subject_lib.accuracy,
    "map_batches",
    lambda *args: original(*args) + draws.normal(size=(1, 3)).astype(np.float32),
  )
  with pytest.raises(UserError, match="5 passes over the same images differ"):
    subjects.make()


def test_sources_of_one_label_are_told_apart():
  """The one that breaks more is found out, in whatever order they come; the white box has no steps."""
  kernels = {"same": subjects.weights(), "useless": 0 * subjects.weights()}
  for order in (("same", "useless"), ("useless", "same")):
    config = small_config()
    config.transfer.sources = tuple((name, name) for name in order)
    subject = subjects.make(
      model=subjects.Dense(lambda x: jnp.round(x * 50) / 50),
      load=lambda workdir: subject_lib.Source(
        workdir,
        "one label",
        workdir,
        subjects.Dense(),
        {"params": {"dense": {"kernel": kernels[workdir]}}},
      ),
    )
    (finding,) = EVALUATIONS["transfer"](subject, **options.options("transfer", config))["findings"]
    assert finding["concerns"] == ["transfer from one label (same)"]


def test_time_of_an_interrupted_evaluation_is_that_of_all_its_runs(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(store_lib.time, "monotonic", lambda: now[0])

  def takes(seconds):
    def compute():
      now[0] += seconds
      return seconds

    return compute

  store = Store(tmp_path, ["weights"])

  def killed(memo):
    memo("one", takes(5))
    raise Killed

  with pytest.raises(Killed):
    store.run("pgd", {}, killed)
  now[0] += 1000
  found = store.run(
    "pgd", {}, lambda memo: {"value": memo("one", takes(5)) + memo("two", takes(7))}
  )
  assert found["wall_seconds"] == 12 and found["value"] == 12


def test_numbers_that_are_not_finite_are_none_in_json(tmp_path):
  found = Store(tmp_path, []).run(
    "pgd", {}, lambda memo: {"a": [math.nan, 1.0], "b": memo("m", lambda: math.inf)}
  )
  assert found["a"] == [None, 1.0] and found["b"] is None
  assert Store(tmp_path, []).read("pgd", {}) == found


def test_another_code_is_another_identity(monkeypatch, tmp_path):
  """A copy of the sources with one changed line."""
  import shutil

  root = pathlib.Path(store_lib.__file__).parents[1]
  copy = tmp_path / "sprout_jax"
  shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
  first = store_lib.code_identity()
  monkeypatch.setattr(store_lib, "__file__", str(copy / "evaluation" / "store.py"))
  assert store_lib.code_identity() == first
  path = copy / "attacks" / "pgd.py"
  path.write_text(path.read_text() + "# changed\n")
  assert store_lib.code_identity()["code"] != first["code"]


def test_default_radii_let_pgd_and_autoattack_be_compared():
  from configs import digits

  for config in (default.get_config("natural").evaluation, digits.get_config().evaluation):
    assert (
      set(config.auto_attack.epsilons) <= set(config.epsilons) and config.epsilon in config.epsilons
    )


def test_the_landscape_of_an_l2_model_stays_in_the_ball():
  config = small_config()
  config.norm, config.epsilon = "l2", 0.8
  found, _ = evaluate("landscape", config)
  np.testing.assert_allclose(found["sign_gradient"][-1], 0.8 / 8, rtol=1e-6)  # 64 values


def test_all_corruptions_are_listed_by_default():
  config = default.get_config("natural").evaluation
  assert config.corruptions.corruptions == tuple(CORRUPTIONS)
