"""The store of evaluations in a workdir: nothing is measured twice, and a kill loses little.

::

    evaluation/NAME-IDENTITY.json             numbers of a finished evaluation, options, time
    evaluation/NAME-IDENTITY.partial.jsonl    pieces of an unfinished evaluation
    evaluation/NAME-IDENTITY/                 files of the evaluation itself (AutoAttack's state)

IDENTITY is a hash of everything that determines the numbers: the weights, the data, the
evaluation's options and version, the kind of device and the precision. Package versions are
provenance: they are stored beside the numbers and do not enter the hash. An evaluation can be
stored with several options: `Store.current` chooses the one that counts. Every file and every piece
carries a digest, which is checked on reading. A damaged file is named in a warning, moved aside,
and its evaluation is measured again.
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

OUTDATED = "only another version of the evaluation measured it"
MOST_NAMED = 3  # measurements with other options that a note names


@dataclasses.dataclass(frozen=True)
class Measurement:
  """The outcome of an evaluation.

  Attributes:
    numbers: the numbers, in the order in which tables show them.
    details: JSON for figures: curves, surfaces, pictures. Single numbers belong in `numbers`.
    notes: sentences that a reader of the numbers must know.
  """

  numbers: Numbers
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stored(Measurement):
  """A finished evaluation as it is stored in a workdir.

  Attributes:
    name: the row of `EVALUATIONS`.
    version: the version of that row.
    options: the evaluation's options.
    seconds: the time it took, over all calls.
    provenance: package versions and devices of the measurement.
    finished: when it was finished, in seconds since 1970 (UTC).
    subject: the digest of what was measured: weights, data, device, precision.
  """

  name: str = ""
  version: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  finished: float = 0.0
  subject: str = ""

  def to_json(self) -> dict[str, Any]:
    """Returns the evaluation as JSON."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return files.plain({**fields, **numbers_lib.encode(self.numbers)})

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Stored":
    """Makes the evaluation from JSON.

    Raises:
      Damaged: the value is not a stored evaluation.
    """
    try:
      fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
    except KeyError as error:
      raise files.Damaged(f"a stored evaluation lacks {error}") from error
    return cls(**fields | {"numbers": numbers_lib.decode(value), "notes": tuple(fields["notes"])})


class Memo:
  """Pieces of an unfinished evaluation: `memo(piece, compute)` computes each piece only once.

  The call returns the stored value of the piece, or else computes and stores it. Values are JSON
  or NumPy arrays, in lists and dictionaries.

  Attributes:
    folder: a folder for files of the evaluation itself.
    seconds: the time that the stored pieces took.
  """

  def __init__(self, path: pathlib.Path, is_writer: bool) -> None:
    """Reads the pieces that earlier calls stored in `path`."""
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
    return unpack(self._pieces[piece])  # a computed value is returned as it would be read


def pack(value: Any) -> Any:
  """Encodes a value as JSON: NumPy arrays become {"dtype", "shape", "data" (deflated, base64)}.

  NumPy alone cannot read bfloat16 and other types of ml_dtypes: they become float32.
  """
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    value = value.astype(np.float32) if value.dtype.kind == "V" else value
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes())).decode()
    return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
  if isinstance(value, dict):
    return {key: pack(entry) for key, entry in value.items()}
  return [pack(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def unpack(value: Any) -> Any:
  """Decodes the result of `pack`."""
  if isinstance(value, dict):
    if value.keys() == {"dtype", "shape", "data"}:
      data = zlib.decompress(base64.b64decode(value["data"]))
      return np.frombuffer(data, value["dtype"]).reshape(value["shape"]).copy()
    return {key: unpack(entry) for key, entry in value.items()}
  return [unpack(entry) for entry in value] if isinstance(value, list) else value


def _others(path: pathlib.Path, one: Stored, shown: Stored) -> str:
  """Names a measurement by its file and the options in which it differs from the one shown."""
  pairs = {key: value for key, value in one.options.items() if value != shown.options.get(key)}
  listed = ", ".join(f"{key} {value}" for key, value in pairs.items() if key != "depends")
  return f"{listed or 'other models'} (evaluation/{path.name})"


def with_other_options(workdir: pathlib.Path | str, shown: Mapping[str, Stored]) -> list[Stored]:
  """Reads the measurements of the evaluations of a results.json that were made with other options.

  Measurements of other weights or data, or of another version of the evaluation, are left out.

  Args:
    workdir: the run's folder. Without its folder "evaluation", there are none.
    shown: {evaluation: the measurement that results.json has}.

  Returns:
    The measurements in the order of `shown`, of each evaluation the newest first.

  Raises:
    Damaged: a file is damaged.
  """
  found: list[Stored] = []
  for name, main in shown.items():
    paths = sorted((pathlib.Path(workdir) / "evaluation").glob(f"{name}-*.json"))
    about = name, main.version, main.subject
    stored = [one for one in map(_unsealed, paths) if (one.name, one.version, one.subject) == about]
    others = [one for one in stored if one.options != main.options]
    found += sorted(others, key=lambda one: -one.finished)
  return found


def _unsealed(path: pathlib.Path) -> Stored:
  return Stored.from_json(files.read_sealed(path))


class Store:
  """The stored evaluations of one model on one data set, in one workdir."""

  def __init__(
    self,
    workdir: pathlib.Path | str,
    identity: Any,
    provenance: Mapping[str, Any],
    is_writer: bool = True,
    wait: Callable[[str], None] = lambda name: None,
  ) -> None:
    """Opens the folder `workdir`/evaluation.

    Args:
      workdir: the run's folder.
      identity: JSON that determines the numbers besides the evaluation itself: weights, data, ...
      provenance: JSON that is stored beside the numbers.
      is_writer: whether this process writes. Of several processes, one writes.
      wait: a barrier: it returns when all processes have called it with this name.
    """
    self._folder = pathlib.Path(workdir) / "evaluation"
    self._identity, self._provenance = identity, provenance
    self._subject = files.digest(files.plain(identity))
    self._is_writer, self._wait = is_writer, wait

  def read(self, name: str, version: int, options: Mapping[str, Any]) -> Stored | None:
    """Returns a stored evaluation, or None. A damaged file is moved aside with a warning."""
    path = self._path(name, version, options)
    return self._read(path, name) if path.exists() else None

  def _read(self, path: pathlib.Path, name: str) -> Stored | None:
    try:
      return Stored.from_json(files.read_sealed(path))
    except files.Damaged as error:
      aside = path.with_name(path.name + ".damaged")
      if self._is_writer:
        path.replace(aside)
      warnings.warn(
        f"{error}. It was renamed to {aside.name}; {name} is measured again.", stacklevel=3
      )
      return None

  def current(
    self, name: str, version: int, options: Mapping[str, Any] | None
  ) -> tuple[Stored | None, str]:
    """Returns the measurement of an evaluation that counts, of all that are stored.

    It is the one with the given options, else the newest of this version. Its last note names the
    others of this version, which stay in their files. Numbers of other versions do not count.

    Args:
      name: the row of `EVALUATIONS`.
      version: the version of that row.
      options: the current options; None where they cannot be known.

    Returns:
      The measurement or None, and why there is none: a sentence if another version measured it.
    """
    paths = sorted(self._folder.glob(f"{name}-*.json"))
    found = {path: self._read(path, name) for path in paths}
    about = name, self._subject
    ours = {path: one for path, one in found.items() if one and (one.name, one.subject) == about}
    same = {path: one for path, one in ours.items() if one.version == version}
    if not same:
      last = max((one.version for one in ours.values()), default=None)
      said = f"{OUTDATED} (version {last}, now {version}): measure it again"
      return None, said if ours else ""
    wanted = None if options is None else self._path(name, version, options)
    chosen = max(same, key=lambda path: (path == wanted, same[path].finished))
    others = [_others(path, same[path], same[chosen]) for path in same if path != chosen]
    if not others:
      return same[chosen], ""
    more = f"; {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    note = f"Also measured with other options: {'; '.join(others[:MOST_NAMED])}{more}."
    return dataclasses.replace(same[chosen], notes=(*same[chosen].notes, note)), ""

  def fetch(
    self,
    name: str,
    version: int,
    options: Mapping[str, Any],
    compute: Callable[[Memo], Measurement],
  ) -> Stored:
    """Returns a stored evaluation, or else measures it with `compute` and stores it.

    Args:
      name: the row of `EVALUATIONS`.
      version: the version of that row.
      options: the evaluation's options; other options are another entry.
      compute: memo -> `Measurement`; called only if nothing is stored.
    """
    found = self.read(name, version, options)
    path = self._path(name, version, options)
    partial = path.with_name(f"{path.stem}.partial.jsonl")
    if found is None:
      path.parent.mkdir(parents=True, exist_ok=True)
      start, memo = time.monotonic(), Memo(partial, self._is_writer)
      self._wait(f"{partial.name} is read")  # no process may write before all have read
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
        finished=round(time.time(), 3),
        subject=self._subject,
        provenance=files.plain(self._provenance),
      )
      if self._is_writer:
        files.write_sealed(path, found.to_json())
        partial.unlink(missing_ok=True)
      self._wait(f"{path.name} is written")  # the other processes read this file, see `current`
    return found

  def _path(self, name: str, version: int, options: Mapping[str, Any]) -> pathlib.Path:
    identity = files.digest(files.plain([self._identity, name, version, options]))
    return self._folder / f"{name}-{identity[:12]}.json"
