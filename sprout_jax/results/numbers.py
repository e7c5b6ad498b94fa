"""Numbers of evaluations as records: a value, and typed keys that say what was measured.

Tables, plots, pages, checks and data frames are queries on the keys. No reader parses text.
"""

import base64
import dataclasses
import difflib
import hashlib
import json
import math
import zlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from sprout_jax import intervals
from sprout_jax.results.files import Damaged

# The keys that a number can have: type and meaning. Each is a column of `results.frame`.
KEYS: dict[str, tuple[type, str]] = {
  "attack": (str, "the attack: pgd, auto_attack, noise, fgsm, ..."),
  "version": (str, "AutoAttack's version, or the single attack of it that ran"),
  "stage": (str, "AutoAttack: the accuracy after this attack and all attacks before it"),
  "norm": (str, "the norm of the perturbation: linf, l2 or l1"),
  "epsilon": (float, "the perturbation budget, in pixel units (images in [0, 1])"),
  "threats": (str, "of a union: the norms and budgets; an image must withstand all"),
  "steps": (int, "gradient steps of one restart; missing for several attacks"),
  "step_size": (float, "size of a step, in pixel units"),
  "restarts": (int, "restarts of the attack; the worst counts"),
  "loss": (str, "the loss that the attack maximises"),
  "draws": (int, "random perturbations per image; the worst counts"),
  "seed": (int, "the seed of the random draws"),
  "tolerance": (float, "share of random perturbations of an image that may be misclassified"),
  "redraws": (int, "of a mean over fresh draws of a randomised model: their number"),
  "redraw": (int, "the number of the fresh draws of a randomised model, from 0"),
  "source": (str, "the model that was attacked; its adversarial images are tried on this one"),
  "transformation": (str, "the transformation of the images"),
  "strength": (float, "its strength, in the transformation's own unit"),
  "corruption": (str, "the common corruption"),
  "corruptions": (str, "of a mean: the corruptions, sorted, joined by commas"),
  "severity": (int, "its severity, 1 to 5"),
  "origin": (str, "where the corrupted images come from: computed, or a prepared set (tfds)"),
  "sigma": (float, "standard deviation of the smoothing noise, in pixel units"),
  "radius": (float, "the certified L2 radius, in pixel units"),
  "n0": (int, "noise draws that select the class"),
  "n": (int, "noise draws that bound the probability of the class"),
  "alpha": (float, "probability per image that a certificate is wrong"),
  "bins": (int, "bins of confidence"),
  "module": (str, "the module of SPROUT whose input gradient is compared"),
  "other_module": (str, "the module with which it is compared"),
  "place": (str, "where along an attack the gradients were taken"),
}
ENSEMBLES = ("standard", "plus", "rand")  # AutoAttack's versions; others are single attacks
FIELDS = ("evaluation", "metric", "value", "unit", "count", "interval", "images", "outcomes")
MOST_IMAGES = 10**7  # larger counts in a file are refused
QUERIED = ("evaluation", "metric", *KEYS)  # queries can name these
MOST_LINES = 40  # numbers that `repr` lists


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Number:
  """One number of an evaluation.

  Attributes:
    metric: what was measured: "accuracy", "expected_calibration_error", ...
    value: the value; None where it is not defined.
    keys: the conditions of the measurement: entries of `KEYS`, of the types given there.
    unit: "share" of the images (0 to 1), "nats", "pixels", "images", "s", "" (none).
    count: number of images.
    interval: a 95 % confidence interval.
    indices: int [count], the images' positions in the test set; None where the number is not about
      single images.
    outcomes: bool [count], in the order of `indices`: whether each image is classified correctly.
    evaluation: the row of `EVALUATIONS` that measured it; filled in when it is stored.

  Raises:
    ValueError: an unknown key, or a value of another type.
  """

  metric: str
  value: float | None
  keys: Mapping[str, Any]
  unit: str = "share"
  count: int | None = None
  interval: tuple[float, float] | None = None
  indices: np.ndarray | None = None
  outcomes: np.ndarray | None = None
  evaluation: str = ""

  def __post_init__(self) -> None:
    typed: dict[str, Any] = {}
    for key, value in self.keys.items():
      if key not in KEYS:
        raise ValueError(f"a number has no key {key!r}; the keys are: {', '.join(KEYS)}")
      kind = KEYS[key][0]
      is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
      if (kind is str) == is_number or (kind is int and value != int(value)):
        raise ValueError(f"the key {key!r} of a number is {value!r}; expected {kind.__name__}")
      typed[key] = kind(value)
    object.__setattr__(self, "keys", typed)

  def __repr__(self) -> str:
    """Returns one line: the evaluation, the metric, the keys, the value, the interval, the count.

    Example:
      >>> results.read("runs/digits").numbers.first(evaluation="pgd")
      <Number pgd accuracy, norm='linf', epsilon=0.1: 0.783 [0.733, 0.826], n=300>
    """
    keys = "".join(f", {key}={self.keys[key]!r}" for key in KEYS if key in self.keys)
    value = "not defined" if self.value is None else f"{self.value:.4g}"
    unit = "" if self.unit == "share" else f" {self.unit}".rstrip()
    limits = "" if self.interval is None else " [{:.4g}, {:.4g}]".format(*self.interval)
    count = "" if self.count is None else f", n={self.count}"
    name = f"{self.evaluation} {self.metric}".strip()
    return f"<Number {name}{keys}: {value}{unit}{limits}{count}>"

  def __getitem__(self, key: str) -> Any:
    """Returns a key's value; None where the number has no such key."""
    return self.keys.get(key)

  @property
  def defined(self) -> float:
    """The value of a number that is defined.

    Raises:
      ValueError: the value is None.
    """
    if self.value is None:
      raise ValueError(f"the number {self.metric!r} of {self.evaluation!r} has no value")
    return self.value

  def matches(self, **wanted: Any) -> bool:
    """Returns whether the number has all wanted keys and fields; None means "no such key".

    Raises:
      ValueError: a name is not a key, "evaluation" or "metric".
    """
    _check_names(wanted)
    return all(
      (getattr(self, name) if name in ("evaluation", "metric") else self.keys.get(name)) == value
      for name, value in wanted.items()
    )


def _check_names(names: Iterable[str]) -> None:
  """Raises a ValueError if a query names something that no number can have."""
  for name in names:
    if name not in QUERIED:
      near = difflib.get_close_matches(name, QUERIED, 1)
      meant = f" (did you mean {near[0]!r}?)" if near else ""
      raise ValueError(f"numbers have no key {name!r}{meant}; the keys are: {', '.join(QUERIED)}")


def accuracy(
  outcomes: np.ndarray, indices: np.ndarray, metric: str = "accuracy", /, **keys: Any
) -> Number:
  """Makes a number from outcomes: the accuracy with its 95 % Wilson interval.

  Args:
    outcomes: bool [n], which images are classified correctly.
    indices: int [n], the images' positions in the test set.
    metric: the name of the number.
    **keys: the conditions of the measurement, entries of `KEYS`.
  """
  outcomes = np.asarray(outcomes, bool)
  share = intervals.proportion(outcomes.sum(), len(outcomes))
  low, high = share["interval"]
  return Number(
    metric,
    share["accuracy"],
    keys,
    count=share["count"],
    interval=(low, high),
    indices=np.asarray(indices),
    outcomes=outcomes,
  )


class Numbers:
  """An ordered collection of numbers, with queries on their keys."""

  def __init__(self, numbers: Iterable[Number] = ()) -> None:
    self._numbers = tuple(numbers)

  def __iter__(self) -> Iterator[Number]:
    return iter(self._numbers)

  def __len__(self) -> int:
    return len(self._numbers)

  def __repr__(self) -> str:
    """Returns one line per number, of at most `MOST_LINES` numbers."""
    more = len(self) - MOST_LINES
    lines = [f"<{len(self)} numbers>", *map(repr, self._numbers[:MOST_LINES])]
    return "\n  ".join([*lines, *([f"... and {more} more"] if more > 0 else [])])

  def where(self, **wanted: Any) -> "Numbers":
    """Returns the numbers with all wanted keys and fields; None means "no such key".

    Raises:
      ValueError: a name is not a key, "evaluation" or "metric".
    """
    _check_names(wanted)  # also where there are no numbers
    return Numbers(number for number in self if number.matches(**wanted))

  def first(self, **wanted: Any) -> Number | None:
    """Returns the first number with all wanted keys and fields; None where there is none.

    Raises:
      ValueError: a name is not a key, "evaluation" or "metric".
    """
    return next(iter(self.where(**wanted)), None)

  def values(self, key: str) -> list[Any]:
    """Returns the distinct values of a key, of "evaluation" or of "metric", in their order.

    Raises:
      ValueError: the name is not a key, "evaluation" or "metric".
    """
    _check_names([key])
    found = (getattr(n, key) if key in ("evaluation", "metric") else n[key] for n in self)
    return [value for value in dict.fromkeys(found) if value is not None]


def encode(numbers: Iterable[Number]) -> dict[str, Any]:
  """Encodes numbers as JSON: {"numbers": [flat records], "images": {name: choice of images}}.

  A record has the fields of `FIELDS` and the number's keys. Its field "images" names a choice of
  test images: {"count": n} for the first n in order, else {"indices": [...]}. Its field "outcomes"
  holds the bits of `Number.outcomes`, packed big-endian, deflated, in base64.
  """
  choices: dict[str, dict[str, Any]] = {}
  records: list[dict[str, Any]] = []
  for number in numbers:
    record: dict[str, Any] = {
      "evaluation": number.evaluation,
      "metric": number.metric,
      "value": number.value,
      "unit": number.unit,
      "count": number.count,
      "interval": None if number.interval is None else list(number.interval),
      **number.keys,
    }
    if number.indices is not None:
      indices = [int(index) for index in number.indices]
      in_order = indices == list(range(len(indices)))
      choice: dict[str, Any] = {"count": len(indices)} if in_order else {"indices": indices}
      name = hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:12]
      choices[name], record["images"] = choice, name
    if number.outcomes is not None:
      bits = zlib.compress(np.packbits(number.outcomes).tobytes(), 9)
      record["outcomes"] = base64.b64encode(bits).decode()
    records.append(record)
  return {"numbers": records, "images": choices}


def decode(encoded: Mapping[str, Any]) -> Numbers:
  """Decodes the result of `encode`.

  Raises:
    Damaged: the records are malformed.
  """
  try:
    choices = {name: _images(choice) for name, choice in encoded["images"].items()}
    return Numbers(_decode(record, choices) for record in encoded["numbers"])
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
    raise Damaged(f"malformed records of numbers ({type(error).__name__}: {error})") from error


def _images(choice: Mapping[str, Any]) -> np.ndarray:
  if "count" in choice and not 0 <= choice["count"] <= MOST_IMAGES:
    raise ValueError(f"{choice['count']} images; expected at most {MOST_IMAGES}")
  indices = np.arange(choice["count"]) if "count" in choice else np.array(choice["indices"], int)
  if indices.ndim != 1:
    raise ValueError("the positions of images are not a list of integers")
  return indices


def _decode(record: Mapping[str, Any], choices: Mapping[str, np.ndarray]) -> Number:
  indices = choices[record["images"]] if "images" in record else None
  low, high = record["interval"] or (0.0, 0.0)
  if not all(isinstance(record[name], str) for name in ("evaluation", "metric", "unit")):
    raise TypeError("evaluation, metric and unit of a number are not all strings")
  if not (math.isfinite(record["value"] or 0.0) and math.isfinite(low) and math.isfinite(high)):
    raise ValueError("the value or the interval of a number is not finite")
  count = record["count"]
  if (count or 0) < 0 or (indices is not None and count != len(indices)):
    raise ValueError(f"a number has the count {count!r}, but another number of images")
  outcomes = None
  if "outcomes" in record:
    if indices is None:
      raise ValueError("a number has outcomes, but no images")
    size, deflated = -(-len(indices) // 8), base64.b64decode(record["outcomes"])
    packed = zlib.decompressobj().decompress(deflated, max_length=size + 1)
    if len(packed) != size:
      raise ValueError(f"the outcomes of {len(indices)} images are not {size} bytes")
    outcomes = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(indices)).astype(bool)
  return Number(
    record["metric"],
    record["value"],
    {key: value for key, value in record.items() if key not in FIELDS},
    record["unit"],
    record["count"],
    None if record["interval"] is None else tuple(record["interval"]),
    indices,
    outcomes,
    record["evaluation"],
  )
