"""Random configs: each traces a training step, or is refused by an error of this package.

`FUZZ_EXAMPLES=2000 python -m pytest tests/launcher/test_fuzz.py` tries more than the suite does.
"""

import functools
import os

import jax
import jax.numpy as jnp
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax import data
from sprout_jax import methods
from sprout_jax import models
from sprout_jax import sharding
from sprout_jax.configs import default
from sprout_jax.configs import methods as options
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.launcher import trained
from sprout_jax.training import loop
from sprout_jax.training import step

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 40))
# Texts that a hand or a script types by mistake, and some that are right.
TEXTS = (
  *("", "0", "1", "-1", "2", "3.5", "1e-3", "8/255", "1/0", "nan", "inf", "-inf", "1e400", "None"),
  *("2147483648", "10000000000000000000", "-9223372036854775809", "true", "False", "()", "(1,)"),
  *("((1.0,),)", "({},)", "[[]]", "(1, 'a')", "0.1,0.2", ",", "a,b", "linf", "l2", "pgd", "best"),
  *("adamw", "piecewise", "bfloat16", "float16", "gelu", "softplus", "wrn_10_1", "wrn_10_99999999"),
  *(
    "wrn_-4_2",
    "vgg16",
    "preact_resnet18",
    "x" * 300,
    "../x",
    "\x00",
    "é",
    "{}",
    "lambda: 0",
    "dlr",
  ),
  *("shard_map", "pmap", "margin", "last", "released", "mean", "learned", "ones"),
)


def base(method, penalty):
  return default.get_config(method, penalty=penalty)


def keys(config):
  """The keys that are changed; other data sets have tests of their own."""
  return sorted({*configuration.flatten(config.to_dict())} - {"dataset.name"})


CHANGES = strategies.lists(
  strategies.tuples(
    strategies.integers(0, 10**6),
    strategies.one_of(
      strategies.sampled_from(TEXTS),
      strategies.floats().map(str),
      strategies.integers(-(2**70), 2**70).map(str),
      strategies.text(max_size=8),
    ),
  ),
  min_size=1,
  max_size=3,
)


def trace(config):
  """Does what `modes.train` does before it compiles, and traces the step."""
  configuration.validate(config)
  models.check_name(config.model.name)
  method = methods.create(config.method.name, configuration.options(config.method))
  penalty = methods.create_penalty(config.penalty.name, configuration.options(config.penalty))
  mesh = sharding.make_mesh(jax.devices()[:1], config.parameter_shards)
  sharding.check_batch("config.batch_size", config.batch_size, mesh)
  request = configuration.data_request(config)
  dataset = data.load_as(request, config.dataset.validation_fraction)
  model = trained.create_model(config, 10, (8, 8, 1))
  recipe, abstract = loop.prepare(config, dataset, model, method, penalty, mesh)
  batch = jax.ShapeDtypeStruct((config.batch_size, 8, 8, 1), jnp.uint8)
  labels = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  same = lambda x: x
  run = functools.partial(step.train_step, recipe, shard=same, mean=same)
  jax.eval_shape(run, abstract, batch, labels)


@settings(
  max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
  strategies.sampled_from(sorted(options.METHOD_OPTIONS)),
  strategies.sampled_from(sorted(options.PENALTY_OPTIONS)),
  CHANGES,
)
def test_every_config_traces_a_step_or_is_refused(method, penalty, changes):
  config = base(method, penalty).unlock()
  names = keys(config)
  changes = [(names[place % len(names)], text) for place, text in changes]
  try:
    configuration.override(config, changes)
    trace(config.lock())
  except UserError as error:
    assert str(error)
