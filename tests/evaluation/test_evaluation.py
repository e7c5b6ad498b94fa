"""evaluation: padding and devices do not matter; counts and intervals by hand; PGD's closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.data import Split
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness
from tests.linear import Linear
from tests.linear import linear_problem

SPEC = robustness.PgdSpec(
  norm="linf", num_steps=10, step_size=0.02, num_restarts=1, loss="cross_entropy", seed=0
)


def curve(mesh, variables, split, clean_correct, epsilons):
  return robustness.pgd_curve(
    robustness.pgd_fn(Linear(), SPEC, mesh),
    variables,
    split,
    clean_correct,
    SPEC,
    epsilons,
    16,
    mesh,
  )


def meshes():
  return [sharding.make_mesh(jax.devices()[:count]) for count in (1, 8)]


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_accuracy_with_padding_on_one_and_eight_devices(batch_size):
  split, variables, margin, _ = linear_problem()
  for mesh in meshes():
    correct = accuracy.evaluate(
      accuracy.correct_fn(Linear(), mesh), variables, split, batch_size, mesh
    )
    np.testing.assert_array_equal(correct, margin > 0)


def test_bytes_and_floats_are_the_same_images():
  split, variables, _, _ = linear_problem()
  levels = np.round(split.images * 255).astype(np.uint8)
  mesh = meshes()[0]
  correct = accuracy.correct_fn(Linear(), mesh)
  np.testing.assert_array_equal(
    accuracy.evaluate(correct, variables, Split(levels, split.labels), 8, mesh),
    accuracy.evaluate(
      correct, variables, Split(levels.astype(np.float32) / 255, split.labels), 8, mesh
    ),
  )


def test_not_finite_logits_are_not_correct():
  split, variables, _, _ = linear_problem()
  variables = jax.tree.map(lambda leaf: leaf * np.nan, variables)
  mesh = meshes()[0]
  assert not accuracy.evaluate(accuracy.correct_fn(Linear(), mesh), variables, split, 8, mesh).any()


def test_robustness_curve_of_a_linear_model_is_the_closed_form():
  """x is robust iff its margin exceeds epsilon |w|_1; misclassified images are never robust."""
  split, variables, margin, norm = linear_problem()
  epsilons = (0.0, 0.01, 0.02, 0.05, 0.2)
  for mesh in meshes():
    entries = curve(mesh, variables, split, margin > 0, epsilons)
    for entry in entries:
      assert entry["accuracy"] == np.mean(margin > max(entry["epsilon"] * norm, 0))
      assert entry["count"] == 37 and entry["steps"] == 10 and entry["norm"] == "linf"
  assert entries[0]["accuracy"] > entries[2]["accuracy"] > entries[4]["accuracy"] == 0


def test_restarts_are_independent_runs_of_which_the_worst_counts():
  """With one short step, starts matter: robust after 4 restarts = robust in each of 4 runs."""
  split, variables, margin, norm = linear_problem(200)
  spec = dataclasses.replace(SPEC, num_steps=1, step_size=0.005, num_restarts=4)
  mesh = meshes()[0]
  attack = robustness.pgd_fn(Linear(), spec, mesh)
  (entry,) = robustness.pgd_curve(attack, variables, split, margin > 0, spec, (0.05,), 64, mesh)
  runs = np.array(
    [
      np.asarray(
        attack(variables, np.float32(0.05), restart, split.images, split.labels, np.arange(200))
      )[:, 0]
      > 0.5
      for restart in range(4)
    ]
  )
  assert entry["accuracy"] == np.mean(runs.all(0) & (margin > 0)) and entry["restarts"] == 4
  assert runs.all(0).sum() < runs.sum(1).min() and not (runs[0] == runs[1]).all()


def test_a_model_that_is_always_wrong_needs_no_attack():
  split, variables, margin, _ = linear_problem()
  entries = curve(meshes()[0], variables, split, np.zeros(37, bool), (0.1,))
  assert entries[0]["accuracy"] == 0


def test_an_attack_that_leaves_its_threat_model_is_an_error(monkeypatch):
  split, variables, margin, _ = linear_problem()
  monkeypatch.setattr(
    robustness.attacks,
    "pgd",
    lambda key, predict, images, labels, *, epsilon, **kwargs: images + epsilon + 0.01,
  )
  with pytest.raises(RuntimeError, match="exceeded its threat model by 0.01"):
    curve(meshes()[0], variables, split, margin > 0, (0.1,))


def test_selection_is_fixed_and_without_repetition():
  rows = robustness.select(100, 30)
  np.testing.assert_array_equal(rows, robustness.select(100, 30))
  assert len(set(rows)) == 30 and set(rows) < set(range(100)) and (rows != np.arange(30)).any()
  for count in (0, 100, 200):
    np.testing.assert_array_equal(robustness.select(100, count), np.arange(100))


def test_wilson_interval_by_its_formula():
  n, k, z = 300, 291, 1.959963984540054
  p = k / n
  center = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
  entry = statistics.proportion(k, n)
  assert entry["accuracy"] == 0.97 and entry["count"] == 300
  np.testing.assert_allclose(entry["interval"], [center - half, center + half], rtol=1e-9)


def test_products_are_in_full_precision():
  """TF32 and bfloat16 products would make gradients that flatter a model (seen in the program)."""
  split, variables, _, _ = linear_problem()
  program = (
    jax.jit(accuracy.predict_fn(Linear(), variables)).lower(jnp.asarray(split.images)).as_text()
  )
  assert "HIGHEST" in program
