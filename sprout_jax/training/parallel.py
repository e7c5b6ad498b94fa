"""The compilation of several training steps into one call, for one or many devices.

PARALLELISM has two rows. "jit" compiles the step as one global program over a mesh with one axis,
"data"; batch norm then averages over the whole minibatch. "pmap" runs one program per device on
its part of the minibatch and averages gradients; batch norm averages per device, as in PyTorch's
DataParallel, which SPROUT's released code uses, and the running statistics are averaged over the
devices. In both, crops, noise, mixup pairs and labels are drawn for the whole minibatch, so that
one device, eight devices, jit and pmap train on the same data; under pmap every device draws them
all and keeps its part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax.errors import UserError


def compile_steps(step_fn, mesh, parallelism, max_steps):
  """Compiles a loop of up to `max_steps` training steps over data that lives on the devices.

  The number of steps is an argument of the compiled program, so that one program serves calls of
  any length, and a resumed run, whose calls are cut elsewhere, computes the same bits.

  Args:
    step_fn: (state, images, labels, *, shard, mean) -> state, metrics.
    mesh: the mesh of devices.
    parallelism: a key of `PARALLELISM`.
    max_steps: the longest call.

  Returns:
    (state, images, labels, indices [<= max_steps, batch]) -> state, metrics, each of which is an
    array [max_steps, ...] whose rows beyond the call's steps mean nothing. The state is donated.
  """

  def run(shard, mean, state, images, labels, indices, num_steps):
    def one_step(state, rows):
      return step_fn(state, images[rows], labels[rows], shard=shard, mean=mean)

    def body(i, carry):
      state, history = carry
      state, metrics = one_step(state, indices[i])
      return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), history, metrics)

    shapes = jax.eval_shape(one_step, state, indices[0])[1]
    history = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, num_steps, body, (state, history))

  compiled = PARALLELISM[parallelism](run, mesh)

  def call(state, images, labels, indices):
    padded = np.zeros((max_steps, indices.shape[1]), np.int32)
    padded[: len(indices)] = indices
    padded, num_steps = sharding.put((padded, np.int32(len(indices))), sharding.replicated(mesh))
    return compiled(state, images, labels, padded, num_steps)

  return call


def _jit(run, mesh):
  split = sharding.batch(mesh)
  run = functools.partial(run, lambda x: jax.lax.with_sharding_constraint(x, split), lambda x: x)
  return jax.jit(run, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def check(parallelism):
  """Raises UserError where a parallelism cannot run."""
  if parallelism == "pmap" and jax.process_count() > 1:
    raise UserError("config.parallelism 'pmap' runs in one process; use --config.parallelism=jit")


def _pmap(run, mesh):
  def shard(x):
    size = x.shape[0] // mesh.size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(sharding.AXIS) * size, size)

  run = functools.partial(run, shard, lambda x: jax.lax.pmean(x, sharding.AXIS))
  # pmap wants one argument with a mapped axis; everything else is the same on every device.
  mapped = jax.pmap(
    lambda state, images, labels, indices, num_steps, _: run(
      state, images, labels, indices, num_steps
    ),
    axis_name=sharding.AXIS,
    in_axes=(None,) * 5 + (0,),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=0,
  )
  return lambda *args: mapped(*args, np.arange(mesh.size))


PARALLELISM = {"jit": _jit, "pmap": _pmap}
