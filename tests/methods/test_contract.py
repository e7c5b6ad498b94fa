"""One contract table over every method, variant and penalty, in the training step itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import methods as options
from sprout_jax import methods
from sprout_jax.errors import UserError
from tests import stepping

# (method, variant, penalty)
TABLE = [
  *((name, "paper", "none") for name in options.METHOD_OPTIONS),
  *(("sprout", variant, "none") for variant in options.SPROUT_VARIANTS if variant != "paper"),
  *(("natural", "paper", name) for name in options.PENALTY_OPTIONS if name != "none"),
  *(("sprout", "paper", name) for name in options.PENALTY_OPTIONS if name != "none"),
  ("pgd", "paper", "gradient_norm"),
]
KEY = jax.random.key(5)


def config_of(row, **overrides):
  name, variant, penalty = row
  return stepping.make_config(overrides, name, variant, penalty)


def test_every_row_of_every_table_is_here():
  assert set(methods.METHODS) == set(options.METHOD_OPTIONS) == {name for name, _, _ in TABLE}
  assert set(methods.PENALTIES) == set(options.PENALTY_OPTIONS) == {name for _, _, name in TABLE}


@pytest.mark.parametrize("row", TABLE, ids="-".join)
def test_devices_parallelism_and_repetition_do_not_matter(row):
  """1 device equals 8, and jit equals shard_map, with crops, flips, random starts and drawn labels.

  Linf attacks step by the sign of a gradient. Where rounding flips a sign, a pixel differs by a
  whole step, and the parameters by more than rounding. On these minibatches no sign flips.
  """
  overrides = {"dataset.crop_padding": 1, "dataset.flip": True, "ema_decay": 0.9}
  runs = {}
  for parallelism, devices in (("jit", 1), ("jit", 8), ("shard_map", 8)):
    config = config_of(row, parallelism=parallelism, **overrides)
    if row[0] == "sprout" and row[2] != "none":
      config.method.draw = "mean"  # compiling the draw five times takes most of this file's time
    _, first, *runs[parallelism, devices] = stepping.run_steps(config, stepping.Mlp(), 2, devices)
  state, metrics = runs["jit", 1]
  chex.assert_tree_all_finite((state, metrics))
  chex.assert_trees_all_close(runs["jit", 8], runs["jit", 1], atol=2e-5)
  chex.assert_trees_all_close(runs["shard_map", 8], runs["jit", 1], atol=2e-5)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, state.params)
  assert min(jax.tree.leaves(moved)) > 1e-3
  if row[2] != "none":
    assert (metrics["penalty"] > 0).all()


@pytest.mark.parametrize("row", [row for row in TABLE if row[2] == "none"], ids="-".join)
def test_the_key_determines_what_is_drawn(row):
  method = stepping.make_recipe(config_of(row), stepping.Linear()).method
  images, labels = stepping.minibatch()
  labels = jax.nn.one_hot(labels, 10)
  weights = jax.random.normal(KEY, (64, 10))
  network = methods.Network(lambda x, train: (x.reshape(len(x), -1) @ weights, {}))

  def draws(key):
    adversary = method.adversary.init(KEY, 10, images.shape)
    x, y = method.vicinity(key, images, labels, adversary)
    return x, y, method.probe and method.probe(key, jnp.arange(16), network, x, y)

  first, again, other = (draws(jax.random.key(seed)) for seed in (1, 1, 2))
  chex.assert_trees_all_equal(first, again)
  differ = any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (first, other))))
  assert differ == (row[0] not in ("natural", "label_smoothing", "free"))


@pytest.mark.parametrize("row", [row for row in TABLE if row[2] == "none"], ids="-".join)
def test_images_and_soft_labels_of_the_vicinity(row):
  """Shapes do not change; labels sum to 1, also those in the loss, which is linear in them."""
  method = stepping.make_recipe(config_of(row), stepping.Linear()).method
  images, labels = stepping.minibatch()
  labels = jax.nn.one_hot(labels, 10)
  adversary = method.adversary.init(KEY, 10, images.shape)
  uniform = methods.Network(lambda x, train: (jnp.zeros((len(x), 10)), {}))
  for draw in {method.vicinity, method.adversary.vicinity or method.vicinity}:
    x, y = draw(KEY, images, labels, adversary)
    assert x.shape == images.shape and y.shape == labels.shape
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-5)
    assert (np.asarray(y) >= 0).all()
    found = method.probe and method.probe(KEY, jnp.arange(16), uniform, x, y)
    values, (logits, _) = method.loss(uniform, x, y, found)
    # -sum_k y_k log(1/10) = log(10) sum_k y_k.
    np.testing.assert_allclose(values, np.log(10), rtol=1e-5)
    assert logits.shape == labels.shape
  projected = method.adversary.project(jax.tree.map(lambda a: a - 100, adversary))
  for leaf in jax.tree.leaves(projected):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() <= 1


LIMITS = {
  ("gaussian", "none"): {"noise_stddev": 0.0},
  ("label_smoothing", "none"): {"alpha": 0.0},
  ("label_smoothing_gaussian", "none"): {"alpha": 0.0, "noise_stddev": 0.0},
  ("mixup", "none"): {"mixup_alpha": 0.0},
  ("stable", "none"): {"alpha": 0.0, "noise_stddev": 0.0},
  ("sprout", "none"): {"alpha": 0.0, "noise_stddev": 0.0, "mixup_alpha": 0.0},
  ("pgd", "none"): {"epsilon": 0.0},
  ("fast", "none"): {"epsilon": 0.0},
  ("n_fgsm", "none"): {"epsilon": 0.0, "step_size": 0.0},
  ("free", "none"): {"epsilon": 0.0, "replays": 1},
  ("trades", "none"): {"epsilon": 0.0},
  ("bilateral", "none"): {"epsilon": 0.0, "ratio": 1e9},
  ("natural", "gradient_norm"): {"penalty.epsilon": 0.0},
  ("natural", "cure"): {"penalty.weight": 0.0},
}


def test_every_method_and_penalty_has_a_limit():
  assert {name for name, _ in LIMITS} | {"natural"} == set(methods.METHODS)
  assert {name for _, name in LIMITS} == set(methods.PENALTIES)


@pytest.mark.parametrize("row", LIMITS, ids="-".join)
def test_limits_are_natural_training(row):
  """Without noise, smoothing, radius or penalty: natural training, batch norm included."""
  crop = {"dataset.crop_padding": 1, "dataset.flip": True}
  natural = stepping.run_steps(stepping.make_config(crop, "natural"), stepping.Linear(True))[2]
  overrides = {key if "." in key else f"method.{key}": value for key, value in LIMITS[row].items()}
  limit = stepping.run_steps(
    stepping.make_config(overrides | crop, row[0], penalty=row[1]), stepping.Linear(True)
  )[2]
  chex.assert_trees_all_close(
    (limit.params, limit.batch_stats, limit.opt_state),
    (natural.params, natural.batch_stats, natural.opt_state),
    atol=1e-6,
  )


def test_awp_without_a_perturbation_is_the_plain_step():
  """gamma = 0 is off; a tiny gamma changes nothing visible, a large one does."""
  runs = [
    stepping.run_steps(config_of(("pgd", "paper", "none"), awp_gamma=gamma), stepping.Mlp())[
      2
    ].params
    for gamma in (0.0, 1e-7, 0.05)
  ]
  chex.assert_trees_all_close(runs[0], runs[1], atol=1e-5)
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), runs[0], runs[2])
  assert min(jax.tree.leaves(difference)) > 1e-5


def test_an_adversary_with_a_pass_of_its_own_needs_neither_penalty_nor_awp():
  """ "released": beta ascends on the cross-entropy of the clean batch, without penalty and AWP."""
  betas = []
  for penalty, gamma in (("none", 0.0), ("gradient_norm", 0.1)):
    config = stepping.make_config(
      {
        "awp_gamma": gamma,
        "penalty.epsilon": 0.3,
        "method.draw": "mean",
        "optimizer.learning_rate": 1e-12,
      }
      if gamma
      else {"method.draw": "mean", "optimizer.learning_rate": 1e-12},
      "sprout",
      "released",
      penalty,
    )
    betas.append(stepping.run_steps(config, stepping.Linear(), 1)[2].adversary["beta"])
  np.testing.assert_allclose(betas[0], betas[1], rtol=1e-6)
  assert np.ptp(betas[0]) > 1e-6


def test_radii_are_rescaled_together():
  config = stepping.make_config({}, "pgd", penalty="gradient_norm")
  with config.unlocked():
    options.set_radius(config, 0.1)
  assert config.method.epsilon == config.penalty.epsilon == 0.1
  np.testing.assert_allclose(config.method.step_size, 0.1 / 4)  # 2/255 of 8/255


@pytest.mark.parametrize(
  "kind, create, table",
  [
    ("method", methods.create, methods.METHODS),
    ("penalty", methods.create_penalty, methods.PENALTIES),
  ],
)
def test_unknown_names_and_foreign_options_are_errors(kind, create, table):
  with pytest.raises(UserError, match="choose one of: " + ", ".join(sorted(table))):
    create("sprut", {})
  name = {"method": "natural", "penalty": "none"}[kind]
  with pytest.raises(UserError, match=f"configs/digits.py:{kind}={name}"):
    create(name, {"epsilon": 0.1})


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("gaussian", dict(noise_stddev=-0.1), "noise_stddev"),
    ("label_smoothing", dict(alpha=1.1), "config.method.alpha is 1.1"),
    ("mixup", dict(mixup_alpha=-1.0), "mixup_alpha"),
    ("stable", dict(batch_norm="test"), "eval, train"),
    ("pgd", dict(epsilon=8.0), r"pixels are in \[0, 1\]"),
    ("pgd", dict(norm="l3"), "l1, l2, linf"),
    ("pgd", dict(start="corner"), "clean, gaussian, uniform"),
    ("pgd", dict(num_steps=0), "num_steps"),
    ("fast", dict(step_size=-1.0), "step_size"),
    ("n_fgsm", dict(noise=-1.0), "noise"),
    ("free", dict(replays=0), "replays"),
    ("trades", dict(start="clean"), "gaussian, uniform"),
    ("trades", dict(beta=-1.0), "beta"),
    ("bilateral", dict(ratio=0.0), "ratio"),
    ("gradient_norm", dict(norm="l1"), "l2, linf"),
    ("gradient_norm", dict(epsilon=-1.0), "epsilon"),
    ("cure", dict(h=0.0), "config.penalty.h"),
    ("cure", dict(weight=-1.0), "weight"),
  ],
)
def test_wrong_options_are_errors(name, changes, message):
  is_method = name in methods.METHODS
  table = options.METHOD_OPTIONS if is_method else options.PENALTY_OPTIONS
  create = methods.create if is_method else methods.create_penalty
  with pytest.raises(UserError, match=message):
    create(name, table[name]("paper").to_dict() | changes)
