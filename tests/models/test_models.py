"""One contract over every model; counts by hand; the small network against PyTorch's logits."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import models
from sprout_jax.errors import UserError
from sprout_jax.models.layers import Conv

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "autoattack"
FLOAT32 = jnp.dtype("float32")


def vgg_parameters(*widths):
  """3x3 convolutions with bias, two norm parameters a channel, one dense layer to 10 classes."""
  inputs = (3, *widths[:-1])
  return sum(9 * i * o + o + 2 * o for i, o in zip(inputs, widths, strict=True)) + 513 * 10


# name: (classes, image size, parameters, millions of multiplications an image or None).
# Parameters: published or by hand. Multiplications: published, to half a percent because some
# figures include norms; they see a stride or a pooling in the wrong place, parameters do not.
CONTRACT = {
  "small_cnn": (10, 32, 28 * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 128 + 513 * 10, None),
  "vgg11": (10, 32, vgg_parameters(64, 128, 256, 256, *[512] * 4), 153),
  "vgg13": (10, 32, vgg_parameters(64, 64, 128, 128, 256, 256, *[512] * 4), 229),
  "vgg16": (10, 32, 14_728_266, 313),
  "vgg19": (10, 32, vgg_parameters(*[64] * 2, *[128] * 2, *[256] * 4, *[512] * 8), 398),
  "preact_resnet18": (10, 32, 11_171_146, 556),
  "preact_resnet18_final_norm": (10, 32, 11_172_170, 556),
  "preact_resnet18_raw_shortcut": (10, 32, 11_171_146, 556),
  "preact_resnet18_raw_shortcut_final_norm": (10, 32, 11_172_170, 556),
  "vgg11_imagenet": (1000, 224, 132_868_840, 7609),
  "vgg13_imagenet": (1000, 224, 133_053_736, 11308),
  "vgg16_imagenet": (1000, 224, 138_365_992, 15470),
  "vgg19_imagenet": (1000, 224, 143_678_248, 19632),
  "resnet18": (1000, 224, 11_689_512, 1814),
  "resnet50": (1000, 224, 25_557_032, 4089),
  "resnet101": (1000, 224, 44_549_160, 7801),
  "resnet152": (1000, 224, 60_192_808, 11514),
  "resnet18_cifar": (10, 32, 11_173_962, 556),
  "resnet50_cifar": (10, 32, 23_520_842, 1298),
  "resnet101_cifar": (10, 32, 42_512_970, None),
  "resnet152_cifar": (10, 32, 58_156_618, None),
  "wrn_10_1": (10, 32, 77_850, None),
  "wrn_28_10": (10, 32, 36_479_194, 5246),
  "wrn_28_10_same": (10, 32, 36_479_194, 5246),
}


def build(name, size, classes=10, channels=3, **kwargs):
  return models.create(name, num_classes=classes, image_shape=(size, size, channels), **kwargs)


def images_of(batch, size, channels=3, seed=0):
  shape = (batch, size, size, channels)
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def variables_of(model, images):
  """He-normal kernels from NumPy: compiling a random initialisation costs seconds."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

  def draw(path, s):
    if path[-1].key == "kernel":
      return (rng.normal(size=s.shape) * np.sqrt(2 / np.prod(s.shape[:-1]))).astype(np.float32)
    return np.full(s.shape, path[-1].key in ("scale", "var"), np.float32)

  return jax.tree.map_with_path(draw, shapes)


def test_contract_covers_the_table():
  assert {name for name in CONTRACT if not name.startswith("wrn")} == set(models.MODELS)


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(name):
  """Shapes, dtypes and counts in bfloat16 compute; nothing is computed."""
  classes, size, parameters, millions = CONTRACT[name]
  model = build(name, size, classes, dtype="bfloat16", activation="silu")
  images = jax.ShapeDtypeStruct((3, size, size, 3), FLOAT32)
  variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
  assert set(variables) == ({"params"} if name == "small_cnn" else {"params", "batch_stats"})
  assert {v.dtype for v in jax.tree.leaves(variables)} == {FLOAT32}
  assert sum(v.size for v in jax.tree.leaves(variables["params"])) == parameters

  layers_only = lambda module, _: isinstance(module, (Conv, nn.Dense))
  logits, new = jax.eval_shape(
    partial(
      model.apply,
      train=True,
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=layers_only,
    ),
    variables,
    images,
  )
  assert (logits.shape, logits.dtype) == ((3, classes), FLOAT32)
  outputs = jax.tree.leaves_with_path(
    new.pop("intermediates"), is_leaf=lambda v: isinstance(v, tuple)
  )
  assert {v[0].dtype for path, v in outputs if path[0].key != "dense"} == {jnp.dtype("bfloat16")}
  same = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), dict(tree))
  assert same(new.get("batch_stats", {})) == same(variables.get("batch_stats", {}))

  count = 0
  for path, (output,) in outputs:
    kernel = variables["params"]
    for key in path[:-1]:
      kernel = kernel[key.key]
    count += kernel["kernel"].size * np.prod(output.shape[1:-1], dtype=int)
  assert millions is None or count / 1e6 == pytest.approx(millions, rel=5e-3)


# What the dense layer is given, in NumPy, from what the last layers put out.
HEADS = {
  "small_cnn": lambda out: np.maximum(out("conv3"), 0).reshape(2, -1),
  "wrn_10_1": lambda out: np.maximum(out("norm"), 0).mean((1, 2)),
  "vgg11": lambda out: np.maximum(out("norm5_2"), 0).max((1, 2)),
  "preact_resnet18": lambda out: out("block4_2").mean((1, 2)),
}


@pytest.mark.parametrize(
  "name,size,channels",
  [("small_cnn", 8, 1), ("wrn_10_1", 8, 1), ("vgg11", 32, 3), ("preact_resnet18", 8, 3)],
)
def test_runs_and_updates_statistics_only_in_training(name, size, channels):
  model = build(name, size, channels=channels)
  images = images_of(2, size, channels)
  variables = variables_of(model, images)
  run = jax.jit(
    partial(model.apply, mutable=["batch_stats", "intermediates"], capture_intermediates=True),
    static_argnames="train",
  )
  for train in (False, True):
    logits, new = run(variables, images, train=train)
    assert (logits.shape, logits.dtype) == ((2, 10), FLOAT32)
    assert np.isfinite(logits).all()
    assert (logits[0] != logits[1]).all()  # it looks at the image
    dense = variables["params"]["dense"]
    features = HEADS[name](
      lambda layer, new=new: np.array(new["intermediates"][layer]["__call__"][0])
    )
    np.testing.assert_allclose(
      logits, features @ dense["kernel"] + dense["bias"][None], rtol=1e-4, atol=1e-4
    )
    before, after = variables.get("batch_stats", {}), new.get("batch_stats", {})
    if train and name != "small_cnn":
      changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
      assert all(jax.tree.leaves(changed)) and jax.tree.leaves(changed)
    else:
      jax.tree.map(np.testing.assert_array_equal, before, after)


def test_gradient_reaches_every_parameter_and_the_image():
  model = build("wrn_10_1", 8, activation="softplus")
  images = images_of(4, 8)
  variables = variables_of(model, images)

  def loss(params, images):
    logits, _ = model.apply(
      {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
    )
    return jnp.square(logits).sum()

  for gradient in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(variables["params"], images)):
    assert np.isfinite(gradient).all() and (gradient != 0).any()


def test_normalisation_is_inside():
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
  images = images_of(2, 8)
  plain, normalising = build("small_cnn", 8), build("small_cnn", 8, mean=mean, std=std)
  variables = variables_of(plain, images)
  outside = (np.array(images) - np.array(mean, np.float32)) / np.array(std, np.float32)
  np.testing.assert_allclose(
    normalising.apply(variables, images, train=False),
    plain.apply(variables, outside, train=False),
    atol=1e-5,
  )
  one, three = (
    build("small_cnn", 8, mean=m, std=s).apply(variables, images, train=False)
    for m, s in (((0.5,), (0.25,)), ((0.5,) * 3, (0.25,) * 3))
  )
  np.testing.assert_array_equal(one, three)


def test_bfloat16_is_near_float32():
  images = images_of(2, 8)
  model, half = build("small_cnn", 8), build("small_cnn", 8, dtype="bfloat16")
  variables = variables_of(model, images)
  exact, rough = (m.apply(variables, images, train=False) for m in (model, half))
  assert 0 < np.max(np.abs(exact - rough)) < 0.03 * np.max(np.abs(exact))


@pytest.mark.parametrize("name", ["adversarial_8", "soft_2", "natural_1"])
def test_small_cnn_is_the_reference_network(name):
  path = GOLDEN / f"{name}.npz"
  if not path.exists():
    pytest.skip(f"{path} is not there: the reference networks are kept outside the repository")
  golden = np.load(path)
  params = {
    f"conv{i}": {
      "kernel": golden[f"conv{i}_kernel"].transpose(2, 3, 1, 0),
      "bias": golden[f"conv{i}_bias"],
    }
    for i in (1, 2, 3)
  }
  dense = golden["dense_kernel"].reshape(10, 128, 2, 2).transpose(2, 3, 1, 0).reshape(512, 10)
  params["dense"] = {"kernel": dense, "bias": golden["dense_bias"]}
  model = build("small_cnn", 32)
  images = golden["images"].astype(np.float32) / 255
  logits = jax.jit(partial(model.apply, train=False))({"params": params}, images)
  np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
  "name,kwargs,words",
  [
    ("vgg17", {}, ["vgg17", "vgg16", "wrn_DEPTH_WIDTH", "small_cnn"]),
    ("wrn_28", {}, ["wrn_28", "wrn_28_10"]),
    ("wrn_28_10_valid", {}, ["wrn_28_10_valid", "wrn_DEPTH_WIDTH"]),
    ("wrn_29_10", {}, ["29", "6n + 4", "10, 16, 22, 28"]),
    ("wrn_4_10", {}, ["4", "10, 16, 22"]),
    ("wrn_20_10", {}, ["20", "wrn_22_10"]),
    ("wrn_28_0", {}, ["width is 0"]),
    ("vgg16", {"activation": "swish"}, ["swish", "gelu, relu, silu, softplus"]),
    ("vgg16", {"dtype": "float16"}, ["float16", "bfloat16, float32"]),
    ("vgg16", {"image_shape": (28, 28, 1)}, ["28x28", "multiples of 32", "wrn_28_10"]),
    ("small_cnn", {"image_shape": (12, 12, 1)}, ["12x12", "multiples of 8", "preact_resnet18"]),
    ("resnet50", {"image_shape": (28, 32, 3)}, ["28x32", "32 or more", "resnet50_cifar"]),
    ("preact_resnet18", {"image_shape": (2, 2, 3)}, ["2x2", "8 or more"]),
    ("vgg16", {"image_shape": (32, 32)}, ["(32, 32)", "height, width, channels"]),
    ("vgg16", {"num_classes": 1}, ["num_classes is 1"]),
    ("vgg16", {"mean": (0.5, 0.5)}, ["mean", "3, one per channel"]),
    ("vgg16", {"std": 0.5}, ["std is 0.5", "as (0.5,)"]),
    ("vgg16", {"std": (0.2, 0.0, 0.2)}, ["std", "greater than 0"]),
    ("vgg16", {"std": (float("nan"),)}, ["std"]),
  ],
)
def test_errors_say_what_to_type_next(name, kwargs, words):
  with pytest.raises(UserError) as error:
    models.create(name, **{"num_classes": 10, "image_shape": (32, 32, 3)} | kwargs)
  for word in words:
    assert word in str(error.value)


def test_bytes_are_refused():
  model = build("small_cnn", 8)
  with pytest.raises(TypeError, match="divide by 255"):
    jax.eval_shape(
      partial(model.init, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8),
    )


@pytest.mark.parametrize(
  "name", ["small_cnn", "vgg11", "preact_resnet18", "resnet50_cifar", "wrn_10_1"]
)
def test_remat_keeps_parameters_names_and_shapes(name):
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), FLOAT32)
  plain, remat = (
    jax.eval_shape(
      partial(build(name, 32, remat=remat).init, train=True), jax.random.key(0), images
    )
    for remat in (False, True)
  )
  assert jax.tree.structure(plain) == jax.tree.structure(remat)
  assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, remat)


def test_remat_has_the_same_gradients_from_less_memory():
  """What the backward pass gets from the forward pass: the leaves of the pullback."""
  images = images_of(8, 16)
  variables = variables_of(build("wrn_16_1", 16), images)

  def loss(remat):
    model = build("wrn_16_1", 16, remat=remat)

    def mean_square(params):
      logits, new = model.apply(
        variables | {"params": params}, images, train=True, mutable=["batch_stats"]
      )
      return jnp.mean(logits**2), new

    return mean_square

  plain, remat = (
    jax.jit(jax.value_and_grad(loss(remat), has_aux=True))(variables["params"])
    for remat in (False, True)
  )
  for a, b in zip(*map(jax.tree.leaves, (plain, remat)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())
  kept = [
    sum(
      leaf.size
      for leaf in jax.tree.leaves(
        jax.eval_shape(
          lambda params, remat=remat: jax.vjp(loss(remat), params, has_aux=True)[1],
          variables["params"],
        )
      )
    )
    for remat in (False, True)
  ]
  assert kept[1] < 0.4 * kept[0]
