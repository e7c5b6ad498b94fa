"""AutoAttack: closed forms, batch size and order, masked gradients, resumption, errors."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.attacks import auto_pgd
from sprout_jax.attacks import slots

KEY = jax.random.key(4)
SHAPE = (6, 6, 1)
# The models are functions of the module with the weights as arguments, and the batch sizes are few.
# So the tests share their compiled programs: compilation takes most of the time.
SLOTS = dict(batch_size=16, devices=jax.devices()[:2])


def _linear(weights, images):
  return (images - 0.5).reshape(len(images), -1) @ weights


def linear_model(classes=5, seed=0):
  weights = np.random.default_rng(seed).normal(size=(36, classes)).astype(np.float32)
  return weights, jax.tree_util.Partial(_linear, weights)


def interior(count, predict, seed=1):
  """Images away from the box's edges, with predicted labels, of which a tenth is changed."""
  images = np.random.default_rng(seed).uniform(0.4, 0.6, (count, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  classes = np.asarray(predict(images)).shape[-1]
  labels[::10] = (labels[::10] + 1) % classes
  return images, labels


def distance_to_boundary(weights, images, labels, dual):
  """Smallest perturbation that changes a linear model's class; negative where it is wrong."""
  logits = (images - 0.5).reshape(len(images), -1) @ weights
  found = np.full(len(labels), np.inf)
  for k in range(weights.shape[1]):
    difference = weights[:, labels] - weights[:, [k]]
    margin = logits[np.arange(len(labels)), labels] - logits[:, k]
    size = np.linalg.norm(difference, dual, axis=0)
    found = np.where(labels == k, found, np.minimum(found, margin / np.where(size > 0, size, 1)))
  return found


def _network(first, second, scale, images):
  return scale * (jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second)


def network(scale=1.0):
  """A small network with two layers, and logits of a usual size times `scale`."""
  rng = np.random.default_rng(0)
  first, second = (rng.normal(size=shape).astype(np.float32) for shape in ((36, 32), (32, 5)))
  return jax.tree_util.Partial(_network, first, second, np.asarray(scale, np.float32))


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2)])
def test_linear_models_equal_the_closed_form(norm, dual):
  weights, predict = linear_model()
  images, labels = interior(40, predict)
  distance = distance_to_boundary(weights, images, labels, dual)
  epsilon = float(np.quantile(distance[distance > 0], 0.5))
  result = attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    epsilon=epsilon,
    norm=norm,
    version=["apgd-ce", "apgd-t", "fab-t"],
    **SLOTS,
  )
  decided = np.abs(distance - epsilon) > 1e-4 * epsilon
  np.testing.assert_array_equal(result.robust[decided], (distance > epsilon)[decided])
  assert 5 < result.robust.sum() < 30
  assert epsilon * 0.99 < result.spec["largest_perturbation"] <= epsilon + 1e-6
  assert result.spec["clean"]["accuracy"] == 0.9 and result.spec["not_misclassified_again"] == 0
  for before, after in zip(list(result.per_attack.values()), list(result.per_attack.values())[1:]):
    assert not (after & ~before).any()
  np.testing.assert_array_equal(result.per_attack["fab-t"], result.robust)


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("norm", attacks.NORMS)
def test_every_attack_alone_breaks_what_is_easy_and_never_what_is_impossible(name, norm):
  weights, predict = linear_model()
  images, labels = interior(12, predict)
  distance = distance_to_boundary(weights, images, labels, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
  epsilon = float(np.median(distance[distance > 0]))
  result = attacks.auto_attack(
    KEY, predict, images, labels, epsilon=epsilon, norm=norm, version=name, **SLOTS
  )
  impossible, easy = distance > epsilon * 1.0001, distance < epsilon * 0.6
  assert result.robust[impossible].all()
  # Square has no gradient: in L2 only a part of a random direction helps.
  assert not result.robust[distance < epsilon * (0.2 if name == "square" else 0.6)].any()
  assert impossible.any() and easy.any()


def test_batch_size_devices_and_order_do_not_matter():
  """Every image has the same outcome and, up to rounding, the same adversarial image."""
  predict = network()
  images = np.random.default_rng(3).random((40, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  options = dict(epsilon=0.03, version=["apgd-ce", "apgd-t", "fab-t"])
  reference = attacks.auto_attack(
    KEY, predict, images, labels, batch_size=32, devices=jax.devices()[:1], **options
  )
  assert 4 < reference.robust.sum() < 36
  shuffle = np.random.default_rng(4).permutation(40)
  for batch_size, devices, order in (
    (7, 1, np.arange(40)),
    (16, 8, np.arange(40)),
    (7, 1, shuffle),
  ):
    result = attacks.auto_attack(
      KEY,
      predict,
      images[order],
      labels[order],
      batch_size=batch_size,
      indices=order,
      devices=jax.devices()[:devices],
      **options,
    )
    np.testing.assert_array_equal(result.robust, reference.robust[order])
    for name in result.per_attack:
      np.testing.assert_array_equal(result.per_attack[name], reference.per_attack[name][order])
    np.testing.assert_allclose(result.images, reference.images[order], atol=1e-4)


def test_killed_and_resumed_is_identical(tmp_path):
  predict = network()
  images = np.random.default_rng(3).random((24, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  options = dict(
    epsilon=0.03, version=["apgd-ce", "apgd-t"], batch_size=8, devices=jax.devices()[:1]
  )
  whole = attacks.auto_attack(KEY, predict, images, labels, **options)
  file = tmp_path / "state.npz"
  calls, seen = [], []

  def stop_at(limit):
    def on_progress(progress):
      calls.append(progress)
      seen.append(str(progress))
      if len(calls) == limit:
        raise KeyboardInterrupt

    return on_progress

  for limit in (3, 9, 20):
    del calls[:]
    with pytest.raises(KeyboardInterrupt):
      attacks.auto_attack(
        KEY,
        predict,
        images,
        labels,
        state_file=file,
        save_seconds=0.0,
        on_progress=stop_at(limit),
        **options,
      )
  del calls[:]
  resumed = attacks.auto_attack(
    KEY, predict, images, labels, state_file=file, on_progress=calls.append, **options
  )
  assert calls[0].attack == "apgd-t"  # the finished attack is not run again
  nothing = []
  attacks.auto_attack(
    KEY, predict, images, labels, state_file=file, on_progress=nothing.append, **options
  )
  attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    state_file=file,
    on_progress=nothing.append,
    **options | {"devices": jax.devices()[:2]},
  )
  assert not nothing
  np.testing.assert_array_equal(resumed.robust, whole.robust)
  np.testing.assert_array_equal(resumed.images, whole.images)
  for name, robust in whole.per_attack.items():
    np.testing.assert_array_equal(resumed.per_attack[name], robust)
  assert any("apgd-t (2 of 2), run" in text for text in seen) and "left" in seen[-1]
  with pytest.raises(ValueError, match="belongs to another call"):
    attacks.auto_attack(KEY, predict, images, labels, state_file=file, **options | {"epsilon": 0.1})
  with pytest.raises(ValueError, match="belongs to another call"):  # the same clean outcomes
    attacks.auto_attack(KEY, network(2.0), images, labels, state_file=file, **options)


@pytest.mark.parametrize("disguise", ["masked", "smoothed"])
def test_a_disguised_model_is_broken_as_far_as_the_plain_one(disguise):
  """Logits times 1e4 leave no gradient in the cross-entropy; times 0.01 they are small."""
  predict, disguised = network(), network({"masked": 1e4, "smoothed": 1e-2}[disguise])
  images = np.random.default_rng(3).random((30, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  options = dict(
    epsilon=0.03, version=["apgd-ce", "apgd-t"], batch_size=8, devices=jax.devices()[:1]
  )
  plain = attacks.auto_attack(KEY, predict, images, labels, **options)
  other = attacks.auto_attack(KEY, disguised, images, labels, **options)
  assert abs(int(plain.robust.sum()) - int(other.robust.sum())) <= 1
  apart = plain.per_attack["apgd-ce"] != other.per_attack["apgd-ce"]
  assert apart.sum() <= 2 and not plain.robust.all()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
  weights, predict = linear_model(classes)
  images, labels = interior(20, predict)
  distance = distance_to_boundary(weights, images, labels, 1)
  epsilon = float(np.median(distance[distance > 0]))
  result = attacks.auto_attack(
    KEY,
    predict,
    images,
    labels,
    epsilon=epsilon,
    batch_size=8,
    devices=jax.devices()[:1],
    version=["apgd-dlr", "apgd-t", "fab-t"],
  )
  decided = np.abs(distance - epsilon) > 1e-4 * epsilon
  np.testing.assert_array_equal(result.robust[decided], (distance > epsilon)[decided])
  assert (
    result.spec["attacks"]["apgd-t"]["runs"]
    == result.spec["attacks"]["fab-t"]["runs"]
    == classes - 1
  )
  notes = " ".join(result.spec["notes"])
  assert "targeted DLR loss needs 4" in notes and ("dlr needs 3" in notes) == (classes == 2)


def test_models_that_draw_random_numbers():
  """Noise on the input: "rand" averages gradients over draws, other versions refuse the model."""
  predict = network()

  def noisy(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    return predict(images + 0.02 * noise)

  images = np.random.default_rng(3).random((16, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  options = dict(version="rand", devices=jax.devices()[:1])
  result = attacks.auto_attack(KEY, noisy, images, labels, epsilon=0.1, batch_size=16, **options)
  assert result.spec["attacks"]["apgd-ce"]["samples"] == 20 and result.robust.sum() < 8
  # Draws depend on the example: another batch size and order give the same outcomes.
  order = np.random.default_rng(5).permutation(16)
  other = attacks.auto_attack(
    KEY, noisy, images[order], labels[order], epsilon=0.1, batch_size=5, indices=order, **options
  )
  np.testing.assert_array_equal(other.robust, result.robust[order])
  # Fresh draws alone are no attack: at radius 0 nearly all outcomes stay the same.
  still = attacks.auto_attack(KEY, noisy, images, labels, epsilon=0.0, batch_size=16, **options)
  clean = still.spec["clean"]["accuracy"]
  assert clean > 0.5 and still.spec["robust"]["accuracy"] >= clean - 2 / 16


def test_a_function_whose_model_has_changed_is_attacked_as_it_is():
  """JAX would find the program of the equal function again, with the earlier weights in it."""
  weights, _ = linear_model()
  images, labels = interior(16, linear_model()[1])
  state = [jnp.asarray(weights)]
  function = lambda images: _linear(state[0], images)
  partial = jax.tree_util.Partial(lambda scale, images: scale * function(images), np.float32(2))
  found = []
  for predict in (function, partial):
    for sign in (1, -1, 1):
      state[0] = jnp.asarray(sign * weights)
      result = attacks.auto_attack(
        KEY, predict, images, labels, epsilon=1e-6, version="apgd-ce", **SLOTS
      )
      right = np.asarray(function(images)).argmax(-1) == labels
      assert result.spec["clean"]["accuracy"] == right.mean()
      found.append(result.robust.mean())
  assert found[0] == found[2] == found[3] == found[5] > 0.8 and found[1] == found[4] < 0.2


def test_an_unchanged_function_shares_its_programs():
  """Of a second call, only the operations are traced, once."""
  weights, _ = linear_model()
  images, labels = interior(16, linear_model()[1])
  traced = []
  weights = jnp.asarray(weights)

  def predict(images):
    traced.append(len(images))
    return _linear(weights, images)

  counts = []
  for epsilon in (0.01, 0.02):
    attacks.auto_attack(KEY, predict, images, labels, epsilon=epsilon, version="apgd-ce", **SLOTS)
    counts.append(len(traced))
  assert counts[1] == counts[0] + 1


def test_the_versions_are_the_published_ensembles():
  assert attacks.VERSIONS["standard"] == ("apgd-ce", "apgd-t", "fab-t", "square")
  _, predict = linear_model(10)
  images, labels = interior(4, predict)
  for version, runs in (
    ("standard", {"apgd-ce": 1, "apgd-t": 9, "fab-t": 9, "square": 1}),
    ("plus", {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}),
  ):
    # Nothing is left to attack: every label is wrong.
    spec = attacks.auto_attack(
      KEY,
      predict,
      images,
      (np.asarray(predict(images)).argmax(-1) + 1) % 10,
      epsilon=0.1,
      version=version,
    ).spec
    assert {name: entry["runs"] for name, entry in spec["attacks"].items()} == runs
    assert spec["attacks"]["square"]["steps"] == 5000 and spec["attacks"]["apgd-t"]["steps"] == 100
    assert spec["robust"]["accuracy"] == 0 and spec["examples"] == 4


def test_numbers_of_slots():
  def sizes(batch_size, devices, platform="cpu", passes=3):
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(size=devices, devices=np.array([device] * devices))
    return slots.sizes(types.SimpleNamespace(passes=passes), batch_size, mesh)

  assert sizes(60, 1) == [48, 32, 16] and sizes(64, 8) == [64, 48, 32, 16] and sizes(7, 1) == [7]
  assert sizes(20, 1, passes=1) == [16, 8] and sizes(72, 24) == [72, 48, 24]
  assert sizes(512, 1, "gpu") == [512, 128] and sizes(512, 2, "tpu") == [512, 128]


def test_calls_make_about_the_steps_of_a_run():
  for steps in (1, 7, 100, 101, 103, 501, 5001):
    calls = -(-steps // slots.chunk(steps))
    assert calls * slots.chunk(steps) - steps <= 0.02 * steps + 10 * (steps < 10)
  assert 6 <= slots.chunk(101) <= 12 and 30 < slots.chunk(5001) < 80


GOOD = dict(epsilon=0.1, version="apgd-ce")


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(images=np.full((2, *SHAPE), 255.0)), "pixels range from 255 to 255"),
    (dict(images=np.full((2, *SHAPE), np.nan)), "finite"),
    (dict(images=np.zeros((2, *SHAPE), np.uint8)), "divide by 255"),
    (dict(images=np.zeros((2, 6, 6))), "height, width, channels"),
    (dict(labels=np.array([0, 7])), "labels range from 0 to 7"),
    (dict(labels=np.array([0.0, 1.0])), "integers"),
    (dict(epsilon=-0.1), "epsilon is -0.1"),
    (dict(norm="l0"), "choose one of: l1, l2, linf"),
    (dict(version="fast"), "choose one of: apgd-ce, apgd-dlr"),
    (dict(version=[]), "at least one"),
    (dict(version=None), "version is None; expected a list of names"),
    (dict(version=3), "version is 3; expected a list of names"),
    (dict(state_file=3), "state_file is 3"),
    (dict(on_progress=3), "on_progress is 3"),
    (dict(devices=[]), "devices is empty"),
    (dict(version=["standard"]), "'standard'; choose one of"),
    (dict(version=["square", "square"]), "each once"),
    (dict(batch_size=0), "batch_size is 0"),
    (dict(state_file="/nowhere/state.npz"), "does not exist"),
    (dict(predict=lambda x: jax.nn.softmax(linear_model()[1](x))), "are probabilities"),
    (dict(predict=lambda x: linear_model()[1](x) * jnp.nan), "not finite"),
  ],
)
def test_wrong_input_is_found_out(changes, message):
  arguments = (
    dict(
      predict=linear_model()[1],
      images=np.full((2, *SHAPE), 0.5, np.float32),
      labels=np.array([0, 1]),
    )
    | GOOD
    | changes
  )
  predict, images, labels = (arguments.pop(name) for name in ("predict", "images", "labels"))
  with pytest.raises(ValueError, match=message):
    attacks.auto_attack(KEY, predict, images, labels, **arguments)


def test_random_outputs_are_found_out():
  state = np.random.default_rng(0)
  noisy = lambda x: (
    linear_model()[1](x)
    + jax.pure_callback(
      lambda: state.normal(size=()).astype(np.float32), jax.ShapeDtypeStruct((), jnp.float32)
    )
  )
  with pytest.raises(ValueError, match="version='rand'"):
    attacks.auto_attack(KEY, noisy, np.full((2, *SHAPE), 0.5, np.float32), np.array([0, 1]), **GOOD)


def test_gradients_and_outputs_that_are_not_finite_protect_no_one():
  """A NaN in one pixel's gradient changes nothing; an output that is NaN is wrong."""
  predict = network()

  @jax.custom_vjp
  def poison(x):
    return x

  poison.defvjp(lambda x: (x, None), lambda _, g: (g.at[:, 0, 0, 0].set(jnp.nan),))
  images = np.random.default_rng(3).random((24, *SHAPE)).astype(np.float32)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  options = dict(epsilon=0.03, batch_size=8, devices=jax.devices()[:1])
  plain, poisoned = (
    attacks.auto_attack(KEY, model, images, labels, version=["apgd-ce", "fab-t"], **options)
    for model in (predict, lambda x: predict(poison(x)))
  )
  assert abs(int(plain.robust.sum()) - int(poisoned.robust.sum())) <= 3
  assert np.isfinite(poisoned.images).all()

  def fragile(x):  # NaN as soon as the mean moves
    clean = jnp.abs(x.mean((1, 2, 3)) - 0.5)[:, None] < 1e-4
    return jnp.where(clean, jnp.array([[2.0, 0.0]]), jnp.nan) + 0 * x.mean((1, 2, 3))[:, None]

  flat = np.full((4, *SHAPE), 0.5, np.float32)
  result = attacks.auto_attack(
    KEY, fragile, flat, np.zeros(4, np.int32), version="square", **options
  )
  assert not result.robust.any() and result.spec["not_finite"] == 4


def test_square_breaks_what_is_near_in_both_norms():
  """Without gradients it must still find most boundaries well within the ball."""
  weights, predict = linear_model()
  images, labels = interior(24, predict)
  for norm, dual, share in (("linf", 1, 0.5), ("l2", 2, 0.35)):
    distance = distance_to_boundary(weights, images, labels, dual)
    epsilon = float(np.quantile(distance[distance > 0], 0.6) / share)
    result = attacks.auto_attack(
      KEY,
      predict,
      images,
      labels,
      epsilon=min(epsilon, 0.4) if norm == "linf" else epsilon,
      norm=norm,
      version="square",
      **SLOTS,
    )
    near = (distance > 0) & (distance < share * epsilon)
    assert near.sum() > 5 and result.robust[near].mean() < 0.2


def test_a_perturbation_beyond_epsilon_is_an_error(monkeypatch):
  monkeypatch.setattr(auto_pgd, "project", lambda x, batch, norm: jnp.clip(x, 0, 1))
  _, predict = linear_model()
  images, labels = interior(4, predict)
  own = lambda x: predict(x)  # no program from before the change, and none left behind
  with pytest.raises(RuntimeError, match="exceeds epsilon 0.1"):
    attacks.auto_attack(KEY, own, images, labels, **GOOD)


def test_the_fixture_is_found_again():
  """Another batch size and other programs give the stored outcomes per image."""
  spec = importlib.util.spec_from_file_location(
    "make_fixture", pathlib.Path(__file__).with_name("make_fixture.py")
  )
  fixture = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(fixture)
  with np.load(fixture.PATH) as stored:
    weights = {name.removeprefix("weight_"): stored[name] for name in stored if "weight_" in name}
    images, labels = stored["images"].astype(np.float32) / 16, stored["labels"]
    np.testing.assert_allclose(fixture.predict(weights, images), stored["logits"], atol=1e-4)
    found = fixture.outcomes(weights, images, labels, batch_size=30, devices=jax.devices()[:1])
    for name, robust in found.items():
      # Rounding differs between versions and machines; another attack differs by more.
      assert (robust != stored[f"robust_{name}"]).sum() <= 1, name
      assert 10 < robust.sum() < 50


SCRIPT = """
import os, signal, sys
import jax, jax.numpy as jnp, numpy as np
from sprout_jax import attacks
rng = np.random.default_rng(0)
first, second = (rng.normal(size=shape).astype(np.float32) for shape in ((36, 32), (32, 5)))
predict = lambda images: jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second
images = np.random.default_rng(3).random((24, 6, 6, 1)).astype(np.float32)
labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
calls, limit = [], int(sys.argv[2])
def on_progress(progress):
  calls.append(progress)
  if len(calls) == limit:
    os.kill(os.getpid(), signal.SIGKILL)
result = attacks.auto_attack(
    jax.random.key(4), predict, images, labels, epsilon=0.03, version=["apgd-ce", "apgd-t"],
    batch_size=8, devices=jax.devices()[:1], on_progress=on_progress, state_file=sys.argv[1],
    save_seconds=0.0)
np.savez(sys.argv[3], robust=result.robust, images=result.images)
"""


def test_a_real_kill_loses_nothing(tmp_path):
  """`kill -9` during the first and during the second attack, then a call that finishes."""

  def run(state, limit):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as in conftest.py
    return subprocess.run(
      [sys.executable, "-c", SCRIPT, str(state), str(limit), str(tmp_path / "out.npz")],
      cwd=pathlib.Path(__file__).parents[2],
      env=environment,
      check=False,
    ).returncode

  assert run(tmp_path / "whole.npz", 0) == 0
  with np.load(tmp_path / "out.npz") as stored:
    whole = dict(stored)
  assert 0 < whole["robust"].sum() < 24
  for limit in (4, 15):
    assert run(tmp_path / "state.npz", limit) == -signal.SIGKILL
  assert run(tmp_path / "state.npz", 0) == 0
  with np.load(tmp_path / "out.npz") as stored:
    for name in whole:
      np.testing.assert_array_equal(stored[name], whole[name])
