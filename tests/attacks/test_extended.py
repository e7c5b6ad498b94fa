"""Attacks after AutoAttack: targets by hand, starts by replay, gains that add up, nothing lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax.attacks import auto_pgd
from sprout_jax.attacks import extended
from sprout_jax.attacks import slots
from sprout_jax.attacks.attack import example_keys

KEY = jax.random.key(4)
SHAPE = (6, 6, 1)
SLOTS = dict(batch_size=16, devices=jax.devices()[:2])


def _linear(weights, images):
  return (images - 0.5).reshape(len(images), -1) @ weights


def _network(first, second, images):
  return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second


def network():
  rng = np.random.default_rng(0)
  first, second = (rng.normal(size=shape).astype(np.float32) for shape in ((36, 32), (32, 5)))
  return jax.tree_util.Partial(_network, first, second)


def data(count=24):
  images = np.random.default_rng(3).random((count, *SHAPE)).astype(np.float32)
  return images, np.asarray(network()(images)).argmax(-1).astype(np.int32)


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_targets_by_the_distance_of_a_linear_model(norm, dual):
  """(z_y - z_t) / |w_t - w_y| in the dual norm; by the logits they would be others."""
  rng = np.random.default_rng(1)
  weights = (rng.normal(size=(36, 8)) * rng.uniform(0.2, 3, 8)).astype(np.float32)
  images = rng.random((10, *SHAPE)).astype(np.float32)
  logits = (images - 0.5).reshape(10, -1) @ weights
  labels = logits.argmax(-1)
  found = jax.jit(
    lambda images: extended.linearised_targets(
      jax.tree_util.Partial(_linear, weights), images, labels, norm, 4
    )
  )(images)
  by_logits = 0
  for row, label in enumerate(labels):
    others = [t for t in range(8) if t != label]
    distance = [
      (logits[row, label] - logits[row, t])
      / np.linalg.norm(weights[:, t] - weights[:, label], dual)
      for t in others
    ]
    expected = [others[place] for place in np.argsort(distance)][:4]
    assert found[row].tolist() == expected
    by_logits += expected == sorted(others, key=lambda t: -logits[row, t])[:4]
  assert by_logits < 5


def test_of_many_classes_only_candidates_are_ranked(monkeypatch):
  """With one candidate it is the class of the largest logit."""
  monkeypatch.setattr(extended, "CANDIDATES", 1)
  images, labels = data(6)
  found = extended.linearised_targets(network(), images, labels, "linf", 1)
  logits = np.array(network()(images))
  logits[np.arange(6), labels] = -np.inf
  np.testing.assert_array_equal(found[:, 0], logits.argmax(-1))


def test_the_margin_of_probabilities():
  logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = [shares[0, 1] - shares[0, 0], shares[1, 1] - shares[1, 0]]
  np.testing.assert_allclose(
    auto_pgd.probability_margin(logits, np.array([0, 0])), expected, rtol=1e-5
  )


@pytest.mark.parametrize("norm", ["l1"])
def test_best_points_are_those_of_the_attack(norm):
  """Their margins are above those of its start, and the points lie in ball and box."""
  images, labels = data(4)
  epsilon = {"linf": 0.03, "l2": 0.1, "l1": 0.5}[norm]
  source = auto_pgd.apgd_attack(
    norm=norm, loss="margin", targeted=False, num_steps=10, num_runs=2, num_samples=1
  )
  keys = example_keys(KEY, jnp.arange(4))
  points, margins = jax.jit(
    lambda x: extended.best_points(
      source, network(), x, labels, keys, jnp.float32(epsilon), network()(x)
    )
  )(jnp.asarray(images))
  assert points.shape == (2, 4, *SHAPE)
  clean = losses.margin(network()(images), labels)
  for run in range(2):
    size = attacks.NORMS[norm].size(points[run] - images)
    assert size.max() <= epsilon + 1e-6 and points.min() >= 0 and points.max() <= 1
    np.testing.assert_allclose(
      margins[run], losses.margin(network()(points[run]), labels), rtol=1e-4, atol=1e-4
    )
    assert (margins[run] > clean).all()


FIRST = ("apgd-ce", "apgd-t")
LATER = ("apgd-malt", "apgd-best")  # the others differ from APGD in their constants only


@pytest.fixture(scope="module")
def results():
  """AutoAttack's APGD, and attacks after it."""
  images, labels = data()
  given = KEY, network(), images, labels
  options = dict(epsilon=0.03, **SLOTS)
  auto = attacks.auto_attack(*given, version=FIRST, **options)
  return auto, attacks.extended_attack(*given, first=FIRST, extensions=LATER, after=auto, **options)


def test_it_only_adds(results):
  auto, more = results
  assert 2 < auto.robust.sum() < 22
  assert list(more.per_attack) == [*FIRST, *LATER]
  np.testing.assert_array_equal(more.per_attack["apgd-t"], auto.robust)
  broken = auto.correct & ~auto.robust  # and not attacked again
  np.testing.assert_array_equal(more.images[broken], auto.images[broken])
  before = auto.correct
  for robust in more.per_attack.values():
    assert not (robust & ~before).any()
    before = robust
  np.testing.assert_array_equal(more.robust, before)
  assert more.spec["version"] == "extended" and "extended" in repr(more)
  assert more.spec["largest_perturbation"] <= 0.03 + 1e-6
  np.testing.assert_array_equal(
    np.asarray(network()(more.images)).argmax(-1) == data()[1], more.robust
  )


def test_the_gains_add_up(results):
  auto, more = results
  gains = more.spec["gains"]
  assert list(gains) == list(more.per_attack)
  assert sum(gain["broken"] for gain in gains.values()) == (more.correct & ~more.robust).sum()
  assert auto.spec["gains"] == {name: gains[name] for name in FIRST}
  for gain in gains.values():
    assert gain["per_million_passes"] == 1e6 * gain["broken"] / gain["passes"]
  # A look is a forward and a backward pass, which counts as two. Robust images take all 101 looks.
  left = int(more.per_attack["apgd-malt"].sum())
  targets = 1 + 2 * 4  # one pass, and a gradient for each wrong class
  assert gains["apgd-malt"]["passes"] == (4 * 303 + targets) * left  # it breaks none
  best = (1 + 4) * 303 + 3 * 303  # its sources again, of one run and 4 targets; then 3 runs
  assert gains["apgd-best"]["passes"] == best * left


def test_starts_are_the_best_points_of_autoattack_s_own_runs(results, monkeypatch):
  """Of the run on the cross-entropy and the four targets, with AutoAttack's own random draws."""
  images, labels = data()
  given = []
  attack_examples = slots.attack_examples

  def record(*args):
    given.extend(args[-1:] if args[-1] is not None and args[-1].ndim == 5 else [])
    return attack_examples(*args)

  monkeypatch.setattr("sprout_jax.attacks.slots.attack_examples", record)
  attacks.extended_attack(
    KEY,
    network(),
    images,
    labels,
    epsilon=0.03,
    first=FIRST,
    extensions=("apgd-best",),
    after=results[0],
    **SLOTS,
  )
  left = np.flatnonzero(results[0].robust)
  (starts,) = given
  assert starts.shape == (len(left), 3, *SHAPE)
  margins = []
  for name in FIRST:
    row = attacks.ATTACKS[name]
    keys = example_keys(jax.random.fold_in(KEY, row.id), jnp.asarray(left))
    source = row.build("linf", 5, SHAPE, 1, 1)
    margins.append(
      jax.jit(
        lambda x, source=source, keys=keys: extended.best_points(
          source, network(), x, labels[left], keys, jnp.float32(0.03), network()(x)
        )
      )(images[left])[1]
    )
  best = -np.sort(-np.concatenate(margins), axis=0)[:3].T
  found = np.stack([losses.margin(network()(starts[:, k]), labels[left]) for k in range(3)], 1)
  np.testing.assert_allclose(found, best, rtol=1e-3, atol=1e-3)


def test_passes_of_attacks_that_break_nothing():
  """Of each example: steps times runs times passes of a step."""
  images, labels = data(6)
  result = attacks.auto_attack(
    KEY, network(), images, labels, epsilon=1e-6, version="apgd-ce", **SLOTS
  )
  assert result.robust.all()
  assert result.spec["passes"] == {"apgd-ce": 6 * 101 * 3}
  # FAB also looks at its next point; untargeted, it takes the gradients of all classes. Square
  # makes one pass in each step.
  build = lambda name: attacks.ATTACKS[name].build("linf", 5, SHAPE, 1, 1)
  passes = {name: build(name).passes for name in ("apgd-t", "fab-t", "fab", "square")}
  assert passes == {"apgd-t": 3, "fab-t": 4, "fab": 2 + 2 * 5, "square": 1}


def test_interrupted_and_continued(results, tmp_path):
  """During the last attacks; nothing before them is repeated."""
  images, labels = data()
  auto, whole = results
  options = dict(epsilon=0.03, first=FIRST, extensions=LATER, after=auto, **SLOTS)
  options |= dict(state_file=tmp_path / "state.npz", save_seconds=0.0)

  def stop(progress):
    if progress.attack == "apgd-best":
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    attacks.extended_attack(KEY, network(), images, labels, on_progress=stop, **options)
  seen = []
  found = attacks.extended_attack(
    KEY, network(), images, labels, on_progress=lambda now: seen.append(now.attack), **options
  )
  assert set(seen) <= {"apgd-best"}
  np.testing.assert_array_equal(found.robust, whole.robust)
  np.testing.assert_array_equal(found.images, whole.images)
  assert found.spec["gains"] == whole.spec["gains"]


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(epsilon=0.05), r"`after` is the result of another call \(other epsilon\)"),
    (dict(first="apgd-ce"), r"another call \(other attacks\)"),
    (dict(after="auto"), "`after` is a str; expected the result of auto_attack"),
    (dict(first=None), "first is None; expected a list of names from: apgd-ce"),
    (dict(extensions=3), "extensions is 3; expected a list of names from: apgd-best"),
    (dict(extensions="apgd-malt"), "extensions is 'apgd-malt'; expected a list of names"),
    (dict(state_file=3), "state_file is 3; expected the path of a file"),
    (dict(on_progress=3), "on_progress is 3; expected a function"),
    (dict(save_seconds="x"), "`save_seconds` is a str; expected a finite number"),
    (dict(devices=[]), "devices is empty; give at least one"),
    (dict(devices=3), "devices is 3; expected a list such as"),
    (dict(first="rand", after=None), "first is 'rand'; choose one of: apgd-ce"),
    (dict(first=["square", "extra"], after=None), "an entry of first is 'extra'"),
    (dict(first=[], after=None), "give at least one in `first`, each once"),
    (dict(extensions=["square"], after=None), "an entry of extensions is 'square'; choose one of"),
    (dict(epsilon=3), "did you mean 3/255"),
  ],
)
def test_wrong_arguments(results, changes, message):
  images, labels = data()
  options = dict(epsilon=0.03, first=FIRST, after=results[0], **SLOTS) | changes
  with pytest.raises(ValueError, match=f"^extended_attack: .*{message}"):
    attacks.extended_attack(KEY, network(), images, labels, **options)


def test_the_constants_of_the_others():
  built = {name: row.build("linf", 5, SHAPE, 1, 1).spec for name, row in attacks.EXTENSIONS.items()}
  at = lambda name: tuple(built[name][key] for key in ("loss", "steps", "runs", "targeted"))
  assert at("apgd-malt") == ("dlr", 100, 4, True)
  assert at("apgd-pma") == ("probability_margin", 100, 1, False)
  assert at("apgd-best") == ("margin", 100, 3, False)
  assert at("apgd-long") == ("cross_entropy", 500, 10, False)


def test_the_ids_of_extensions_are_stable():
  assert {name: row.id for name, row in attacks.EXTENSIONS.items()} == {
    "apgd-malt": 6,
    "apgd-pma": 7,
    "apgd-best": 8,
    "apgd-long": 9,
  }


def test_the_result_of_another_model_or_other_images_is_refused(results):
  """Else images that the first attacks never saw on this model would count as robust."""
  images, labels = data()
  options = dict(epsilon=0.03, first=FIRST, after=results[0], **SLOTS)
  rng = np.random.default_rng(7)
  near = [leaf + rng.normal(size=leaf.shape).astype(np.float32) / 3 for leaf in network().args]
  other = jax.tree_util.Partial(_network, *near)
  for model, pixels, given in (
    (other, images, np.asarray(other(images)).argmax(-1)),
    (network(), images, (labels + 1) % 5),
    (network(), images[::-1], labels[::-1]),
  ):
    with pytest.raises(ValueError, match=r"another call \(other images, labels or model\)"):
      attacks.extended_attack(KEY, model, pixels, given.astype(np.int32), **options)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_logits_can_have_another_type_than_the_images(dtype):
  """A state keeps the types of its start, which the images give."""
  images, labels = data(8)
  with jax.enable_x64(dtype == jnp.float64):
    result = attacks.extended_attack(
      KEY,
      lambda x: network()(x).astype(dtype),
      images,
      labels,
      epsilon=0.03,
      first=("apgd-ce", "square"),
      extensions=("apgd-best",),
      **SLOTS,
    )
  assert 0 < result.robust.sum() < 8 and result.images.dtype == np.float32
