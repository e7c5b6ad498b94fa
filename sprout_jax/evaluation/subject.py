"""The subject of an evaluation: a model as a function, and the test images."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.attacks import fingerprint
from sprout_jax.attacks import inspection
from sprout_jax.errors import UserError
from sprout_jax.errors import check_range
from sprout_jax.evaluation import randomness
from sprout_jax.progress import Progress

T = TypeVar("T")
PASSES = 5  # passes over the same images, whose outputs must agree
TOLERANCE = 1e-4  # largest difference of outputs, relative to the largest output
SMALLEST_BATCH = 32  # images; a smaller batch is no faster


class Predict(Protocol):
  """A model, or a part of it, as a function of images."""

  def __call__(self, images: jax.Array, /) -> jax.Array:
    """Maps images [batch, height, width, channels] in [0, 1] to logits [batch, classes]."""


class BatchFunction(Protocol):
  """A function for `Subject.map`: (predict, *shared, *batch) -> pytree of arrays [batch, ...]."""

  def __call__(self, predict: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Returns the results for one batch."""


class MemoFunction(Protocol):
  """A cache of pieces of an evaluation, such as `results.store.Memo`."""

  def __call__(self, piece: str, compute: Callable[[], Any], /) -> Any:
    """Returns the stored value of a piece, or else computes and stores it."""


class OnBatch(Protocol):
  """A function that moves a progress bar."""

  def __call__(self, done: float, text: str, seconds_left: float | None = None, /) -> None:
    """Shows the work done, a text, and the time left if it is known."""


class Images(NamedTuple):
  """A choice of the test images.

  Attributes:
    images: [n, height, width, channels], uint8 or float32 in [0, 1].
    labels: int32 [n].
    indices: int [n], the images' positions in the test set.
    correct: bool [n], which images are classified correctly.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  correct: np.ndarray

  def take(self, rows: np.ndarray) -> "Images":
    """Returns the images at the given places of this choice."""
    return Images(*(array[rows] for array in self))


class Source(NamedTuple):
  """Another model, whose adversarial images are tried on the subject.

  Attributes:
    label: the name for readers.
    digest: the digest of its weights.
    predict: images -> logits, from `as_pytree`.
  """

  label: str
  digest: str
  predict: Predict


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Subject:
  """A model under evaluation, with its test images. It handles batches and devices.

  Attributes:
    predict: images [batch, height, width, channels] -> logits [batch, classes]. A callable pytree
      (see `as_pytree`), deterministic, with the normalisation inside.
    images: host array [n, height, width, channels], uint8 or float32 in [0, 1].
    labels: host array [n], int32.
    class_names: a name for each class.
    batch_size: images per compiled call, over all devices.
    features: images -> [batch, features], the input of the model's last layer. None where it is
      unknown; the logits are used in its place.
    features_sha256: the digest of `features`, where the model's digest does not determine them.
    redraw: key -> the same model with other draws, for a randomised model (`attacks.Averaged`);
      None for a model that draws no random numbers.
    beta: [classes], SPROUT's learned concentration; None for other models.
    find_source: name -> `Source`, for transferred attacks.
    find_corrupted: (corruption, severity) -> (images, labels) of a prepared set.
    folder: where evaluations leave files for readers: the workdir; None leaves none.
    about: JSON about the model for such files: {"name", "sha256", "data", "architecture"}.
    memo: (piece, compute) -> the value of the piece, stored on disk (`results.store.Memo`).
    shows_progress: whether to show progress bars.
    programs: the compiled programs, {function: program}. Models that differ only in their weights
      can share them.
  """

  predict: Predict
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...] = ()
  batch_size: int = 256
  features: Predict | None = None
  features_sha256: str | None = None
  redraw: Callable[[jax.Array], Predict] | None = None
  beta: np.ndarray | None = None
  find_source: Callable[[str], Source] | None = None
  find_corrupted: Callable[[str, int], tuple[np.ndarray, np.ndarray]] | None = None
  folder: pathlib.Path | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  memo: MemoFunction = lambda piece, compute: compute()
  shows_progress: bool = True
  programs: dict[BatchFunction, Callable[..., Any]] = dataclasses.field(
    default_factory=dict, repr=False
  )
  _known: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

  def __repr__(self) -> str:
    """Returns one line: the images, and the classes where the model was asked."""
    shape = "x".join(map(str, self.images.shape[1:]))
    classes = f", {self._known['logits'].shape[-1]} classes" if "logits" in self._known else ""
    return f"<Subject: {len(self.labels)} images {shape} {self.images.dtype}{classes}>"

  @property
  def num_classes(self) -> int:
    """The number of classes."""
    return self.logits.shape[-1]

  @property
  def logits(self) -> np.ndarray:
    """The model's outputs on the test images, a host array [n, classes], at least float32."""
    if "logits" not in self._known:
      logits = self.map(outputs, self.images)
      is_short = jnp.issubdtype(logits.dtype, jnp.floating) and logits.dtype.itemsize < 4
      self._known["logits"] = logits.astype(np.float32) if is_short else logits
    return self._known["logits"]

  @property
  def correct(self) -> np.ndarray:
    """Which test images are classified correctly, a bool array [n]."""
    return ~np.asarray(attacks.is_wrong(self.logits, self.labels))

  def select(self, num_examples: int) -> Images:
    """Returns the fixed random choice of test images; 0 takes all."""
    rows = randomness.choose(len(self.labels), num_examples)
    return self.take(rows)

  def take(self, rows: np.ndarray) -> Images:
    """Returns the test images at the given positions."""
    is_all = np.array_equal(rows, np.arange(len(self.labels)))
    images = self.images if is_all else self.images[rows]  # a copy of all may not fit in memory
    return Images(images, self.labels[rows], rows, self.correct[rows])

  @property
  def is_random(self) -> bool:
    """Whether the model is the mean of draws, which can be drawn again."""
    return self.redraw is not None

  def redrawn(self, key: jax.Array) -> Predict:
    """Returns the model with the draws of a PRNG key; the model itself where it draws nothing."""
    return self.predict if self.redraw is None else place(self.redraw(key))

  def known(self, name: str, compute: Callable[[], T]) -> T:
    """Returns what `compute` returned for this name and this subject, and calls it only once."""
    if name not in self._known:
      self._known[name] = compute()
    return self._known[name]

  def __post_init__(self) -> None:
    check_range("batch_size", self.batch_size, 1, np.inf)
    if not isinstance(self.batch_size, int):
      raise UserError(f"batch_size is {self.batch_size!r}; it must be an integer")
    object.__setattr__(self, "predict", place(self.predict))
    object.__setattr__(self, "features", None if self.features is None else place(self.features))

  def start(self, memo: MemoFunction) -> "Subject":
    """Returns the subject for another evaluation, with its memo and without compiled programs."""
    return dataclasses.replace(self, memo=memo, programs={})

  def map(
    self,
    fn: BatchFunction,
    *arrays: np.ndarray,
    shared: tuple[Any, ...] = (),
    on_batch: Callable[[int], None] = lambda done: None,
    batch_size: int | None = None,
  ) -> Any:
    """Applies a function of the model to many images, on all devices.

    `fn` is compiled once per batch size. The programs belong to the function object: pass the same
    object again to use them again. The last batch is padded by copies of its first row, and their
    results are dropped. So the result of an image must not depend on the rest of its batch.

    Args:
      fn: (predict, *shared, *batch) -> pytree of arrays [batch, ...]. It is jitted.
      *arrays: host arrays [n, ...] with n at least 1. uint8 becomes float32 in [0, 1].
      shared: pytrees passed to every batch: a radius, a strength, another model.
      on_batch: called after each batch with the number of rows done.
      batch_size: rows per batch, over all devices; default: `self.batch_size`.

    Returns:
      The pytree with host arrays [n, ...].
    """
    mesh = _mesh()
    with jax.set_mesh(mesh):  # in place of a mesh that the caller may have set
      count = len(arrays[0])
      size = _rounded(batch_size or self.batch_size, mesh.size)
      # Small sets use small batches. Halving keeps the number of sizes, and of compilations, low.
      while size // 2 >= max(count, SMALLEST_BATCH) and size % (2 * mesh.size) == 0:
        size //= 2
      program = self._program(fn, mesh)
      # Python numbers become arrays, so that another radius uses the same program.
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

  def _program(self, fn: BatchFunction, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    if fn not in self.programs:
      self.programs[fn] = jax.jit(fn, out_shardings=sharding.replicated(mesh))
    return self.programs[fn]

  @contextlib.contextmanager
  def progress(self, name: str, total: float, unit: str = "images") -> Iterator[OnBatch]:
    """Shows a progress bar; yields the function that moves it."""
    bar = Progress(total, 0, unit, name, enabled=self.shows_progress and jax.process_index() == 0)
    try:
      yield bar.update
    finally:
      bar.close()


def outputs(predict: Predict, images: jax.Array) -> jax.Array:
  """Returns the model's outputs, for `Subject.map`."""
  return predict(images)


def rows_per_call(images_per_device: int, batch_size: int) -> int:
  """Returns the images per call, over all devices, where memory bounds the images per device."""
  return min(images_per_device * jax.device_count(), batch_size)


@functools.cache
def _mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh()


def _rounded(batch_size: int, devices: int) -> int:
  return -(-batch_size // devices) * devices


def _as_array(leaf: Any) -> Any:
  if hasattr(leaf, "dtype"):
    return leaf
  return np.asarray(leaf, np.float32 if isinstance(leaf, float) else np.int32)


def place(predict: T) -> T:
  """Returns a model from `as_pytree` with its weights on all devices."""
  everywhere = sharding.replicated(_mesh())

  def put(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # random keys of a module
      return jax.device_put(leaf, everywhere)
    return sharding.put(leaf, everywhere)

  return jax.tree.map(put, predict)


def to_float(array: np.ndarray) -> np.ndarray:
  """Returns uint8 as float32 in [0, 1] (x / 255), and other arrays unchanged."""
  return array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array


def as_pytree(
  predict: Predict, image_shape: tuple[int, ...] | None = None
) -> jax.tree_util.Partial:
  """Converts a model to a callable pytree, whose leaves are its weights.

  As leaves, the weights are arguments of compiled programs and not constants in them. Matrix
  products are computed in full float32. GPUs and TPUs round the factors by default, and an attack
  that follows such noisy gradients would overestimate the robustness.

  JAX compiles equal functions once. A function whose captured weights were trained on is equal to
  itself, but computes something else. So two results of this function are equal only if they were
  traced to the same operations and constants.

  Args:
    predict: any function images -> logits. If it is a pytree with arrays (an NNX or Equinox module,
      a `jax.tree_util.Partial`), the arrays become the leaves.
    image_shape: (height, width, channels), for the trace. Without it nothing is traced: a `Partial`
      of arrays must then be pure, and any other model is compiled anew.
  """
  function, args, is_pure = _split(predict)
  code = None if is_pure else object()
  if image_shape is not None:
    code = inspection.code_of(_Precise(function), *args, _one(image_shape))
  return jax.tree_util.Partial(_Precise(function, code), *args)


def _split(predict: Predict) -> tuple[Callable[..., jax.Array], tuple[Any, ...], bool]:
  """Returns (function, args, whether it is a `Partial`) with function(*args, images) -> logits."""
  leaves, structure = jax.tree.flatten(predict)
  is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
  if isinstance(predict, jax.tree_util.Partial) and all(is_array) and not predict.keywords:
    return predict.func, predict.args, True
  fixed = [None if known else leaf for known, leaf in zip(is_array, leaves, strict=True)]
  weights = [leaf for known, leaf in zip(is_array, leaves, strict=True) if known]
  if not weights:
    return predict, (), False

  def call(weights: list[jax.Array], *inputs: jax.Array) -> jax.Array:
    rest = iter(weights)
    both = [next(rest) if known else leaf for known, leaf in zip(is_array, fixed, strict=True)]
    return jax.tree.unflatten(structure, both)(*inputs)

  return call, (weights,), False


@dataclasses.dataclass(frozen=True)
class _Precise:
  """A function with matrix products in full float32.

  Two instances of the same function and code are equal, so that compiled programs are found again.

  Attributes:
    function: the function.
    code: what it computes, see `inspection.code_of`; None where equal functions always compute the
      same.
  """

  function: Callable[..., jax.Array]
  code: Any = None

  def __call__(self, *args: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
      return self.function(*args)


def _one(image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def digest(predict: Predict, image_shape: tuple[int, ...]) -> str:
  """Returns the SHA-256 (hex) of a model: its weights and what it computes with them.

  Comments, names and files of the model's code do not enter the digest, nor does a `jax.jit` around
  it. Derivative rules (`jax.custom_vjp`) do.

  Args:
    predict: from `as_pytree`.
    image_shape: (height, width, channels).

  Raises:
    TypeError: the model is not from `as_pytree`.
    UserError: the model calls Python on the host. Two such models cannot be told apart.
  """
  if not isinstance(predict, jax.tree_util.Partial):
    raise TypeError(f"digest: predict is {type(predict).__name__}; expected as_pytree(predict)")
  code = getattr(predict.func, "code", None)
  if not isinstance(code, str):
    traced = fingerprint.fingerprint(predict.func, *predict.args, _one(image_shape))
    if traced.calls_host:
      raise UserError(
        "the model calls Python on the host (jax.pure_callback). This computation cannot be "
        "identified: a model with other weights or code could pass for the same model. Write it in "
        "JAX operations, or call sprout_jax.attacks, which stores nothing"
      )
    code = traced.sha256
  leaves = map(fingerprint.digest, jax.tree.leaves(predict.args))
  return hashlib.sha256("\n".join([code, *leaves]).encode()).hexdigest()


def data_digest(images: np.ndarray, labels: np.ndarray) -> str:
  """Returns the SHA-256 (hex) of test images and labels: types, shapes and bytes."""
  found = hashlib.sha256()
  for array in (images, labels):
    found.update(f"{array.dtype.str} {array.shape}\n".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()


def numerics() -> dict[str, str]:
  """Returns the device, the precision and the random generator: they can change numbers."""
  config: Any = jax.config  # JAX defines the attributes at run time
  return {
    "device": jax.devices()[0].device_kind,
    "x64": str(bool(config.jax_enable_x64)),
    "matmul_precision": "highest",
    "prng": str(config.jax_default_prng_impl),
  }
