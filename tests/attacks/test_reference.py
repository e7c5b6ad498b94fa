"""APGD and FAB against the outcomes of the reference implementation, where its files are present.

For all attacks on 200 images of each network: `benchmarks/auto_attack.py parity`.
"""

import importlib.util
import pathlib

import jax
import pytest

from sprout_jax import attacks

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden" / "autoattack"


@pytest.fixture(scope="module", autouse=True)
def optimized():
  """These programs run longer than they compile, so optimizations stay on here."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def benchmark():
  spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "auto_attack.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def one_function():
  """One function for models that differ in their weights only: they share compiled programs."""
  functions = {}
  return lambda predict: jax.tree_util.Partial(
    functions.setdefault("predict", predict.func), *predict.args
  )


@pytest.mark.skipif(not GOLDEN.exists(), reason="the reference's outcomes (../shared) are not here")
@pytest.mark.parametrize(
  "network, norm, name",
  [
    ("adversarial_8", "linf", "apgd-ce"),
    ("natural_1", "linf", "apgd-ce"),
    ("soft_2", "linf", "apgd-ce"),
    ("soft_2", "l1", "apgd-ce"),
    ("natural_1", "l1", "fab-t"),
  ],
)
def test_the_same_images_break(benchmark, one_function, network, norm, name):
  predict, images, labels, epsilon, outcomes = benchmark.load(GOLDEN / f"{network}.npz", norm)
  few = slice(0, 24)
  robust = attacks.auto_attack(
    jax.random.key(0),
    one_function(predict),
    images[few],
    labels[few],
    epsilon=epsilon,
    norm=norm,
    version=name,
    batch_size=8,
    devices=jax.devices()[:1],
  ).robust
  expected = outcomes[name][few]
  assert (robust != expected).sum() <= 1 and 4 < expected.sum() < 20
