"""The attack of the evaluation follows a norm and a budget from the command line."""

import numpy as np
import pytest

from sprout_jax.configs import cifar10
from sprout_jax.configs import digits
from sprout_jax.errors import UserError
from sprout_jax.evaluation import table
from sprout_jax.launcher import configuration


def changed(get, **changes):
  """The evaluation of a config with flags."""
  config = get().unlock()
  flags = [(f"evaluation.{key}", text) for key, text in changes.items()]
  configuration.override(config, flags)
  configuration.validate(config)
  return config.evaluation


def pgd(evaluation):
  return table.choose("pgd", evaluation.to_dict())


def test_the_default_step_is_a_quarter_of_epsilon():
  assert pgd(changed(cifar10.get_config))["step_size"] == 8 / 255 / 4
  found = pgd(changed(cifar10.get_config, norm="l1", epsilon="12"))
  assert found["step_size"] == 3.0 and found["epsilons"] == (0, 6, 12, 18, 24)
  assert all(
    table.choose(name, changed(cifar10.get_config, epsilon="0.02").to_dict())["step_size"] == 0.005
    for name in ("pgd", "strength", "sanity", "examples", "transfer", "binarization")
  )
  # a given step size is kept
  assert pgd(changed(cifar10.get_config, epsilon="0.02", step_size="0.01"))["step_size"] == 0.01


def test_the_numbers_of_digits_stay():
  found = pgd(changed(digits.get_config))
  assert (found["step_size"], found["num_steps"], found["epsilon"]) == (0.01, 50, 0.1)
  assert found["epsilons"] == (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
  assert pgd(changed(digits.get_config, epsilon="0.1")) == found
  # another budget that these steps reach
  found = pgd(changed(digits.get_config, epsilon="0.2"))
  assert found["step_size"] == 0.01
  np.testing.assert_allclose(found["epsilons"], (0, 0.1, 0.2, 0.3, 0.4))
  assert pgd(changed(digits.get_config, epsilon="0.2", epsilons="0.2"))["epsilons"] == (0.2,)


def test_linf_curves_end_at_the_range_of_pixels():
  found = pgd(changed(digits.get_config, epsilon="0.6", step_size="0"))
  np.testing.assert_allclose(found["epsilons"], (0, 0.3, 0.6, 0.9, 1))


@pytest.mark.parametrize(
  "flags, message",
  [
    (dict(norm="l1", epsilon="5"), "cannot reach a perturbation of 10, .*step_size=0 "),
    (dict(epsilon="0.6"), "50 steps of 0.01 cannot reach a perturbation of 1,"),
    (
      dict(epsilons="0.7", num_steps="20"),
      "cannot reach a perturbation of 0.7, .*step_size=0.0875, or more steps",
    ),
    (dict(norm="l2"), "epsilon 0.1 is a budget in linf: add --config.evaluation.epsilon=VALUE"),
    (dict(norm="l0", epsilon="1"), "choose one of: l1, l2, linf"),
  ],
)
def test_steps_that_do_not_fit_are_an_error(flags, message):
  with pytest.raises(UserError, match=message):
    changed(digits.get_config, **flags)


def test_the_advice_works():
  found = pgd(changed(digits.get_config, norm="l1", epsilon="5", step_size="0"))
  assert (found["step_size"], found["epsilons"]) == (1.25, (0, 2.5, 5, 7.5, 10))
  flags = dict(epsilons="0.7", num_steps="20", step_size="0.0875")
  assert pgd(changed(digits.get_config, **flags))["step_size"] == 0.0875


def test_autoattack_budgets_of_another_norm_are_an_error():
  def get():
    config = digits.get_config().unlock()
    config.evaluation.auto_attack.epsilons = (0.1,)
    return config

  with pytest.raises(UserError, match="are budgets of linf: add .*auto_attack.epsilons=VALUES"):
    changed(get, norm="l2", epsilon="0.3", step_size="0")
  kept = {"auto_attack.epsilons": "0.2"}
  found = changed(get, norm="l2", epsilon="0.3", step_size="0", **kept)
  assert tuple(found.auto_attack.epsilons) == (0.2,)
