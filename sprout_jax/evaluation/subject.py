"""What an evaluation is given: a model as a function, and the test images."""

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.evaluation import randomness
from sprout_jax.progress import Progress

PASSES = 5  # over the same images, which must agree
TOLERANCE = 1e-4  # by which outputs may differ, relative to the largest
SMALLEST_BATCH = 32  # images; programs for fewer gain nothing


class Images(NamedTuple):
  """A choice of the test images.

  Attributes:
    images: [n, height, width, channels], uint8 or float32 in [0, 1].
    labels: int32 [n].
    indices: int [n], their positions in the test set.
    correct: bool [n], which of them are classified correctly.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  correct: np.ndarray


class Source(NamedTuple):
  """Another model, whose adversarial images are tried on the subject.

  Attributes:
    label: what it is, in words.
    digest: of its weights.
    predict: images -> logits, as `as_pytree` makes it.
  """

  label: str
  digest: str
  predict: Callable


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model under evaluation. Batches and devices are its own business.

  Attributes:
    predict: images [batch, height, width, channels] -> logits [batch, classes], a pytree that can
    be
      called (see `as_pytree`), deterministic, with normalisation inside.
    images: host array [n, height, width, channels], uint8 or float32 in [0, 1].
    labels: host array [n], int32.
    class_names: a name for each class.
    batch_size: images of one compiled call, over all devices.
    features: images -> [batch, features], the input of the model's last layer; None where it is not
      known: its logits are taken.
    beta: [classes], the concentration that SPROUT has learned; None for other models.
    find_source: name -> `Source`, for transferred attacks.
    find_corrupted: (corruption, severity) -> (images, labels) of a prepared set.
    memo: (piece, compute) -> compute(), kept on disk (`results.store.Memo`).
    shows_progress: whether bars are shown.
    programs: what is compiled: {function: program}; shared by models that differ in weights only.
  """

  predict: Callable
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...] = ()
  batch_size: int = 256
  features: Callable | None = None
  beta: np.ndarray | None = None
  find_source: Callable[[str], Source] | None = None
  find_corrupted: Callable[[str, int], tuple[np.ndarray, np.ndarray]] | None = None
  memo: Any = lambda piece, compute: compute()
  shows_progress: bool = True
  programs: dict = dataclasses.field(default_factory=dict, repr=False)
  _known: dict = dataclasses.field(default_factory=dict, repr=False)

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return self.logits.shape[-1]

  @property
  def logits(self) -> np.ndarray:
    """Host array [n, classes]: the model's outputs on the test set."""
    if "logits" not in self._known:
      self._known["logits"] = self.map(outputs, self.images)
    return self._known["logits"]

  @property
  def correct(self) -> np.ndarray:
    """Bool [n]: which of the test images are classified correctly."""
    return ~np.asarray(attacks.is_wrong(self.logits, self.labels))

  def select(self, num_examples: int) -> Images:
    """The fixed random choice of test images; 0 takes all."""
    rows = randomness.choose(len(self.labels), num_examples)
    return self.take(rows)

  def take(self, rows: np.ndarray) -> Images:
    """The test images at these positions."""
    return Images(self.images[rows], self.labels[rows], rows, self.correct[rows])

  def __post_init__(self):
    object.__setattr__(self, "predict", place(self.predict))
    object.__setattr__(self, "features", None if self.features is None else place(self.features))

  def start(self, memo: Any) -> "Subject":
    """The same subject for another evaluation, with its memo and no compiled programs."""
    return dataclasses.replace(self, memo=memo, programs={})

  def map(
    self,
    fn: Callable,
    *arrays: np.ndarray,
    shared: tuple = (),
    on_batch: Callable[[int], None] = lambda done: None,
    batch_size: int | None = None,
  ) -> Any:
    """Applies a function of the model to many images, on all devices.

    `fn` is compiled once for each size of batch; keep the function object to keep its programs. The
    last batch is filled up by repeating its first row, and what that gives is dropped. So an
    image's result must not depend on the rest of its batch.

    Args:
      fn: (predict, *shared, *batch) -> pytree of arrays [batch, ...]; jittable.
      *arrays: host arrays [n, ...] with n at least 1. Bytes become floats in [0, 1].
      shared: pytrees that every batch gets: a radius, a strength, another model.
      on_batch: called with the number of rows done, after each batch.
      batch_size: rows of a batch, over all devices; default `self.batch_size`.

    Returns:
      The pytree with host arrays [n, ...].
    """
    mesh = _mesh()
    with jax.set_mesh(mesh):  # a mesh that the caller has set is not ours
      count = len(arrays[0])
      size = _rounded(batch_size or self.batch_size, mesh.size)
      # Small sets get a small batch, of few sizes: each is compiled once.
      while size // 2 >= max(count, SMALLEST_BATCH) and size % (2 * mesh.size) == 0:
        size //= 2
      program = self._program(fn, mesh)
      # Python numbers become arrays, so that another radius is no other program.
      shared = jax.tree.map(_as_array, tuple(shared))
      results = []
      for start in range(0, count, size):
        rows = np.arange(start, start + size)
        rows[rows >= count] = start
        batch = sharding.put([to_float(array[rows]) for array in arrays], sharding.batch(mesh))
        found = program(self.predict, *shared, *batch)
        kept = count - start
        results.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[:kept], found))
        on_batch(min(count, start + size))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

  def _program(self, fn, mesh):
    if fn not in self.programs:
      self.programs[fn] = jax.jit(fn, out_shardings=sharding.replicated(mesh))
    return self.programs[fn]

  @contextlib.contextmanager
  def progress(self, name: str, total: float, unit: str = "images") -> Iterator[Callable]:
    """Shows a bar; gives a function (done, text) that moves it."""
    bar = Progress(total, 0, unit, name, enabled=self.shows_progress and jax.process_index() == 0)
    try:
      yield bar.update
    finally:
      bar.close()


def outputs(predict: Callable, images: jax.Array) -> jax.Array:
  """The model's outputs, for `Subject.map`."""
  return predict(images)


def rows_per_call(images_per_device: int, batch_size: int) -> int:
  """Images of a call, over all devices, where memory bounds how many a device may hold at once."""
  return min(images_per_device * jax.device_count(), batch_size)


@functools.cache
def _mesh():
  return sharding.make_mesh()


def _rounded(batch_size, devices):
  return -(-batch_size // devices) * devices


def _as_array(leaf):
  if hasattr(leaf, "dtype"):
    return leaf
  return np.asarray(leaf, np.float32 if isinstance(leaf, float) else np.int32)


def place(predict: Callable) -> Callable:
  """A model from `as_pytree` with its weights on all devices."""
  everywhere = sharding.replicated(_mesh())

  def put(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # random keys of a module
      return jax.device_put(leaf, everywhere)
    return sharding.put(leaf, everywhere)

  return jax.tree.map(put, predict)


def to_float(array: np.ndarray) -> np.ndarray:
  """Bytes as float32 in [0, 1] (x / 255); other arrays as they are."""
  return array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array


def as_pytree(predict: Callable) -> Callable:
  """A model as a pytree that can be called: its weights are leaves, not constants of programs.

  Products are computed in full float32: GPUs and TPUs round their factors by default, and an attack
  that takes its gradient from that noise would flatter the model.

  Args:
    predict: any function images -> logits. Where it is a pytree with arrays (an NNX or Equinox
    module,
      a `jax.tree_util.Partial`), these become the leaves.
  """
  leaves, structure = jax.tree.flatten(predict)
  is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
  if isinstance(predict, jax.tree_util.Partial) and all(is_array) and not predict.keywords:
    return jax.tree_util.Partial(_Precise(predict.func), *predict.args)
  fixed = [None if known else leaf for known, leaf in zip(is_array, leaves, strict=True)]
  weights = [leaf for known, leaf in zip(is_array, leaves, strict=True) if known]
  if not weights:
    return jax.tree_util.Partial(_Precise(predict))

  def call(weights, images):
    rest = iter(weights)
    both = [next(rest) if known else leaf for known, leaf in zip(is_array, fixed, strict=True)]
    return jax.tree.unflatten(structure, both)(images)

  return jax.tree_util.Partial(_Precise(call), weights)


@dataclasses.dataclass(frozen=True)
class _Precise:
  """A function in full float32; equal for the same function, so that a program is found again."""

  function: Callable

  def __call__(self, *args):
    with jax.default_matmul_precision("highest"):
      return self.function(*args)


def digest(predict: Callable, image_shape: tuple[int, ...]) -> str:
  """SHA-256 (hex) of a model: its weights and the operations that it applies to an image.

  The operations are those of the jaxpr. Comments, names and files of the model's code do not count.

  Args:
    predict: from `as_pytree`.
    image_shape: (height, width, channels).
  """
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  traced = jax.make_jaxpr(lambda args, images: predict.func(*args, images))(predict.args, image)
  text = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))  # addresses of functions
  found = hashlib.sha256(text.encode())
  for leaf in [*jax.tree.leaves(predict.args), *traced.consts]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
      leaf = jax.random.key_data(leaf)
    leaf = np.ascontiguousarray(leaf)
    found.update(f"{leaf.dtype} {leaf.shape}\n".encode())
    found.update(leaf.data)
  return found.hexdigest()


def data_digest(images: np.ndarray, labels: np.ndarray) -> str:
  """SHA-256 (hex) of test images and labels: types, shapes and bytes."""
  found = hashlib.sha256()
  for array in (images, labels):
    found.update(f"{array.dtype.str} {array.shape}\n".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()


def numerics() -> dict[str, str]:
  """The kind of device, the precision and the random generator: with them, numbers may change."""
  return {
    "device": jax.devices()[0].device_kind,
    "x64": str(bool(jax.config.jax_enable_x64)),
    "matmul_precision": "highest",
    "prng": str(jax.config.jax_default_prng_impl),
  }
