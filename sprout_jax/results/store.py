"""What evaluations leave in a workdir: nothing is measured twice, and a kill loses one piece at
most.

    evaluation/NAME-IDENTITY.json             the numbers of an evaluation, its options and its time
    evaluation/NAME-IDENTITY.partial.jsonl    pieces of one that is not finished
    evaluation/NAME-IDENTITY/                 files of its own (AutoAttack's state)

IDENTITY is a hash of all that decides about the numbers: the weights, the data, the evaluation's
options, its version, the kind of device and the precision. Versions of packages are provenance:
they are written beside the numbers and decide nothing. Every file and every piece carries a digest
that is checked when it is read: what is damaged is named, moved aside and measured again.
"""

import base64
import dataclasses
import pathlib
import time
import warnings
import zlib
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from sprout_jax.results import files
from sprout_jax.results import numbers as numbers_lib
from sprout_jax.results.numbers import Numbers


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What an evaluation found.

  Attributes:
    numbers: `Number`s, in the order in which a reader should see them.
    details: JSON for figures: curves, surfaces, pictures. Nothing that is a number by itself.
    notes: sentences that a reader of the numbers must know.
  """

  numbers: Numbers
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stored(Measurement):
  """A finished evaluation as it lies in a workdir.

  Attributes:
    name: the row of `EVALUATIONS`. version: its version.
    options: its options. seconds: what it took, over all calls.
    provenance: versions of packages and the devices that computed it.
  """

  name: str = ""
  version: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict:
    """The evaluation as JSON."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return files.plain({**fields, **numbers_lib.encode(self.numbers)})

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Stored":
    """The evaluation from JSON.

    Raises:
      Damaged: the value is no stored evaluation.
    """
    try:
      fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
    except KeyError as error:
      raise files.Damaged(f"a stored evaluation lacks {error}") from error
    return cls(**fields | {"numbers": numbers_lib.decode(value), "notes": tuple(fields["notes"])})


class Memo:
  """memo(piece, compute) -> compute(), from disk where an earlier call has left it.

  Values are JSON or NumPy arrays, in lists and dictionaries.

  Attributes:
    folder: where an evaluation may keep files of its own.
    seconds: what the pieces took that were there already.
  """

  def __init__(self, path: pathlib.Path, is_writer: bool):
    """Reads the pieces that an earlier call left in `path`."""
    self.folder = path.with_name(path.name.removesuffix(".partial.jsonl"))
    self._path, self._is_writer = path, is_writer
    lines = files.read_lines(path, warnings.warn, sealed=True)
    self._pieces = {line["piece"]: line["value"] for line in lines}
    self.seconds = sum(line["seconds"] for line in lines)

  def __call__(self, piece: str, compute: Callable[[], Any]) -> Any:
    if piece not in self._pieces:
      start = time.monotonic()
      self._pieces[piece] = value = files.plain(pack(compute()))
      if self._is_writer:
        seconds = time.monotonic() - start
        files.append_line(self._path, {"piece": piece, "value": value, "seconds": seconds})
    return unpack(self._pieces[piece])  # fresh or read: the same value


def pack(value: Any) -> Any:
  """A value as JSON: NumPy arrays become {"dtype", "shape", "data" (deflated, base64)}."""
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes())).decode()
    return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
  if isinstance(value, dict):
    return {key: pack(entry) for key, entry in value.items()}
  return [pack(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def unpack(value: Any) -> Any:
  """What `pack` made, with the arrays as NumPy arrays."""
  if isinstance(value, dict):
    if value.keys() == {"dtype", "shape", "data"}:
      data = zlib.decompress(base64.b64decode(value["data"]))
      return np.frombuffer(data, value["dtype"]).reshape(value["shape"]).copy()
    return {key: unpack(entry) for key, entry in value.items()}
  return [unpack(entry) for entry in value] if isinstance(value, list) else value


class Store:
  """The evaluations of one model on one data set, in one workdir."""

  def __init__(
    self,
    workdir: pathlib.Path | str,
    identity: Any,
    provenance: Mapping[str, Any],
    is_writer: bool = True,
    wait: Callable[[str], None] = lambda name: None,
  ):
    """Opens `workdir`/evaluation.

    Args:
      workdir: the run's folder.
      identity: what decides about the numbers besides the evaluation itself, as JSON.
      provenance: what is written beside the numbers.
      is_writer: whether this process writes. With several processes, one does.
      wait: returns when all processes have called it with this name.
    """
    self._folder = pathlib.Path(workdir) / "evaluation"
    self._identity, self._provenance = identity, provenance
    self._is_writer, self._wait = is_writer, wait

  def read(self, name: str, version: int, options: Mapping[str, Any]) -> Stored | None:
    """A stored evaluation, or None. A damaged one is moved aside with a warning."""
    path = self._path(name, version, options)
    if not path.exists():
      return None
    try:
      return Stored.from_json(files.read_sealed(path))
    except files.Damaged as error:
      aside = path.with_name(path.name + ".damaged")
      if self._is_writer:
        path.replace(aside)
      warnings.warn(f"{error}. It is now {aside.name}; {name} is measured again.", stacklevel=2)
      return None

  def run(
    self,
    name: str,
    version: int,
    options: Mapping[str, Any],
    compute: Callable[[Memo], Measurement],
  ) -> Stored:
    """Returns what is stored of an evaluation, or else what `compute` measures, which is stored."""
    found = self.read(name, version, options)
    path = self._path(name, version, options)
    partial = path.with_name(f"{path.stem}.partial.jsonl")
    if found is None:
      path.parent.mkdir(parents=True, exist_ok=True)
      start, memo = time.monotonic(), Memo(partial, self._is_writer)
      self._wait(f"{partial.name} is read")  # none may write what another has yet to read
      measured, earlier = compute(memo), memo.seconds
      found = Stored(
        numbers=Numbers(
          dataclasses.replace(number, evaluation=name) for number in measured.numbers
        ),
        details=files.plain(measured.details),
        notes=tuple(measured.notes),
        name=name,
        version=version,
        options=files.plain(options),
        seconds=earlier + time.monotonic() - start,
        provenance=files.plain(self._provenance),
      )
      if self._is_writer:
        files.write_sealed(path, found.to_json())
        partial.unlink(missing_ok=True)
    return found

  def _path(self, name, version, options):
    identity = files.digest(files.plain([self._identity, name, version, options]))
    return self._folder / f"{name}-{identity[:12]}.json"
