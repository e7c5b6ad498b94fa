"""Each wrong input gets one clear error, and the workdir's earlier results stay untouched."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sprout_jax import data
from sprout_jax.configs import cifar10
from sprout_jax.configs import default
from sprout_jax.configs import digits
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.launcher import modes
from sprout_jax.results import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"method.name": "sprut"}, "config.method.name is 'sprut'; choose one of: "),
    ({"model.name": "vgg17"}, "vgg16"),
    ({"model.name": "vgg16"}, "small_cnn"),  # digits are too small for it; what does fit is listed
    ({"model.activation": "relo"}, "gelu, relu, silu, softplus"),
    ({"model.dtype": "float8"}, "bfloat16, float32"),
    ({"model.std": (0.0,)}, "std"),
    ({"method.concentration": "patent"}, "algorithm1, paper, released"),
    ({"method.alpha": 1.01}, "config.method.alpha is 1.01; it must be a number from 0 to 1"),
    ({"method.noise_stddev": -0.1}, "noise_stddev"),
    ({"method.beta.learning_rate": -1.0}, "beta.learning_rate"),
    (
      {"evaluation.evaluations": ({},)},
      "config.evaluation.evaluations has entries of the kinds {}",
    ),
    ({"optimizer.boundaries": ((1.0,),)}, "config.optimizer.boundaries has entries of the kinds"),
    ({"evaluation.epsilons": (float("nan"),)}, "config.evaluation.epsilons has entries of the ki"),
    ({"parallelism": "gspmd"}, "jit, pmap, shard_map"),
    (
      {"batch_size": 12},
      "config.batch_size is 12, which is not a multiple of the 8 devices; "
      "set e.g. --config.batch_size=8",
    ),
    ({"batch_size": 4096}, "there are only 1347 training images"),
    ({"optimizer.learning_rate": 0.0}, "learning_rate"),
    ({"optimizer.learning_rate": -0.1}, "learning_rate"),
    ({"optimizer.learning_rate": float("nan")}, "learning_rate"),
    ({"optimizer.name": "sdg"}, "adamw, sgd"),
    ({"optimizer.schedule": "step"}, "constant, cosine, piecewise"),
    ({"optimizer.schedule": "piecewise"}, "needs boundaries"),
    ({"optimizer.boundaries": (3.0,)}, "boundaries"),
    ({"evaluation.epsilons": (0.0, 8.0)}, r"pixels are in \[0, 1\]; did you mean 8/255"),
    ({"evaluation.epsilons": (0.1, 0.05)}, "ascend"),
    ({"evaluation.evaluations": ("pgd", "pgd")}, "name each evaluation once"),
    ({"evaluation.step_size": float("inf")}, "step_size"),
    ({"evaluation.norm": "l0"}, "l1, l2, linf"),
    ({"evaluation.use_ema": True}, "ema_decay=0.999"),
    ({"evaluation.step_size": -0.1}, "step_size"),
    ({"ema_decay": 1.0}, "ema_decay"),
    ({"evaluation.after_training": ("fgsm",)}, "auto_attack, binarization, calibration"),
    (
      {"evaluation.evaluations": ("pgd", "aa")},
      r"config.evaluation.evaluations: an entry is 'aa'; .*auto_attack",
    ),
    ({"evaluation.evaluations": ("transfer",)}, r"--config.evaluation.transfer.sources="),
    ({"evaluation.epsilon": 0.0}, "config.evaluation.epsilon is"),
    ({"evaluation.loss": "hinge"}, "cross_entropy, dlr, margin"),
    ({"evaluation.strength.steps": (100, 20)}, "distinct and ascending"),
    ({"evaluation.strength.losses": ("ce",)}, "config.evaluation.strength.losses: an entry"),
    ({"evaluation.strength.num_examples": -1}, "config.evaluation.strength.num_examples"),
    ({"evaluation.smoothing.sigma": 0.0}, "config.evaluation.smoothing.sigma"),
    ({"evaluation.corruptions.corruptions": ("fogg",)}, "fog, frost"),
    ({"evaluation.corruptions.origin": "files"}, "computed, tfds"),
    (
      {"evaluation.invariance.transformations": ()},
      "give at least one value, e.g. config.evaluation.invariance.transformations=rotation",
    ),
    ({"evaluation.auto_attack.version": "quick"}, "apgd-t, fab"),
    ({"evaluation.auto_attack.epsilons": (8.0,)}, "did you mean 8/255"),
    ({"awp_gamma": -0.1}, "awp_gamma"),
    ({"validation.epsilon": 8.0}, "validation.epsilon"),
    ({"validation.num_steps": 0}, "validation.num_steps"),
    ({"validation.epsilon": 0.1, "dataset.validation_fraction": 0.0}, "needs validation images"),
    ({"penalty.name": "gradient"}, "cure, gradient_norm, none"),
    ({"method.steps_per_batch": 2, "optimizer.accumulate_steps": 2}, "one of the two must be 1"),
    ({"num_epochs": 0}, "num_epochs"),
    ({"dataset.validation_fraction": 1.0}, "validation_fraction"),
    ({"dataset.name": "cifar11"}, "cifar10"),
    ({"dataset.train_split": "training"}, "train"),
    ({"init_from": "/nowhere"}, "/nowhere"),
  ],
)
def test_wrong_config_is_one_error_and_writes_nothing(tmp_path, changes, message):
  config = digits.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    modes.train(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


def test_data_that_is_not_there_names_the_command(tmp_path, monkeypatch):
  """Without a network; the address of the proxy leads nowhere."""
  for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
  config = cifar10.get_config("model=small_cnn")
  config.dataset.data_dir, config.dataset.cache_dir = (
    str(tmp_path / "data"),
    str(tmp_path / "cache"),
  )
  with pytest.raises(UserError, match="python -m sprout_jax.data.prepare cifar10 --data_dir"):
    modes.train(config, tmp_path / "workdir")


def with_test_split(**changes):
  dataset = data.load("digits")
  return dataclasses.replace(dataset, test=dataclasses.replace(dataset.test, **changes))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: with_test_split(labels=np.full(300, 10, np.int32)), r"labels range from 10 to 10"),
    (lambda: with_test_split(images=np.full((300, 8, 8, 1), 16, np.float32)), r"in \[0, 1\]"),
    (lambda: with_test_split(images=np.zeros((300, 8, 8), np.float32)), "shape"),
  ],
)
def test_wrong_data_are_an_error(make, message):
  with pytest.raises(UserError, match=message):
    data.check(make())


@pytest.mark.parametrize(
  "get, message",
  [
    (lambda: digits.get_config("metod=sprout"), "metod=sprout.*model.*method.*variant"),
    (lambda: digits.get_config("method=fats"), "method is 'fats'; choose one of: "),
    (lambda: digits.get_config("variant=patent"), "algorithm1, paper, released"),
    (lambda: digits.get_config("method=pgd,variant=released"), "only method 'sprout' has variants"),
    (lambda: digits.get_config("penalty=gradient"), "penalty is 'gradient'; choose one of: cure"),
    (lambda: cifar10.get_config("epochs=0"), "at least 1"),
    (lambda: digits.get_config("sprout"), "NAME=VALUE"),
  ],
)
def test_wrong_config_arguments(get, message):
  with pytest.raises(UserError, match=message):
    get()


def test_misspelt_keys_are_errors():
  config = default.get_config()
  with pytest.raises(AttributeError, match="Did you mean .learning_rate"):
    config.optimizer.learningrate = 0.1


FACTS = {"class_names": list("0123456789"), "image_shape": [8, 8, 1]}


def claim(workdir, config, facts=FACTS):
  workdir_lib.claim(workdir, config.to_dict(), {}, facts)


def test_a_workdir_belongs_to_one_config(tmp_path):
  config = digits.get_config()
  claim(tmp_path, config)
  before = (tmp_path / "config.json").read_bytes()
  config.optimizer.learning_rate = 0.2
  config.evaluation.num_steps = 50  # free to differ
  with pytest.raises(UserError, match="optimizer.learning_rate: 0.05 there, 0.2 here") as error:
    modes.train(config, tmp_path)
  assert "num_steps" not in str(error.value)
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_start_from_another_model_is_an_error(tmp_path):
  claim(tmp_path / "source", digits.get_config("method=natural"))
  config = digits.get_config()
  config.init_from, config.model.activation = str(tmp_path / "source"), "gelu"
  with pytest.raises(UserError, match="model.activation is 'relu' in .*, 'gelu' in this config"):
    modes.train(config, tmp_path / "workdir")


@pytest.mark.parametrize(
  "facts, message",
  [
    (
      {"class_names": ["a", "b"], "image_shape": [8, 8, 1]},
      "it has 2 classes, the data .* have 10",
    ),
    (FACTS | {"image_shape": [8, 8, 3]}, "it has 3 channels, the data of this config have 1"),
    (FACTS, "no checkpoint"),
  ],
)
def test_a_start_that_does_not_fit_the_data_is_an_error_before_anything_is_written(
  tmp_path, monkeypatch, facts, message
):
  monkeypatch.setenv("HOME", str(tmp_path))
  claim(tmp_path / "source", digits.get_config("method=natural"), facts)
  config = digits.get_config()
  config.init_from = "~/source"
  with pytest.raises(UserError, match=message):
    modes.train(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


def test_config_survives_its_file():
  config = cifar10.get_config()
  again = configuration.from_json(json.loads(json.dumps(config.to_dict())))
  assert configuration.flatten(again) == configuration.flatten(config)
  assert configuration.differences(config, again) == []


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config", "configs/digits.py"], "--workdir is missing"),
    (["--workdir", "x"], "--config is missing"),
    (
      ["--config", "configs/digits.py", "--workdir", "x", "--config.metod.draw=mean"],
      "config has no key 'metod'. Did you mean 'method'? Its keys are: awp_gamma, batch_size,",
    ),
    (
      ["--config", "configs/digits.py", "--workdir", "x", "--config.optimizer.lr=1"],
      "config.optimizer has no key 'lr'. Its keys are: accumulate_steps",
    ),
    (
      ["--config", "configs/digits.py", "--workdir", "x", "--coordinator=host:1"],
      "--num_processes",
    ),
    (["--config", "configs/digits.py", "--workdir", "x", "--num_processes=2"], "--coordinator"),
    (["--config", "configs/digits.py:method=sprut", "--workdir", "x"], "choose one of: "),
    (["--config", "configs/digit.py", "--workdir", "x"], "there is no config file"),
    (["--config", "configs/digits.py", "--workdir", "/proc/x"], "cannot be written"),
    (["--config", "configs/digits.py", "--workdir", "x", "--config.num_epochs=ten"], "num_epochs"),
    (["--mode", "evaluate", "--workdir", "nothing_here"], "train there first"),
    (["--mode", "report", "--workdir", "nothing_here"], "nothing_here has no results.json"),
    (["--mode", "test", "--workdir", "x"], "choose from"),
    (["--config", "configs/digits.py", "--workdir", "x", "--config.method=pgd"], ":method=pgd"),
    (["--config", "configs/digits.py", "--workdir", "x", "--config.seed"], "--config.seed=VALUE"),
    (["--config", "configs/digits.py", "--workdir", "x", "more"], "more"),
    (["--config", "nothing", "--workdir", "x"], "choose one of: cifar10, default, digits"),
    (["--mode", "report", "--workdir", "x", "--config.seed=1"], "needs no config"),
  ],
)
def test_the_command_line_says_it_without_a_traceback(tmp_path, arguments, message):
  done = subprocess.run(
    [
      sys.executable,
      ROOT / "launch.py",
      *(str(ROOT / a) if a.startswith("configs/") else a for a in arguments),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env={**os.environ, "XLA_FLAGS": ""},
  )
  assert done.returncode != 0 and message in done.stderr, done.stderr
  assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()
