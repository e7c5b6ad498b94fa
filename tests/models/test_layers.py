"""Pooling against NumPy, blocks against NumPy and SciPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sprout_jax.models import layers
from sprout_jax.models.resnet import BasicBlock
from sprout_jax.models.resnet import Bottleneck
from tests.models.reference import correlate


def test_conv_adds_its_bias_and_uses_the_platforms_form(monkeypatch):
  conv, x = layers.Conv(4, 3, 1, 1, use_bias=True), jnp.ones((1, 4, 4, 2))
  variables = conv.init(jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 2, 4), "bias": (4,)}}
  biased = jax.tree.map(lambda p: p, variables)
  biased["params"]["bias"] = jnp.arange(4.0)
  difference = conv.apply(biased, x) - conv.apply(variables, x)
  np.testing.assert_allclose(difference, np.broadcast_to(np.arange(4.0), (1, 4, 4, 4)), atol=1e-5)
  for backend, stock in (("cpu", False), ("gpu", True), ("tpu", True)):
    monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
    # A new lambda each time, because traces are cached by function.
    jaxpr = str(jax.make_jaxpr(lambda v, x: conv.apply(v, x))(variables, x))
    assert ("conv_general_dilated" in jaxpr) == stock
    assert ("dot_general" in jaxpr) != stock


def test_kernels_start_with_he_fan_out_variance():
  kernel = layers.Conv(256, 3).init(jax.random.key(0), jnp.ones((1, 3, 3, 16)))["params"]["kernel"]
  assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.02)  # 36,864 draws
  assert np.max(np.abs(kernel)) > 3 * np.std(kernel)  # a normal, not truncated at two deviations


def test_pooling_against_loops():
  x = np.random.default_rng(0).normal(size=(2, 4, 8, 3)).astype(np.float32)
  maxima = np.stack(
    [[x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(4)] for i in range(2)]
  ).transpose(2, 0, 1, 3)
  np.testing.assert_array_equal(layers.max_pool(jnp.array(x)), maxima)
  means = np.stack(
    [[x[:, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4].mean((1, 2)) for j in range(2)] for i in range(2)]
  ).transpose(2, 0, 1, 3)
  np.testing.assert_allclose(layers.average_pool(jnp.array(x), 2), means, atol=1e-6)
  one = layers.average_pool(jnp.array(x), 1)[:, 0, 0]
  np.testing.assert_allclose(one, x.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("height,width", [(7, 7), (2, 3), (14, 16), (1, 10)])
def test_adaptive_pooling_against_windows(height, width):
  """As PyTorch documents it: windows from floor(i n / 7) to ceil((i + 1) n / 7)."""
  x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
  edges = lambda n: [(int(np.floor(i * n / 7)), int(np.ceil((i + 1) * n / 7))) for i in range(7)]
  expected = np.stack(
    [
      np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges(width)], axis=1)
      for a, b in edges(height)
    ],
    axis=1,
  )
  np.testing.assert_allclose(layers.adaptive_average_pool(jnp.array(x), 7), expected, atol=1e-6)


@pytest.mark.parametrize("kernel_size,strides", [(3, 1), (3, 2), (1, 2), (5, 3)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_same_padding_is_xlas(size, kernel_size, strides):
  x = np.zeros((1, *size, 1), np.float32)
  expected = jax.lax.padtype_to_pads(size, (kernel_size,) * 2, (strides,) * 2, "SAME")
  padded = layers.pad_same(jnp.array(x) + 1, kernel_size, strides)[0, :, :, 0]
  np.testing.assert_array_equal(padded, np.pad(x[0, :, :, 0] + 1, expected))


def test_max_pool_gradient_goes_to_the_maximum():
  x = jnp.array([[3.0, 1.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
  gradient = jax.grad(lambda x: layers.max_pool(x).sum())
  np.testing.assert_array_equal(gradient(x).reshape(2, 2), [[1.0, 0.0], [0.0, 0.0]])
  equal = jnp.zeros((1, 2, 2, 1))  # of equal ones to the first
  np.testing.assert_array_equal(gradient(equal).reshape(2, 2), [[1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("place", range(4))
def test_max_pool_keeps_what_is_not_a_number(place):
  x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
  assert np.isnan(layers.max_pool(x)).all()


@pytest.mark.parametrize(
  "name,expected",
  [
    ("relu", lambda x: np.maximum(x, 0)),
    ("gelu", lambda x: x * (1 + special.erf(x / np.sqrt(2))) / 2),
    ("silu", lambda x: x / (1 + np.exp(-x))),
    ("softplus", lambda x: np.log(1 + np.exp(x))),
  ],
)
def test_activations(name, expected):
  x = np.linspace(-3, 3, 13, dtype=np.float32)
  np.testing.assert_allclose(layers.ACTIVATIONS[name](x), expected(x), atol=1e-5)


def test_every_activation_is_tested():
  tested = test_activations.pytestmark[0].args[1]
  assert {name for name, _ in tested} == set(layers.ACTIVATIONS)


class Norm(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return layers.norm(train, jnp.bfloat16, "norm")(x)


def test_norm_has_pytorchs_constants_and_float32_statistics():
  x = np.random.default_rng(0).normal(3, 2, size=(64, 2, 2, 3))
  half = jnp.array(x, jnp.bfloat16)
  variables = Norm().init(jax.random.key(0), half, train=True)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  out, new = Norm().apply(variables, half, train=True, mutable=["batch_stats"])
  assert out.dtype == jnp.bfloat16
  statistics = new["batch_stats"]["norm"]
  np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-2)
  np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-2)
  evaluated = Norm().apply(variables, half, train=False)  # the running ones are still 0 and 1
  np.testing.assert_allclose(evaluated.astype(jnp.float32), x, rtol=2e-2, atol=1e-2)


def randomised(module, x):
  """Random variables of `module`, none at its initial value, and `x`, as float32 NumPy arrays."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=x).astype(np.float32)
  shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)

  def draw(s):  # kernels have ranks above 1; scales and variances must be positive
    values = rng.normal(size=s.shape) / 3 if len(s.shape) > 1 else rng.uniform(0.2, 1, s.shape)
    return values.astype(np.float32)

  return jax.tree.map(draw, shapes), x


def numpy_layers(variables):
  """conv(name, x, strides, padding) and norm(name, x) of one block, in NumPy and SciPy."""
  params, statistics = variables["params"], variables["batch_stats"]
  conv = lambda name, x, *args: correlate(x, params[name]["kernel"], *args)
  norm = lambda name, x: (
    (x - statistics[name]["mean"]) / np.sqrt(statistics[name]["var"] + 1e-5) * params[name]["scale"]
    + params[name]["bias"]
  )
  return conv, norm, lambda x: np.maximum(x, 0)


@pytest.mark.parametrize("features,strides", [(3, 1), (4, 1), (3, 2)])
def test_preact_block(features, strides):
  block = layers.PreActBlock(features, strides, "relu", jnp.float32)
  variables, x = randomised(block, (2, 5, 6, 3))
  conv, norm, relu = numpy_layers(variables)
  a = relu(norm("norm1", x))
  shortcut = x if (features, strides) == (3, 1) else conv("shortcut", a, strides, 0)
  out = conv("conv2", relu(norm("norm2", conv("conv1", a, strides, 1))), 1, 1) + shortcut
  np.testing.assert_allclose(block.apply(variables, x, train=False), out, rtol=1e-4, atol=1e-4)


def test_preact_block_with_a_shortcut_of_x():
  block = layers.PreActBlock(4, 2, "relu", jnp.float32, raw_shortcut=True)
  variables, x = randomised(block, (2, 5, 6, 3))
  conv, norm, relu = numpy_layers(variables)
  a = relu(norm("norm1", x))
  out = conv("conv2", relu(norm("norm2", conv("conv1", a, 2, 1))), 1, 1)
  out += conv("shortcut", x, 2, 0)
  np.testing.assert_allclose(block.apply(variables, x, train=False), out, rtol=1e-4, atol=1e-4)


def test_preact_block_with_same_padding_adds_zeros_below_and_right():
  block = layers.PreActBlock(4, 2, "relu", jnp.float32, same_padding=True)
  variables, x = randomised(block, (2, 4, 6, 3))
  conv, norm, relu = numpy_layers(variables)
  a = relu(norm("norm1", x))
  padded = np.pad(a, ((0, 0), (0, 1), (0, 1), (0, 0)))
  out = conv("conv2", relu(norm("norm2", conv("conv1", padded, 2, 0))), 1, 1)
  out += conv("shortcut", a, 2, 0)
  np.testing.assert_allclose(block.apply(variables, x, train=False), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels,strides", [(4, 1), (3, 1), (4, 2)])
def test_basic_block(channels, strides):
  block = BasicBlock(4, strides, "relu", jnp.float32)
  variables, x = randomised(block, (2, 5, 6, channels))
  conv, norm, relu = numpy_layers(variables)
  y = norm("norm2", conv("conv2", relu(norm("norm1", conv("conv1", x, strides, 1))), 1, 1))
  identity = (channels, strides) == (4, 1)
  shortcut = x if identity else norm("shortcut_norm", conv("shortcut", x, strides, 0))
  np.testing.assert_allclose(
    block.apply(variables, x, train=False), relu(y + shortcut), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("channels,strides", [(8, 1), (3, 1), (8, 2)])
def test_bottleneck_has_its_stride_on_the_3x3(channels, strides):
  block = Bottleneck(2, strides, "relu", jnp.float32)
  variables, x = randomised(block, (2, 5, 6, channels))
  conv, norm, relu = numpy_layers(variables)
  y = relu(norm("norm1", conv("conv1", x, 1, 0)))
  y = relu(norm("norm2", conv("conv2", y, strides, 1)))
  y = norm("norm3", conv("conv3", y, 1, 0))
  identity = (channels, strides) == (8, 1)
  shortcut = x if identity else norm("shortcut_norm", conv("shortcut", x, strides, 0))
  np.testing.assert_allclose(
    block.apply(variables, x, train=False), relu(y + shortcut), rtol=1e-4, atol=1e-4
  )
