"""redraws: the spread of a randomised model by hand; attacks that fit their draws are named."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import evaluation
from sprout_jax.evaluation.randomness import named_key
from sprout_jax.evaluation.randomness import root_key
from tests.evaluation import subjects

COUNT = 30
IMAGES = np.random.RandomState(0).uniform(0.3, 0.7, (COUNT, 4, 4, 1)).astype(np.float32)
WEIGHTS = np.random.RandomState(1).randn(5, 16, 3).astype(np.float32)


def random_member(weights, images, keys):
  """A random one of five linear models, another for each image."""
  logits = jnp.einsum("bi,mic->bmc", (images - 0.5).reshape(len(images), -1), weights)
  chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, 5))(keys)
  return logits[jnp.arange(len(images)), chosen]


def test_the_spread_by_hand(tmp_path):
  """Evaluated by one call; fresh draws are those of named keys."""
  model = attacks.averaged(jax.tree_util.Partial(random_member, WEIGHTS), 2)
  labels = np.einsum("bi,mic->bc", IMAGES.reshape(COUNT, -1) - 0.5, WEIGHTS).argmax(-1)
  found = evaluation.evaluate(
    model,
    IMAGES,
    labels,
    workdir=tmp_path,
    evaluations=(),
    epsilon=0.1,
    num_steps=10,
    num_restarts=1,
    redraws={"repeats": 4},
    progress=False,
  )
  numbers = found.numbers.where(evaluation="redraws")
  each = []
  for repeat in range(4):
    other = model.redrawn(named_key(root_key(0), f"redraw {repeat}"))
    right = np.asarray(other(IMAGES)).argmax(-1) == labels
    clean = numbers.first(redraw=repeat, attack=None)
    np.testing.assert_array_equal(clean.outcomes, right)
    each.append(right.mean())
  assert len(set(each)) > 1
  mean = numbers.first(metric="mean_accuracy", attack=None)
  assert mean["redraws"] == 4 and mean.count == COUNT
  np.testing.assert_allclose(mean.value, np.mean(each))
  spread = numbers.first(metric="accuracy_stddev", attack=None)
  np.testing.assert_allclose(spread.value, np.std(each, ddof=1))
  # Student's t with three degrees of freedom has its 97.5 % quantile at 3.182.
  width = 2 * 3.1824463 * np.std(each, ddof=1) / 4**0.5
  np.testing.assert_allclose(np.subtract(*mean.interval[::-1]), width)
  fixed = numbers.first(attack="pgd", redraw=None, metric="accuracy")
  fresh = numbers.first(attack="pgd", metric="mean_accuracy")
  assert fixed.matches(norm="linf", epsilon=0.1, steps=10)
  # An attack on two draws of five models misses the others.
  assert fresh.value > fixed.value + 0.05
  (note,) = found.stored["redraws"].notes
  assert f"{100 * (fresh.value - fixed.value):.1f} points more" in note


def test_a_model_without_random_numbers_has_no_spread():
  found = subjects.measure("redraws", subjects.make(), redraws={"repeats": 2})
  assert found.numbers.first(metric="accuracy_stddev", attack="pgd").value == 0
  assert found.notes == ("The model draws no random numbers, so that the accuracy has no spread.",)
  pgd = subjects.measure("pgd", subjects.make(), epsilons=(), num_examples=20)
  for number in found.numbers.where(attack="pgd", metric="accuracy"):
    np.testing.assert_array_equal(number.outcomes, pgd.numbers.first().outcomes)
