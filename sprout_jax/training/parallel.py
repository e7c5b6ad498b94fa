"""The compilation of training steps, for one or many devices.

`PARALLELISM` has three rows. "jit" compiles the step as one global program over the mesh. Batch
norm then averages over the whole minibatch, and parameters can be split over devices. "shard_map"
runs one program per device on its part of the minibatch and averages the gradients. Batch norm then
averages per device, as in PyTorch's DataParallel, which SPROUT's released code uses; the running
statistics are averaged over the devices. "pmap" does the same by `jax.pmap`, in one process.

Where the training set is in device memory, crops, noise, mixup partners and labels are drawn for
the whole minibatch. So one device, eight devices and all three rows train on the same data. Under
"shard_map" and "pmap" every device draws all of them and keeps its part.

Where the training set is streamed, a device has only its own images. "jit" draws for the whole
minibatch, and the devices exchange images for mixup. "shard_map" draws for each device's examples,
so mixup partners are on the same device, and only gradients and statistics are exchanged.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sprout_jax import sharding
from sprout_jax.errors import UserError

Shard = Callable[[jax.Array], jax.Array]  # a minibatch's array -> the part of this program
Mean = Callable[[Any], Any]  # means over that part -> means over the minibatch


class Program(NamedTuple):
  """The place of a compiled program among those of all devices.

  Attributes:
    shard: array of a minibatch -> the part of this program.
    mean: means over that part -> means over the minibatch.
    number: () -> the number of this program.
    constrain: training state -> the same state, placed on the devices as it must be.
  """

  shard: Shard
  mean: Mean
  number: Callable[[], jax.Array]
  constrain: Callable[[Any], Any]


class Compiler(Protocol):
  """A row of PARALLELISM: compiles run(program, state, *data) -> state, history."""

  def __call__(
    self,
    run: Callable[..., tuple[Any, Any]],
    mesh: jax.sharding.Mesh,
    data: tuple[PartitionSpec, ...],
    state: Any,
    /,
  ) -> Callable[..., tuple[Any, Any]]:
    """Returns (state, *data) -> state, history; `data` and `state` say how they are placed."""


class StepFunction(Protocol):
  """A training step: (state, images, labels, *, shard, mean, part) -> state, metrics."""

  def __call__(
    self,
    state: Any,
    images: jax.Array,
    labels: jax.Array,
    /,
    *,
    shard: Shard,
    mean: Mean,
    part: jax.Array | None = None,
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the next state and the metrics of the step."""


def compile_steps(
  step_fn: StepFunction,
  mesh: jax.sharding.Mesh,
  parallelism: str,
  max_steps: int,
  state_sharding: Any = None,
) -> Callable[[Any, jax.Array, jax.Array, np.ndarray], tuple[Any, Any]]:
  """Compiles a loop of up to `max_steps` training steps over data in device memory.

  The number of steps is an argument of the compiled program. So one program serves calls of any
  length, and a resumed run, whose calls have other lengths, gives bitwise equal results.

  Args:
    step_fn: (state, images, labels, *, shard, mean) -> state, metrics.
    mesh: the mesh of devices.
    parallelism: a key of `PARALLELISM`.
    max_steps: the largest number of steps of a call.
    state_sharding: the shardings of the state; None: every device has all of it.

  Returns:
    (state, images, labels, indices [<= max_steps, batch]) -> state, metrics. A metric is an array
    [max_steps, ...]; its rows beyond the steps of the call are undefined. The state is donated.
  """

  def run_steps(
    program: Program,
    state: Any,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    num_steps: jax.Array,
  ) -> tuple[Any, Any]:
    def one_step(state: Any, rows: jax.Array) -> tuple[Any, Any]:
      return step_fn(state, images[rows], labels[rows], shard=program.shard, mean=program.mean)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
      state, history = carry
      state, metrics = one_step(state, indices[i])
      history = jax.tree.map(lambda all_, new: all_.at[i].set(new), history, metrics)
      return program.constrain(state), history

    shapes = jax.eval_shape(one_step, state, indices[0])[1]
    history = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, num_steps, body, (state, history))

  compiled = PARALLELISM[parallelism](run_steps, mesh, (PartitionSpec(),) * 4, state_sharding)

  def call(
    state: Any, images: jax.Array, labels: jax.Array, indices: np.ndarray
  ) -> tuple[Any, Any]:
    padded = np.zeros((max_steps, indices.shape[1]), np.int32)
    padded[: len(indices)] = indices
    rows, num_steps = sharding.put((padded, np.int32(len(indices))), sharding.replicated(mesh))
    return compiled(state, images, labels, rows, num_steps)

  return call


def compile_streamed_step(
  step_fn: StepFunction, mesh: jax.sharding.Mesh, parallelism: str, state_sharding: Any = None
) -> Callable[[Any, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]]:
  """Compiles one training step on a minibatch that is split over the devices.

  Args:
    step_fn: (state, images, labels, *, shard, mean, part) -> state, metrics.
    mesh: the mesh of devices.
    parallelism: "jit" or "shard_map".
    state_sharding: the shardings of the state; None: every device has all of it.

  Returns:
    (state, images, labels) -> state, metrics. The state is donated.
  """

  def run_step(
    program: Program, state: Any, images: jax.Array, labels: jax.Array
  ) -> tuple[Any, dict[str, jax.Array]]:
    if parallelism == "jit":
      state, metrics = step_fn(state, images, labels, shard=program.shard, mean=program.mean)
    else:
      state, metrics = step_fn(
        state, images, labels, shard=lambda x: x, mean=program.mean, part=program.number()
      )
    return program.constrain(state), metrics

  split = PartitionSpec(sharding.AXES)
  return PARALLELISM[parallelism](run_step, mesh, (split, split), state_sharding)


def check(parallelism: str, parameter_shards: int, is_streamed: bool) -> None:
  """Checks that a parallelism fits the number of processes, the parameters and the data.

  Raises:
    UserError: it does not; the message says what to type.
  """
  if parallelism == "pmap" and jax.process_count() > 1:
    raise UserError(
      "config.parallelism is 'pmap', which needs a single process; type "
      "--config.parallelism=shard_map (the same computation, for several processes too)"
    )
  if parallelism == "pmap" and is_streamed:
    raise UserError(
      "config.parallelism is 'pmap', which needs the training set in memory; type "
      "--config.parallelism=shard_map for a streamed one"
    )
  if parallelism != "jit" and parameter_shards > 1:
    raise UserError(
      f"config.parameter_shards is {parameter_shards}, which needs one program for all devices; "
      f"type --config.parallelism=jit, not {parallelism}"
    )


def _jit(
  run: Callable[..., tuple[Any, Any]],
  mesh: jax.sharding.Mesh,
  data: tuple[PartitionSpec, ...],
  state: Any,
) -> Callable[..., tuple[Any, Any]]:
  split, everywhere = sharding.batch(mesh), sharding.replicated(mesh)
  program = Program(
    shard=lambda x: jax.lax.with_sharding_constraint(x, split),
    mean=lambda x: x,
    number=lambda: jnp.int32(0),
    constrain=lambda tree: tree if state is None else jax.lax.with_sharding_constraint(tree, state),
  )
  out = (everywhere if state is None else state, everywhere)
  return jax.jit(functools.partial(run, program), donate_argnums=0, out_shardings=out)


def _program(mesh: jax.sharding.Mesh, axes: Any) -> Program:
  """Returns the place of a program per device; `axes` are the axes that it runs over."""

  def shard(x: jax.Array) -> jax.Array:
    size = x.shape[0] // mesh.size
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)

  return Program(
    shard=shard,
    mean=lambda x: jax.lax.pmean(x, axes),
    number=lambda: jax.lax.axis_index(axes),
    constrain=lambda tree: tree,
  )


def _shard_map(
  run: Callable[..., tuple[Any, Any]],
  mesh: jax.sharding.Mesh,
  data: tuple[PartitionSpec, ...],
  state: Any,
) -> Callable[..., tuple[Any, Any]]:
  # check_vma=False: the step averages its gradients itself.
  mapped = jax.shard_map(
    functools.partial(run, _program(mesh, sharding.AXES)),
    mesh=mesh,
    in_specs=(PartitionSpec(), *data),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=0)


def _pmap(
  run: Callable[..., tuple[Any, Any]],
  mesh: jax.sharding.Mesh,
  data: tuple[PartitionSpec, ...],
  state: Any,
) -> Callable[..., tuple[Any, Any]]:
  steps = functools.partial(run, _program(mesh, "devices"))
  # pmap needs an argument with a mapped axis; all others are the same on every device.
  mapped = jax.pmap(
    lambda state, images, labels, indices, num_steps, _: steps(
      state, images, labels, indices, num_steps
    ),
    axis_name="devices",
    in_axes=(None,) * 5 + (0,),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=0,
  )
  return lambda *args: mapped(*args, np.arange(mesh.size))


PARALLELISM: dict[str, Compiler] = {
  "jit": _jit,
  "shard_map": _shard_map,
  "pmap": _pmap,
}
