"""A training split that is decoded while it is trained on, through Grain.

No pixel is held in memory. The order is that of `order.batch_indices`, so streamed images give the
same minibatches as images in memory. The position in the stream is a function of the step: a
resumed run needs nothing but its step to continue with exactly the next example.

The host decodes, resizes and crops. Flips are made on the device, as for images in memory.
"""

import dataclasses
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing import process
from typing import Any

import numpy as np

from sprout_jax.data import array_cache
from sprout_jax.data import dataset
from sprout_jax.data import decoding
from sprout_jax.data import order
from sprout_jax.errors import UserError

MAX_THREADS = 16  # beyond, threads wait for Python's lock: use workers
WORKER_BUFFER = 2  # finished minibatches that a worker process holds


def import_grain() -> Any:
  """Imports Grain. Only streamed data need it, and it imports JAX, so the import is late."""
  try:
    import grain  # pylint: disable=g-import-not-at-top
    from absl import flags  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise UserError(
      f"streamed training images need Grain, which is not installed ({error}); type\n"
      "  pip install grain\n"
      "or keep the images in memory: --config.dataset.in_memory_gib=GIB, and no random_resized_crop"
    ) from error
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; this program has none of absl's
  return grain


@dataclasses.dataclass(frozen=True)
class Streamed:
  """A training split without pixels in memory.

  Attributes:
    decoder: makes an array from an example.
    indices: int [n], the examples of `decoder.examples` in this split.
    place: where decoded parts of the split are stored, see `held_out`.
    workers: processes that decode; 0 = threads of this process.
  """

  decoder: decoding.Decoder
  indices: np.ndarray
  place: array_cache.Place
  workers: int = 0

  def __len__(self) -> int:
    return len(self.indices)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """The shape of an image, (height, width, channels)."""
    return self.decoder.image_shape

  def select(self, rows: np.ndarray) -> "Streamed":
    """Returns the part of the split with the given rows, int [m]."""
    return dataclasses.replace(self, indices=self.indices[rows])

  def held_out(self, rows: np.ndarray) -> dataset.Split:
    """Decodes a part of the split as it is evaluated: resized, with the centre crop.

    The arrays are stored in the cache, and mapped into memory from there.

    Args:
      rows: int [m], the rows.

    Raises:
      UserError: an image cannot be read, or the cache cannot be written.
    """
    indices = self.indices[rows]
    digest = hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest()
    place = array_cache.Place(
      self.place.folder, f"{self.place.stem}-held-{digest[:12]}", [self.place.key, digest]
    )
    make = lambda: decoding.decode_all(self.decoder, indices, "held-out images")
    return array_cache.read_or_write(place, make, len(indices), None)[0]

  def batches(
    self, seed: int, first_step: int, last_step: int, batch_size: int, rows: slice | np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for each step first_step ... last_step - 1, this process's rows of the minibatch.

    The examples of a step are those of `order.batch_indices`. A random-resized crop depends only on
    the seed, the epoch and the example. So the minibatches are the same for any first step, any
    number of processes and workers.

    The iterator is a generator. Its `close`, or its end, stops all threads and worker processes.

    Args:
      seed: integer >= 0.
      first_step: integer >= 0, counted from the start of training.
      last_step: the step at which the iterator ends.
      batch_size: examples per step, over all processes.
      rows: the rows of each minibatch that this process needs.

    Yields:
      uint8 [n, height, width, channels] and int32 [n].

    Raises:
      UserError: Grain is not installed, an argument is out of range, or an image cannot be read.
    """
    order.check(seed, first_step, last_step - first_step, len(self), batch_size)
    chosen = np.arange(batch_size)[rows]
    if not len(chosen):
      raise UserError(
        f"rows {rows} select nothing from a minibatch of {batch_size}; select at least one row"
      )
    positions = _Positions(len(self), seed, first_step, last_step, batch_size, chosen)
    return self._generate(import_grain(), positions)

  def _generate(
    self, grain: Any, positions: "_Positions"
  ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    if not len(positions):
      return
    load = _Load(self.decoder, self.indices, positions.seed)
    threads = min(MAX_THREADS, max(1, decoding.cores() // max(1, self.workers)))
    data = grain.MapDataset.source(positions).map(load).batch(len(positions.rows))
    data = data.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if self.workers:
      data = data.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self.workers, per_worker_buffer_size=WORKER_BUFFER
        ),
        worker_init_fn=_begin_worker,
      )
    iterator = iter(data)
    try:
      for images, labels in iterator:
        # The arrays of a worker are in shared memory, which is small and ends with the worker.
        yield (np.array(images), np.array(labels)) if self.workers else (images, labels)
    finally:
      load.stop()
      iterator.close()
      load.join()


class _Positions:
  """The examples of a stream: element i is (epoch, row of the split)."""

  def __init__(
    self, count: int, seed: int, first_step: int, last_step: int, batch_size: int, rows: np.ndarray
  ) -> None:
    self.seed, self.rows = seed, rows
    self._count, self._first, self._batch_size = count, first_step, batch_size
    self._length = (last_step - first_step) * len(rows)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[int, int]:
    step, row = divmod(int(index), len(self.rows))
    per_epoch = self._count // self._batch_size
    epoch, place = divmod(self._first + step, per_epoch)
    permutation = order.of_epoch(self.seed, epoch, self._count)
    return epoch, int(permutation[place * self._batch_size + self.rows[row]])


class _Load:
  """Decodes an example; (epoch, row) -> (image, label). It knows the threads that called it."""

  def __init__(self, decoder: decoding.Decoder, indices: np.ndarray, seed: int) -> None:
    self._decoder, self._indices, self._seed = decoder, indices, seed
    self._is_stopped = False
    self._threads: set[threading.Thread] = set()

  def __call__(self, position: tuple[int, int]) -> tuple[np.ndarray, np.int32]:
    if self._is_stopped:
      raise _Stopped
    self._threads.add(threading.current_thread())
    epoch, row = position
    index = int(self._indices[row])
    image, label = self._decoder.training(index, self._seed, epoch, row)
    if label < 0:
      raise UserError(
        f"{self._decoder.examples.where(index)} has the label {label}, which marks a hidden label; "
        "choose a split with labels"
      )
    return image, np.int32(label)

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_threads": set()}

  def stop(self) -> None:
    """Makes every further call raise, so that minibatches in work end early."""
    self._is_stopped = True

  def join(self) -> None:
    """Waits until the threads have ended; Grain tells them to end, but does not wait."""
    for thread in self._threads - {threading.current_thread()}:
      thread.join()


class _Stopped(Exception):
  """The iterator was closed. Nobody reads the result of the call."""


def _begin_worker(index: int, count: int) -> None:
  """Begins a worker process: it has no accelerator, ignores signals, and ends with its parent."""
  del index, count
  os.environ["JAX_PLATFORMS"] = "cpu"  # Grain imports JAX; a backend starts only at its first use
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")
  # Ctrl-C and the signals of a job's end reach every process of a group. The parent still needs
  # minibatches until it has saved its state; then it stops the workers.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True, name="sprout-parent").start()


def _end_with_parent() -> None:
  """Waits for the end of the parent process, even by SIGKILL, and ends this process."""
  parent = process.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)
