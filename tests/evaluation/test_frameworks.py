"""evaluate() on models of Flax linen, NNX, Haiku, Equinox and Keras; killed, and continued."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sprout_jax import attacks
from sprout_jax import evaluation
from sprout_jax.errors import UserError
from sprout_jax.evaluation import randomness

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = np.random.RandomState(0).rand(24, 8, 8, 3).astype(np.float32)
EPSILON = 0.02
OPTIONS = dict(
  epsilon=EPSILON,
  epsilons=(),
  num_steps=3,
  num_restarts=1,
  step_size=0.01,
  evaluations=("pgd",),
  progress=False,
)


def linen():
  import flax.linen as nn

  class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
      x = nn.relu(nn.Conv(4, (3, 3))(images))
      return nn.Dense(3)(x.reshape(len(x), -1))

  network = Network()
  variables = network.init(jax.random.key(0), IMAGES)
  return jax.tree_util.Partial(network.apply, variables)


def nnx(evaluating=True):
  from flax import nnx

  class Network(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(4, rngs=rngs)
      self.drop = nnx.Dropout(0.5, rngs=rngs)
      self.dense = nnx.Linear(256, 3, rngs=rngs)

    def __call__(self, images):
      x = self.drop(nnx.relu(self.norm(self.conv(images))))
      return self.dense(x.reshape(len(x), -1))

  network = Network(nnx.Rngs(0))
  if evaluating:
    network.eval()
  return network


def haiku():
  hk = pytest.importorskip("haiku")
  network = hk.without_apply_rng(
    hk.transform(lambda images: hk.nets.MLP([8, 3])(hk.Flatten()(images)))
  )
  return jax.tree_util.Partial(network.apply, network.init(jax.random.key(0), IMAGES))


def equinox():
  eqx = pytest.importorskip("equinox")

  class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __call__(self, images):
      def one(image):
        return self.dense(jax.nn.relu(self.conv(image.transpose(2, 0, 1))).ravel())

      return jax.vmap(one)(images)

  keys = jax.random.split(jax.random.key(0))
  return Network(eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Linear(144, 3, key=keys[1]))


def function():
  weights = np.random.RandomState(1).randn(192, 3).astype(np.float32)
  return lambda images: (images - 0.5).reshape(len(images), -1) @ weights


@pytest.mark.parametrize("make", [linen, nnx, haiku, equinox, function])
def test_a_model_of_any_library(make, tmp_path):
  """The numbers are those of the model itself, attacked directly."""
  model = make()
  logits = np.asarray(model(jnp.asarray(IMAGES)))
  labels = logits.argmax(-1)
  labels[:2] = (labels[:2] + 1) % 3  # two are misclassified
  results = evaluation.evaluate(model, IMAGES, labels, workdir=tmp_path / "run", **OPTIONS)
  assert results.clean.value == 22 / 24
  key = jax.random.fold_in(randomness.root_key(0), 0)
  adversarial = jax.jit(
    lambda x, y, i: attacks.pgd(
      key, model, x, y, epsilon=EPSILON, step_size=0.01, num_steps=3, indices=i
    )
  )(IMAGES, labels, np.arange(24))
  right = np.asarray(model(adversarial)).argmax(-1) == labels
  number = results.numbers.first(evaluation="pgd", epsilon=EPSILON)
  np.testing.assert_array_equal(number.outcomes, right & (logits.argmax(-1) == labels))
  assert (tmp_path / "run" / "report" / "report.html").stat().st_size > 5000
  assert (tmp_path / "run" / "results.txt").exists()

  again = evaluation.evaluate(
    make(),
    (255 * IMAGES).round().astype(np.uint8) / np.float32(255),
    labels,
    workdir=tmp_path / "other",
    **OPTIONS,
  )
  assert again.about["parameters_sha256"] == results.about["parameters_sha256"]
  assert again.about["data"]["fingerprint"] != results.about["data"]["fingerprint"]


def test_a_module_in_training_mode_is_found_out(tmp_path):
  with pytest.raises(UserError, match=r"training mode"):
    evaluation.evaluate(
      nnx(evaluating=False), IMAGES, np.zeros(24, int), workdir=tmp_path, **OPTIONS
    )


KERAS = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import jax, keras, numpy as np
from sprout_jax import evaluation
keras.utils.set_random_seed(0)
model = keras.Sequential([
  keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu"),
  keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(3)])
trainable = [v.value for v in model.trainable_variables]
rest = [v.value for v in model.non_trainable_variables]


def call(trainable, rest, images):
  return model.stateless_call(trainable, rest, images, training=False)[0]


images = np.random.RandomState(0).rand(24, 8, 8, 3).astype(np.float32)
labels = np.asarray(model(images)).argmax(-1)
predict = jax.tree_util.Partial(call, trainable, rest)
results = evaluation.evaluate(
  predict, images, labels, workdir={workdir!r}, epsilon=0.02, epsilons=(0.0,), num_steps=2,
  num_restarts=1, evaluations=("pgd",), progress=False)
print(results.clean.value, results.numbers.first(evaluation="pgd", epsilon=0.0).value)
"""


def run(code, **kwargs):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
    **kwargs,
  )


def test_a_keras_model(tmp_path):
  if importlib.util.find_spec("keras") is None:  # importing it here would start its own backend
    pytest.skip("keras is not installed")
  process = run(KERAS.format(workdir=str(tmp_path)))
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert out.split()[-2:] == ["1.0", "1.0"]


SLOW = """
import numpy as np
from sprout_jax import evaluation
weights = np.random.RandomState(1).randn(192, 3).astype(np.float32)
images = np.random.RandomState(0).rand(64, 8, 8, 3).astype(np.float32)
predict = lambda images: (images - 0.5).reshape(len(images), -1) @ weights
labels = np.asarray(predict(images)).argmax(-1)
evaluation.evaluate(
  predict, images, labels, workdir={workdir!r}, epsilon=0.02, num_steps=20, num_restarts=2,
  epsilons=tuple(round(0.001 * k, 3) for k in range(40)), evaluations=("pgd", "noise"),
  noise={{"num_draws": 3}}, progress=False)
"""


def test_a_killed_call_continues_with_the_same_numbers(tmp_path):
  whole = run(SLOW.format(workdir=str(tmp_path / "whole")))
  killed = run(SLOW.format(workdir=str(tmp_path / "killed")))
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:  # until some pieces lie there
    pieces = list((tmp_path / "killed" / "evaluation").glob("*.partial.jsonl"))
    if pieces and len(pieces[0].read_text().splitlines()) >= 3:
      break
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  assert killed.wait(60) == -signal.SIGKILL
  assert not (tmp_path / "killed" / "results.json").exists()
  killed.communicate()
  continued = run(SLOW.format(workdir=str(tmp_path / "killed")))
  for process in (whole, continued):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  found = [json.loads((tmp_path / w / "results.json").read_text()) for w in ("whole", "killed")]
  assert found[0]["numbers"] == found[1]["numbers"] and len(found[0]["numbers"]) > 40
  assert found[0]["findings"] == found[1]["findings"]


def test_plain_convolutions_are_exchanged_where_it_pays(tmp_path, monkeypatch):
  """The attacked function is the exchanged one; the numbers and the identity stay."""
  from sprout_jax.attacks import convolutions

  model = linen()
  labels = np.asarray(model(jnp.asarray(IMAGES))).argmax(-1)
  monkeypatch.setattr(convolutions, "pays", lambda predict, images: True)
  traced = []
  original = convolutions.exchange_convolutions
  monkeypatch.setattr(
    convolutions, "exchange_convolutions", lambda predict: traced.append(1) or original(predict)
  )
  first = evaluation.evaluate(model, IMAGES, labels, workdir=tmp_path / "a", **OPTIONS)
  assert traced
  traced.clear()
  plain = evaluation.evaluate(
    model, IMAGES, labels, workdir=tmp_path / "b", fast_convolutions=False, **OPTIONS
  )
  assert not traced
  assert [n.value for n in first.numbers] == [n.value for n in plain.numbers]
  assert first.about["parameters_sha256"] == plain.about["parameters_sha256"]
