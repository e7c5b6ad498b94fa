"""Exchanged convolutions against sums in NumPy and JAX's own gradients."""

import gc
import itertools
import logging
import time
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax import attacks
from sprout_jax import models
from sprout_jax.attacks import convolutions
from sprout_jax.attacks.convolutions import exchange_convolutions
from sprout_jax.models import layers

LAST = ("NHWC", "HWIO", "NHWC")
FIRST = ("NCHW", "OIHW", "NCHW")
TOLERANCE = 1e-5  # of the largest entry, in float32


def draw(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


IMAGES, KERNEL = draw(2, 6, 6, 3), draw(3, 3, 3, 3, seed=1)


def convolve(images, kernel, strides=(1, 1), padding="SAME", layout=LAST, **options):
  return lax.conv_general_dilated(
    images, kernel, strides, padding, dimension_numbers=layout, **options
  )


def names(fn, *args):
  """The jaxpr of a call as text, with the names of its primitives."""
  return str(jax.make_jaxpr(fn)(*args))


def assert_close(actual, expected, tolerance=TOLERANCE):
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def sums_and_gradients(images, kernel, cotangent, strides, padding):
  """Convolution and both gradients: a loop over the window, channels last, in float64."""
  images, kernel, cotangent = (x.astype(np.float64) for x in (images, kernel, cotangent))
  (top, bottom), (left, right) = padding
  _, height, width, _ = images.shape
  count = [
    (size + sum(pad) - window) // stride + 1
    for size, pad, window, stride in zip(images.shape[1:3], padding, kernel.shape, strides)
  ]
  padded = np.pad(images, ((0, 0), padding[0], padding[1], (0, 0)))
  out, to_padded, to_kernel = 0, np.zeros_like(padded), np.zeros_like(kernel)
  for u, v in itertools.product(*map(range, kernel.shape[:2])):
    window = (
      slice(None),
      slice(u, u + strides[0] * (count[0] - 1) + 1, strides[0]),
      slice(v, v + strides[1] * (count[1] - 1) + 1, strides[1]),
    )
    out = out + padded[window] @ kernel[u, v]
    to_padded[window] += cotangent @ kernel[u, v].T
    to_kernel[u, v] = np.tensordot(padded[window], cotangent, ((0, 1, 2), (0, 1, 2)))
  return out, to_padded[:, top : top + height, left : left + width], to_kernel


def lay_out(x, wanted, have):
  return x.transpose([have.index(letter) for letter in wanted])


SHAPES = {
  "3x3": ((6, 7), (3, 3), (1, 1), ((1, 1), (1, 1))),
  "valid": ((6, 7), (3, 3), (1, 1), ((0, 0), (0, 0))),
  "1x1": ((4, 5), (1, 1), (1, 1), ((0, 0), (0, 0))),
  "even": ((6, 5), (4, 2), (1, 1), ((1, 2), (0, 1))),
  "wide padding": ((4, 5), (2, 3), (1, 1), ((3, 4), (4, 3))),
  "strides": ((7, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
  "two strides": ((8, 9), (3, 4), (1, 3), ((0, 1), (2, 0))),
  "unread edge": ((8, 9), (3, 2), (3, 4), ((0, 0), (0, 0))),
  "1x1 strides": ((6, 7), (1, 1), (2, 2), ((0, 0), (0, 0))),
  "patches": ((8, 6), (2, 3), (2, 3), ((0, 0), (0, 0))),
  "padded patches": ((8, 9), (2, 3), (2, 3), ((1, 2), (1, 0))),
}


# "H" and "W" of a result belong to the letters of the images; strides follow those of the kernel.
LAYOUTS = (LAST, FIRST, ("HWNC", "IOHW", "CNWH"), ("CHWN", "OHWI", "NWHC"))


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_those_sums(shape):
  (height, width), window, strides, padding = SHAPES[shape]
  images, kernel = draw(2, height, width, 3), draw(*window, 3, 5, seed=1)
  out_shape = jax.eval_shape(lambda: convolve(images, kernel, strides, padding)).shape
  cotangent = draw(*out_shape, seed=2)

  def gradients(layout):
    call = exchange_convolutions(lambda x, k: convolve(x, k, strides, padding, layout))
    given = lay_out(images, layout[0], "NHWC"), lay_out(kernel, layout[1], "HWIO")
    out, pullback = jax.vjp(call, *given)
    found = out, *pullback(lay_out(cotangent, layout[2], "NHWC"))
    letters = zip(("NHWC", "NHWC", "HWIO"), (layout[2], layout[0], layout[1]))
    return [lay_out(x, *pair) for x, pair in zip(found, letters, strict=True)]

  expected = sums_and_gradients(images, kernel, cotangent, strides, padding)
  for found in jax.jit(lambda: [gradients(layout) for layout in LAYOUTS])():
    for array, wanted in zip(found, expected, strict=True):
      assert_close(array, wanted)


@pytest.mark.parametrize("layout", [LAST, FIRST], ids="-".join)
def test_compiled_outputs_are_equal_to_the_bit(layout):
  images, kernel = draw(4, 16, 16, 8), draw(3, 3, 8, 16, seed=1)
  given = lay_out(images, layout[0], "NHWC"), lay_out(kernel, layout[1], "HWIO")
  call = lambda images, kernel: jax.nn.relu(convolve(images, kernel, layout=layout))
  exchanged = exchange_convolutions(call)
  assert "exchanged_convolution" in names(exchanged, *given)
  np.testing.assert_array_equal(jax.jit(exchanged)(*given), jax.jit(call)(*given))


def step(x):
  return jnp.tanh(convolve(x, KERNEL))


def scanned(x):
  return lax.scan(
    lambda x, kernel: (jnp.tanh(convolve(x, kernel)), None), x, jnp.stack([KERNEL] * 2)
  )[0]


INSIDE = {
  "jit": jax.jit(step),
  "nested jit": jax.jit(lambda x: jax.jit(step)(jax.jit(step)(x))),
  "closed_call": lambda x: jax.jit(step).trace(x)(x),
  "checkpoint": jax.checkpoint(step),
  "checkpoint with a policy": jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable),
  "scan": scanned,
  "fori_loop": lambda x: lax.fori_loop(0, 2, lambda _, x: step(x), x),
  "cond": lambda x: lax.cond(x.sum() > -1e9, step, lambda x: x, x),
  "switch": lambda x: lax.switch(1, [lambda x: x, step, jnp.tanh], x),
  "vmap": jax.vmap(lambda image: step(image[None])[0]),
  "map": lambda x: lax.map(lambda image: step(image[None])[0], x),
}


@pytest.mark.parametrize("name", INSIDE)
def test_gradients_inside(name):
  """Every convolution is found, and the gradient is that of JAX."""
  call, exchanged = INSIDE[name], exchange_convolutions(INSIDE[name])
  text = names(exchanged, IMAGES)
  assert "exchanged_convolution" in text and "conv_general_dilated" not in text
  gradient = jax.grad(lambda x, fn: jnp.sum(jnp.square(fn(x))))
  both = jax.jit(lambda x: [(fn(x), gradient(x, fn)) for fn in (exchanged, call)])
  (value, found), (same_value, expected) = both(IMAGES)
  np.testing.assert_array_equal(value, same_value)
  assert_close(found, expected)


def test_while_loop():
  """It has no reverse-mode gradient; the forward-mode gradient is that of JAX."""
  call = lambda x: lax.while_loop(lambda x: jnp.sum(x + step(x)) < 1e4, lambda x: 99 + step(x), x)
  exchanged = exchange_convolutions(call)
  text = names(exchanged, IMAGES)
  assert text.count("exchanged_convolution") == 2 and "conv_general_dilated" not in text
  both = jax.jit(lambda: [jax.jvp(fn, (IMAGES,), (IMAGES,)) for fn in (exchanged, call)])
  for found, expected in zip(*both(), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_relu_at_zero_has_the_gradient_zero():
  """jax.nn.relu has derivatives of its own; those of max(x, 0) would give 1/2."""
  call = lambda x: jax.nn.relu(convolve(x, KERNEL))
  zeros = jnp.zeros_like(IMAGES)
  gradient = jax.jit(jax.grad(lambda x: exchange_convolutions(call)(x).sum()))(zeros)
  np.testing.assert_array_equal(gradient, zeros)
  assert "custom_jvp_call" in names(exchange_convolutions(call), zeros)


@jax.custom_jvp
def with_jvp(x):
  return convolve(x, KERNEL)


@with_jvp.defjvp
def _(primals, tangents):
  return with_jvp(*primals), 7 * tangents[0]


@jax.custom_vjp
def with_vjp(x):
  return convolve(x, KERNEL)


with_vjp.defvjp(lambda x: (convolve(x, KERNEL), None), lambda _, cotangent: (7 * cotangent,))


@pytest.mark.parametrize("call", [with_jvp, with_vjp])
def test_derivatives_that_a_function_defines_are_kept(call):
  exchanged = exchange_convolutions(lambda x: convolve(call(x), KERNEL))
  text = names(exchanged, IMAGES)
  assert text.count("conv_general_dilated") == 1 and text.count("exchanged_convolution") == 1
  gradient = jax.jit(lambda fn: jax.grad(lambda x: fn(x).sum())(IMAGES), static_argnums=0)
  assert_close(gradient(exchanged), 7 * gradient(lambda x: convolve(x, KERNEL)))


STAY = {
  "kernel dilation": lambda x: convolve(x, KERNEL, rhs_dilation=(1, 2)),
  "image dilation": lambda x: convolve(x, KERNEL, padding=[(1, 1)] * 2, lhs_dilation=(2, 1)),
  "groups of features": lambda x: convolve(x, KERNEL[:, :, :1], feature_group_count=3),
  "groups of the batch": lambda x: convolve(x, KERNEL[..., :2], batch_group_count=2),
  "integers": lambda x: convolve(x.astype(int), KERNEL.astype(int)).astype(float),
  "another result type": lambda x: convolve(
    x.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), preferred_element_type=jnp.float32
  ),
  "one dimension": lambda x: convolve(x[:, 0], KERNEL[0], (1,), layout=("NWC", "WIO", "NWC")),
  "three dimensions": lambda x: convolve(
    x[:, None], KERNEL[None], (1, 1, 1), layout=("NDHWC", "DHWIO", "NDHWC")
  ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays(name, monkeypatch):
  call = STAY[name]
  text = names(exchange_convolutions(call), IMAGES)
  assert "conv_general_dilated" in text and "exchanged_convolution" not in text
  monkeypatch.delattr(convolutions, "_gradient_loop")
  assert convolutions.pays(call, IMAGES) is False


def test_attacks_compute_no_kernel_gradient():
  call = exchange_convolutions(lambda x, kernel: convolve(x, kernel).sum())
  assert "dot_general" not in names(jax.grad(call), IMAGES, KERNEL)
  assert names(jax.grad(call, 1), IMAGES, KERNEL).count("dot_general") == len(KERNEL)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 3)])
def test_higher_derivatives(strides):
  """Forward, forward over reverse, and reverse over reverse, in images and kernel."""
  call = lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel, strides)) ** 2)
  given, tangents = (IMAGES, KERNEL), (draw(*IMAGES.shape, seed=3), draw(*KERNEL.shape, seed=4))

  def derivatives(fn):
    gradient = jax.grad(fn, (0, 1))
    norm = lambda *args: sum(jnp.sum(jnp.square(part)) for part in gradient(*args))
    return (
      jax.jvp(fn, given, tangents),
      jax.jvp(gradient, given, tangents)[1],
      jax.grad(norm, (0, 1))(*given),
    )

  found = jax.jit(lambda: derivatives(exchange_convolutions(call)))()
  expected = jax.jit(lambda: derivatives(call))()
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert_close(one, other)


@pytest.mark.parametrize("layout", [LAST, FIRST, ("HWCN", "IOHW", "CHWN")], ids="-".join)
def test_vmap_is_a_loop(layout):
  images = lay_out(draw(2, 5, 6, 3), layout[0], "NHWC")
  kernel = lay_out(draw(3, 3, 3, 4, seed=1), layout[1], "HWIO")
  call = exchange_convolutions(lambda x, k: convolve(x, k, (2, 1), layout=layout))
  both = lambda x, k: jax.value_and_grad(lambda *args: jnp.sum(call(*args) ** 2), (0, 1))(x, k)

  def compare(axes):
    stacks = [
      x if axis is None else np.stack([x, 2 * x, -x], axis)
      for x, axis in zip((images, kernel), axes)
    ]
    rows = [
      [x if axis is None else np.take(x, i, axis) for x, axis in zip(stacks, axes)]
      for i in range(3)
    ]
    stack = lambda *parts: jnp.stack(parts)
    return jax.vmap(both, axes)(*stacks), jax.tree.map(stack, *(both(*row) for row in rows))

  every = [(0, None), (3, None), (None, 0), (1, 2)]
  for found, expected in jax.jit(lambda: [compare(axes) for axes in every])():
    jax.tree.map(assert_close, found, expected)


def test_bfloat16():
  """The result is bfloat16, within 1 % of the sums in float64."""
  images, kernel = (
    draw(2, 6, 6, 4, dtype=jnp.bfloat16),
    draw(3, 3, 4, 5, seed=1, dtype=jnp.bfloat16),
  )
  padding = ((1, 1), (1, 1))
  call = exchange_convolutions(lambda x, k: convolve(x, k, padding=padding))
  cotangent = draw(2, 6, 6, 5, seed=2, dtype=jnp.bfloat16)
  gradients = jax.jit(lambda: jax.vjp(call, images, kernel)[1](cotangent))()
  expected = sums_and_gradients(images, kernel, cotangent, (1, 1), padding)
  for array, wanted in zip((jax.jit(call)(images, kernel), *gradients), expected, strict=True):
    assert array.dtype == jnp.bfloat16
    assert_close(array, wanted, 0.01)


def scaled(weights, images, keys=None, double=False):
  images = (
    images
    if keys is None
    else images + jax.vmap(lambda key: jax.random.normal(key, ()))(keys).reshape(-1, 1, 1, 1)
  )
  return (2 if double else 1) * convolve(images, weights["kernel"])[..., weights["feature"]]


PARTIAL = jax.tree_util.Partial(scaled, {"kernel": jnp.asarray(KERNEL), "feature": jnp.int32(1)})


def test_leaves_of_a_pytree_stay_leaves():
  exchanged = exchange_convolutions(PARTIAL)
  assert jax.tree.leaves(exchanged) == jax.tree.leaves(PARTIAL)
  arrays, _ = convolutions._arrays_of(PARTIAL)  # arguments of programs, not constants in them
  assert arrays == jax.tree.leaves(PARTIAL)
  assert jax.tree.structure(exchanged) == jax.tree.structure(exchange_convolutions(PARTIAL))
  gradients = [
    jax.jit(jax.grad(lambda predict: jnp.sum(predict(IMAGES) ** 2), allow_int=True))(predict)
    for predict in (exchanged, PARTIAL)
  ]
  found, expected = (gradient.args[0] for gradient in gradients)
  assert_close(found["kernel"], expected["kernel"])
  assert found["feature"].dtype == jax.dtypes.float0


def test_any_pytree_with_a_call():
  @jax.tree_util.register_pytree_node_class
  class Model:
    def __init__(self, kernel, activation):
      self.kernel, self.activation = kernel, activation

    def tree_flatten(self):
      return (self.kernel, self.activation), None  # the function is a leaf, as in Equinox

    @classmethod
    def tree_unflatten(cls, _, children):
      return cls(*children)

    def __call__(self, images):
      return self.activation(convolve(images, self.kernel))

  model = Model(jnp.asarray(KERNEL), jnp.tanh)
  exchanged = exchange_convolutions(model)
  assert jax.tree.leaves(exchanged)[0] is model.kernel
  assert "exchanged_convolution" in names(exchanged, IMAGES)
  np.testing.assert_array_equal(jax.jit(lambda x: exchanged(x))(IMAGES), jax.jit(step)(IMAGES))


def test_modules_of_flax():
  """linen with its variables, and an NNX module, itself a pytree."""
  linen = nn.Conv(4, (3, 3))
  variables = linen.init(jax.random.key(0), IMAGES)
  module = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
  for predict in (jax.tree_util.Partial(linen.apply, variables), module):
    exchanged = exchange_convolutions(predict)
    assert len(jax.tree.leaves(exchanged)) == len(jax.tree.leaves(predict))
    assert "exchanged_convolution" in names(exchanged, IMAGES)
    call = jax.jit(lambda predict, images: predict(images))
    np.testing.assert_array_equal(call(exchanged, IMAGES), call(predict, IMAGES))


def test_other_arguments():
  """Random keys are traced, Python values do not change, NumPy's float64 becomes float32."""
  keys = jax.random.split(jax.random.key(0), len(IMAGES))
  exchanged = exchange_convolutions(PARTIAL)
  for args, kwargs in (((IMAGES, keys), {}), ((IMAGES.astype(np.float64),), {"double": True})):
    found, expected = jax.jit(lambda: [fn(*args, **kwargs) for fn in (exchanged, PARTIAL)])()  # noqa: B023
    assert found.dtype == jnp.float32
    assert_close(found, expected)


def test_the_same_function_is_compiled_once(caplog):
  """Two exchanges give equal functions, and calls without jit find the compiled programs again."""
  inner = jax.jit(step)
  outer = lambda x: inner(x)
  assert exchange_convolutions(outer) == exchange_convolutions(outer)
  assert hash(exchange_convolutions(outer)) == hash(exchange_convolutions(outer))
  exchange_convolutions(outer)(IMAGES)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    exchange_convolutions(outer)(IMAGES)
    assert "Compiling" not in caplog.text
    exchange_convolutions(outer)(IMAGES[:1])
    assert "Compiling" in caplog.text


def test_nothing_is_kept_alive():
  jaxpr = jax.make_jaxpr(lambda x: step(x) + 1)(IMAGES)
  exchanged = convolutions._exchange(jaxpr)
  assert exchanged is not jaxpr and convolutions._exchange(jaxpr) is exchanged
  dead = weakref.ref(jaxpr), weakref.ref(exchanged)
  del jaxpr, exchanged
  jax.clear_caches()
  gc.collect()
  assert [ref() for ref in dead] == [None, None]
  with jax.checking_leaks():
    jax.jit(jax.grad(lambda x: exchange_convolutions(INSIDE["scan"])(x).sum()))(IMAGES)


def test_split_over_devices():
  images = np.concatenate([IMAGES] * 4)
  mesh = jax.make_mesh((8,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("examples")))
  gradient = lambda fn: jax.jit(jax.grad(lambda x: jnp.sum(fn(x) ** 2)))
  found = gradient(exchange_convolutions(step))(split)
  assert len(found.sharding.device_set) == 8
  assert_close(found, gradient(step)(images))


@pytest.mark.parametrize(
  "name", ["small_cnn", "vgg16", "preact_resnet18", "wrn_16_1", "resnet50_cifar"]
)
def test_own_networks_have_nothing_to_exchange_on_a_cpu(name):
  """Their convolutions are matmuls there, so that the program stays the same."""
  model = models.create(name, num_classes=10, image_shape=(32, 32, 3))
  images = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  call = lambda variables, images: model.apply(variables, images, train=False)
  assert names(exchange_convolutions(call), variables, images) == names(call, variables, images)


def test_own_network_with_plain_convolutions(monkeypatch):
  """With the convolutions of a GPU, logits are equal to the bit and PGD finds the same images."""
  plain = lambda *args, matmuls: layers_convolve(*args, matmuls=False)
  layers_convolve = layers.convolve
  monkeypatch.setattr(layers, "convolve", plain)
  model = models.create("small_cnn", num_classes=3, image_shape=(8, 8, 3))
  images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
  variables = model.init(jax.random.key(0), images, train=False)
  predict = jax.tree_util.Partial(
    lambda variables, images: model.apply(variables, images, train=False), variables
  )
  exchanged = exchange_convolutions(predict)
  text = names(exchanged, images)
  assert text.count("exchanged_convolution") == 3 and "conv_general_dilated" not in text
  call = jax.jit(lambda predict, images: predict(images))
  logits = call(predict, images)
  np.testing.assert_array_equal(call(exchanged, images), logits)
  attack = jax.jit(
    lambda predict: attacks.pgd(
      jax.random.key(1),
      predict,
      images,
      jnp.argmax(logits, -1),
      epsilon=0.5,
      step_size=0.2,
      num_steps=3,
      norm="l2",
    )
  )
  assert_close(attack(exchanged), attack(predict))


def test_pays_for_channels_first_images_in_a_loop():
  """The exchange is at least ten times as fast, by measurement, on every version of JAX."""
  kernel = jnp.asarray(draw(16, 16, 3, 3))

  def predict(kernel, images):
    x = jnp.tile(images.transpose(0, 3, 1, 2), (1, 2, 1, 1))
    return convolve(x, kernel, layout=FIRST).mean((2, 3))

  predict, images = jax.tree_util.Partial(predict, kernel), draw(20, 16, 16, 8)
  assert convolutions.pays(predict, images) is True
  fast = convolutions.fastest(predict, images)
  assert jax.tree.structure(fast) == jax.tree.structure(exchange_convolutions(predict))


@pytest.mark.parametrize(
  "plain, exchanged, faster", [(0.02, 0.01, True), (0.01, 0.02, False), (0.02, 0.0195, False)]
)
def test_pays_compares_times(plain, exchanged, faster, monkeypatch):
  seconds, sizes = iter((plain, exchanged)), []

  def loop(predict, images):
    duration = next(seconds)
    sizes.append(len(images))
    return lambda: time.sleep(duration)

  monkeypatch.setattr(convolutions, "_gradient_loop", loop)
  images = np.concatenate([IMAGES] * 10)
  assert convolutions.pays(step, images) is faster
  assert sizes == [convolutions.IMAGES] * 2


def test_pays_is_false_at_once(monkeypatch):
  monkeypatch.delattr(convolutions, "_gradient_loop")
  dense = lambda images: images.reshape(len(images), -1)
  assert convolutions.pays(dense, IMAGES) is False
  assert convolutions.fastest(dense, IMAGES) is dense
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert convolutions.pays(step, IMAGES) is False


@pytest.mark.parametrize("first", [True, False])
def test_several_processes_use_the_choice_of_the_first(monkeypatch, first):
  """Else they would run different programs, and wait for one another."""
  monkeypatch.setattr(convolutions, "pays", lambda predict, images: not first)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  broadcast = lambda own: np.int32(first)
  monkeypatch.setattr(convolutions.multihost_utils, "broadcast_one_to_all", broadcast)
  predict = lambda x: x
  assert (convolutions.fastest(predict, IMAGES) is not predict) == first
