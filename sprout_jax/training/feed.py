"""How minibatches reach the training step: from device memory, or streamed from the host.

A feed compiles the step and runs it. `InMemory` holds the whole training set on every device and
runs many steps in one compiled call. `Streaming` reads the minibatches from a `data.Streamed` set,
each process its own rows, and runs one step per call. Both take the examples in the same order.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import jax
import numpy as np

from sprout_jax import sharding
from sprout_jax.data import Split
from sprout_jax.data import order
from sprout_jax.data import streamed
from sprout_jax.training import parallel

if TYPE_CHECKING:
  import ml_collections

AHEAD = 2  # steps that are dispatched before the host waits for the devices


class InMemory:
  """A training set in device memory."""

  def __init__(
    self,
    step_fn: parallel.StepFunction,
    config: "ml_collections.ConfigDict",
    split: Split,
    mesh: jax.sharding.Mesh,
    state_sharding: Any,
  ) -> None:
    self._config, self._count = config, len(split.labels)
    everywhere = sharding.replicated(mesh)
    self._images: jax.Array = sharding.put(split.images, everywhere)
    self._labels: jax.Array = sharding.put(split.labels, everywhere)
    self._steps = parallel.compile_steps(
      step_fn, mesh, config.parallelism, config.log_every, state_sharding
    )

  def run(self, state: Any, start: int, end: int) -> tuple[Any, dict[str, Any]]:
    """Takes the steps start + 1 ... end, at most `config.log_every`.

    Returns:
      The state, and each metric with a row for each step. Rows beyond the last step are undefined.
    """
    indices = order.batch_indices(
      self._config.seed, start, end - start, self._count, self._config.batch_size
    )
    return self._steps(state, self._images, self._labels, indices)

  def seconds_waited(self) -> float:
    """Returns 0: nothing is read during training."""
    return 0.0

  def close(self) -> None:
    """Does nothing: no thread or process reads."""


class Streaming:
  """A training set that is read during training."""

  def __init__(
    self,
    step_fn: parallel.StepFunction,
    config: "ml_collections.ConfigDict",
    examples: streamed.Streamed,
    mesh: jax.sharding.Mesh,
    state_sharding: Any,
    last_step: int,
  ) -> None:
    self._config, self._examples, self._mesh, self._last_step = config, examples, mesh, last_step
    self._rows = sharding.local_rows(mesh, config.batch_size)
    self._step = parallel.compile_streamed_step(step_fn, mesh, config.parallelism, state_sharding)
    self._batches: Iterator[tuple[np.ndarray, np.ndarray]] | None = None
    self._waited = 0.0

  def run(self, state: Any, start: int, end: int) -> tuple[Any, dict[str, Any]]:
    """Takes the steps start + 1 ... end. Every call continues where the one before ended.

    Returns:
      The state, and each metric as a list with an entry for each step.
    """
    if self._batches is None:
      self._batches = self._examples.batches(
        self._config.seed, start, self._last_step, self._config.batch_size, self._rows
      )
    history: list[dict[str, jax.Array]] = []
    for _ in range(start, end):
      began = time.monotonic()
      batch = next(self._batches)
      self._waited += time.monotonic() - began
      state, metrics = self._step(state, *sharding.put_local(batch, self._mesh))
      history.append(metrics)
      if len(history) > AHEAD:  # so that few minibatches lie on the devices
        jax.block_until_ready(history[-1 - AHEAD])
    return state, jax.tree.map(lambda *values: list(values), *history)

  def seconds_waited(self) -> float:
    """Returns the seconds for which the host has waited for images since the last call."""
    waited, self._waited = self._waited, 0.0
    return waited

  def close(self) -> None:
    """Ends the threads and processes that read."""
    if self._batches is not None and hasattr(self._batches, "close"):
      self._batches.close()


Feed = InMemory | Streaming


def create(
  step_fn: parallel.StepFunction,
  config: "ml_collections.ConfigDict",
  train: Split | streamed.Streamed,
  mesh: jax.sharding.Mesh,
  state_sharding: Any,
  last_step: int,
) -> Feed:
  """Makes the feed of a training set.

  Args:
    step_fn: the training step.
    config: the config.
    train: the training set.
    mesh: the mesh of devices.
    state_sharding: the shardings of the training state.
    last_step: the number of steps of the whole run.
  """
  if isinstance(train, Split):
    return InMemory(step_fn, config, train, mesh, state_sharding)
  return Streaming(step_fn, config, train, mesh, state_sharding, last_step)
