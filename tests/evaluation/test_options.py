"""options: declared once, in signatures; every range is checked and named as the user typed it."""

import inspect
import math
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax.errors import UserError
from sprout_jax.evaluation import options
from sprout_jax.evaluation import table
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.table import EVALUATIONS

WHERE = "config.evaluation"


def all_options():
  """[(the keys in settings, annotation, default)] of the shared options and of every section."""
  found = [((name,), *row) for name, row in options.SHARED.items()]
  for name, row in EVALUATIONS.items():
    own = options.own(row.function)
    found += [
      ((name, option), annotation, own[option])
      for option, (annotation, _) in options.declared(row.function).items()
      if option in own
    ]
  return found


def wrong_values(annotation, default):
  """Values that must be refused."""
  kind, option = annotation.__args__[0], annotation.__metadata__[0]
  is_tuple = isinstance(default, tuple)
  entry = (kind.__args__[0] if is_tuple else kind) if hasattr(kind, "__args__") else kind
  found = []
  if option.choices is not None:
    found.append("nonsense")
  elif entry in (int, float):
    found += ["many", None, True, math.nan, math.inf]
    found += [option.low - 1] * math.isfinite(option.low)
    found += [option.high + 1] * (math.isfinite(option.high) and option.high < 2**40)
    found += [option.low + 0.5] * (entry is int)
  else:
    found += [1, None]
  if not is_tuple:
    return found
  found = [(value,) for value in found]
  found += [default[0] if default else 1]  # not in a tuple
  found += [()] * bool(option.example)
  found += [default[:1] * 2] * (option.choices is not None and bool(default))  # one name twice
  if option.ascends:
    found += [(0.5, 0.25), (0.25, 0.25)] if entry is float else [(2, 1), (1, 1)]
  return found


@pytest.mark.parametrize("keys, annotation, default", all_options(), ids=lambda v: "")
def test_every_option_has_a_range_a_line_of_help_and_is_checked(keys, annotation, default):
  option = annotation.__metadata__[0]
  assert option.help and len(option.help) < 100 and "\n" not in option.help
  assert option.help in options.describe(annotation)
  values = wrong_values(annotation, default)
  assert values
  for value in values:
    settings = table.defaults()
    section = settings
    for key in keys[:-1]:
      section = section[key]
    section[keys[-1]] = value
    with pytest.raises(UserError) as error:
      table.check_settings(WHERE, settings)
    assert str(error.value).startswith(".".join([WHERE, *keys])), str(error.value)


def test_the_defaults_are_in_order_and_complete():
  settings = table.defaults()
  table.check_settings(WHERE, settings)
  assert settings.keys() - EVALUATIONS.keys() == options.SHARED.keys()
  for name, row in EVALUATIONS.items():
    chosen = table.choose(name, settings)
    parameters = inspect.signature(row.function).parameters
    assert next(iter(parameters)) == "subject" and list(chosen) == list(parameters)[1:]
    assert set(settings.get(name, {})) <= set(chosen)
  used = {key for name in EVALUATIONS for key in table.choose(name, settings)}
  assert options.SHARED.keys() <= used  # no shared option does nothing


def test_defaults_are_new_each_time():
  table.defaults()["noise"]["num_draws"] = 1
  assert table.defaults()["noise"]["num_draws"] == 100


def test_a_section_comes_before_the_shared_key():
  settings = table.defaults() | {"num_examples": 7}
  settings["sanity"]["num_examples"] = 9
  assert table.choose("pgd", settings)["num_examples"] == 7
  assert table.choose("sanity", settings)["num_examples"] == 9
  settings["auto_attack"]["epsilons"] = (0.1,)
  assert table.choose("auto_attack", settings)["epsilons"] == (0.1,)
  assert table.choose("pgd", settings)["epsilons"] == settings["epsilons"]


def test_a_linf_budget_above_one_is_a_number_of_levels():
  with pytest.raises(UserError, match="config.evaluation.epsilon is 8, .* did you mean 8/255"):
    table.check_settings(WHERE, table.defaults() | {"epsilon": 8})
  table.check_settings(WHERE, table.defaults() | {"epsilon": 8, "norm": "l2"})


def test_epsilon_is_always_on_the_curve():
  assert options.with_epsilon((0.0, 0.2), 0.1) == (0.0, 0.1, 0.2)
  assert options.with_epsilon((0.0, 0.1), 0.1) == (0.0, 0.1)


def test_names_of_evaluations():
  table.check_names("evaluations", ("pgd", "noise"))
  with pytest.raises(
    UserError, match="evaluations: an entry is 'fgsm'; choose one of: auto_attack"
  ):
    table.check_names("evaluations", ("fgsm",))
  with pytest.raises(UserError, match="name each evaluation once"):
    table.check_names("evaluations", ("pgd", "pgd"))


def test_descriptions_say_the_range_or_the_choices():
  describe = lambda *args, **kwargs: options.describe(Annotated[int, Option(*args, **kwargs)])
  assert describe("a number", 1, 5) == "a number (1 to 5)"
  assert describe("a number", 1, 2**31) == "a number (at least 1)"
  assert describe("a name", choices=("a", "b")) == "a name: one of a, b"
  assert describe("a text") == "a text"


@pytest.mark.parametrize(
  "annotation, default, message",
  [
    (int, 1, "option number must be annotated Annotated"),
    (Annotated[int, "no option"], 1, "option number must be annotated Annotated"),
    (options.NumSteps, inspect.Parameter.empty, "has no default and is not in SHARED"),
  ],
)
def test_a_fault_of_a_function_is_named(annotation, default, message):
  def evaluate_something(subject, *, number):
    pass

  evaluate_something.__annotations__["number"] = annotation
  if default is not inspect.Parameter.empty:
    evaluate_something.__kwdefaults__ = {"number": default}
  with pytest.raises(TypeError, match=message):
    options.declared(evaluate_something)


@pytest.mark.parametrize(
  "annotation, value, expected",
  [
    (options.Epsilon, 1, 1.0),
    (options.Epsilon, np.int32(1), 1.0),
    (options.Epsilon, np.float64(0.1), 0.1),
    (options.Epsilon, np.float32(0.1), 0.1),  # and not 0.10000000149011612
    (options.Epsilon, jnp.float32(0.1), 0.1),
    (options.Epsilon, np.array(0.25), 0.25),
    (options.Epsilons, [0, np.float32(0.1)], (0.0, 0.1)),
    (options.Epsilons, np.linspace(0, 1, 3), (0.0, 0.5, 1.0)),
    (options.Epsilons, jnp.linspace(0, 1, 3), (0.0, 0.5, 1.0)),
    (options.NumSteps, np.int64(3), 3),
    (options.NumSteps, jnp.int32(3), 3),
    (options.Norm, np.str_("l2"), "l2"),
    # For `check` to refuse.
    (options.NumSteps, 3.0, 3.0),
    (options.Epsilon, True, True),
    (options.Epsilon, "0.1", "0.1"),
    (options.Epsilons, 0.1, 0.1),
  ],
)
def test_values_get_the_declared_type(annotation, value, expected):
  found = options.convert(value, annotation)
  assert found == expected and type(found) is type(expected)
  if isinstance(expected, tuple):
    assert all(type(entry) is float for entry in found)


def test_numpy_s_numbers_are_checked_like_python_s():
  options.check("here", np.float32(0.5), options.Epsilon)
  for value in (np.float32(-1), np.float32(np.nan), np.array([0.1]), np.True_):
    with pytest.raises(UserError, match="^here is"):
      options.check("here", value, options.Epsilon)
  found = table.choose("pgd", table.defaults() | {"epsilon": 1, "num_steps": np.int64(3)})
  assert type(found["epsilon"]) is float and type(found["num_steps"]) is int
