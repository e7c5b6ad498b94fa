"""The zoo: every model is the one of its card and of its record, and loads by its name."""

import json
import pathlib

import numpy as np
import pytest

import sprout_jax
from sprout_jax import zoo
from sprout_jax.errors import UserError
from sprout_jax.launcher import published

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_is_that_of_its_card_and_record(name):
  card = zoo.read_card(zoo.FOLDER / f"{name}.npz")
  model = sprout_jax.load(f"zoo/{name}")
  record = json.loads((ROOT / card["record"]).read_text())
  assert model.sha256 == card["parameters_sha256"] == record["parameters_sha256"]
  assert model.model.activation == card["config"]["model"]["activation"]
  assert model.config.method.name == card["config"]["method"]["name"]
  images = np.random.RandomState(0).uniform(size=(2, *model.image_shape)).astype(np.float32)
  logits = np.asarray(model(images))
  assert logits.shape == (2, len(model.class_names)) and np.isfinite(logits).all()
  assert "/" not in card["config"]["dataset"]["data_dir"] and repr(model).endswith(f"zoo/{name}>")


def test_the_zoo_is_small():
  """At most 10 MB come with the package."""
  assert zoo.names()
  assert sum(path.stat().st_size for path in zoo.FOLDER.iterdir() if path.is_file()) < 10e6


def test_what_a_name_stands_for(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = zoo.names()[0]
  packaged = zoo.FOLDER / f"{name}.npz"
  assert zoo.find(f"zoo/{name}") == packaged == published.parse("--weights", f"zoo/{name}").path
  assert zoo.find("runs/digits") is None and zoo.find(f"./my_zoo/{name}") is None
  with pytest.raises(UserError, match=f"the zoo's model is 'other'; choose one of: {name}"):
    zoo.find("zoo/other")
  folder = tmp_path / "zoo" / name  # of the user, which comes first
  folder.mkdir(parents=True)
  assert zoo.find(f"zoo/{name}") is None
  with pytest.raises(UserError, match="train there first"):
    sprout_jax.load(f"zoo/{name}")
