"""Checks of the arguments of the public functions.

Every check raises a ValueError that says what is wrong, what was expected and what to type. Shapes
and dtypes are always checked, also inside `jax.jit`. Values are checked where they are not traced.
"""

from collections.abc import Collection
from collections.abc import Iterable
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["float", "int"]
IMAGES = "batch height width channels"
LARGEST = float(np.finfo(np.float32).max)
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
    if not is_kind(array.dtype, KINDS[kind]):
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


def is_kind(dtype: Any, *kinds: Any) -> bool:
  """Whether a dtype is of one of the kinds; False for dtypes of other libraries."""
  try:
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)
  except TypeError:  # such as those of PyTorch
    return False


def is_known(value: Any) -> bool:
  """Whether a value can be looked at: it is not traced, and does not lie on other processes."""
  if isinstance(value, jax.core.Tracer):
    return False
  return not isinstance(value, jax.Array) or value.is_fully_addressable


def check_number(who: str, name: str, value: Any, *, positive: bool = False) -> Any:
  """Raises ValueError unless the value is a finite scalar of at least 0, else returns it.

  The value of a traced array is not checked.

  Args:
    who: name of the function that is called, which begins the message.
    name: name of the argument.
    value: a Python number, or an array without axes.
    positive: refuses 0 as well.

  Returns:
    The value; as a float where it is known, because JAX takes no integers beyond 32 bits.

  Raises:
    ValueError: it is not a number, or the number is out of range.
  """
  least = "greater than 0" if positive else "of at least 0"
  expected = f"expected a finite number {least}"
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if hasattr(value, "shape") and hasattr(value, "dtype"):
    if tuple(value.shape) or not is_kind(value.dtype, jnp.floating, jnp.integer):
      raise ValueError(
        f"{who}: `{name}` is an array of shape {tuple(value.shape)} and dtype {value.dtype}; "
        f"{expected}"
      )
  elif not is_number:
    raise ValueError(f"{who}: `{name}` is a {type(value).__name__}; {expected}")
  if not is_known(value):
    return value
  number = value if is_number else np.asarray(value).item()  # by JAX, inside a trace, it is traced
  if not 0 <= number <= LARGEST or (positive and number == 0):
    raise ValueError(f"{who}: `{name}` is {shown(number)}; {expected}")
  return float(number)


def check_count(who: str, name: str, value: Any, least: int) -> None:
  """Raises ValueError unless the value is an integer from `least` to 2^31 - 1."""
  is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not is_integer or not least <= value < 2**31:
    raise ValueError(
      f"{who}: {name} is {shown(value)}; expected an integer of at least {least}, below 2^31"
    )


def check_choice(who: str, name: str, value: Any, choices: Collection[str]) -> None:
  """Raises ValueError, listing the choices, unless the value is one of them."""
  if not isinstance(value, str) or value not in choices:
    raise ValueError(
      f"{who}: {name} is {shown(value)}; choose one of: {', '.join(sorted(choices))}"
    )


def check_names(who: str, name: str, value: Any, choices: Collection[str]) -> tuple[str, ...]:
  """Returns a list of names as a tuple; raises ValueError unless each is one of the choices."""
  if not isinstance(value, Iterable) or isinstance(value, str | bytes):
    raise ValueError(
      f"{who}: {name} is {shown(value)}; expected a list of names from: "
      f"{', '.join(sorted(choices))}"
    )
  names = tuple(value)
  for each in names:
    check_choice(who, f"an entry of {name}", each, choices)
  return names


def check_key(who: str, key: Any) -> None:
  """Raises ValueError unless `key` is one key of jax.random.key or jax.random.PRNGKey."""
  is_array = isinstance(key, jax.Array | np.ndarray)
  if is_array and is_kind(key.dtype, jax.dtypes.prng_key):
    if key.ndim:
      raise ValueError(
        f"{who}: `key` has shape {key.shape}; expected one PRNG key: type key[0]. The key of "
        "each image is derived from this key"
      )
    return
  try:
    if is_array and key.dtype == jnp.uint32 and not jax.random.wrap_key_data(key).ndim:
      return
  except (TypeError, ValueError):
    pass
  found = "an array" if hasattr(key, "shape") and np.ndim(key) else shown(key)
  is_seed = isinstance(key, int | np.integer) and not isinstance(key, bool)
  seed = int(key) if is_seed else 0
  raise ValueError(
    f"{who}: `key` is {found} ({type(key).__name__}); expected a PRNG key: "
    f"jax.random.key({shown(seed)})"
  )


def per_example(who: str, name: str, function: Any, count: int, *args: Any) -> jax.Array:
  """Calls a function of the user that returns one number per example, and checks the result.

  Args:
    who: name of the function that is called, which begins the message.
    name: name of the argument.
    function: the argument.
    count: number of examples.
    *args: arguments of the function.

  Returns:
    Float array [count].

  Raises:
    ValueError: `function` cannot be called, raises an error, or returns something else. Its own
      ValueErrors and errors of the device are raised as they are.
  """
  arrays = "one array" if len(args) == 1 else f"{len(args)} arrays"
  expected = (
    f"expected a function of {arrays} that returns a float array [{count}], one number per example"
  )
  if not callable(function):
    raise ValueError(f"{who}: `{name}` is {shown(function)}; {expected}")
  try:
    values = function(*args)
  except (ValueError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # the code is the user's and can raise anything
    first = (str(error).strip().splitlines() or [""])[0][:200]
    raise ValueError(
      f"{who}: `{name}` raises {type(error).__name__}: {first}; use JAX operations only; {expected}"
    ) from error
  if not (hasattr(values, "shape") and hasattr(values, "dtype")):
    raise ValueError(f"{who}: `{name}` returns a {type(values).__name__}; {expected}")
  if values.shape != (count,) or not is_kind(values.dtype, jnp.floating):
    raise ValueError(
      f"{who}: `{name}` returns shape {values.shape}, dtype {values.dtype}; {expected}"
    )
  return values


def shown(value: Any) -> str:
  """The value as Python prints it, in one line of at most 80 characters."""
  try:
    text = " ".join(repr(value).split())
  except Exception:  # an integer of thousands of digits, or an object without a text
    return f"a {type(value).__name__}"
  return text if len(text) <= 80 else f"{text[:77]}..."


def _advice(name: str, ndim: int, axes: str) -> str:
  """What to type where the number of axes is a usual mistake."""
  if axes == IMAGES and ndim == 3:
    return f"; for one image, {name}[None]"
  if axes == "batch classes" and ndim == 1 and name == "labels":
    return f"; for integer labels, jax.nn.one_hot({name}, classes)"
  if axes == "batch classes" and ndim == 1:
    return f"; for one example, {name}[None]"
  if axes == "batch" and ndim == 2 and name in ("labels", "targets"):
    return f"; for soft labels, {name}.argmax(-1)"
  return ""
