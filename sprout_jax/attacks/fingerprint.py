"""Digest of what a function computes: its operations, constants and derivative rules.

It decides which functions are the same model, and which compiled programs still belong to a
function whose captured state may have changed.
"""

import hashlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Primitives that only group operations. Their operations stand in their place.
CALLS = ("jit", "pjit", "closed_call", "core_call")
RULES = ("custom_jvp_call", "custom_vjp_call")  # primitives with derivative rules of their own
# Parameters that cannot change a value: names, places, and what is said about an array's sharding.
IGNORED = re.compile(r"name.*|.*debug_info|.*shardings?|.*layouts?|donated.*")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Fingerprint(NamedTuple):
  """What a function computes.

  Attributes:
    sha256: hex digest of the operations, the constants and the derivative rules. Names, comments
      and a `jax.jit` around a part do not enter it.
    calls_host: whether the function calls Python on the host (`jax.pure_callback`), whose results
      the digest does not know.
  """

  sha256: str
  calls_host: bool


def fingerprint(function: Callable[..., Any], *args: Any) -> Fingerprint:
  """Traces a function and returns its `Fingerprint`. Values of the arguments do not enter it.

  Args:
    function: any function that JAX can trace.
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`.

  Raises:
    Exception: what the function raises in tracing.
  """
  closed = jax.make_jaxpr(lambda *args: function(*args))(*args)  # not JAX's own memory of it
  text = _Text()
  text.write(closed, None, derivatives=True)
  return Fingerprint(text.found.hexdigest(), text.calls_host)


def digest(leaf: Any) -> str:
  """Returns the SHA-256 (hex) of an array: type, shape and bytes. Also of PRNG keys."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    leaf = jax.random.key_data(leaf)
  leaf = np.asarray(leaf)
  found = hashlib.sha256(f"{leaf.dtype} {leaf.shape}\n".encode())
  found.update(leaf.tobytes())  # of bfloat16, NumPy gives no buffer
  return found.hexdigest()


class _Text:
  """A jaxpr as lines of text, which go to a hash. Variables are numbered as they appear."""

  def __init__(self) -> None:
    self.found, self.calls_host, self._count = hashlib.sha256(), False, 0

  def write(self, jaxpr: Any, names: list[str] | None, derivatives: bool) -> list[str]:
    """Writes a jaxpr and returns the names of its results.

    Args:
      jaxpr: a ClosedJaxpr or Jaxpr.
      names: the names of its arguments; None makes new ones.
      derivatives: whether to write the derivatives of functions with rules of their own.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    if names is None:
      names = [self._new(variable) for variable in inner.invars]
      self._line("arguments", *names)
    known = dict(zip(inner.invars, names, strict=True))
    constants = getattr(jaxpr, "consts", ())
    known |= dict(zip(inner.constvars, map(digest, constants), strict=bool(constants)))
    name = lambda atom: _literal(atom) if isinstance(atom, core.Literal) else known[atom]
    for variable in inner.constvars[len(constants) :]:
      known[variable] = self._new(variable)
    for equation in inner.eqns:
      given = [name(atom) for atom in equation.invars]
      if equation.primitive.name in CALLS:
        (body,) = _jaxprs(equation.params)
        made = self.write(body, given, derivatives)
      else:
        made = [self._new(variable) for variable in equation.outvars]
        self._line(equation.primitive.name, *given, "->", *made)
        self._parameters(inner, equation, derivatives)
      known |= dict(zip(equation.outvars, made, strict=True))
    return [name(atom) for atom in inner.outvars]

  def _parameters(self, jaxpr: Any, equation: Any, derivatives: bool) -> None:
    if "callback" in equation.params and equation.outvars:
      self.calls_host = True
    if equation.primitive.name in RULES and derivatives:
      self._derivative(jaxpr, equation)
    for key, value in sorted(equation.params.items()):
      if not IGNORED.fullmatch(key):
        self._value(key, value, derivatives)

  def _value(self, key: str, value: Any, derivatives: bool) -> None:
    if isinstance(value, (core.ClosedJaxpr, core.Jaxpr)):
      self._line(key, "{")
      self._line("results", *self.write(value, None, derivatives), "}")
    elif isinstance(value, dict):
      for name, part in sorted(value.items()):
        self._value(f"{key}.{name}", part, derivatives)
    elif isinstance(value, (tuple, list)):
      self._line(key, str(len(value)))
      for number, part in enumerate(value):
        self._value(f"{key}.{number}", part, derivatives)
    elif isinstance(value, (np.ndarray, jax.Array)):
      self._line(key, digest(value))
    elif callable(value) and not isinstance(value, type):
      self._line(key, "function")  # a rule, which `_derivative` has traced, or the host's
    else:
      self._line(key, ADDRESS.sub("", repr(value)))

  def _derivative(self, jaxpr: Any, equation: Any) -> None:
    """Writes the first derivative of an operation. In it, further rules play no part."""
    given = list(dict.fromkeys(a for a in equation.invars if not isinstance(a, core.Literal)))
    made = [v for v in equation.outvars if type(v).__name__ != "DropVar"]
    single = jaxpr.replace(constvars=(), invars=given, outvars=made, eqns=[equation])
    operation = core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))

    def pull(given: list[jax.Array], cotangents: list[jax.Array]) -> Any:
      out, back = jax.vjp(operation, *given)
      some = iter(cotangents)
      return back(
        [next(some) if _is_float(x) else np.zeros(x.shape, jax.dtypes.float0) for x in out]
      )

    shapes = [[_shape(variable.aval) for variable in some] for some in (given, made)]
    self._line("derivative")
    try:
      traced = jax.make_jaxpr(pull)(shapes[0], [one for one in shapes[1] if _is_float(one)])
    except Exception as error:  # a rule raises what it likes
      self._line("none", type(error).__name__)
    else:
      self._line("results", *self.write(traced, None, derivatives=False))

  def _new(self, variable: Any) -> str:
    self._count += 1
    aval = variable.aval
    kind = f"{getattr(aval, 'dtype', aval)}{getattr(aval, 'shape', '')}"
    return f"{self._count}:{kind}{'w' if getattr(aval, 'weak_type', False) else ''}"

  def _line(self, *words: str) -> None:
    self.found.update((" ".join(words) + "\n").encode())


def _literal(literal: Any) -> str:
  value = np.asarray(literal.val)
  return f"{literal.aval.dtype}{value.shape}={value.tobytes().hex()}"


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
  return (v for v in params.values() if isinstance(v, (core.ClosedJaxpr, core.Jaxpr)))


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _is_float(array: Any) -> bool:
  return jnp.issubdtype(array.dtype, jnp.inexact)
