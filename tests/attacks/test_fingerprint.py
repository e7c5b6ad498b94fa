"""fingerprint: functions that compute the same have one digest, all others have their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.attacks.fingerprint import digest
from sprout_jax.attacks.fingerprint import fingerprint

WEIGHTS = np.random.RandomState(0).randn(9, 2).astype(np.float32)
IMAGES = jax.ShapeDtypeStruct((1, 3, 3, 1), np.float32)
flat = lambda images: images.reshape(len(images), -1)


def of(function, *args):
  found = fingerprint(function, *args, IMAGES)
  assert not found.calls_host
  return found.sha256


def plain(weights):
  return lambda images: flat(images) @ weights


def in_scan(weights):
  def function(images):
    body = lambda carry, _: (carry + flat(images) @ weights, None)
    return jax.lax.scan(body, jnp.zeros((len(images), 2)), None, length=3)[0]

  return function


def in_cond(weights):
  return lambda images: jax.lax.cond(images.sum() > 1, plain(weights), plain(2 * weights), images)


def in_custom_jvp(weights):
  function = jax.custom_jvp(plain(weights))
  function.defjvp(lambda primals, tangents: (function(*primals), function(*tangents)))
  return function


def in_custom_vjp(weights):
  """Its forward rule calls the function itself."""
  function = jax.custom_vjp(plain(weights))
  function.defvjp(lambda images: (function(images), images), lambda images, g: (0 * images,))
  return function


def straight_through(scale):
  """Rounding with another gradient."""
  rounded = jax.custom_vjp(lambda images: jnp.round(8 * images) / 8)
  rounded.defvjp(lambda images: (rounded(images), None), lambda _, g: (scale * g,))
  return lambda images: flat(rounded(images)) @ WEIGHTS


def tangents(scale):
  squared = jax.custom_jvp(lambda images: images**2)
  squared.defjvp(lambda primals, tangents: (squared(*primals), scale * tangents[0]))
  return lambda images: flat(squared(images)) @ WEIGHTS


def nnx_jit(weights):
  from flax import nnx

  layer = nnx.Linear(9, 2, rngs=nnx.Rngs(0))
  layer.kernel[...] = jnp.asarray(weights)
  return nnx.jit(lambda images: layer(flat(images)))


def equinox_jit(weights):
  eqx = pytest.importorskip("equinox")
  return eqx.filter_jit(plain(jnp.asarray(weights)))


KINDS = [
  plain,
  lambda weights: jax.jit(plain(weights)),
  lambda weights: jax.jit(jax.jit(plain(weights))),
  lambda weights: jax.checkpoint(plain(weights)),
  in_scan,
  in_cond,
  in_custom_jvp,
  in_custom_vjp,
  nnx_jit,
  equinox_jit,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_weights_are_found_wherever_they_are(kind, array):
  other = WEIGHTS.copy()
  other[8, 1] = np.nextafter(other[8, 1], np.float32(9))
  assert of(kind(array(WEIGHTS))) == of(kind(array(WEIGHTS))) != of(kind(array(other)))


@pytest.mark.parametrize("rules", [straight_through, tangents])
def test_derivative_rules_belong_to_the_function(rules):
  assert of(rules(1.0)) == of(rules(1.0)) != of(rules(0.5))
  assert of(jax.jit(rules(1.0))) == of(rules(1.0))


@pytest.mark.parametrize("scalar", [float, np.float32, jnp.float32])
def test_scalars_belong_to_the_function(scalar):
  scaled = lambda by: lambda images: flat(images) @ WEIGHTS * scalar(by)
  assert of(scaled(1.0)) == of(scaled(1.0)) != of(scaled(1.0000002))


def test_names_and_jit_do_not_belong_to_it():
  def first(images):
    return jax.nn.relu(flat(images) @ WEIGHTS)

  @jax.jit
  def second(pixels):
    inner = jax.jit(lambda x: flat(x) @ WEIGHTS)
    return jax.nn.relu(inner(pixels))

  named = lambda images: jax.named_call(first, name="elsewhere")(images)
  assert of(first) == of(jax.jit(first)) == of(second) == of(named)
  assert of(first) != of(lambda images: jnp.maximum(flat(images) @ WEIGHTS, 0))  # no rule at 0


def test_operations_parameters_and_precision_belong_to_it():
  functions = [
    lambda images: flat(images) @ WEIGHTS,
    lambda images: flat(images) @ (WEIGHTS + 1),
    lambda images: jnp.matmul(flat(images), WEIGHTS, precision="highest"),
    lambda images: flat(images.transpose(0, 2, 1, 3)) @ WEIGHTS,
    lambda images: flat(images) @ WEIGHTS.astype(np.float16),
    lambda images: (flat(images) @ WEIGHTS)[:, ::-1],
    lambda images: -(flat(images) @ WEIGHTS),
    lambda images: jnp.cumsum(flat(images) @ WEIGHTS, 1),
    lambda images: jnp.cumsum(flat(images) @ WEIGHTS, 0),
  ]
  assert len({of(function) for function in functions}) == len(functions)
  # Arguments enter by their types alone.
  apply = lambda weights, images: flat(images) @ weights
  assert of(apply, WEIGHTS) == of(apply, 2 * WEIGHTS) != of(apply, WEIGHTS.astype(np.float16))


def test_host_code_is_said_to_be_unknown():
  def function(images):
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return flat(jax.pure_callback(lambda x: np.asarray(x), shape, images)) @ WEIGHTS

  assert fingerprint(function, IMAGES).calls_host
  assert fingerprint(jax.jit(function), IMAGES).calls_host

  def printing(images):
    jax.debug.print("{}", images[0, 0, 0, 0])
    return flat(images) @ WEIGHTS

  of(printing)  # it changes nothing


def test_digests_of_arrays():
  arrays = [
    WEIGHTS,
    WEIGHTS.reshape(2, 9),
    jnp.asarray(WEIGHTS, jnp.bfloat16),
    jnp.asarray(2 * WEIGHTS, jnp.bfloat16),
    jnp.asarray(WEIGHTS, jnp.float16),
    jax.random.key(0),
    jax.random.key(1),
  ]
  assert len(set(map(digest, arrays))) == len(arrays)
  assert digest(np.asfortranarray(WEIGHTS)) == digest(WEIGHTS) == digest(jnp.asarray(WEIGHTS))
