"""The compilation of several training steps into one call, for one or many devices.

`PARALLELISM` has two rows. "jit" compiles the step as one global program over a mesh with one axis,
"data". Batch norm then averages over the whole minibatch. "pmap" runs one program per device on its
part of the minibatch and averages the gradients. Batch norm then averages per device, as in
PyTorch's DataParallel, which SPROUT's released code uses; the running statistics are averaged over
the devices.

In both, crops, noise, mixup partners and labels are drawn for the whole minibatch. So one device,
eight devices, jit and pmap train on the same data. Under pmap every device draws all of them and
keeps its part.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax.errors import UserError

Shard = Callable[[jax.Array], jax.Array]  # a minibatch's array -> the part of this program
Mean = Callable[[Any], Any]  # means over that part -> means over the minibatch
RunSteps = Callable[..., tuple[Any, Any]]


class StepFunction(Protocol):
  """A training step: (state, images, labels, *, shard, mean) -> state, metrics."""

  def __call__(
    self, state: Any, images: jax.Array, labels: jax.Array, /, *, shard: Shard, mean: Mean
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the next state and the metrics of the step."""


def compile_steps(
  step_fn: StepFunction, mesh: jax.sharding.Mesh, parallelism: str, max_steps: int
) -> Callable[[Any, jax.Array, jax.Array, np.ndarray], tuple[Any, Any]]:
  """Compiles a loop of up to `max_steps` training steps over data in device memory.

  The number of steps is an argument of the compiled program. So one program serves calls of any
  length, and a resumed run, whose calls have other lengths, gives bitwise equal results.

  Args:
    step_fn: (state, images, labels, *, shard, mean) -> state, metrics.
    mesh: the mesh of devices.
    parallelism: a key of `PARALLELISM`.
    max_steps: the largest number of steps of a call.

  Returns:
    (state, images, labels, indices [<= max_steps, batch]) -> state, metrics. A metric is an array
    [max_steps, ...]; its rows beyond the steps of the call are undefined. The state is donated.
  """

  def run_steps(
    shard: Shard,
    mean: Mean,
    state: Any,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    num_steps: jax.Array,
  ) -> tuple[Any, Any]:
    def one_step(state: Any, rows: jax.Array) -> tuple[Any, Any]:
      return step_fn(state, images[rows], labels[rows], shard=shard, mean=mean)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
      state, history = carry
      state, metrics = one_step(state, indices[i])
      return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), history, metrics)

    shapes = jax.eval_shape(one_step, state, indices[0])[1]
    history = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, num_steps, body, (state, history))

  compiled = PARALLELISM[parallelism](run_steps, mesh)

  def call(
    state: Any, images: jax.Array, labels: jax.Array, indices: np.ndarray
  ) -> tuple[Any, Any]:
    padded = np.zeros((max_steps, indices.shape[1]), np.int32)
    padded[: len(indices)] = indices
    rows, num_steps = sharding.put((padded, np.int32(len(indices))), sharding.replicated(mesh))
    return compiled(state, images, labels, rows, num_steps)

  return call


def _jit(run_steps: RunSteps, mesh: jax.sharding.Mesh) -> Callable[..., tuple[Any, Any]]:
  split = sharding.batch(mesh)
  shard = lambda x: jax.lax.with_sharding_constraint(x, split)
  steps = functools.partial(run_steps, shard, lambda x: x)
  return jax.jit(steps, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def check(parallelism: str) -> None:
  """Raises UserError if a parallelism cannot be used with the number of processes."""
  if parallelism == "pmap" and jax.process_count() > 1:
    raise UserError(
      "config.parallelism is 'pmap', which needs a single process; type --config.parallelism=jit"
    )


def _pmap(run_steps: RunSteps, mesh: jax.sharding.Mesh) -> Callable[..., tuple[Any, Any]]:
  def shard(x: jax.Array) -> jax.Array:
    size = x.shape[0] // mesh.size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(sharding.AXIS) * size, size)

  steps = functools.partial(run_steps, shard, lambda x: jax.lax.pmean(x, sharding.AXIS))
  # pmap needs an argument with a mapped axis; all others are the same on every device.
  mapped = jax.pmap(
    lambda state, images, labels, indices, num_steps, _: steps(
      state, images, labels, indices, num_steps
    ),
    axis_name=sharding.AXIS,
    in_axes=(None,) * 5 + (0,),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=0,
  )
  return lambda *args: mapped(*args, np.arange(mesh.size))


PARALLELISM: dict[str, Callable[[RunSteps, jax.sharding.Mesh], Callable[..., Any]]] = {
  "jit": _jit,
  "pmap": _pmap,
}
