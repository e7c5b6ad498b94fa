"""run: what validation measures; files of earlier versions."""

import json

import jax
import numpy as np
import pytest

from configs import default
from configs import stored
from sprout_jax import configuration
from sprout_jax import records
from sprout_jax import run
from sprout_jax import sharding
from sprout_jax.data import Split
from sprout_jax.evaluation import ensemble
from tests.linear import Linear
from tests.linear import linear_problem


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_validation_is_clean_or_under_attack(epsilon):
  """A linear model: right under attack where the margin exceeds epsilon |w|_1."""
  split, variables, margin, norm = linear_problem(64)
  config = default.get_config("natural")
  config.validation.epsilon, config.evaluation.batch_size = epsilon, 16
  mesh = sharding.make_mesh(jax.devices()[:1])
  found = run._validation(config, split, Linear(), mesh)(variables)
  assert found["accuracy"] == np.mean(margin > 0)
  if epsilon:
    assert found["robust_accuracy"] == np.mean(margin > epsilon * norm) < found["accuracy"]
    assert "PGD-10, Linf, epsilon 0.02" in run._selection(config)
  else:
    assert set(found) == {"accuracy"}


def test_without_a_validation_split_there_is_nothing_to_measure():
  config, mesh = default.get_config("natural"), sharding.make_mesh(jax.devices()[:1])
  empty = Split(np.zeros((0, 3, 3, 1), np.float32), np.zeros(0, np.int32))
  assert run._validation(config, empty, Linear(), mesh)({}) == {}


def test_autoattack_of_a_trained_model(tmp_path):
  """Entries of results.json; the state stays in the folder, and a second call reads it."""
  split, variables, margin, norm = linear_problem(40)
  options = dict(
    version="apgd-ce",
    norm="linf",
    epsilons=(0.01, 0.03),
    seed=3,
    batch_size=32,
    folder=tmp_path / "attacks",
  )
  seen = []
  entries = ensemble.entries(
    Linear(),
    variables,
    split,
    **options,
    on_progress=lambda epsilon, progress: seen.append(progress),
  )
  for entry, epsilon in zip(entries, (0.01, 0.03)):
    assert entry["accuracy"] == np.mean(margin > epsilon * norm)
    assert (entry["name"], entry["epsilon"], entry["count"]) == ("autoattack-apgd-ce", epsilon, 40)
    assert entry["per_attack"] == {"apgd-ce": entry["accuracy"]} and entry["spec"]["examples"] == 40
    json.dumps(entry)
  assert len(list((tmp_path / "attacks").glob("*.npz"))) == 2
  assert seen[-1].work == seen[-1].done == seen[-1].total and seen[-1].examples == 40
  again = ensemble.entries(
    Linear(),
    variables,
    split,
    **options,
    on_progress=lambda epsilon, progress: pytest.fail("attacked again"),
  )
  assert [e["accuracy"] for e in again] == [e["accuracy"] for e in entries]


def test_files_of_earlier_versions_can_be_read(tmp_path):
  """A config from before penalties, AWP, validation under attack and the table of evaluations."""
  config = default.get_config("natural")
  config.evaluation.num_steps = 7
  old = {
    key: value for key, value in config.to_dict().items() if key not in records.ADDED_TO_CONFIGS
  }
  kept = (
    "checkpoint",
    "use_ema",
    "batch_size",
    "num_examples",
    "norm",
    "epsilons",
    "num_steps",
    "step_size",
    "num_restarts",
    "loss",
    "seed",
  )
  old["evaluation"] = {key: old["evaluation"][key] for key in kept}
  (tmp_path / "config.json").write_text(json.dumps(old))
  assert stored.get_config(tmp_path) == config
  assert not configuration.differences(configuration.loads(json.dumps(old)), config)
  old["evaluation"] |= {
    "attacks": ["pgd", "autoattack"],
    "auto_attack": {"version": "plus", "epsilons": [0.5]},
  }
  (tmp_path / "config.json").write_text(json.dumps(old))
  evaluation = stored.get_config(tmp_path).evaluation
  assert evaluation.after_training == ("pgd", "auto_attack") and evaluation.num_steps == 7
  assert evaluation.auto_attack.version == "plus" and evaluation.auto_attack.epsilons == (0.5,)
  configuration.validate(stored.get_config(tmp_path))

  (tmp_path / "results.json").write_text(
    json.dumps({"config": old, "checkpoint": {"which": "best"}})
  )
  results = records.read_results(tmp_path)
  assert results["config"]["penalty"] == {"name": "none"}
  assert results["checkpoint"]["selected_by"] == "clean validation accuracy"
  assert results["evaluations"] == {} and results["checks"] == []
