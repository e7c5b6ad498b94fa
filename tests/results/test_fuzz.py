"""Random damage to the files of a workdir: an error of this package, a warning, or no effect.

`FUZZ_EXAMPLES=2000 python -m pytest tests/results/test_fuzz.py` tries more than the suite does.
"""

import copy
import json
import os
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax import evaluation
from sprout_jax import report
from sprout_jax import results
from sprout_jax.configs import digits
from sprout_jax.errors import UserError
from sprout_jax.launcher import trained
from sprout_jax.results import workdir as workdir_lib

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 20))
ODD = (
  *(None, True, -1, 0, 1.5, 1e308, 2**70, "", "x", "<b>", "\ud800", "../x", "y" * 5000),
  *([], {}, [[]], [None], {"a": {}}, [1e9] * 50, "nan"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """The files of a workdir: those of an evaluation, and those that a training would write."""
  workdir = tmp_path_factory.mktemp("fuzz") / "run"
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(20, 8, 8, 1)).astype(np.float32)
  weights = rng.normal(size=(64, 4)).astype(np.float32)
  predict = lambda x: 3 * (x - 0.5).reshape(len(x), -1) @ weights
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  evaluation.evaluate(
    predict,
    images,
    labels,
    workdir=workdir,
    epsilon=0.02,
    evaluations=("pgd", "noise", "calibration", "examples"),
    num_steps=10,
    num_restarts=1,
    progress=False,
  )
  for name, value in {
    "config": digits.get_config().to_dict(),
    "versions": {"devices": "1 x cpu"},
    "data": {"name": "a", "fingerprint": "b", "class_names": ["0", "1"], "image_shape": [8, 8, 1]},
  }.items():
    (workdir / f"{name}.json").write_text(json.dumps(value))
  (workdir / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 2.0}\n' * 3)
  shutil.rmtree(workdir / "report")
  return workdir


def replace(value, place, odd):
  """A copy of a JSON value with one entry, chosen by a number, replaced."""
  value = copy.deepcopy(value)
  places = []

  def walk(node):
    for key in range(len(node)) if isinstance(node, list) else list(node):
      places.append((node, key))
      if isinstance(node[key], (list, dict)):
        walk(node[key])

  walk(value)
  if not places:
    return odd
  node, key = places[place % len(places)]
  if odd == "y" * 5000 and isinstance(node, dict):
    node[odd] = node.pop(key)  # another key
  else:
    node[key] = odd
  return value


def damaged(raw, kind, place, odd):
  """The bytes of a file after damage."""
  if kind == "flip" and raw:
    place %= 8 * len(raw)
    found = bytearray(raw)
    found[place // 8] ^= 1 << place % 8
    return bytes(found)
  if kind == "cut":
    return raw[: place % (len(raw) + 1)]
  if kind == "deep":
    return b"[" * 100_000
  if kind == "foreign":
    return b"\x89PNG\r\n\x00\xff" * 20
  lines = raw.decode().splitlines() or ["{}"]
  text = lines[0] if len(lines) > 1 and lines[1].startswith("{") else raw.decode()
  try:
    return json.dumps(replace(json.loads(text), place, odd)).encode("utf-8", "surrogatepass")
  except ValueError:
    return json.dumps(odd).encode("utf-8", "surrogatepass")


def readers(workdir):
  """What reads files of a workdir without a model."""
  return [
    lambda: trained.read_config(workdir),
    lambda: workdir_lib.read_data(workdir),
    lambda: workdir_lib.read_versions(workdir),
    lambda: workdir_lib.read_metrics(workdir),
    lambda: workdir_lib.read_weights(workdir),
    lambda: repr(results.read(workdir)),
    lambda: results.frame([workdir], all_options=True),
    lambda: report.summarize(workdir),
    lambda: report.compare([workdir]),
  ]


@settings(
  max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
  strategies.integers(0, 100),
  strategies.sampled_from(["flip", "cut", "odd", "odd", "odd", "odd", "deep", "foreign"]),
  strategies.integers(0, 10**6),
  strategies.sampled_from(ODD),
)
def test_no_damage_ends_in_a_foreign_error(original, tmp_path_factory, file, kind, place, odd):
  files = sorted(
    path.relative_to(original)
    for path in original.rglob("*")
    if path.is_file() and path.suffix in (".json", ".jsonl")
  )
  # results.json, of which a page is made, more often than the others.
  chosen = files[file] if file < len(files) else pathlib.Path("results.json")
  workdir = tmp_path_factory.mktemp("damaged") / "run"
  shutil.copytree(original, workdir)
  path = workdir / chosen
  path.write_bytes(damaged(path.read_bytes(), kind, place, odd))
  for read in readers(workdir):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)
      try:
        read()
      except UserError as error:
        assert str(error)
  shutil.rmtree(workdir.parent)
