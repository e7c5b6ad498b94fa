"""checks: each fires on what it is there for and is silent otherwise; probes by closed forms."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import gradients
from sprout_jax.evaluation import probes
from sprout_jax.evaluation import robustness
from tests.linear import Linear
from tests.linear import linear_problem

ALONE = sharding.make_mesh(jax.devices()[:1])  # compiles faster than eight
ALL, NONE = np.ones(1000, bool), np.zeros(1000, bool)


def broken(count):
  """Outcomes of 1,000 images of which the first `count` were broken."""
  return np.arange(1000) >= count


def curve(*accuracies):
  return [{"epsilon": 0.01 * i, "accuracy": accuracy} for i, accuracy in enumerate(accuracies)]


HEALTHY = {"count": 50, "losses": {"margin": {"zero": 0.0, "nan": 0.0, "infinite": 0.0}}}
MASKED = {
  "count": 50,
  "losses": {
    "margin": {"zero": 0.0, "nan": 0.0, "infinite": 0.0},
    "dlr": {"zero": 0.02, "nan": 0.04, "infinite": 0.0},
  },
}
PLANTED = {"images": 20, "count": 20, "success": 0.95, "random_success": 0.1}
RISING = np.linspace(0, 1, 100)
LEVEL = np.minimum(1, np.linspace(0, 2, 100))

# Silent on the first, fires on the second with this value and these words and concerns.
TABLE = {
  "gradients": (
    lambda: checks.gradients(HEALTHY),
    lambda: checks.gradients(MASKED),
    0.04,
    "dlr: zero for 2.0%, dlr: nan for 4.0% of 50 images",
    ["dlr: zero", "dlr: nan"],
  ),
  "square": (
    lambda: checks.square({"apgd-ce": 0.5, "apgd-t": 0.4, "square": 0.398}),
    lambda: checks.square(
      {"apgd-ce": broken(0), "apgd-t": broken(100), "square": broken(131), "fab": NONE}
    ),
    3.1,
    "Square broke 3.1 points more",
    ["square"],
  ),
  "black_box": (
    lambda: checks.black_box(broken(100), {"noise": broken(102), "transfer": ALL}),
    lambda: checks.black_box(broken(100), {"noise": broken(102), "transfer": broken(105)}),
    0.5,
    "transfer broke 0.5 points of 1000 images",
    ["transfer"],
  ),
  "order": (
    lambda: checks.order({"fgsm": broken(5), "pgd": broken(5), "apgd": broken(7)}),
    lambda: checks.order({"fgsm": broken(5), "pgd": broken(9), "apgd": broken(7)}),
    2,
    "pgd broke 2 of 1000 images that apgd left robust",
    ["pgd over apgd"],
  ),
  "monotone": (
    lambda: checks.monotone(curve(0.9, 0.9, 0.1), 0.9),
    lambda: checks.monotone(curve(0.9, 0.3, 0.301, 0.304, 0.1), 0.9),
    0.3,
    "rises by 0.30 points up to epsilon 0.03",
    ["epsilon 0.02", "epsilon 0.03"],
  ),
  "large_radius": (
    lambda: checks.large_radius(0.5, 0.01),
    lambda: checks.large_radius(0.5, 0.02),
    2,
    "2.0% of the images",
    ["epsilon 0.5"],
  ),
  "effort": (
    lambda: checks.effort(0.5, {"twice the steps": 0.49, "10 restarts": 0.5}),
    lambda: checks.effort(0.5, {"twice the steps": 0.495, "10 restarts": 0.3}),
    20,
    "10 restarts lowered the accuracy by 20.0 points",
    ["10 restarts"],
  ),
  "converged": (
    lambda: checks.converged(LEVEL),
    lambda: checks.converged(RISING),
    10 / 99,
    "PGD moved by 10.1% of its range in the last tenth of its 99 steps",
    ["PGD"],
  ),
  "gap": (
    lambda: checks.gap(0.55, 0.45),
    lambda: checks.gap(0.6, 0.45),
    15,
    "15.0 points more than AutoAttack (60.0% against 45.0%)",
    ["pgd"],
  ),
  "binarization": (
    lambda: checks.binarization(PLANTED),
    lambda: checks.binarization(PLANTED | {"success": 0.9}, "PGD-5"),
    0.9,
    "PGD-5 found 90.0%, random noise 10.0%: PGD-5 is too weak",
    ["PGD-5"],
  ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_check_fires_and_is_silent(name):
  sound, unsound, value, text, concerns = TABLE[name]
  sound, unsound = sound(), unsound()
  assert sound["name"] == unsound["name"] == name
  assert sound["passed"] is True and sound["concerns"] == []
  assert unsound["passed"] is False and unsound["concerns"] == concerns
  assert text in unsound["text"] and unsound["text"].endswith(".")
  np.testing.assert_allclose(unsound["value"], value)
  for finding in (sound, unsound):
    assert set(finding) == {"name", "passed", "value", "threshold", "text", "concerns"}
    json.dumps(finding, allow_nan=False)


@pytest.mark.parametrize("entries", [curve(0.89, 0.5), curve(0.9, 0.91), curve(0.91, 0.5)])
def test_accuracies_that_cannot_be_right_are_errors(entries):
  with pytest.raises(RuntimeError, match="defect of the evaluation"):
    checks.monotone(entries, 0.9)


def test_order_of_the_curve_does_not_matter():
  assert checks.monotone(curve(0.9, 0.5, 0.1)[::-1], 0.9)["passed"]


def test_a_loss_that_is_flat_has_converged_and_one_that_is_not_finite_has_not():
  assert checks.converged(np.zeros(20))["passed"]
  bad = checks.converged(np.r_[RISING, np.nan])
  assert not bad["passed"] and bad["value"] is None and "not finite" in bad["text"]
  # The mean over images counts: one still moves, nine do not.
  assert checks.converged(np.stack([RISING] + 9 * [30 * LEVEL]))["passed"]


def test_a_test_that_could_not_be_built_is_a_finding():
  found = checks.binarization({"images": 7, "count": 0, "success": None, "random_success": None})
  assert not found["passed"] and found["value"] is None and "none of 7 images" in found["text"]


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: checks.square({"square": 0.1, "fab": 0.1}), "must follow"),
    (lambda: checks.square({"fab": 0.1}), "must follow"),
    (lambda: checks.converged(np.arange(9)), "at least 10"),
    (lambda: checks.order({"a": ALL, "b": ALL[:5]}), "outcomes of \\[5, 1000\\] images"),
    (lambda: checks.black_box(ALL, {"b": ALL[:5]}), "outcomes of \\[5, 1000\\] images"),
  ],
)
def test_wrong_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


class Quantised(nn.Module):
  """The linear model behind rounding: no gradient, and hardly more robust."""

  @nn.compact
  def __call__(self, images, train):
    return Linear(name="linear")(jnp.round(images * 100) / 100, train)


PGD = functools.partial(attacks.pgd, step_size=0.02, num_steps=10)
PROBES = {
  "noise": probes.noise,
  "fgsm": probes.fgsm,
  "pgd": PGD,
  "apgd": functools.partial(attacks.apgd, num_steps=20),
}
attack_fn = functools.cache(robustness.attack_fn)


def outcomes(attack, model=None, variables=None, epsilon=0.05, mesh=ALONE, restarts=1):
  split, own, margin, _ = linear_problem(200)
  fn = attack_fn(model or Linear(), attack, "linf", 0, mesh)
  return robustness.outcomes(
    fn, variables or own, split, margin > 0, epsilon, 64, mesh, "attack", restarts
  )


def test_on_a_linear_model_all_is_in_order():
  """The attacks reach the closed form, noise does not, and no check complains."""
  _, _, margin, norm = linear_problem(200)
  found = {name: outcomes(attack) for name, attack in PROBES.items()}
  exact = margin > 0.05 * norm
  for name in ("fgsm", "pgd", "apgd"):
    np.testing.assert_array_equal(found[name], exact)
  assert exact.mean() < found["noise"].mean() < (margin > 0).mean()
  assert checks.black_box(found["apgd"], {"noise": found["noise"]})["passed"]
  assert checks.order({name: found[name] for name in ("noise", "fgsm", "pgd", "apgd")})["passed"]


def test_on_a_model_without_gradients_the_checks_fire():
  split, variables, margin, _ = linear_problem(200)
  masked = {"params": {"linear": variables["params"]}}
  found = {name: outcomes(PROBES[name], Quantised(), masked) for name in ("noise", "fgsm", "pgd")}
  assert found["fgsm"].mean() > found["noise"].mean() + 0.1  # no step at all
  assert not checks.black_box(found["fgsm"], {"noise": found["noise"]})["passed"]
  assert not checks.order({name: found[name] for name in ("noise", "fgsm")})["passed"]
  health = gradients.health(
    gradients.health_fn(Quantised(), ALONE), masked, split.images, split.labels, 2, 64, ALONE
  )
  assert not checks.gradients(health)["passed"] and health["losses"]["margin"]["zero"] == 1


def test_an_attack_that_is_too_weak_moves_with_more_of_it():
  weak, more = (
    outcomes(functools.partial(attacks.pgd, step_size=0.01, num_steps=steps)).mean()
    for steps in (2, 4)
  )
  assert not checks.effort(weak, {"twice the steps": more})["passed"]
  strong = outcomes(PGD).mean()
  restarts = outcomes(PGD, restarts=3).mean()
  assert checks.effort(strong, {"3 restarts": restarts})["passed"]


def test_restarts_differ_and_devices_do_not():
  weak = functools.partial(probes.noise, num_draws=1)
  one, three = outcomes(weak), outcomes(weak, restarts=3)
  assert (three <= one).all() and three.sum() < one.sum()
  np.testing.assert_array_equal(one, outcomes(weak, mesh=sharding.make_mesh()))


def test_autoattack_and_pgd_are_compared_where_they_ran_alike():
  """At the same radius, in the same norm, on as many images; one of its attacks alone is none."""
  pgd = {"name": "pgd-20", "norm": "linf", "epsilon": 0.03, "count": 100, "accuracy": 0.5}
  ensemble = pgd | {
    "name": "autoattack-standard",
    "accuracy": 0.3,
    "per_attack": {"apgd-ce": 0.4, "square": 0.3},
  }
  others = [
    ensemble | {"epsilon": 0.04},
    ensemble | {"norm": "l2"},
    ensemble | {"count": 99},
    ensemble | {"per_attack": {"apgd-ce": 0.3}},
  ]
  assert checks.gaps([pgd, *others]) == []
  (finding,) = checks.gaps([pgd, *others, ensemble])
  assert not finding["passed"] and finding["beside"] == ["pgd", "epsilon 0.03"]
  assert finding["text"].startswith("At epsilon 0.03: PGD leaves 20.0 points more")
  np.testing.assert_allclose(finding["value"], 20)


def test_an_attack_that_leaves_its_threat_model_is_an_error():
  def shifts(key, predict, images, labels, *, epsilon, norm, indices):
    return images + epsilon + 0.01

  with pytest.raises(RuntimeError, match="attack at epsilon 0.05 exceeded .* by 0.01"):
    outcomes(shifts)
  with pytest.raises(RuntimeError, match="exceeded its threat model by nan"):
    outcomes(lambda key, predict, images, labels, **kwargs: images * jnp.nan)


def test_best_losses_of_a_linear_model_by_formula():
  """The lead of the wrong class grows by step * |w|_1 until it ends in a vertex of the ball."""
  split, variables, margin, norm = linear_problem(16)
  spec = robustness.PgdSpec("linf", 40, 0.004, 1, "margin", 0)
  fn = probes.trace_fn(Linear(), spec, ALONE)
  found = np.asarray(fn(variables, np.float32(0.05), 0, split.images, split.labels, np.arange(16)))
  np.testing.assert_array_equal(
    found[..., 1], found[..., 0] > 0
  )  # broken once the best margin is above 0
  assert (found[..., 2] <= 1e-6).all()
  found = found[..., 0]
  assert found.shape == (16, 41) and (np.diff(found) >= 0).all()
  np.testing.assert_allclose(found[:, -1], 0.05 * norm - margin, rtol=1e-4, atol=1e-4)
  assert (found[:, 0] > -0.05 * norm - margin).all()
  # The last of the pixels arrives after at most 2 epsilon / step = 25 steps.
  assert checks.converged(found)["passed"] and (found[:, 26] == found[:, 40]).all()
  assert not checks.converged(found[:, :11])["passed"]
  # The same run as `attacks.pgd` within `robustness.pgd_fn`: its loss after 3 steps.
  short = robustness.pgd_fn(Linear(), robustness.PgdSpec("linf", 3, 0.004, 1, "margin", 0), ALONE)
  predict = lambda x: Linear().apply(variables, x, train=False)
  adversarial = attacks.pgd(
    jax.random.fold_in(robustness.root_key(0), 0),
    predict,
    split.images,
    split.labels,
    epsilon=0.05,
    step_size=0.004,
    num_steps=3,
    loss="margin",
  )
  expected = np.maximum(
    np.asarray(attacks.LOSSES["margin"](predict(adversarial), split.labels)), -margin
  )
  np.testing.assert_allclose(np.maximum(found[:, 3], -margin), expected, rtol=1e-4, atol=1e-4)
  right = np.asarray(
    short(variables, np.float32(0.05), 0, split.images, split.labels, np.arange(16))
  )
  decided = (margin > 0) & (np.abs(expected) > 1e-3)
  np.testing.assert_array_equal((right[:, 0] > 0.5)[decided], (expected < 0)[decided])


class Wave(nn.Module):
  """Steps of PGD jump over its crests."""

  @nn.compact
  def __call__(self, images, train):
    crest = jnp.cos(300 * images.sum((1, 2, 3)))
    return jnp.stack([crest, -crest], -1)


def test_best_losses_never_fall():
  split, _, _, _ = linear_problem(16)
  spec = robustness.PgdSpec("linf", 20, 0.004, 1, "margin", 0)
  fn = probes.trace_fn(Wave(), spec, ALONE)
  found = np.asarray(fn({}, np.float32(0.05), 0, split.images, split.labels, np.arange(16)))[..., 0]
  assert (np.diff(found) >= 0).all() and (np.diff(found) == 0).any()


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_noise_has_the_size_and_stays_in_the_box(norm):
  """Also where the image is black or white: a pixel that would leave the box turns round."""
  images = np.concatenate([np.zeros((20, 4, 4, 1)), np.ones((20, 4, 4, 1))]).astype(np.float32)
  logits = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], -1)
  found = np.asarray(
    probes.noise(
      jax.random.key(0), logits, images, np.zeros(40, np.int32), epsilon=0.3, norm=norm, num_draws=2
    )
  )
  change = (found - images).reshape(40, -1)
  size = np.abs(change).max(-1) if norm == "linf" else np.linalg.norm(change, axis=-1)
  np.testing.assert_allclose(size, 0.3, rtol=1e-5)
  assert found.min() >= 0 and found.max() <= 1 and len(np.unique(change)) > 300


def test_noise_keeps_the_first_that_is_wrong():
  """Wrong in one of 64 draws on average: found in most of 200, and still wrong in the end."""
  images = np.full((64, 2, 3, 1), 0.5, np.float32)
  predict = lambda x: jnp.stack([jnp.zeros(len(x)), jnp.all(x > 0.5, (1, 2, 3)) - 0.5], -1)
  found = probes.noise(
    jax.random.key(1), predict, images, np.zeros(64, np.int32), epsilon=0.1, num_draws=200
  )
  assert 0.8 < np.mean(np.argmax(predict(found), -1) == 1) <= 1
