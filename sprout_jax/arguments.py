"""Checks of the arguments of `vicinity` and `losses`.

Every check raises a ValueError that says what is wrong, what was expected and what to type. Shapes
and dtypes are known inside `jax.jit` too, so that they are always checked. Numbers are checked
where they are Python numbers.
"""

import math
from typing import Any
from typing import Literal

import jax.numpy as jnp

Kind = Literal["float", "int"]
IMAGES = "batch height width channels"
KINDS = {"float": jnp.floating, "int": jnp.integer}


def check_arrays(who: str, **arrays: tuple[Any, Kind, str]) -> None:
  """Raises ValueError unless arrays have the named axes and the kind of number.

  Axes of the same name have the same size. For example::

      check_arrays(
        "mixup",
        images=(images, "float", "batch height width channels"),
        labels=(labels, "float", "batch classes"),
      )

  Args:
    who: name of the function that is called, which begins the message.
    **arrays: argument name -> (its value, "float" or "int", the names of its axes).

  Raises:
    ValueError: an argument is no array, has another number of axes, another kind of number, or a
      size that differs from that of an earlier argument.
  """
  sizes: dict[str, tuple[str, int]] = {}
  for name, (array, kind, axes) in arrays.items():
    names = axes.split()
    expected = f"expected {'an int' if kind == 'int' else 'a float'} array [{', '.join(names)}]"
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
      raise ValueError(
        f"{who}: `{name}` is a {type(array).__name__}; {expected}, as from jnp.asarray({name})"
      )
    if len(array.shape) != len(names):
      raise ValueError(
        f"{who}: `{name}` has shape {array.shape}; {expected}{_advice(name, array.ndim, axes)}"
      )
    if not jnp.issubdtype(array.dtype, KINDS[kind]):
      dtype = "jnp.int32" if kind == "int" else "jnp.float32"
      raise ValueError(
        f"{who}: `{name}` has dtype {array.dtype}; {expected}: {name}.astype({dtype})"
      )
    for axis, size in zip(names, array.shape, strict=True):
      first, known = sizes.setdefault(axis, (name, size))
      if size != known:
        raise ValueError(
          f"{who}: `{name}` has shape {array.shape}; {expected} with {axis} = {known}, as in "
          f"`{first}`"
        )


def check_number(who: str, name: str, value: Any, *, positive: bool = False) -> None:
  """Raises ValueError where a Python number is negative or not finite; arrays pass.

  Args:
    who: name of the function that is called, which begins the message.
    name: name of the argument.
    value: a number, or an array of any kind, which may be traced.
    positive: refuses 0 as well.

  Raises:
    ValueError: the number is out of range.
  """
  if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
    raise ValueError(f"{who}: `{name}` is {value!r}; expected a finite number of at least 0")
  if positive and isinstance(value, int | float) and value == 0:
    raise ValueError(f"{who}: `{name}` is 0; expected a finite number greater than 0")


def _advice(name: str, ndim: int, axes: str) -> str:
  """What to type where the number of axes is a usual mistake."""
  if axes == IMAGES and ndim == 3:
    return f"; for one image, {name}[None]"
  if axes == "batch classes" and ndim == 1 and name == "labels":
    return f"; for integer labels, jax.nn.one_hot({name}, classes)"
  if axes == "batch classes" and ndim == 1:
    return f"; for one example, {name}[None]"
  if axes == "batch" and ndim == 2:
    return f"; for soft labels, {name}.argmax(-1)"
  return ""
