"""Convolution by matmuls against XLA's and SciPy's, in value and gradients."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.models import convolution
from tests.models.reference import correlate


@pytest.mark.parametrize("channels,pieces", [(3, None), (9, 1), (9, 2)])
@pytest.mark.parametrize("kernel_size,strides", [
    ((1, 1), 1), ((1, 1), 2), ((3, 3), 1), ((3, 3), 2), ((3, 3), 3), ((5, 5), 1), ((7, 7), 2), ((2, 3), 1)])
def test_equals_xla_in_value_and_gradients(kernel_size, strides, channels, pieces):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  kernel = draw(*kernel_size, channels, 4)
  cases = []  # padding, images, expected, weights of the outputs (so that all gradients differ)
  for padding, size in itertools.product((0, 1, 3), ((8, 11), (9, 7))):
    images = draw(2, *size, channels)
    expected = correlate(images, kernel, strides, padding)
    cases.append((padding, images, expected, draw(*expected.shape)))

  @partial(jax.jit, static_argnums=0)  # all cases in one program: compiling is what takes time
  def run(matmuls):
    results = []
    for padding, images, _, weights in cases:
      convolve = lambda x, k, p=padding: convolution.convolve(x, k, strides, p, matmuls, pieces)
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


@pytest.mark.parametrize("size", [(5, 5), (8, 9)])
def test_pieces_have_derivatives_of_every_kind(size):
  """Forward mode, the gradient of a gradient's norm, and vmap, of gradients too: as in XLA's."""
  rng = np.random.default_rng(2)
  x, dx = rng.normal(size=(2, 4, *size, 8)).astype(np.float32)
  kernel, dk = rng.normal(size=(2, 3, 3, 8, 2)).astype(np.float32)

  @partial(jax.jit, static_argnums=0)
  def run(matmuls):
    convolve = lambda x, k: jnp.tanh(convolution.convolve(x, k, 1, 1, matmuls, 2 if matmuls else None))
    loss = lambda x, k: jnp.sum(convolve(x, k) ** 2)
    penalty = lambda x, k: sum(jnp.sum(g ** 2) for g in jax.grad(loss, (0, 1))(x, k))
    kernels = jnp.stack([kernel, dk])
    return (jax.jvp(convolve, (x, kernel), (dx, dk))[1], *jax.grad(penalty, (0, 1))(x, kernel),
            jax.vmap(convolve, (None, 0))(x, kernels),
            *jax.vmap(jax.grad(loss, (0, 1)), (0, 0))(jnp.stack([x, dx]), kernels))

  for mine, stock in zip(run(True), run(False), strict=True):
    np.testing.assert_allclose(mine, stock, rtol=1e-3, atol=1e-3 * np.abs(stock).max())


def pieces(batch):
  """Of the gradient of the kernel: 32x32 images, 64 channels to 64."""
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch, 32, 32, 64), (3, 3, 64, 64))]
  loss = lambda x, k: jnp.sum(convolution.convolve(x, k, 1, 1, True) ** 2)
  eqns = jax.make_jaxpr(jax.grad(loss, 1))(*shapes).eqns
  correlate, = [eqn for eqn in eqns if eqn.primitive.name == "correlate"]
  return correlate.params["pieces"]


@pytest.mark.parametrize("batch,expected", [(1, 1), (16, 4), (64, 16), (7, 7), (12, 3)])
def test_pieces_fit_and_divide_the_batch(monkeypatch, batch, expected):
  """1.5 MiB of copies an image, so five in a piece."""
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert pieces(batch) == expected


def test_a_batch_over_several_devices_stays_whole():
  assert jax.device_count() == 8
  assert pieces(64) == 1
