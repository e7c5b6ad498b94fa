"""Input checks for the attacks.

Every check raises a ValueError that says what is wrong, what was expected and what to type. Shapes
and dtypes are always checked, also inside `jax.jit`. Values are checked only on concrete arrays:
the range of pixels and labels, the size of epsilon, and whether outputs are probabilities
(`check_clean`). Inside `jax.jit` values are not known. There `norms.clip_to_box` keeps the
perturbation within epsilon whatever the images are.
"""

from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import arguments
from sprout_jax.attacks import norms

Array: TypeAlias = jax.Array | np.ndarray

# Model: images [batch, height, width, channels] in [0, 1] -> logits [batch, classes]. A model that
# draws random numbers takes PRNG keys [batch] as its second argument.
Predict: TypeAlias = Callable[..., jax.Array]

FOREIGN = ("torch", "tensorflow")  # libraries whose functions JAX cannot trace
SECTION = "'PyTorch models' in docs/own_model.md"
ON_HOST = "TracerArrayConversionError"  # raised where NumPy is given a traced array


def prepare(
  who: str,
  predict: Predict,
  images: Array,
  labels: Array,
  indices: Array | None = None,
  *,
  any_labels: bool = False,
  num_classes: int = 2,
) -> tuple[Predict, jax.Array, jax.Array, jax.Array]:
  """Checks the inputs of an attack on one batch and converts them to JAX arrays.

  Args:
    who: name of the attack, which begins every message.
    predict: function images -> logits [batch, classes].
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch], or with `any_labels` an array [batch, ...].
    indices: int array [batch]; default 0, 1, ..., batch - 1.
    any_labels: True where the attack's loss takes labels of another form.
    num_classes: smallest number of classes that the attack needs.

  Returns:
    `predict` with its outputs checked, and the images, labels and indices. Float64 becomes float32
    unless `jax_enable_x64` is set. Half precision becomes float32, in the outputs too; `predict`
    is still called with images of the given dtype.

  Raises:
    ValueError: an input is wrong, see `check_predict`, `check_examples`, `check_logits` and
      `check_classes`.
  """
  check_predict(who, predict)
  images, labels, indices = check_examples(who, images, labels, indices, any_labels=any_labels)
  known = None if any_labels else _known(labels)
  images = jnp.asarray(images)
  given = images.dtype

  def checked(images: jax.Array, *keys: jax.Array) -> jax.Array:
    logits = ask(who, predict, images.astype(given), *keys)
    check_logits(who, logits, len(images), num_classes)
    if known is not None:
      check_classes(who, known, logits.shape[-1])
    return _widened(logits)

  return checked, _widened(images), jnp.asarray(labels), jnp.asarray(indices)


def _widened(array: jax.Array) -> jax.Array:
  """The array in at least float32."""
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_given(adversarial: jax.Array, images: Array) -> jax.Array:
  """Converts adversarial images to the dtype of the given images.

  Half precision is rounded towards the image. So the perturbation does not become larger.

  Args:
    adversarial: float array [batch, height, width, channels].
    images: array like `adversarial`, as the caller gave it.
  """
  images = jnp.asarray(images)
  if images.dtype == adversarial.dtype:
    return adversarial
  rounded, exact = adversarial.astype(images.dtype), images.astype(adversarial.dtype)
  is_larger = jnp.abs(_widened(rounded) - exact) > jnp.abs(adversarial - exact)
  return jnp.where(is_larger, jnp.nextafter(rounded, images), rounded)


def check_predict(who: str, predict: Any) -> None:
  """Raises ValueError unless `predict` can be called and is no module of another framework."""
  if not callable(predict):
    raise ValueError(
      f"{who}: `predict` is a {type(predict).__name__}; expected a function images -> logits"
    )
  foreign = _library(type(predict))
  if foreign:
    raise ValueError(
      f"{who}: `predict` is a {type(predict).__name__} of {foreign}, which JAX cannot trace; see "
      f"{SECTION}"
    )


def _library(kind: type) -> str:
  """The library of `FOREIGN` to which a class or one of its bases belongs; "" if none."""
  names = (base.__module__.partition(".")[0] for base in kind.__mro__)
  return next((name for name in names if name in FOREIGN), "")


def ask(who: str, predict: Predict, images: jax.Array, *keys: jax.Array) -> Any:
  """Calls `predict`.

  Args:
    who: name of the attack, which begins the message.
    predict: the model.
    images: float array [batch, height, width, channels], perhaps traced.
    *keys: PRNG keys [batch] of a model that draws random numbers.

  Returns:
    What `predict` returns.

  Raises:
    ValueError: `predict` raises a ValueError of its own, or JAX cannot trace it. Errors of the
      device, such as too little memory, are raised as they are.
  """
  try:
    return predict(images, *keys)
  except (ValueError, jax.errors.JaxRuntimeError, MemoryError):
    raise
  except Exception as error:  # the code is the user's and can raise anything
    reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:200]
    raise ValueError(
      f"{who}: JAX cannot trace `predict` on images of shape {images.shape} "
      f"({type(error).__name__}: {reason}). {advice(error, len(keys))}"
    ) from error


def advice(error: Exception, num_keys: int = 0) -> str:
  """What to type after an error of a model, in one sentence.

  Args:
    error: what the model raised.
    num_keys: number of its arguments besides the images.
  """
  text, where = str(error), error.__traceback__
  modules = set()
  while where is not None:
    modules.add(str(where.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
    where = where.tb_next
  if modules & set(FOREIGN) or "Tensor" in text:
    return f"For models of other frameworks, see {SECTION}"
  if type(error).__name__ == ON_HOST:
    return (
      "It calls NumPy or another library outside of JAX; use jax.numpy. For models of other "
      f"frameworks, see {SECTION}"
    )
  if isinstance(error, TypeError) and "positional argument" in text:
    given = "images and keys" if num_keys else "images alone"
    return f"It is called with {given}; for a model that draws random numbers, see attacks.averaged"
  return "Give a function images -> logits of JAX operations that changes no state"


def check_clean(who: str, predict: Predict, images: jax.Array, *keys: jax.Array) -> None:
  """Checks that the outputs on the clean images are not probabilities.

  It makes one pass outside of `jax.jit`. Inside `jax.jit` it does nothing, because the values are
  not known there.

  Args:
    who: name of the attack, which begins the message.
    predict: from `prepare`.
    images: float array [batch, height, width, channels].
    *keys: PRNG keys [batch] of a model that draws random numbers.

  Raises:
    ValueError: all outputs are at least 0 and sum to 1.
  """
  if _known(images) is None:
    return
  logits = _known(predict(images, *keys))
  if logits is not None:
    check_no_probabilities(who, logits)


def check_no_probabilities(who: str, logits: np.ndarray) -> None:
  """Raises ValueError if the outputs, a host array [n, classes], are at least 0 and sum to 1."""
  logits = logits.astype(np.float64)
  # A sum of 1,000 bfloat16 is off by more.
  if len(logits) and (logits >= 0).all() and np.abs(logits.sum(-1) - 1).max() < 0.01:
    raise ValueError(
      f"{who}: the outputs of `predict` are probabilities (they sum to 1); return the "
      "logits before the softmax. The gradients of probabilities vanish, and the model looks robust"
    )


def check_examples(
  who: str, images: Any, labels: Any, indices: Any = None, *, any_labels: bool = False
) -> tuple[Array, Array, Array]:
  """Checks images in [0, 1] with one label and one index each.

  Args:
    who: name of the attack, which begins every message.
    images: expected are floats [n, height, width, channels] in [0, 1], n at least 1.
    labels: expected are integers [n], or with `any_labels` an array [n, ...].
    indices: expected are integers [n], the images' positions in the whole data set. None gives 0
      to n - 1.
    any_labels: True where labels of another form are allowed.

  Returns:
    The images, labels and indices: JAX arrays unchanged, everything else as NumPy arrays.

  Raises:
    ValueError: one of them is not as expected.
  """
  images, labels = _as_array(who, "images", images), _as_array(who, "labels", labels)
  if images.ndim != 4 or 0 in images.shape:
    raise ValueError(
      f"{who}: images have shape {images.shape}; expected [n, height, width, channels] with n at "
      "least 1 (vectors: images.reshape(n, 1, 1, features))"
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"{who}: images are {images.dtype}; expected floats in [0, 1] (bytes: divide by 255, as "
      "images / np.float32(255))"
    )
  known = _known(images)
  if known is not None:
    low, high = float(known.min()), float(known.max())
    if not (low >= 0 and high <= 1):  # true of NaN, too
      if not np.isfinite([low, high]).all():
        advice = "replace NaN and infinite values"
      elif low >= 0 and high <= 255:
        advice = "divide bytes by 255"
      else:
        advice = "give them as they were before normalisation, and normalise inside `predict`"
      raise ValueError(
        f"{who}: pixels range from {low:g} to {high:g}; they must be finite and in [0, 1]: {advice}"
      )
  expected = "one label per image" if any_labels else "integers [n]"
  if labels.shape[:1] != images.shape[:1] or (labels.ndim != 1 and not any_labels):
    advice = "; for one-hot labels, labels.argmax(-1)" if labels.ndim == 2 else ""
    raise ValueError(
      f"{who}: labels have shape {labels.shape} for {len(images)} images; expected "
      f"{expected}{advice}"
    )
  if not any_labels and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"{who}: labels are {labels.dtype}; expected integers: labels.astype(np.int32)"
    )
  indices = np.arange(len(images)) if indices is None else indices
  indices = _as_array(who, "indices", indices)
  if indices.shape != labels.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
    raise ValueError(
      f"{who}: indices are {indices.dtype} of shape {indices.shape}; expected integers of shape "
      f"({len(images)},), the images' positions in the data set"
    )
  return images, labels, indices


def check_classes(who: str, labels: np.ndarray, num_classes: int) -> None:
  """Raises ValueError unless all labels, a host array, are from 0 to num_classes - 1."""
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f"{who}: labels range from {labels.min()} to {labels.max()}, but `predict` has "
      f"{num_classes} classes; expected 0 to {num_classes - 1}"
    )


def check_logits(who: str, logits: Any, count: int, num_classes: int = 2) -> None:
  """Raises ValueError unless an output of `predict` is a float array [count, classes].

  Args:
    who: name of the attack, which begins the message.
    logits: the output.
    count: number of images that `predict` was given.
    num_classes: smallest number of classes that the attack needs.
  """
  expected = f"`predict` must return logits, one float array of shape ({count}, classes)"
  if not isinstance(logits, jax.Array | np.ndarray):
    advice = ""
    if isinstance(logits, tuple | list):
      advice = "; if the logits come first, give `lambda images: predict(images)[0]`"
    elif isinstance(logits, dict):
      names = ", ".join(map(repr, logits))
      advice = f"; choose one of its entries ({names}), as `lambda images: predict(images)[NAME]`"
    raise ValueError(f"{who}: `predict` returns a {type(logits).__name__}; {expected}{advice}")
  if logits.ndim != 2 or logits.shape[0] != count:
    raise ValueError(f"{who}: `predict` returns shape {logits.shape}; {expected}")
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise ValueError(f"{who}: `predict` returns {logits.dtype}; {expected}, before any argmax")
  if logits.shape[1] < num_classes:
    raise ValueError(
      f"{who}: `predict` gives {logits.shape[1]} outputs per image; it needs at least "
      f"{num_classes} classes (one output z of a binary model: stack 0 and z)"
    )


def check_radius(who: str, epsilon: Any, norm: str, count: int | None = None) -> None:
  """Raises ValueError unless `norm` is a key of `NORMS` and `epsilon` is a radius in it.

  A radius is a finite number of at least 0, in Linf at most 1. With `count`, an array [count] of
  radii is allowed too.
  """
  arguments.check_choice(who, "norm", norm, norms.NORMS)
  known = check_number(who, "epsilon", epsilon, count)
  if norm == "linf" and known is not None and known.max() > 1:
    raise ValueError(
      f"{who}: epsilon is {known.max():g}; pixels are in [0, 1]; did you mean {known.max():g}/255?"
    )


def check_number(who: str, what: str, value: Any, count: int | None = None) -> np.ndarray | None:
  """Checks for a finite number of at least 0, or with `count` for an array [count] of them.

  Args:
    who: name of the attack, which begins the message.
    what: name of the argument.
    value: the argument.
    count: size of an array that is allowed too.

  Returns:
    The value as a host array, or None where it is traced or not addressable.

  Raises:
    ValueError: the value is not such a number or array.
  """
  arrays = "" if count is None else f" or an array of shape ({count},)"
  expected = f"expected a finite number of at least 0{arrays}"
  given = getattr(value, "dtype", None)
  try:
    if isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    known = None if arguments.is_kind(given, jax.dtypes.prng_key) else _known(value)
  except (ValueError, TypeError, OverflowError) as error:  # such as lists of other lengths
    raise ValueError(f"{who}: {what} is {arguments.shown(value)}; {expected}") from error
  shape, dtype = np.shape(value), known.dtype if known is not None else value.dtype
  is_real = arguments.is_kind(dtype, jnp.floating, jnp.integer)
  is_shape = shape == () or shape == (count,)
  if not is_real or not is_shape or (known is not None and not _is_finite(known).all()):
    raise ValueError(f"{who}: {what} is {arguments.shown(value)}; {expected}")
  return known


def as_float(value: Any) -> Any:
  """Converts a checked Python number to a float: JAX takes no integers beyond 32 bits."""
  return float(value) if isinstance(value, int | float) else value


def _as_array(who: str, what: str, value: Any) -> Array:
  """JAX arrays unchanged, everything else as a NumPy array."""
  try:
    return value if isinstance(value, jax.Array) else np.asarray(value)
  except (ValueError, TypeError) as error:  # such as lists of other lengths
    raise ValueError(
      f"{who}: {what} cannot be converted from {type(value).__name__} to an array ({error}); "
      "give a NumPy or JAX array"
    ) from error


def _known(array: Any) -> np.ndarray | None:
  """The host array, or None where it is traced or lies in part on other processes."""
  return np.asarray(array) if arguments.is_known(array) else None


def _is_finite(values: np.ndarray) -> np.ndarray:
  return (values >= 0) & (values <= arguments.LARGEST)
