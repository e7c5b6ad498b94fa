"""Numbers: typed keys, queries, and the way to JSON and back."""

import base64
import copy
import json
import zlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax.results import numbers
from sprout_jax.results.files import Damaged
from sprout_jax.results.numbers import KEYS
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers

PGD = {"attack": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 20, "seed": 0}
VALUES = {
  str: strategies.text(max_size=10),
  int: strategies.integers(-(2**40), 2**40),
  float: strategies.floats(allow_nan=False, allow_infinity=False),
}


def through_json(found):
  return numbers.decode(json.loads(json.dumps(numbers.encode(found))))


def fields(number):
  """Everything that a number says, for comparison."""
  arrays = [None if a is None else a.tolist() for a in (number.indices, number.outcomes)]
  names = ("evaluation", "metric", "value", "unit", "count", "interval", "keys")
  return [getattr(number, name) for name in names] + arrays


@strategies.composite
def any_number(draw):
  names = draw(strategies.lists(strategies.sampled_from(list(KEYS)), unique=True))
  keys = {name: draw(VALUES[KEYS[name][0]]) for name in names}
  metric, unit = draw(VALUES[str]), draw(strategies.sampled_from(("share", "nats", "")))
  size = draw(strategies.integers(0, 20))
  if size:
    chosen = strategies.lists(strategies.integers(0, 99), min_size=size, max_size=size, unique=True)
    outcomes = draw(strategies.lists(strategies.booleans(), min_size=size, max_size=size))
    return numbers.accuracy(np.array(outcomes), np.array(draw(chosen)), metric, **keys)
  value = draw(strategies.none() | VALUES[float])
  interval = draw(strategies.none() | strategies.tuples(VALUES[float], VALUES[float]))
  return Number(metric, value, keys, unit, draw(strategies.none() | strategies.just(7)), interval)


@settings(deadline=None)
@given(strategies.lists(any_number(), max_size=5))
def test_numbers_come_back_from_json(found):
  assert list(map(fields, through_json(found))) == list(map(fields, found))


def test_a_record_is_flat_and_images_are_said_once():
  first = numbers.accuracy(np.array([1, 0, 1]), np.arange(3), **PGD)
  second = numbers.accuracy(np.array([0, 0, 1]), np.array([5, 2, 9]), **PGD)
  encoded = numbers.encode([first, second, first])
  one, two, three = encoded["numbers"]
  assert one["epsilon"] == 0.1 and one["steps"] == 20 and one["value"] == pytest.approx(2 / 3)
  assert encoded["images"] == {one["images"]: {"count": 3}, two["images"]: {"indices": [5, 2, 9]}}
  assert three == one
  assert zlib.decompress(base64.b64decode(one["outcomes"])) == bytes([0b10100000])


def test_an_accuracy_counts_its_outcomes():
  """8 of 10, Wilson: (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10), z = 1.96."""
  outcomes = np.arange(10) < 8
  number = numbers.accuracy(outcomes, np.arange(10, 20), "certified_accuracy", radius=0.5)
  z = scipy.stats.norm.ppf(0.975)
  middle, reach = 0.8 + z**2 / 20, z * np.sqrt(0.016 + z**2 / 400)
  limits = [(middle - reach) / (1 + z**2 / 10), (middle + reach) / (1 + z**2 / 10)]
  assert (number.value, number.count, number.unit) == (0.8, 10, "share")
  np.testing.assert_allclose(number.interval, limits, rtol=1e-9)
  assert number["radius"] == 0.5 and number.metric == "certified_accuracy"


def test_keys_have_their_types():
  number = Number("accuracy", 0.5, {"epsilon": 1, "steps": np.int64(3), "norm": "l2"})
  assert type(number["epsilon"]) is float and type(number["steps"]) is int
  assert number["draws"] is None


@pytest.mark.parametrize(
  ("keys", "said"),
  [
    ({"colour": "red"}, "has no key 'colour'; the keys are: attack, version"),
    ({"epsilon": "8/255"}, "'epsilon' of a number is '8/255'; expected float"),
    ({"steps": 2.5}, "'steps' of a number is 2.5; expected int"),
    ({"norm": 2}, "'norm' of a number is 2; expected str"),
    ({"steps": True}, "'steps' of a number is True; expected int"),
    ({"epsilon": None}, "'epsilon' of a number is None"),
  ],
)
def test_wrong_keys_are_named(keys, said):
  with pytest.raises(ValueError, match=said):
    Number("accuracy", 0.5, keys)


def test_queries():
  stage = {**PGD, "stage": "square"}
  found = Numbers(
    [
      Number("accuracy", 0.9, {}, evaluation="clean"),
      Number("accuracy", 0.5, PGD, evaluation="pgd"),
      Number("accuracy", 0.4, {**PGD, "epsilon": 0.2}, evaluation="pgd"),
      Number("accuracy", 0.3, stage, evaluation="auto_attack"),
      Number("loss", 0.2, PGD, evaluation="auto_attack"),
    ]
  )
  values = lambda **wanted: [number.value for number in found.where(**wanted)]
  assert values(evaluation="pgd") == [0.5, 0.4]
  assert values(epsilon=0.1) == [0.5, 0.3, 0.2]
  assert values(epsilon=0.1, metric="accuracy", stage=None) == [0.5]
  assert values(stage=None, attack=None) == [0.9]
  assert values(evaluation="pgd", epsilon=0.3) == [] and len(found) == 5
  assert found.first(evaluation="pgd").value == 0.5 and found.first(norm="l2") is None
  assert found.values("epsilon") == [0.1, 0.2]
  assert found.values("evaluation") == ["clean", "pgd", "auto_attack"]


@pytest.mark.parametrize("found", [Numbers(), Numbers([Number("accuracy", 0.5, PGD)])])
@pytest.mark.parametrize("query", [Numbers.where, Numbers.first])
def test_a_query_with_a_misspelt_key_is_an_error(found, query):
  said = r"no key 'evalution' \(did you mean 'evaluation'\?\); the keys are: evaluation, metric"
  with pytest.raises(ValueError, match=said):
    query(found, evalution="pgd")
  with pytest.raises(ValueError, match="no key 'x'; the keys are: .*attack, version"):
    found.values("x")


def test_a_number_is_printed_in_one_line():
  one = numbers.accuracy(np.arange(300) < 150, np.arange(300), norm="linf", epsilon=0.1)
  assert repr(one) == "<Number accuracy, norm='linf', epsilon=0.1: 0.5 [0.4438, 0.5562], n=300>"
  loss = Number("highest_loss", None, {"seed": 3}, "nats", evaluation="landscape")
  assert repr(loss) == "<Number landscape highest_loss, seed=3: not defined nats>"
  assert repr(Numbers([one, loss])) == f"<2 numbers>\n  {one}\n  {loss}"
  many = repr(Numbers([one] * 50)).splitlines()
  assert len(many) == 42 and many[-1] == "  ... and 10 more"


def encoded():
  """The JSON of two numbers."""
  made = numbers.accuracy(np.arange(20) % 2 == 0, np.arange(20), **PGD)
  return copy.deepcopy(numbers.encode([made, Number("loss", 1.5, {}, "nats")]))


def packed(raw):
  return base64.b64encode(zlib.compress(raw)).decode()


DAMAGES = {
  "no numbers": lambda e: e.pop("numbers"),
  "no images": lambda e: e.pop("images"),
  "numbers of another kind": lambda e: e.update(numbers=3),
  "a record of another kind": lambda e: e.update(numbers=["x"]),
  "no value": lambda e: e["numbers"][1].pop("value"),
  "a value that is text": lambda e: e["numbers"][1].update(value="<b>"),
  "a value that is infinite": lambda e: e["numbers"][1].update(value=float("inf")),
  "a value that no float holds": lambda e: e["numbers"][1].update(value=10**400),
  "a metric that is none": lambda e: e["numbers"][1].update(metric=["x"]),
  "a unit that is none": lambda e: e["numbers"][1].update(unit=None),
  "an interval of three": lambda e: e["numbers"][0].update(interval=[0, 1, 2]),
  "an interval of texts": lambda e: e["numbers"][0].update(interval=["a", "b"]),
  "a count that is text": lambda e: e["numbers"][1].update(count="x"),
  "a negative count": lambda e: e["numbers"][1].update(count=-1),
  "a count of other images": lambda e: e["numbers"][0].update(count=19),
  "an unknown key": lambda e: e["numbers"][0].update(colour="red"),
  "a key of another type": lambda e: e["numbers"][0].update(epsilon="x"),
  "an infinite key": lambda e: e["numbers"][0].update(steps=float("inf")),
  "unknown images": lambda e: e["numbers"][0].update(images="x"),
  "outcomes without images": lambda e: e["numbers"][0].pop("images"),
  "outcomes that are no base64": lambda e: e["numbers"][0].update(outcomes="?"),
  "outcomes that are not deflated": lambda e: e["numbers"][0].update(outcomes="AAAA"),
  "too few outcomes": lambda e: e["numbers"][0].update(outcomes=packed(b"\0\0")),
  "too many outcomes": lambda e: e["numbers"][0].update(outcomes=packed(bytes(4))),
  "outcomes that fill the memory": lambda e: e["numbers"][0].update(outcomes=packed(bytes(10**7))),
  "positions in a table": lambda e: _choice(e, {"indices": [[1, 2]]}),
  "positions that are texts": lambda e: _choice(e, {"indices": ["a"]}),
  "images that fill the memory": lambda e: _choice(e, {"count": 10**13}),
  "less than no images": lambda e: _choice(e, {"count": -1}),
  "images of another kind": lambda e: _choice(e, 3),
}


def _choice(encoded, choice):
  for name in encoded["images"]:
    encoded["images"][name] = choice


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_record_is_damaged(name):
  found = encoded()
  assert len(numbers.decode(found)) == 2
  DAMAGES[name](found)
  with pytest.raises(Damaged, match="malformed records of numbers"):
    numbers.decode(found)
