"""Random arguments of the public functions: each call is traced, or is refused by name.

`FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz.py` tries more than the suite does.
"""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax import vicinity

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 10))
BATCH, SHAPE, CLASSES = 4, (4, 4, 1), 5
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(BATCH, *SHAPE)).astype(np.float32)
LABELS = np.arange(BATCH, dtype=np.int32)
SOFT = np.eye(CLASSES, dtype=np.float32)[LABELS]
LOGITS = RNG.normal(size=(BATCH, CLASSES)).astype(np.float32)
WEIGHTS = RNG.normal(size=(16, CLASSES)).astype(np.float32)
BETA = np.ones(CLASSES, np.float32)


def predict(images):
  return images.reshape(len(images), math.prod(images.shape[1:])) @ WEIGHTS  # also for no images


def loss(images):
  return jnp.sum(images**2, (1, 2, 3))


ATTACK = {"predict": predict, "images": IMAGES, "labels": LABELS}
STEPS = {"num_steps": 2}
PUBLIC = {
  vicinity.gaussian_noise: {"key": KEY, "images": IMAGES, "stddev": 0.1},
  vicinity.mixup_pairs: {"key": KEY, "batch_size": BATCH, "alpha": 0.2},
  vicinity.mix: {"values": IMAGES, "weight": 0.5, "partners": LABELS},
  vicinity.mixup: {"key": KEY, "images": IMAGES, "labels": SOFT, "alpha": 0.2},
  vicinity.dirichlet_concentration: {
    "labels": SOFT,
    "beta": BETA,
    "label_weight": 0.9,
    "beta_weight": 0.1,
  },
  vicinity.sample_dirichlet_labels: {"key": KEY, "concentration": SOFT},
  vicinity.mean_dirichlet_labels: {"concentration": SOFT},
  losses.soft_cross_entropy: {"logits": LOGITS, "labels": SOFT},
  losses.cross_entropy: {"logits": LOGITS, "labels": LABELS},
  losses.log_odds: {"logits": LOGITS, "labels": LABELS},
  losses.margin: {"logits": LOGITS, "labels": LABELS},
  losses.targeted_margin: {"logits": LOGITS, "labels": LABELS, "targets": LABELS[::-1]},
  losses.difference_of_logits_ratio: {"logits": LOGITS, "labels": LABELS},
  losses.targeted_difference_of_logits_ratio: {
    "logits": LOGITS,
    "labels": LABELS,
    "targets": LABELS[::-1],
  },
  losses.kl_divergence: {"logits": LOGITS, "target_logits": LOGITS},
  losses.input_gradient_norm: {"loss": loss, "images": IMAGES, "norm": "linf"},
  losses.curvature: {"loss": loss, "images": IMAGES, "h": 0.1},
  attacks.fgsm: {**ATTACK, "epsilon": 0.1, "norm": "linf", "loss": "margin"},
  attacks.pgd: {
    "key": KEY,
    **ATTACK,
    "epsilon": 0.1,
    "step_size": 0.05,
    **STEPS,
    "norm": "linf",
    "loss": "cross_entropy",
    "start": "uniform",
    "keep": "best",
    "momentum": 0.0,
    "num_restarts": 1,
    "indices": LABELS,
  },
  attacks.pgd_trace: {"key": KEY, **ATTACK, "epsilon": 0.1, "step_size": 0.05, **STEPS},
  attacks.apgd: {"key": KEY, **ATTACK, "epsilon": 0.1, **STEPS, "norm": "l2", "num_runs": 1},
  attacks.fab: {"key": KEY, **ATTACK, "epsilon": 0.1, **STEPS, "norm": "linf", "num_runs": 1},
  attacks.square: {"key": KEY, **ATTACK, "epsilon": 0.1, "norm": "linf", **STEPS},
  attacks.carlini_wagner: {"predict": predict, "images": IMAGES, "labels": LABELS, **STEPS},
}


class Foreign:
  """An array of another library, as JAX and NumPy see one of PyTorch."""

  shape, ndim, dtype = (BATCH, CLASSES), 2, object()

  def __len__(self):
    return BATCH


ODD = (
  *(Foreign(), [0.1, [0.2]], 10**5000, np.float32(-1), jnp.float32(-1), jnp.float32(0)),
  *(jnp.zeros(3, jnp.uint32), np.zeros(2, np.uint32), lambda *arrays: arrays[0].no_attribute),
  *(None, True, 0, 1, -1, 3, 2**31, 2**70, -(2**70), 0.5, -0.5, 1e-30, 1e300, 1j, b"x", object()),
  *(float("nan"), float("inf"), float("-inf"), "", "linf", "l1", "8/255", "nearest", "x" * 300),
  *([], (), {}, [0.1], [[0.1]], {"a": 1}, jax.random.key(1), jax.random.PRNGKey(0)),
  *(predict, loss, print, lambda: None, lambda images: images, lambda images: None),
  lambda images: jax.nn.softmax(predict(images)),
  lambda images: predict(images)[:2],
  lambda images: predict(np.asarray(images)),
  lambda logits, labels: logits,
  *(IMAGES, LABELS, SOFT, LOGITS, BETA, LABELS + 3, -LABELS, LABELS.astype(np.float32)),
  *(IMAGES.astype(np.float64), IMAGES.astype(np.float16), IMAGES * 255, IMAGES * np.nan, -IMAGES),
  *((255 * IMAGES).astype(np.uint8), IMAGES > 0.5, IMAGES.astype(complex), IMAGES.astype(str)),
  *(IMAGES.tolist(), IMAGES[0], IMAGES[:0], IMAGES[:1], IMAGES[..., 0], np.array(None)),
  *(np.float32(0.1), np.zeros(()), np.zeros(0), np.zeros(BATCH), np.zeros((BATCH, 2)), np.int64(2)),
)
CHANGES = strategies.dictionaries(
  strategies.integers(0, 20), strategies.sampled_from(range(len(ODD))), min_size=1, max_size=2
)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
@settings(
  max_examples=EXAMPLES,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
@given(changes=CHANGES)
def test_a_call_is_traced_or_refused_by_name(function, changes):
  arguments = dict(PUBLIC[function])
  names = list(arguments)
  for place, value in changes.items():
    arguments[names[place % len(names)]] = ODD[value]
  try:
    jax.eval_shape(functools.partial(function, **arguments))
  except ValueError as error:
    assert f"{error}".startswith(f"{function.__name__}: "), error


def test_every_function_is_here():
  of = lambda module: {
    value
    for name, value in vars(module).items()
    if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
  }
  pure = {one for module in (losses, vicinity) for one in of(module) if callable(one)}
  assert {one for one in pure if isinstance(one, type(predict))} <= set(PUBLIC)
