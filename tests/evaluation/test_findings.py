"""Findings end to end: each fires on a model that was built to trigger it, none on one trained against PGD."""

import functools
import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import digits
from sprout_jax import attacks
from sprout_jax import data
from sprout_jax import losses
from sprout_jax import vicinity
from sprout_jax.evaluation import EVALUATIONS
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import options
from sprout_jax.evaluation import subject as subject_lib
from tests.evaluation.subjects import ALONE

EPSILON = 0.1
ALPHA, NOISE = 0.95, 0.3  # of the smoothed model: strong


class Network(nn.Module):
  """Two layers, behind `before`, the outputs times `scale`."""

  before: callable = lambda x: x
  scale: float = 1.0

  @nn.compact
  def __call__(self, images, train):
    x = self.before(images).reshape(len(images), -1)
    return self.scale * nn.Dense(10)(nn.relu(nn.Dense(96)(x)))


def natural(key, predict, images, one_hot, labels):
  return images, one_hot


def adversarial(key, predict, images, one_hot, labels):
  return attacks.pgd(
    key, predict, images, labels, epsilon=EPSILON, step_size=EPSILON / 3, num_steps=5, keep="last"
  ), one_hot


def smoothed(key, predict, images, one_hot, labels):
  return vicinity.gaussian_noise(key, images, NOISE), (1 - ALPHA) * one_hot + ALPHA / 10


@functools.cache
def train(vicinity_of):
  """Variables of a `Network` after 400 steps of Adam on all digits at once."""
  split, model, optimizer = data.load("digits").train, Network(), optax.adam(3e-3)
  images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
  variables = model.init(jax.random.key(0), images[:1], train=False)

  def step(carry, key):
    variables, state = carry
    predict = lambda variables, x: model.apply(variables, x, train=False)
    x, y = vicinity_of(
      key, functools.partial(predict, variables), images, jax.nn.one_hot(labels, 10), labels
    )
    gradient = jax.grad(lambda v: losses.soft_cross_entropy(predict(v, x), y).mean())(variables)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(variables, updates), state), None

  run = jax.jit(
    lambda carry: jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), 400))[0]
  )
  return run((variables, optimizer.init(variables)))[0]


class Memo:
  folder = pathlib.Path(tempfile.gettempdir())

  def __call__(self, name, compute):
    return compute()


def findings(rows, variables, model=Network(), count=100, folder=None, **changes):
  """{(name, passed)}, all findings, of these evaluations together with the gap from PGD to AutoAttack."""
  config = digits.get_config().evaluation
  config.unlock()
  config.epsilon, config.epsilons, config.auto_attack.epsilons = EPSILON, (0.0, EPSILON), (EPSILON,)
  config.binarization.update(num_examples=16, num_inner=100)
  for name, value in changes.items():
    config[name].update(value) if isinstance(value, dict) else config.update({name: value})
  split, memo = data.load("digits").test, Memo()
  memo.folder = folder
  test = data.Split(split.images[:count], split.labels[:count])
  subject = subject_lib.Subject(
    model=model,
    variables=variables,
    test=test,
    num_classes=10,
    class_names=tuple("0123456789"),
    logits=subject_lib.checked_logits(model, variables, test, 128, ALONE),
    batch_size=128,
    mesh=ALONE,
    beta=None,
    load=None,
    load_corrupted=None,
    memo=memo,
  )
  found, entries = [], []
  for row in rows:
    result = EVALUATIONS[row](subject, **options.options(row, config))
    found, entries = found + result.get("findings", []), entries + result.get("entries", [])
  return found + checks.gaps(entries), entries


def failed(found):
  return {finding["name"] for finding in found if not finding["passed"]}


def test_a_model_trained_against_pgd_raises_no_finding(tmp_path):
  found, entries = findings(
    ("pgd", "sanity", "binarization", "auto_attack"),
    train(adversarial),
    folder=tmp_path,
    num_steps=40,
    step_size=0.01,
    num_restarts=5,
  )
  assert not failed(found), [finding["text"] for finding in found if not finding["passed"]]
  assert {finding["name"] for finding in found} == {
    "monotone",
    "gradients",
    "order",
    "black_box",
    "effort",
    "large_radius",
    "converged",
    "binarization",
    "square",
    "gap",
  }
  assert entries[-1]["accuracy"] > 0.7  # it is worth something


def test_smoothed_labels_and_noise_look_robust_to_pgd_with_one_start(tmp_path):
  """What PGD on the cross-entropy leaves of it, AutoAttack breaks."""
  found, entries = findings(("pgd", "auto_attack"), train(smoothed), folder=tmp_path)
  pgd, ensemble = entries[-2], entries[-1]
  assert failed(found) == {"gap"} and pgd["restarts"] == 1
  (gap,) = [finding for finding in found if finding["name"] == "gap"]
  np.testing.assert_allclose(gap["value"], 100 * (pgd["accuracy"] - ensemble["accuracy"]))
  assert (
    gap["value"] > 10
    and gap["beside"] == ["pgd", "epsilon 0.1"]
    and "report AutoAttack's number" in gap["text"]
  )
  # Its neighbour without smoothing has no such gap.
  found, _ = findings(("pgd", "auto_attack"), train(natural), folder=tmp_path / "natural")
  assert "gap" not in failed(found)


def test_a_model_behind_rounding_has_no_gradients_and_is_found_out(tmp_path):
  model = Network(before=lambda x: jnp.round(x * 16) / 16)
  found, _ = findings(("pgd", "sanity", "auto_attack"), train(natural), model, folder=tmp_path)
  assert failed(found) >= {"gradients", "black_box", "large_radius", "square", "gap"}
  texts = " ".join(finding["text"] for finding in found)
  assert (
    "zero for 100.0%" in texts
    and "Square broke" in texts
    and "gradients are probably masked" in texts
  )


def test_a_model_whose_logits_are_blown_up_has_no_gradient_of_the_cross_entropy():
  found, _ = findings(("sanity",), train(natural), Network(scale=1e4))
  gradients = [
    finding for finding in found if finding["name"] == "gradients" and not finding["passed"]
  ]
  assert {finding["where"] for finding in gradients} == {
    "at the images",
    "at the start of PGD",
    "halfway through PGD",
  }
  assert all(
    finding["concerns"] == ["cross_entropy: zero"] for finding in gradients
  )  # not what attacks follow
  (order,) = [finding for finding in found if finding["name"] == "order"]
  assert not order["passed"] and "pgd broke" in order["text"]


def test_gradients_that_are_nan_in_a_pixel_are_found_out_and_spoil_no_attack(tmp_path):
  """The square root has no slope at 0, which the first pixel of all digits is."""
  model = Network(before=lambda x: x + 0 * jnp.sqrt(x[:, :1, :1]))
  rows = ("pgd", "sanity", "strength")
  changes = dict(steps=(5, 10), restarts=(1, 2), losses=("cross_entropy",))
  found, entries = findings(rows, train(natural), model, strength=changes)
  gradients = [finding for finding in found if finding["name"] == "gradients"]
  assert gradients and not any(finding["passed"] for finding in gradients)
  assert "cross_entropy: nan for 100.0%" in gradients[0]["text"]
  _, usual = findings(rows, train(natural), strength=changes)
  for entry, other in zip(entries, usual, strict=True):  # of 100 images; one pixel less to change
    assert abs(entry["accuracy"] - other["accuracy"]) <= 0.03


def test_an_attack_that_is_too_weak_is_found_out():
  """Few short steps: more of them find more, the loss still rises, and planted examples are missed."""
  found, _ = findings(("sanity", "binarization"), train(adversarial), num_steps=10, step_size=0.004)
  assert failed(found) >= {"effort", "converged", "binarization"}
  assert "large_radius" not in failed(found)  # whose own steps are long
  (effort,) = [finding for finding in found if finding["name"] == "effort"]
  assert "twice the steps" in effort["concerns"]
