"""Compiled steps of training and of attacks on random images, ready to be timed."""

import functools
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import default  # noqa: E402: after the path
from sprout_jax import methods
from sprout_jax import models
from sprout_jax import sharding
from sprout_jax.launcher import configuration
from sprout_jax.models.layers import Conv
from sprout_jax.training import parallel
from sprout_jax.training import state as state_lib
from sprout_jax.training import step as step_lib

CLASSES = 10


def random_data(image_shape, batch_size):
  """uint8 images and labels, on the host."""
  rng = np.random.default_rng(0)
  return (
    rng.integers(0, 256, (batch_size, *image_shape), dtype=np.uint8),
    rng.integers(0, CLASSES, batch_size, dtype=np.int32),
  )


def multiplications(name, image_shape):
  """Of one image's forward pass: outputs times inputs per output, over all layers."""
  model = models.create(name, num_classes=CLASSES, image_shape=image_shape)
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(images.shape), train=False)
  )
  _, state = jax.eval_shape(
    lambda v, x: model.apply(
      v,
      x,
      train=False,
      mutable=["intermediates"],
      capture_intermediates=lambda module, _: isinstance(module, (Conv, nn.Dense)),
    ),
    variables,
    images,
  )
  total = 0
  for path, (out,) in jax.tree.leaves_with_path(
    state["intermediates"], is_leaf=lambda leaf: isinstance(leaf, tuple)
  ):
    kernel = variables["params"]
    for key in path[:-1]:
      kernel = kernel[key.key]
    total += out.size * kernel["kernel"].size // kernel["kernel"].shape[-1]
  return total


def multiplications_done(name, image_shape):
  """Multiplications of the matmuls: fewer than `multiplications` where convolution saves some."""
  model = models.create(name, num_classes=CLASSES, image_shape=image_shape)
  images = jnp.zeros((1, *image_shape))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  todo = [jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images).jaxpr]
  total = 0
  while todo:
    for eqn in todo.pop().eqns:
      if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left, out = eqn.invars[0].aval, eqn.outvars[0].aval
        total += out.size * math.prod(left.shape[axis] for axis in contracted)
      inner = (getattr(value, "jaxpr", value) for value in eqn.params.values())
      todo += [jaxpr for jaxpr in inner if hasattr(jaxpr, "eqns")]
  return total


def make_recipe(config, image_shape):
  """(recipe, function that creates its state) of a config."""
  model = models.create(
    config.model.name,
    num_classes=CLASSES,
    image_shape=image_shape,
    **configuration.options(config.model),
  )
  recipe = state_lib.make_recipe(
    config,
    model,
    methods.create(config.method.name, configuration.options(config.method)),
    methods.create_penalty(config.penalty.name, configuration.options(config.penalty)),
    CLASSES,
    steps_per_epoch=100,
  )
  return recipe, functools.partial(state_lib.create, recipe, image_shape)


def training_program(
  model_name,
  image_shape,
  batch_size,
  num_steps,
  *,
  method="natural",
  variant="paper",
  penalty="none",
  options=None,
  dtype="float32",
):
  """(compiled steps, state, data on the device, config, recipe), as the launcher has them.

  Args:
    options: {"method.draw": "mean"}: further values of the config.
  """
  config = default.get_config(method=method, variant=variant, penalty=penalty)
  config.batch_size = batch_size
  config.dataset.crop_padding, config.dataset.flip = 4, True
  config.model.name, config.model.dtype = model_name, dtype
  config.update_from_flattened_dict(options or {})
  recipe, create = make_recipe(config, image_shape)
  mesh = sharding.make_mesh()
  run = parallel.compile_steps(
    functools.partial(step_lib.train_step, recipe), mesh, "jit", num_steps
  )
  state = jax.jit(create, out_shardings=sharding.replicated(mesh))()
  data = sharding.put(random_data(image_shape, batch_size), sharding.replicated(mesh))
  return run, state, data, config, recipe


def training(model_name, image_shape, batch_size, num_steps, **options):
  """A function that trains `num_steps` steps, as the launcher does, and waits for them.

  With crops and flips, over data on the device, in one compiled call; arguments as those of
  `training_program`.
  """
  run, state, data, *_ = training_program(model_name, image_shape, batch_size, num_steps, **options)
  indices = np.tile(np.arange(batch_size), (num_steps, 1))

  def steps():
    nonlocal state
    state, metrics = run(state, *data, indices)
    jax.block_until_ready((state, metrics))

  steps()  # compiles
  return steps


def attacking(model_name, image_shape, batch_size, num_steps, dtype="float32"):
  """A function that takes `num_steps` signed gradient steps on a batch, and waits for them.

  A step is a forward pass in evaluation mode and the gradient for the input, in one compiled loop.
  """
  model = models.create(model_name, num_classes=CLASSES, image_shape=image_shape, dtype=dtype)
  images, labels = random_data(image_shape, batch_size)
  images = jnp.asarray(images, jnp.float32) / 255
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)

  @jax.jit
  def attack(variables, images, labels):
    def loss(x):
      logits = model.apply(variables, x, train=False)
      return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1))

    def body(_, x):
      x = x + 0.007 * jnp.sign(jax.grad(loss)(x))
      return jnp.clip(jnp.clip(x, images - 0.03, images + 0.03), 0, 1)

    return jax.lax.fori_loop(0, num_steps, body, images)

  def steps():
    jax.block_until_ready(attack(variables, images, labels))

  steps()
  return steps
