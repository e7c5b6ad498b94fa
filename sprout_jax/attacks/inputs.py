"""What an attack is given, checked once for all attacks.

Every check raises a ValueError that says what is wrong, what was expected and what to type. Shapes
and dtypes are always checked. Values are checked where they are known, which they are not inside
`jax.jit`: there `norms.clip_to_box` keeps the perturbation within epsilon whatever the images are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.attacks import norms


def prepare(who, predict, images, labels, indices=None, *, any_labels=False, num_classes=2):
  """Checks what an attack on one batch is given, and makes JAX arrays of it.

  Args:
    who: the attack's name, for errors.
    predict: function images -> logits [batch, classes].
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch], or with `any_labels` an array [batch, ...].
    indices: int array [batch]; default 0, 1, ..., batch - 1.
    any_labels: whether the attack's loss takes labels of another form.
    num_classes: the least number of classes that the attack needs.

  Returns:
    (predict with its outputs checked, images, labels, indices). Float64 becomes float32 unless
    `jax_enable_x64` is set.

  Raises:
    ValueError: see the checks below.
  """
  check_predict(who, predict)
  images, labels, indices = check_examples(who, images, labels, indices, any_labels=any_labels)
  known = None if any_labels else _known(labels)

  def checked(images, *keys):
    logits = predict(images, *keys)
    check_logits(who, logits, len(images), num_classes)
    if known is not None:
      check_classes(who, known, logits.shape[-1])
    return logits

  return checked, *map(jnp.asarray, (images, labels, indices))


def check_predict(who, predict):
  """Raises ValueError unless `predict` can be called."""
  if not callable(predict):
    raise ValueError(
      f"{who}: `predict` is a {type(predict).__name__}; expected a function images -> logits"
    )


def check_examples(who, images, labels, indices=None, *, any_labels=False):
  """Raises ValueError unless these are images in [0, 1], and a label and an index for each.

  Args:
    who: the attack's name, for errors.
    images: expected: floats [n, height, width, channels] in [0, 1], n at least 1.
    labels: expected: integers [n], or with `any_labels` an array [n, ...].
    indices: expected: integers [n], the images' positions in the whole data set; None: 0 to n - 1.

  Returns:
    (images, labels, indices), JAX arrays as they are and all else as NumPy arrays.
  """
  images, labels = (a if isinstance(a, jax.Array) else np.asarray(a) for a in (images, labels))
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
        advice = "replace the values that are no numbers"
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
      f"{who}: labels have shape {labels.shape} beside {len(images)} images; expected "
      f"{expected}{advice}"
    )
  if not any_labels and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"{who}: labels are {labels.dtype}; expected integers: labels.astype(np.int32)"
    )
  indices = np.arange(len(images)) if indices is None else indices
  indices = indices if isinstance(indices, jax.Array) else np.asarray(indices)
  if indices.shape != labels.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
    raise ValueError(
      f"{who}: indices are {indices.dtype} of shape {indices.shape}; expected integers of shape "
      f"({len(images)},), the images' positions in the data set"
    )
  return images, labels, indices


def check_classes(who, labels, num_classes):
  """Raises ValueError unless the labels, a host array, are among the classes of `predict`."""
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f"{who}: labels range from {labels.min()} to {labels.max()}, but `predict` has "
      f"{num_classes} classes; expected 0 to {num_classes - 1}"
    )


def check_logits(who, logits, count, num_classes=2):
  """Raises ValueError unless an output of `predict` is a float array [count, classes]."""
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


def check_radius(who, epsilon, norm, count=None):
  """Raises ValueError unless the norm is one of `NORMS` and `epsilon` a radius in it.

  That is a finite number of at least 0, in Linf at most 1; with `count`, an array [count] of such
  numbers will do.
  """
  check_choice(who, "norm", norm, norms.NORMS)
  known = check_number(who, "epsilon", epsilon, count)
  if norm == "linf" and known is not None and known.max() > 1:
    raise ValueError(
      f"{who}: epsilon is {known.max():g}; pixels are in [0, 1]; did you mean {known.max():g}/255?"
    )


def check_number(who, what, value, count=None):
  """Raises ValueError unless `value` is a finite number of at least 0, or an array [count] of them.

  Returns:
    The host array, or None where it is not known.
  """
  known = _known(value)
  shape, dtype = np.shape(value), known.dtype if known is not None else value.dtype
  is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
  is_shape = shape == () or shape == (count,)
  if not is_real or not is_shape or (known is not None and not _is_finite(known).all()):
    arrays = "" if count is None else f" or an array of shape ({count},)"
    raise ValueError(f"{who}: {what} is {value!r}; expected a finite number of at least 0{arrays}")
  return known


def check_count(who, what, value, least):
  """Raises ValueError unless `value` is a Python integer of at least `least`."""
  if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
    raise ValueError(f"{who}: {what} is {value!r}; expected an integer of at least {least}")


def check_choice(who, what, value, choices):
  """Raises ValueError, listing the choices, unless `value` is one of them."""
  if value not in choices:
    raise ValueError(f"{who}: {what} is {value!r}; choose one of: {', '.join(sorted(choices))}")


def _known(array):
  """The host array, or None where it is traced or lies in part on other processes."""
  if isinstance(array, jax.core.Tracer):
    return None
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return None
  return np.asarray(array)


def _is_finite(values):
  return (values >= 0) & (values < np.inf)
