"""Published weights: logits against PyTorch's, names and shapes, one error for each thing wrong."""

import collections
import hashlib
import importlib.util
import io
import json
import os
import pickle
import zipfile

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sprout_jax import evaluation
from sprout_jax import models
from sprout_jax.errors import UserError
from sprout_jax.models.vgg import VGG
from sprout_jax.models.weights import files
from sprout_jax.models.weights import names
from tests.models import compare_published
from tests.models import make_weights_golden as reference

GOLDEN = json.loads(reference.GOLDEN.read_text())
PUBLISHED = reference.PUBLISHED.read_text()
NONE = {"mean": (0,), "std": (1,)}
# case: what load_weights is told.
CASES = {
  "wrn": {"model": "wrn_10_2"},
  "wrn_16": {"model": "wrn_16_1", **NONE},
  "deepmind": {"model": "wrn_10_2_same", "activation": "silu"},
  "deepmind_16": {"model": "wrn_16_1_same", "activation": "silu"},
  "preact": {"model": "preact_resnet18", **NONE},
  "preact_final_norm": {"model": "preact_resnet18_final_norm", **NONE},
  "preact_raw": {"model": "preact_resnet18_raw_shortcut", **NONE},
  "resnet18_cifar": {"model": "resnet18_cifar", **NONE},
  "resnet18": {"model": "resnet18", **NONE},
  "resnet50": {"model": "resnet50", **NONE},
  "vgg16": {"model": "vgg16", **NONE},
  "vgg11_imagenet": {"model": VGG(12, depth=11, hidden=64), **NONE},
}
run = jax.jit(lambda weights, images: weights(images))  # weights are arguments, not constants
needs_torch = pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def state_dict(case):
  return {
    name: reference.draw(name, shape) for name, shape in GOLDEN["cases"][case]["arrays"].items()
  }


@pytest.fixture
def save(tmp_path):
  """A function that writes a state dict and returns the file's path."""

  def write(state, name="weights.safetensors"):
    path = tmp_path / name
    save_file({key: np.ascontiguousarray(array) for key, array in state.items()}, path)
    return path

  return write


def small(**changes):
  """The state dict of a Wide ResNet, without the arrays that evaluation does not need."""
  state = {n: a for n, a in state_dict("wrn").items() if not n.startswith("sub_block1")}
  state = {n: a for n, a in state.items() if not n.endswith("num_batches_tracked")}
  return state | changes


def relative_error(found, expected):
  return np.max(np.abs(np.array(found) - expected)) / np.max(np.abs(expected))


def test_every_golden_case_is_tested():
  assert set(CASES) == set(GOLDEN["cases"]) == set(reference.CASES)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_pytorchs(case, save):
  """Every array is random, the moving statistics too: each has its place or the logits differ."""
  weights = models.load_weights(save(state_dict(case)), **CASES[case])
  images = reference.images_of(2, reference.CASES[case][2])
  expected = np.array(GOLDEN["cases"][case]["logits"])
  assert relative_error(expected[0], expected[1]) > 0.02  # they depend on the image
  assert relative_error(run(weights, images), expected) < 1e-4


@pytest.mark.parametrize("name", sorted(GOLDEN["digests"]))
def test_names_and_shapes_at_published_sizes(name):
  """Against a digest of PyTorch's state dict; nothing is computed."""
  classes = reference.LISTED[name][1].get("classes", 10)
  model = models.create(name, num_classes=classes, image_shape=(224, 224, 3))
  form, places = names.forms(model)[0], names.places(model, 3)
  listing = {form.name(place): form.shape(place, shape) for place, shape in places.items()}
  listing |= {n: listing.get(n.removeprefix("sub_"), ()) for n in form.unused(list(places))}
  if name.endswith("_same"):  # these files hold their normalisation
    listing |= {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
  assert reference.digest(listing) == GOLDEN["digests"][name]


def test_what_is_returned(save):
  path = save({f"module.{name}": array for name, array in state_dict("wrn").items()})
  weights = models.load_weights(path, model="wrn_10_2")
  assert weights.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert weights.normalisation == "module.mu, module.sigma"
  np.testing.assert_allclose(weights.mean, state_dict("wrn")["mu"].reshape(-1))
  np.testing.assert_allclose(weights.std, state_dict("wrn")["sigma"].reshape(-1))
  assert (weights.model.mean, weights.model.std) == (weights.mean, weights.std)
  assert weights.mapping["module.block2.layer.0.convShortcut.weight"] == (
    "params/block2_1/shortcut/kernel"
  )
  assert weights.mapping["module.bn1.running_var"] == "batch_stats/norm/var"
  names_in_file = {f"module.{name}" for name in state_dict("wrn")}
  used = {*weights.mapping, *weights.unused, "module.mu", "module.sigma"}
  assert used == names_in_file and not weights.mapping.keys() & weights.unused.keys()
  assert "TRADES" in weights.unused["module.sub_block1.layer.0.conv1.weight"]
  assert "num_batches_tracked" not in str(weights.mapping)
  leaves = jax.tree.leaves(weights)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
  images = reference.images_of(2, 32)
  np.testing.assert_array_equal(run(weights, images), run(weights.predict, images))
  assert "wrn" not in repr(weights) and len(repr(weights)) < 1000


def test_a_model_that_is_made_keeps_its_options(save):
  model = models.create(
    "wrn_10_2", num_classes=10, image_shape=(32, 32, 3), activation="softplus", dtype="bfloat16"
  )
  loaded = models.load_weights(save(state_dict("wrn")), model=model)
  assert (loaded.model.activation, loaded.model.dtype) == ("softplus", jnp.bfloat16)
  assert loaded.model.mean == loaded.mean != (0.0,)


def test_evaluate_takes_it(save, tmp_path):
  weights = models.load_weights(save(state_dict("wrn")), model="wrn_10_2")
  images = reference.images_of(8, 8)
  labels = np.array(run(weights, images)).argmax(1)
  labels[:2] = (labels[:2] + 1) % 10
  results = evaluation.evaluate(
    weights.predict, images, labels, workdir=tmp_path / "run", evaluations=(), progress=False
  )
  assert results.numbers.first(evaluation="clean").value == 0.75


@pytest.mark.parametrize("case", reference.ATTACKED)
def test_pgd_has_pytorchs_outcomes(case, save):
  """The images that PGD in PyTorch never makes the same network misclassify, and no others.

  The least margins there are 0.2 % of the largest logit and more away from 0.
  """
  weights = models.load_weights(save(state_dict(case)), **CASES[case])
  images, pgd = reference.images_of(8, reference.CASES[case][2]), GOLDEN["pgd"][case]
  assert 0 < sum(pgd["robust"]) < len(images)
  assert compare_published.outcomes(weights, images, pgd) == pgd["robust"]


def test_networks_that_were_compared_at_their_published_sizes():
  """By `python -m tests.models.compare_published`, which wrote this table to the page."""
  compared = json.loads(compare_published.COMPARED.read_text())
  assert compared and compared.keys() <= reference.SIZES.keys() & json.loads(PUBLISHED).keys()
  assert all(("equal" in compared[name]) == (name in reference.ATTACKED_SIZES) for name in compared)
  for name, row in compared.items():
    assert row["difference"] < 1e-4 and row.get("equal") == row.get("count"), name
  assert compare_published.table(compared) in compare_published.PAGE.read_text()


PLACES = [  # what holds the state dict of a Wide ResNet, how it is normalised
  ("", {}),
  ("module.", {"module.mu": (1, 3, 1, 1), "module.sigma": (1, 3, 1, 1)}),
  ("model.", {"normalize.mean": (1, 3, 1, 1), "normalize.std": (1, 3, 1, 1)}),
  ("1.", {"0.mean": (3,), "0.std": (3,)}),
  (
    "module.model.",
    {"module.normalizer.new_mean": (3, 1, 1), "module.normalizer.new_std": (3, 1, 1)},
  ),
]


@pytest.mark.parametrize("prefix,normalisation", PLACES)
def test_prefixes_and_normalisation_inside_or_beside(prefix, normalisation, save):
  state = {prefix + n: a for n, a in small().items() if n not in ("mu", "sigma")}
  values = {
    n: small()["sigma" if "s" in n[-5:] else "mu"].reshape(s) for n, s in normalisation.items()
  }
  given = {} if values else {"mean": small()["mu"].reshape(-1), "std": small()["sigma"].reshape(-1)}
  weights = models.load_weights(save(state | values), model="wrn_10_2", **given)
  expected = np.array(GOLDEN["cases"]["wrn"]["logits"])
  assert weights.normalisation == (", ".join(values) or "given")
  assert relative_error(run(weights, reference.images_of(2, 32)), expected) < 1e-4


def test_torchvisions_names_in_a_resnet_with_a_small_stem(save):
  rename = lambda n: n.replace("shortcut", "downsample").replace("linear", "fc")
  state = {rename(name): array for name, array in state_dict("resnet18_cifar").items()}
  ours = models.load_weights(save(state), model="resnet18_cifar", **NONE)
  usual = models.load_weights(
    save(state_dict("resnet18_cifar"), "usual.safetensors"), model="resnet18_cifar", **NONE
  )
  jax.tree.map(np.testing.assert_array_equal, ours.variables, usual.variables)
  assert ours.form != usual.form


# --- What does not fit -----------------------------------------------------------------------


def without(state, *left_out):
  return {name: array for name, array in state.items() if name not in left_out}


@pytest.mark.parametrize(
  "state,words",
  [
    (
      without(small(), "block1.layer.0.bn1.weight", "fc.bias"),
      ["missing: block1.layer.0.bn1.weight (16,), fc.bias (10,)."],
    ),
    (
      small(**{"conv1.scores": np.ones((16, 3)), "head.0.weight": np.ones(4)}),
      ["not used: conv1.scores (16, 3), head.0.weight (4,).", "ignore=(...,)"],
    ),
    (
      small(**{"fc.weight": small()["fc.weight"].T}),
      ["of another shape: fc.weight is (128, 10), expected (10, 128), transposed."],
    ),
    (
      small(**{"block3.layer.0.conv2.weight": np.ones((128, 64, 3, 3), np.float32)}),
      ["block3.layer.0.conv2.weight is (128, 64, 3, 3), expected (128, 128, 3, 3)."],
    ),
    (
      without(small(**{"new": np.ones(1), "fc.bias": np.ones(9, np.float32)}), "bn1.bias"),
      ["missing: bn1.bias (128,); not used: new (1,); of another shape: fc.bias is (9,)"],
    ),
    (
      small(**{"conv1.weight": np.full((16, 3, 3, 3), np.nan, np.float32)}),
      ["not finite", "conv1"],
    ),
    (small(**{"conv1.weight": np.full((16, 3, 3, 3), 1e39)}), ["not finite", "conv1.weight"]),
    (small(**{"bn1.running_var": -np.ones(128, np.float32)}), ["negative", "bn1.running_var"]),
    (small(**{"fc.bias": np.ones(10, np.int32)}), ["fc.bias is int32", "floating-point"]),
    (without(small(), "mu", "sigma"), ["not guessed", "mean=(...), std=(...)"]),
    (without(small(), "mu"), ["not used: sigma (1, 3, 1, 1)"]),
    (small(mu=np.full(3, 125.3, np.float32)), ["mu is", "from 0 to 1", "divide", "255"]),
    (small(sigma=np.zeros(3, np.float32)), ["sigma is", "above 0"]),
    (small(mu=np.ones((3, 3), np.float32)), ["mu is", "3, one per channel"]),
    (
      small(mean=np.full(3, 0.5, np.float32), std=np.full(3, 0.5, np.float32)),
      ["(mean, std)", "(mu, sigma)"],
    ),
    (state_dict("deepmind"), ["DeepMind", "model='wrn_10_2_same'"]),
    ({"a.weight": np.ones((2, 2))}, ["missing: ", "conv1.weight", "not used: a.weight (2, 2)"]),
  ],
)
def test_what_does_not_fit_is_listed(state, words, save):
  with pytest.raises(ValueError) as error:
    models.load_weights(save(state), model="wrn_10_2")
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  "options,words",
  [
    ({"mean": (0.5,)}, ["give both"]),
    ({"mean": (0.5,), "std": (0.5,)}, ["(mu, sigma)", "(given)"]),
    ({"mean": (0.5, 0.5), "std": (0.5,)}, ["mean is (0.5, 0.5)", "3, one per channel"]),
    ({"model": "wrn_16_2"}, ["missing: block1.layer.1.", "Choose another model"]),
    (
      {"model": "small_cnn"},
      ["names of sprout_jax", "missing: params/", "Choose another model"],
    ),
    ({"model": "vgg17"}, ["vgg17", "vgg16"]),
    ({"model": 3}, ["model is a int"]),
    ({"model": "wrn_10_2_same", "activation": "silu"}, ["TRADES", "model='wrn_10_2'"]),
    ({"model": VGG(10), "activation": "silu"}, ["leave activation out"]),
    ({"ignore": ("*.scores",)}, ["'*.scores'", "unused are: mu (1, 3, 1, 1)"]),
    ({"entry": "last"}, ["only PyTorch checkpoints"]),
  ],
)
def test_wrong_options(options, words, save):
  path = save(small())
  with pytest.raises(UserError) as error:
    models.load_weights(path, **{"model": "wrn_10_2"} | options)
  for word in words:
    assert word in str(error.value)


def test_the_activation_of_deepminds_networks_is_demanded(save):
  path = save(state_dict("deepmind"))
  with pytest.raises(UserError, match="activation='silu'"):
    models.load_weights(path, model="wrn_10_2_same")
  model = models.create("wrn_10_2_same", num_classes=10, image_shape=(32, 32, 3), activation="silu")
  assert models.load_weights(path, model=model).model.activation == "silu"


def own(name="wrn_10_1", channels=3, size=32):
  """A model with other values than the defaults, and variables that are all different."""
  model = models.create(
    name,
    num_classes=7,
    image_shape=(size, size, channels),
    activation="gelu",
    mean=(0.5,) * channels,
    std=(0.25,) * channels,
  )
  images = jax.random.uniform(jax.random.key(1), (3, size, size, channels))
  variables = model.init(jax.random.key(0), images, train=False)
  leaves, structure = jax.tree.flatten(variables)
  rng = np.random.default_rng(2)
  leaves = [rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) for leaf in leaves]
  return model, jax.tree.unflatten(structure, leaves), images


@pytest.mark.parametrize(
  "name,channels,size", [("wrn_10_1", 3, 32), ("small_cnn", 4, 16), ("wrn_10_1_same", 1, 16)]
)
def test_what_is_saved_is_loaded(name, channels, size, tmp_path):
  model, variables, images = own(name, channels, size)
  models.save_weights(tmp_path / "own.npz", model, variables)
  found = models.load_weights(tmp_path / "own.npz", model=name)
  assert (found.form, found.normalisation, found.unused) == ("sprout_jax", "mean, std", {})
  assert (found.mean, found.std) == ((0.5,) * channels, (0.25,) * channels)
  jax.tree.map(np.testing.assert_array_equal, dict(found.variables), dict(variables))
  expected = model.apply(variables, images, train=False)
  np.testing.assert_allclose(run(found, images), expected, rtol=1e-5)
  assert [path.name for path in tmp_path.iterdir()] == ["own.npz"]


def test_the_activation_of_an_own_file_counts(tmp_path):
  model, variables, _ = own()
  models.save_weights(tmp_path / "own.npz", model, variables)
  assert models.load_weights(tmp_path / "own.npz", model=model).model.activation == "gelu"
  relu = model.clone(activation="relu")
  for options in ({"model": relu}, {"model": "wrn_10_1", "activation": "relu"}):
    with pytest.raises(UserError, match="has the activation 'gelu', but 'relu' is given"):
      models.load_weights(tmp_path / "own.npz", **options)


def test_the_model_of_an_own_file_counts(tmp_path):
  """The names and shapes of both networks are the same."""
  models.save_weights(tmp_path / "own.npz", *own()[:2])
  with pytest.raises(UserError, match="weights of .*'same_padding': False.*, but .*True.*; choose"):
    models.load_weights(tmp_path / "own.npz", model="wrn_10_1_same")


def test_what_cannot_be_saved(tmp_path):
  model, variables, _ = own()
  without = {"params": variables["params"]}
  for path, what, message in (
    ("own.pt", (model, variables), "ends in .npz"),
    ("own.npz", ("wrn_10_1", variables), "model is a str"),
    ("own.npz", (model, without), "not those of this WideResNet"),
    ("own.npz", (own("wrn_10_2")[0], variables), "not those of this WideResNet"),
  ):
    with pytest.raises(UserError, match=message):
      models.save_weights(tmp_path / path, *what)
  assert not list(tmp_path.iterdir())


def test_ignored_arrays_are_named(save):
  path = save(small(**{"conv1.scores": np.ones(3), "fc.scores": np.ones(3)}))
  weights = models.load_weights(path, model="wrn_10_2", ignore=("*.scores",))
  assert weights.unused == dict.fromkeys(("conv1.scores", "fc.scores"), "ignored as '*.scores'")
  outside = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
  weights = models.load_weights(
    path, model="wrn_10_2", ignore=("*.scores", "mu", "sigma"), **outside
  )
  assert (weights.mean, weights.std, weights.normalisation) == (*outside.values(), "given")


# --- NumPy's files ---------------------------------------------------------------------------


class HaikuBlock(hk.Module):
  """A block of DeepMind's Wide ResNet, in JAX."""

  def __init__(self, width, stride, projects, name):
    super().__init__(name=name)
    norm = lambda i: hk.BatchNorm(True, True, 0.99, name=f"batchnorm_{i}")
    conv = lambda i, s: hk.Conv2D(width, 3, s, padding="SAME", with_bias=False, name=f"conv_{i}")
    self.norms, self.convolutions = [norm(0), norm(1)], [conv(0, stride), conv(1, 1)]
    self.shortcut = (
      hk.Conv2D(width, 1, stride, with_bias=False, name="shortcut") if projects else None
    )

  def __call__(self, x, train):
    a = jax.nn.silu(self.norms[0](x, train))
    out = jax.nn.silu(self.norms[1](self.convolutions[0](a), train))
    return self.convolutions[1](out) + (self.shortcut(a) if self.shortcut else x)


class HaikuNet(hk.Module):
  """DeepMind's WRN-16-2 in Haiku, whose module names are those of the released code."""

  def __init__(self):
    super().__init__(name="wide_res_net")
    self.conv = hk.Conv2D(16, 3, with_bias=False, name="init_conv")
    self.norm = hk.BatchNorm(True, True, 0.99, name="batchnorm")
    self.logits = hk.Linear(10, name="logits")
    self.blocks = [
      HaikuBlock(32 * 2**i, 2 if i and not j else 1, not j, f"resnet_lay_{i}_block_{j}")
      for i in range(3)
      for j in range(2)
    ]

  def __call__(self, x, train):
    x = self.conv(x)
    for block in self.blocks:
      x = block(x, train)
    return self.logits(jax.nn.silu(self.norm(x, train)).mean((1, 2)))


@pytest.fixture(scope="module")
def haiku():
  """(params, state, images, logits) of DeepMind's network with random weights and statistics."""
  net = hk.transform_with_state(lambda x, train: HaikuNet()((x - 0.5) / 0.25, train))
  images = reference.images_of(2, 32)
  shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  rng = np.random.default_rng(0)

  def one(path, leaf):
    if path[-1].key == "counter":
      return np.array(1, np.int32)
    positive = rng.uniform(0.5, 1.5, leaf.shape)
    signed = rng.normal(size=leaf.shape) * (2 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5
    is_positive = path[-1].key == "scale" or "var_ema" in path[0].key
    return (positive if is_positive else signed * 0.5 ** (path[-1].key != "w")).astype(np.float32)

  params, state = (jax.tree.map_with_path(one, part) for part in shapes)
  logits, _ = jax.jit(lambda p, s, x: net.apply(p, s, None, x, False))(params, state, images)
  return params, state, images, np.array(logits)


DEEPMIND = {"model": "wrn_16_2_same", "activation": "silu", "mean": (0.5,), "std": (0.25,)}


def test_deepminds_npy_and_the_same_as_npz(haiku, tmp_path):
  params, state, images, expected = haiku
  np.save(tmp_path / "net.npy", (params, state))  # as in the released training code
  weights = models.load_weights(tmp_path / "net.npy", **DEEPMIND)
  assert relative_error(expected[0], expected[1]) > 0.02
  assert relative_error(run(weights, images), expected) < 1e-4
  assert len(weights.mapping) + len(weights.unused) == len(jax.tree.leaves((params, state)))
  assert {n.rpartition("/")[2] for n in weights.unused} == {"hidden", "counter"}
  flat = {
    f"{m}/{n}": a for part in (params, state) for m, rest in part.items() for n, a in rest.items()
  }
  np.savez_compressed(tmp_path / "net.npz", **flat)
  again = models.load_weights(tmp_path / "net.npz", **DEEPMIND)
  jax.tree.map(np.testing.assert_array_equal, weights.variables, again.variables)


def to_haiku(state):
  """Haiku's names and layouts of DeepMind's PyTorch state dict, by hand: (params, state)."""
  params, averages = {}, {}
  for name, array in state.items():
    *modules, leaf = name.split(".")
    if modules[:1] == ["layer"]:
      modules = [f"resnet_lay_{modules[1]}_block_{modules[3]}", "~", modules[4]]
    module = "/".join(["wide_res_net", *modules])
    if "batchnorm" not in module:
      kernel = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
      params.setdefault(module, {})["w" if leaf == "weight" else "b"] = kernel
      continue
    array = array.reshape(1, 1, 1, -1)
    if leaf in ("weight", "bias"):
      params.setdefault(module, {})["scale" if leaf == "weight" else "offset"] = array
    else:
      average = {"running_mean": "mean_ema", "running_var": "var_ema"}[leaf]
      averages[f"{module}/~/{average}"] = {"average": array}
  return params, averages


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_numpys_files_have_pytorchs_logits(ending, tmp_path):
  """The arrays of the PyTorch network, under Haiku's names."""
  state = state_dict("deepmind_16")
  stated = {key: state.pop(key).reshape(-1) for key in ("mean", "std")}
  params, averages = to_haiku({k: v for k, v in state.items() if not k.endswith("tracked")})
  path = tmp_path / f"net.{ending}"
  if ending == "npy":
    np.save(path, (params, averages))
  else:
    parts = {**params, **averages}
    np.savez(path, **{f"{m}/{n}": array for m, rest in parts.items() for n, array in rest.items()})
  weights = models.load_weights(path, model="wrn_16_1_same", activation="silu", **stated)
  expected = np.array(GOLDEN["cases"]["deepmind_16"]["logits"])
  assert relative_error(run(weights, reference.images_of(2, 32)), expected) < 1e-4


def test_deepminds_npy_of_2020_with_haikus_own_dictionaries(haiku, tmp_path):
  content = np.empty(2, object)
  content[:] = [hk.data_structures.to_immutable_dict(part) for part in haiku[:2]]
  np.save(tmp_path / "old.npy", content)
  assert b"FlatMapping" in (tmp_path / "old.npy").read_bytes()
  np.save(tmp_path / "new.npy", haiku[:2])
  old, new = (models.load_weights(tmp_path / f"{n}.npy", **DEEPMIND) for n in ("old", "new"))
  jax.tree.map(np.testing.assert_array_equal, old.variables, new.variables)


def test_npz_of_a_state_dict(tmp_path):
  np.savez(tmp_path / "net.npz", **state_dict("wrn"))
  weights = models.load_weights(tmp_path / "net.npz", model="wrn_10_2")
  np.testing.assert_array_equal(
    weights.variables["params"]["dense"]["kernel"], state_dict("wrn")["fc.weight"].T
  )


class Hostile:
  """Unpickled by the usual means, it makes a folder of this name."""

  def __init__(self, folder):
    self.folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@pytest.mark.parametrize("place", ["alone", "in a dictionary", "as a name"])
def test_a_hostile_npy_runs_nothing(place, tmp_path):
  folder = tmp_path / "made"
  hostile = Hostile(folder)
  content = {"alone": hostile, "in a dictionary": {"a": {"w": hostile}}, "as a name": {hostile: 1}}
  array = np.empty((), object)
  array[()] = content[place]
  np.save(tmp_path / "net.npy", array)
  with pytest.raises(UserError, match="posix.mkdir, which could run code"):
    models.load_weights(tmp_path / "net.npy", **DEEPMIND)
  assert not folder.exists()


def npy(content):
  """A NumPy file whose data is this pickle."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
  return b"\x93NUMPY\x01\x00" + file.getvalue()[8:] + content


def deep(levels):
  content = np.ones(1)
  for _ in range(levels):
    content = {"a": content}
  return content


def many():
  """10**9 entries, in nine lists of ten references."""
  content = [np.ones(1)] * 10
  for _ in range(8):
    content = [content] * 10
  return {"a": content}


@pytest.mark.parametrize(
  "content,words",
  [
    (b"", ["1 to"]),
    (b"no array", ["cannot be read"]),
    (npy(b""), ["cannot be read"]),
    (npy(pickle.dumps({"a": {"w": np.ones(3)}})[:-20]), ["cannot be read"]),
    (npy(pickle.dumps(deep(20))), ["levels"]),
    (npy(pickle.dumps(many())), ["more than"]),
    (npy(pickle.dumps({"a": 3})), ["a is a int"]),
    (npy(pickle.dumps({3: np.ones(1)})), ["the key 3"]),
    (npy(pickle.dumps([{"a": np.ones(1)}, {"a": np.ones(1)}])), ["a twice"]),
    (npy(pickle.dumps({})), ["no arrays"]),
    (npy(pickle.dumps({"a": collections.Counter()})), ["collections.Counter"]),
    (npy(pickle.dumps({"a": np.float64(1)})), ["scalar"]),
    (npy(b"cnumpy\nndarray\n(I5\ntR."), ["cannot be read"]),
    (npy(b"P1\n."), ["persistent"]),
  ],
)
def test_a_damaged_or_hostile_npy_gives_one_error(content, words, tmp_path):
  path = tmp_path / "net.npy"
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    models.load_weights(path, **DEEPMIND)
  for word in (*words, str(path)):
    assert word in str(error.value)


def zip_of(tmp_path, **members):
  path = tmp_path / "net.npz"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(f"{name}.npy", content)
  return path


def test_a_hostile_npz_is_refused(tmp_path, monkeypatch):
  stored = io.BytesIO()
  np.save(stored, np.ones((4, 4), np.float32))
  header = stored.getvalue()
  claim = header.replace(b"(4, 4), }", b"(4, 9999999), }")  # 160 MB that are not there
  objects = io.BytesIO()
  np.save(objects, np.array([Hostile(tmp_path / "made")]))
  for content, words in (
    (claim, "not as long as its header says"),
    (header[:-1], "not as long as its header says"),
    (objects.getvalue(), "Python objects"),
    (b"no array", "cannot be read"),
  ):
    with pytest.raises(UserError, match=words):
      models.load_weights(zip_of(tmp_path, a=content), model="wrn_10_2")
  assert not (tmp_path / "made").exists()
  monkeypatch.setattr(files, "LARGEST", 2**20)
  path = zip_of(tmp_path, a=bytes(2**21))
  assert path.stat().st_size < 2**20
  with pytest.raises(UserError, match="would unpack to 2097152 bytes"):
    models.load_weights(path, model="wrn_10_2")


def test_paths(tmp_path, save, monkeypatch):
  load = lambda path: models.load_weights(path, model="wrn_10_2")
  with pytest.raises(UserError, match="there is no file .*docs/weights.md"):
    load("Wong2020Fast")
  with pytest.raises(UserError, match="not a regular file"):
    load(tmp_path)
  os.mkfifo(tmp_path / "pipe.safetensors")
  with pytest.raises(UserError, match="not a regular file"):
    load(tmp_path / "pipe.safetensors")
  (tmp_path / "net.pkl").write_bytes(b"1")
  with pytest.raises(UserError, match="unknown kind; expected one of: .safetensors"):
    load(tmp_path / "net.pkl")
  (tmp_path / "net.safetensors").write_bytes(b"\xff" * 64)
  with pytest.raises(UserError, match="cannot be read .*download it again"):
    load(tmp_path / "net.safetensors")
  path = save(small())
  monkeypatch.setattr(files, "LARGEST", 1000)
  with pytest.raises(UserError, match="expected 1 to 1000"):
    load(path)


def test_other_floating_point_types_become_float32(tmp_path, save):
  state = {name: array.astype(jnp.bfloat16) for name, array in small().items()}
  weights = models.load_weights(save(state), model="wrn_10_2")
  bias = weights.variables["params"]["dense"]["bias"]
  assert bias.dtype == jnp.float32
  np.testing.assert_array_equal(bias, state["fc.bias"].astype(np.float32))


def test_a_number_type_that_numpy_lacks_says_what_to_do(tmp_path):
  header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
  path = tmp_path / "net.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00")
  with pytest.raises(UserError, match="convert the array to float32"):
    models.load_weights(path, model="wrn_10_2")


# --- PyTorch's files -------------------------------------------------------------------------


def test_without_pytorch_the_error_says_what_to_type(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  (tmp_path / "net.pt").write_bytes(b"1")
  with pytest.raises(UserError, match="pip install torch.*safetensors"):
    models.load_weights(tmp_path / "net.pt", model="wrn_10_2")


@needs_torch
def test_the_golden_file_is_what_the_script_makes():
  for case, (function, options, size) in reference.CASES.items():
    network = reference.build(function, **options)
    found = reference.logits(network, reference.images_of(2, size))
    assert relative_error(found, np.array(GOLDEN["cases"][case]["logits"])) < 1e-4


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_pytorch(legacy, tmp_path):
  import torch

  network = reference.build("wide_resnet", depth=10, width=2, inside=True)
  torch.optim.SGD(network.parameters(), 0.1)
  state = network.state_dict()
  save = lambda content, name: torch.save(
    content, tmp_path / name, _use_new_zipfile_serialization=not legacy
  )
  save(state, "net.pt")
  save({"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"m": state["mu"]}}}}, "a.ckpt")
  save({"last": state, "best": {**state, "fc.bias": state["fc.bias"] + 1}}, "b.pth")
  save({**state, "step": 3}, "c.pth.tar")
  load = lambda name, **options: models.load_weights(tmp_path / name, model="wrn_10_2", **options)
  expected = load("net.pt")
  found = run(expected, reference.images_of(2, 32))
  assert relative_error(found, np.array(GOLDEN["cases"]["wrn"]["logits"])) < 1e-4
  for weights in (load("a.ckpt"), load("b.pth", entry="last"), load("c.pth.tar", ignore="step")):
    jax.tree.map(np.testing.assert_array_equal, weights.variables, expected.variables)
  best = load("b.pth", entry="best").variables["params"]["dense"]["bias"]
  np.testing.assert_array_equal(best, expected.variables["params"]["dense"]["bias"] + 1)
  for name, options, words in (
    ("b.pth", {}, "type entry=NAME, with one of: last, best"),
    ("b.pth", {"entry": "first"}, "no state dict 'first'; choose one of: last, best"),
    ("c.pth.tar", {}, r"not used: step int\."),
  ):
    with pytest.raises(UserError, match=words):
      load(name, **options)


@needs_torch
def test_hostile_files_of_pytorch(tmp_path, monkeypatch):
  import torch

  load = lambda: models.load_weights(tmp_path / "net.pt", model="wrn_10_2")
  torch.save({"a.weight": Hostile(tmp_path / "made")}, tmp_path / "net.pt")
  with pytest.raises(UserError, match=r"posix\.mkdir, which could run code"):
    load()
  assert not (tmp_path / "made").exists()
  (tmp_path / "net.pt").write_bytes(b"\x80\x02}q\x00.")
  with pytest.raises(UserError):
    load()
  torch.save({"a": 3}, tmp_path / "net.pt")
  with pytest.raises(UserError, match="no state dict"):
    load()
  torch.save({"a.weight": torch.ones(1).expand(2**34)}, tmp_path / "net.pt")  # a view of 64 GiB
  with pytest.raises(UserError, match="more than"):
    load()
  torch.save({"a.weight": torch.ones(4).to_sparse()}, tmp_path / "net.pt")
  with pytest.raises(UserError, match="sparse"):
    load()
  monkeypatch.setattr(torch, "__version__", "2.5.1")
  with pytest.raises(UserError, match="pip install 'torch>=2.6'"):
    load()
