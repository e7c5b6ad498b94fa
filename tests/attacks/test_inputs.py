"""Input checks of every public attack: wrong inputs raise, right inputs pass."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax.attacks import inputs
from sprout_jax.attacks import inspection
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import attack_batch
from sprout_jax.attacks.attack import example_keys

KEY = jax.random.key(6)
WEIGHTS = np.random.RandomState(0).normal(size=(16, 3)).astype(np.float32)
IMAGES = np.random.RandomState(1).uniform(size=(4, 4, 4, 1)).astype(np.float32)


def predict(images):
  return (images - 0.5).reshape(len(images), -1) @ WEIGHTS


LABELS = np.asarray(predict(IMAGES)).argmax(-1)

# Name -> (predict, images, labels, epsilon, norm) -> adversarial images.
PUBLIC = {
  "pgd": lambda p, x, y, e, norm: attacks.pgd(
    KEY, p, x, y, epsilon=e, norm=norm, step_size=0.02, num_steps=2
  ),
  "pgd_trace": lambda p, x, y, e, norm: (
    attacks.pgd_trace(KEY, p, x, y, epsilon=e, norm=norm, step_size=0.02, num_steps=2).images
  ),
  "fgsm": lambda p, x, y, e, norm: attacks.fgsm(p, x, y, epsilon=e, norm=norm),
  "apgd": lambda p, x, y, e, norm: attacks.apgd(KEY, p, x, y, epsilon=e, norm=norm, num_steps=2),
  "fab": lambda p, x, y, e, norm: attacks.fab(KEY, p, x, y, epsilon=e, norm=norm, num_steps=2),
  "square": lambda p, x, y, e, norm: attacks.square(
    KEY, p, x, y, epsilon=e, norm=norm, num_steps=2
  ),
  "carlini_wagner": lambda p, x, y, e, norm: attacks.carlini_wagner(
    p, x, y, num_steps=2, num_searches=2
  ),
  "auto_attack": lambda p, x, y, e, norm: (
    attacks.auto_attack(KEY, p, x, y, epsilon=e, norm=norm, version="apgd-ce", batch_size=8).images
  ),
}
WITH_RADIUS = [name for name in PUBLIC if name != "carlini_wagner"]


def refuse(name, message, **changes):
  """Checks that the attack raises a ValueError that begins with its own name."""
  given = dict(predict=predict, images=IMAGES, labels=LABELS, epsilon=0.1, norm="linf") | changes
  with pytest.raises(ValueError, match=rf"^{name}: .*{message}"):
    PUBLIC[name](*given.values())


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
  "images, message",
  [
    ((IMAGES * 255).astype(np.uint8), "images are uint8.*divide by 255"),
    (np.round(IMAGES * 255), "pixels range from .*divide bytes by 255"),
    ((IMAGES - 0.5) / 0.2, "normalise inside `predict`"),
    (IMAGES - 0.001, "normalise inside `predict`"),
    (np.where(IMAGES > 0.9, np.nan, IMAGES), "range from nan to nan.*replace NaN"),
    (np.where(IMAGES > 0.9, np.inf, IMAGES), "to inf; .*infinite values"),
    (IMAGES[0], r"shape \(4, 4, 1\); expected \[n, height, width, channels\]"),
    (IMAGES[:0], r"shape \(0, 4, 4, 1\).*at least 1"),
    (IMAGES.reshape(4, -1), r"images.reshape\(n, 1, 1, features\)"),
  ],
)
def test_wrong_images(name, images, message):
  refuse(name, message, images=images)
  refuse(name, message, images=jnp.asarray(images))


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
  "labels, message",
  [
    (np.eye(3)[LABELS], r"labels have shape \(4, 3\).*labels.argmax\(-1\)"),
    (LABELS[:3], r"labels have shape \(3,\) for 4 images"),
    (LABELS * 1.0, "labels are float64; expected integers"),
    (np.array([0, 1, 2, 3]), "labels range from 0 to 3, but `predict` has 3 classes"),
    (np.array([0, 1, 2, -1]), "labels range from -1 to 2"),
  ],
)
def test_wrong_labels(name, labels, message):
  refuse(name, message, labels=labels)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
  "change, message",
  [
    (lambda z: (z, z), r"returns a tuple.*must return logits, one float array of shape .*\[0\]"),
    (lambda z: [z], "returns a list"),
    (lambda z: {"logits": z}, "returns a dict.*its entries .'logits'"),
    (lambda z: None, "returns a NoneType"),
    (lambda z: z[:, None], r"returns shape \(\d, 1, 3\)"),
    (lambda z: z[0], r"returns shape \(3,\)"),
    (lambda z: z[1:], r"returns shape \(\d, 3\)"),
    (lambda z: z.astype(jnp.int32), "returns int32"),
    (lambda z: z[:, :1], "1 outputs per image; it needs at least 2 classes"),
  ],
)
def test_outputs_that_are_no_logits(name, change, message):
  refuse(name, message, predict=lambda images: change(predict(images)))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_predict_that_cannot_be_called(name):
  refuse(name, "`predict` is a ndarray; expected a function", predict=WEIGHTS)


@pytest.mark.parametrize("name", PUBLIC)
def test_probabilities_are_no_logits(name):
  """Their gradients vanish on confident models, so that a model looks robust."""
  softmax = lambda images: jax.nn.softmax(predict(images))
  refuse(name, r"probabilities \(they sum to 1\); return the logits", predict=softmax)
  refuse(name, "probabilities", predict=lambda x: softmax(x).astype(jnp.bfloat16))
  one_hot = lambda images: jax.nn.one_hot(predict(images).argmax(-1), 3)
  refuse(name, "probabilities", predict=one_hot)


def test_probabilities_pass_where_they_cannot_be_seen_and_where_the_loss_wants_them():
  softmax = lambda images: jax.nn.softmax(predict(images))
  attack = lambda x: PUBLIC["pgd"](softmax, x, LABELS, 0.1, "linf")
  assert jax.jit(attack)(IMAGES).shape == IMAGES.shape
  likelihood = lambda outputs, labels: -jnp.take_along_axis(outputs, labels[:, None], 1)[:, 0]
  found = attacks.pgd(
    KEY, softmax, IMAGES, LABELS, epsilon=0.1, step_size=0.05, num_steps=3, loss=likelihood
  )
  assert (likelihood(softmax(found), LABELS) > likelihood(softmax(IMAGES), LABELS)).all()


WITH_KEY = [name for name in PUBLIC if name not in ("fgsm", "carlini_wagner")]


@pytest.mark.parametrize("name", WITH_KEY)
@pytest.mark.parametrize(
  "key, message",
  [
    (7, r"`key` is 7 \(int\); expected a PRNG key: jax.random.key\(7\)"),
    (np.uint32(7), r"jax.random.key\(7\)"),
    (None, r"`key` is None \(NoneType\); .*jax.random.key\(0\)"),
    (jnp.int32(7), r"\(ArrayImpl\); expected a PRNG key"),
    (jax.random.split(jax.random.key(0), 2), r"`key` has shape \(2,\); expected one PRNG key"),
  ],
)
def test_seeds_are_no_keys(monkeypatch, name, key, message):
  monkeypatch.setitem(globals(), "KEY", key)
  refuse(name, message)


@pytest.mark.parametrize("name", ["pgd", "auto_attack"])
def test_keys_of_the_old_form_are_keys(monkeypatch, name):
  expected = plain(name)
  monkeypatch.setitem(globals(), "KEY", jax.random.PRNGKey(6))  # the same seed
  found = PUBLIC[name](predict, IMAGES, LABELS, 0.1, "linf")
  np.testing.assert_allclose(found, expected, atol=1e-6)


class Tensor:
  """As a tensor of another framework: no function of JAX takes it."""


class Module:
  """As a module of PyTorch."""

  def __call__(self, images):
    raise TypeError("linear(): argument 'input' (position 1) must be Tensor, not ArrayImpl")


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
  "wrong, message",
  [
    (Module(), r"JAX cannot trace `predict` .*must be Tensor.*'PyTorch models' in docs/own_model"),
    (lambda images: np.asarray(predict(images)), "use jax.numpy.*'PyTorch models'"),
    (lambda images, keys: predict(images), "It is called with images alone; .*attacks.averaged"),
    (lambda images: images.logits, "AttributeError: .*JAX operations that changes no state"),
  ],
)
def test_functions_that_jax_cannot_trace(name, wrong, message):
  refuse(name, message, predict=wrong)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_module_of_another_framework_is_named(name):
  """A class says where it comes from; the framework itself is not needed."""
  kind = type("Net", (type("Module", (Module,), {"__module__": "torch.nn.modules.module"}),), {})
  refuse(
    name,
    "`predict` is a Net of torch, which JAX cannot trace; see 'PyTorch models'",
    predict=kind(),
  )


def test_errors_of_the_model_itself_stay_as_they_are():
  def fail(images):
    raise ValueError("images of another size")

  with pytest.raises(ValueError, match="^images of another size"):
    PUBLIC["pgd"](fail, IMAGES, LABELS, 0.1, "linf")


@functools.cache
def plain(name):
  """What an attack finds, for several tests."""
  return np.asarray(PUBLIC[name](predict, IMAGES, LABELS, 0.1, "linf"))


@pytest.mark.parametrize("name", ["pgd", "square", "carlini_wagner", "auto_attack"])
def test_a_batch_of_one_is_attacked_as_in_a_larger_batch(name):
  alone = PUBLIC[name](predict, IMAGES[:1], LABELS[:1], 0.1, "linf")
  np.testing.assert_allclose(alone, plain(name)[:1], atol=1e-5)


@pytest.mark.parametrize(
  "name, norm, dtype",
  [
    ("pgd", "linf", jnp.bfloat16),
    ("apgd", "l2", jnp.bfloat16),
    ("square", "l2", jnp.float16),
    ("carlini_wagner", "l2", jnp.bfloat16),
  ],
)
def test_half_precision_stays_in_the_ball(name, norm, dtype):
  """The images come back in their own type, and rounding makes no perturbation larger."""
  images = jnp.asarray(IMAGES, dtype)
  narrow = lambda x: predict(x.astype(jnp.float32)).astype(dtype)
  found = PUBLIC[name](narrow, images, LABELS, 0.1, norm)
  assert found.dtype == dtype
  moved = np.asarray(found, np.float64) - np.asarray(images, np.float64)
  size = np.abs(moved).reshape(4, -1)
  size = {"linf": size.max(-1), "l2": np.sqrt((size**2).sum(-1)), "l1": size.sum(-1)}[norm]
  assert name == "carlini_wagner" or size.max() <= 0.1 + 1e-6
  assert np.asarray(found, np.float32).min() >= 0 and np.asarray(found, np.float32).max() <= 1


def test_auto_attack_takes_half_precision():
  """It works in float32 and returns float32; the outputs may be short as well."""
  found = PUBLIC["auto_attack"](
    lambda x: predict(x).astype(jnp.bfloat16),
    jnp.asarray(IMAGES, jnp.bfloat16),
    LABELS,
    0.1,
    "linf",
  )
  assert found.dtype == np.float32


def test_the_public_list_is_complete():
  """Every function and class that is imported is on it, and nothing else."""
  there = {name for name in vars(attacks) if not name.startswith("_")}
  modules = {name for name in there if inspect.ismodule(getattr(attacks, name))}
  assert there - modules == set(attacks.__all__)
  assert attacks.__all__ == sorted(
    attacks.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)
  )


def test_results_are_shown_in_one_line():
  result = attacks.auto_attack(
    KEY, predict, IMAGES, LABELS, epsilon=8 / 255, version="apgd-ce", batch_size=8
  )
  share = 100 * result.robust.mean()
  low, high = (100 * limit for limit in result.spec["robust"]["interval"])
  assert repr(result) == (
    f"<AttackResult apgd-ce, linf epsilon 0.03137: {share:.1f} % [{low:.1f}, {high:.1f}] of 4 "
    f"images robust; after apgd-ce {share:.1f} %>"
  )
  trace = attacks.pgd_trace(KEY, predict, IMAGES, LABELS, epsilon=0.1, step_size=0.1, num_steps=2)
  robust = int((~np.asarray(trace.broken[:, -1])).sum())
  assert repr(trace) == f"<PgdTrace of 4 images, 2 steps, {robust} robust after the last>"
  shown = []
  jax.jit(
    lambda key: shown.append(
      repr(attacks.pgd_trace(key, predict, IMAGES, LABELS, epsilon=0.1, step_size=0.1, num_steps=2))
    )
  )(KEY)
  assert shown == ["<PgdTrace of 4 images, 2 steps>"]


@pytest.mark.parametrize("name", WITH_RADIUS)
@pytest.mark.parametrize(
  "epsilon, message",
  [
    (8, r"epsilon is 8; pixels are in \[0, 1\]; did you mean 8/255\?"),
    (jnp.float32(4), r"did you mean 4/255\?"),
    (-0.1, "epsilon is -0.1; expected a finite number of at least 0"),
    (float("nan"), "epsilon is nan"),
    (float("inf"), "epsilon is inf"),
    ("8/255", "epsilon is '8/255'; expected a finite number"),
    (np.array([0.1, 0.1]), "epsilon is array"),
  ],
)
def test_wrong_radii(name, epsilon, message):
  refuse(name, message, epsilon=epsilon)


@pytest.mark.parametrize("name", WITH_RADIUS)
def test_unknown_norms(name):
  refuse(name, "norm is 'l3'; choose one of: l1, l2, linf", norm="l3")


def test_a_radius_above_1_is_fine_in_l2():
  inputs.check_radius("pgd", 8.0, "l2")
  inputs.check_radius("pgd", 1, "linf")
  inputs.check_radius("pgd", np.array([0.1, 1.0]), "linf", 2)
  with pytest.raises(ValueError, match="did you mean 2/255"):
    inputs.check_radius("pgd", np.array([0.1, 2.0]), "linf", 2)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(num_steps=2.0), "num_steps is 2.0; expected an integer of at least 0"),
    (dict(num_steps=2**31), r"num_steps is 2147483648; .* of at least 0, below 2\^31"),
    (dict(num_steps=-1), "num_steps is -1"),
    (dict(num_steps=True), "num_steps is True"),
    (dict(step_size=-0.1), "step_size is -0.1"),
    (dict(step_size=np.ones(3)), "or an array of shape .4,."),
    (dict(momentum=float("nan")), "momentum is nan"),
    (dict(indices=np.arange(3)), r"indices are int64 of shape \(3,\); expected integers"),
    (dict(indices=np.arange(4.0)), "indices are float64"),
  ],
)
def test_wrong_options_of_pgd(options, message):
  with pytest.raises(ValueError, match=f"^pgd: .*{message}"):
    attacks.pgd(
      KEY, predict, IMAGES, LABELS, **dict(epsilon=0.1, step_size=0.1, num_steps=1) | options
    )


@pytest.mark.parametrize(
  "attack, options, message",
  [
    ("apgd", dict(num_steps=0), "num_steps is 0; expected an integer of at least 1"),
    ("apgd", dict(num_runs=0), "num_runs is 0"),
    ("apgd", dict(loss="hinge"), "loss is 'hinge'; choose one of: cross_entropy, dlr, margin"),
    ("apgd", dict(targeted=True), "targeted loss is 'cross_entropy'; choose one of: dlr, margin"),
    ("fab", dict(num_runs=0), "num_runs is 0"),
    ("square", dict(num_steps=1.5), "num_steps is 1.5"),
  ],
)
def test_wrong_options_of_the_others(attack, options, message):
  with pytest.raises(ValueError, match=f"^{attack}: .*{message}"):
    getattr(attacks, attack)(KEY, predict, IMAGES, LABELS, epsilon=0.1, **options)


@pytest.mark.parametrize("name", PUBLIC)
def test_arrays_as_numpy_makes_them(name):
  """Float64 images and int64 labels give float32, without a warning under strict promotion."""
  with jax.numpy_dtype_promotion("strict"):
    found = PUBLIC[name](predict, IMAGES.astype(np.float64), LABELS.astype(np.int64), 0.1, "l2")
  assert found.dtype == np.float32 and found.shape == IMAGES.shape
  assert name == "carlini_wagner" or not np.array_equal(found, IMAGES)  # too few steps


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("name", [name for name in WITH_RADIUS if name != "auto_attack"])
def test_images_that_cannot_be_checked_are_never_moved_beyond_the_radius(name, norm):
  """Inside jit, images outside of [0, 1] are not noticed, but the ball still holds."""
  images = 4 * IMAGES - 2
  found = jax.jit(lambda images: PUBLIC[name](predict, images, LABELS, 0.1, norm))(images)
  size = np.asarray(attacks.NORMS[norm].size(found - images))
  assert np.isfinite(size).all() and size.max() <= 0.1 + 1e-6
  assert name == "fab" or size.max() > 0.05


@pytest.mark.parametrize("shape", [(1, 1, 20), (1, 40, 2), (3, 5, 2), (3, 32, 32)])
def test_channels_are_last_whatever_the_shape(shape):
  """Vectors, signals and flat images pass: their shapes may look like channels first."""
  images = np.full((2, *shape), 0.5, np.float32)
  inputs.check_examples("auto_attack", images, np.array([0, 1]))


def test_vectors_by_the_closed_form():
  """A linear model is robust where the margins exceed epsilon times the L1 norm of w_y - w_k."""
  rng = np.random.RandomState(2)
  weights = rng.normal(size=(20, 3)).astype(np.float32)
  images = rng.uniform(0.4, 0.6, (12, 1, 1, 20)).astype(np.float32)
  logits = (images - 0.5).reshape(12, -1) @ weights
  labels = logits.argmax(-1)
  margins = np.take_along_axis(logits, labels[:, None], 1) - logits
  sizes = np.abs(weights.T[labels][:, None] - weights.T[None]).sum(-1)
  distance = np.where(sizes > 0, margins / np.where(sizes > 0, sizes, 1), np.inf).min(-1)
  epsilon = float(np.median(distance)) + 1e-4
  found = attacks.auto_attack(
    KEY,
    lambda x: (x - 0.5).reshape(len(x), -1) @ weights,
    images,
    labels,
    epsilon=epsilon,
    version="apgd-t",
    batch_size=16,
  )
  np.testing.assert_array_equal(found.robust, distance > epsilon)


def test_a_targeted_attack_has_no_more_runs_than_wrong_classes():
  """The images move by the number of the run; with 3 classes there are the runs 0 and 1."""

  def start(batch):
    moved = batch.images + 0.01 * batch.run[:, None, None, None]
    return {"adversarial": moved, "broken": jnp.zeros(len(moved), bool)}

  step = lambda predict, batch, state, number: state
  for targeted, last in ((True, 1), (False, 8)):
    attack = Attack("numbered", "linf", start, step, 1, 9, {}, targeted=targeted)
    found = attack_batch(attack, KEY, predict, IMAGES / 2, LABELS, 0.1)
    np.testing.assert_allclose(found, IMAGES / 2 + 0.01 * last, atol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_is_wrong(kind):
  logits = kind(
    np.array([[2, 1], [1, 2], [2, np.nan], [np.inf, 1], [2, -np.inf], [1, 1]], np.float32)
  )
  found = attacks.is_wrong(logits, kind(np.zeros(6, np.int32)))
  assert isinstance(found, type(logits))
  assert found.tolist() == [False, True, True, True, True, False]
  stacked = attacks.is_wrong(logits.reshape(2, 3, 2), kind(np.zeros((2, 3), np.int32)))
  assert stacked.tolist() == found.reshape(2, 3).tolist()


def test_the_ids_of_attacks_are_stable():
  """The ids determine the random draws of all stored outcomes."""
  assert {name: row.id for name, row in attacks.ATTACKS.items()} == {
    "apgd-ce": 0,
    "apgd-dlr": 1,
    "apgd-t": 2,
    "fab": 3,
    "fab-t": 4,
    "square": 5,
  }


def test_keys_of_the_kind_rbg_belong_to_their_example():
  """With keys of that kind vmap would draw for all examples from the first key."""
  key = jax.random.key(3, impl="rbg")
  draw = lambda indices: jax.vmap(jax.random.uniform)(example_keys(key, jnp.asarray(indices)))
  together = np.asarray(draw([0, 1, 2, 3]))
  np.testing.assert_array_equal(draw([2, 3]), together[2:])
  assert len(set(together.tolist())) == 4


def test_the_arrays_of_a_partial_are_arguments():
  """Leaves that are not arrays, such as train=False, stay Python values."""

  def apply(weights, images, *, train, scale):
    assert train is False
    return scale * (images @ weights)

  weights = np.eye(2, dtype=np.float32)
  partial = jax.tree_util.Partial(apply, weights, train=False, scale=jnp.float32(3))
  mesh = jax.make_mesh((1,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  images = jax.ShapeDtypeStruct((1, 2), np.float32)
  found = inspection.on_devices(partial, replicated, images)
  again = inspection.on_devices(partial, replicated, images)
  assert [leaf.shape for leaf in jax.tree.leaves(found)] == [(2, 2), ()]
  assert jax.tree.structure(found) == jax.tree.structure(
    again
  )  # so that no program is compiled again
  given = jax.jit(lambda predict, images: predict(images))(found, np.ones((1, 2), np.float32))
  np.testing.assert_array_equal(given, [[3, 3]])
  assert functools.reduce(lambda a, b: a and b, map(callable, (found, again)))
