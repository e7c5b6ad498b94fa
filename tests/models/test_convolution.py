"""Convolution by matmuls against XLA's and SciPy's, in value and gradients."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.models import convolution
from sprout_jax.models import winograd
from tests.models.reference import correlate


@pytest.mark.parametrize("channels", [3, 9])
@pytest.mark.parametrize(
  "kernel_size,strides",
  [
    ((1, 1), 1),
    ((1, 1), 2),
    ((3, 3), 1),
    ((3, 3), 2),
    ((3, 3), 3),
    ((5, 5), 1),
    ((7, 7), 2),
    ((2, 3), 1),
  ],
)
def test_equals_xla_in_value_and_gradients(kernel_size, strides, channels):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  kernel = draw(*kernel_size, channels, 4)
  cases = []  # padding, images, expected, weights of the outputs (so that all gradients differ)
  for padding, size in itertools.product((0, 1, 3), ((8, 11), (9, 7))):
    images = draw(2, *size, channels)
    expected = correlate(images, kernel, strides, padding)
    cases.append((padding, images, expected, draw(*expected.shape)))

  @partial(
    jax.jit, static_argnums=0
  )  # all cases in one program: compilation takes most of the time
  def run(matmuls):
    results = []
    for padding, images, _, weights in cases:
      convolve = lambda x, k, p=padding: convolution.convolve(x, k, strides, p, matmuls)
      out, pullback = jax.vjp(convolve, images, kernel)
      results.append((out, *pullback(weights)))
    return results

  for (_, _, expected, _), mine, stock in zip(cases, run(True), run(False), strict=True):
    np.testing.assert_allclose(mine[0], expected, rtol=1e-4, atol=2e-4)
    for a, b in zip(mine, stock, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("matmuls", [True, False])
@pytest.mark.parametrize("channels", [3, 9])
def test_bfloat16_stays_bfloat16_and_near(channels, matmuls):
  rng = np.random.default_rng(1)
  images, kernel = rng.normal(size=(2, 6, 6, channels)), rng.normal(size=(3, 3, channels, 4))
  half = [jnp.array(a, jnp.bfloat16) for a in (images, kernel)]
  out = convolution.convolve(*half, 2, 1, matmuls)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), correlate(images, kernel, 2, 1), atol=0.3)


def products(convolve, *shapes):
  """The shapes of the matmuls' results in a function of float32 arrays."""
  jaxpr = jax.make_jaxpr(convolve)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
  found, todo = [], [jaxpr.jaxpr]
  while todo:
    for eqn in todo.pop().eqns:
      if eqn.primitive.name == "dot_general":
        found.append(eqn.outvars[0].aval.shape)
      todo += [
        value
        for value in (getattr(v, "jaxpr", v) for v in eqn.params.values())
        if hasattr(value, "eqns")
      ]
  return found


@pytest.mark.parametrize(
  "size,channels,strides,expected",
  [
    ((8, 8), 8, 1, [(2 * 4 * 4, 5)] * 16),
    ((7, 2), 8, 1, [(2 * 4 * 1, 5)] * 16),  # 4 for each tile, not 9
    ((8, 8), 7, 1, [(2 * 8 * 8, 5)]),
    ((7, 1), 8, 1, [(2 * 7 * 1, 3 * 5)]),
    ((8, 8), 8, 2, [(2 * 4 * 4, 5), (2 * 4 * 4, 2 * 5)]),
  ],
)
def test_each_shape_has_its_form(size, channels, strides, expected):
  convolve = lambda x, k: convolution.convolve(x, k, strides, 1, True)
  assert sorted(products(convolve, (2, *size, channels), (3, 3, channels, 5))) == sorted(expected)


@pytest.mark.parametrize(
  "size,padding",
  [
    ((2, 2), 1),
    ((2, 5), 1),
    ((4, 4), 0),
    ((4, 4), 1),
    ((4, 4), 2),
    ((6, 5), 0),
    ((6, 3), 1),
    ((1, 3), 2),
  ],
)
def test_fewer_multiplications_are_exact_on_whole_numbers(size, padding):
  """The transformations only add, and halve sums of two or three weights: no rounding."""
  rng = np.random.default_rng(3)
  images = rng.integers(-4, 5, (2, *size, 9)).astype(np.float32)
  kernel = rng.integers(-4, 5, (3, 3, 9, 4)).astype(np.float32)
  out = jax.jit(winograd.convolve, static_argnums=2)(images, kernel, padding)
  np.testing.assert_array_equal(out, correlate(images, kernel, 1, padding))


def test_rounding_errors_are_those_of_the_plain_sum():
  rng = np.random.default_rng(4)
  images, kernel = rng.normal(size=(4, 8, 8, 256)), rng.normal(size=(3, 3, 256, 16))
  exact = correlate(images, kernel, 1, 1)
  error = {
    matmuls: np.sqrt(
      np.mean(
        (
          convolution.convolve(
            *(jnp.array(a, jnp.float32) for a in (images, kernel)), 1, 1, matmuls
          )
          - exact
        )
        ** 2
      )
    )
    for matmuls in (True, False)
  }
  assert error[True] < 1.5 * error[False]
  assert error[False] < 1e-6 * exact.std()


@pytest.mark.parametrize("size", [(5, 5), (8, 9)])
def test_derivatives_of_every_kind(size):
  """Forward mode, the gradient of a gradient's norm, and vmap, also of gradients, equal XLA's."""
  rng = np.random.default_rng(2)
  x, dx = rng.normal(size=(2, 4, *size, 8)).astype(np.float32)
  kernel, dk = rng.normal(size=(2, 3, 3, 8, 2)).astype(np.float32)

  @partial(jax.jit, static_argnums=0)
  def run(matmuls):
    convolve = lambda x, k: jnp.tanh(convolution.convolve(x, k, 1, 1, matmuls))
    loss = lambda x, k: jnp.sum(convolve(x, k) ** 2)
    penalty = lambda x, k: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, k))
    kernels = jnp.stack([kernel, dk])
    return (
      jax.jvp(convolve, (x, kernel), (dx, dk))[1],
      *jax.grad(penalty, (0, 1))(x, kernel),
      jax.vmap(convolve, (None, 0))(x, kernels),
      *jax.vmap(jax.grad(loss, (0, 1)), (0, 0))(jnp.stack([x, dx]), kernels),
    )

  for mine, stock in zip(run(True), run(False), strict=True):
    np.testing.assert_allclose(mine, stock, rtol=1e-3, atol=1e-3 * np.abs(stock).max())


def test_a_batch_over_devices_is_convolved_as_on_one():
  """Winograd's tiles keep the batch axis first, so that the gradients of images do not mix."""
  rng = np.random.default_rng(5)
  images, kernel = (
    rng.normal(size=(16, 6, 6, 8)).astype(np.float32),
    rng.normal(size=(3, 3, 8, 4)).astype(np.float32),
  )
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
  loss = lambda x, k: jnp.sum(jnp.tanh(convolution.convolve(x, k, 1, 1, True)) ** 2)
  gradients = jax.jit(jax.grad(loss, (0, 1)))
  for mine, whole in zip(
    gradients(jax.device_put(images, over), kernel), gradients(images, kernel), strict=True
  ):
    np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-4)
