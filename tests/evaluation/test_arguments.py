"""The arguments of `evaluate` that new users give, and what the errors say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sprout_jax.errors import UserError
from sprout_jax.evaluation import evaluate
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import subject as subject_lib
from tests.evaluation import subjects


def call(tmp_path, **changes):
  subject = subjects.make()
  options = dict(workdir=tmp_path, evaluations=("calibration",), progress=False) | changes
  return evaluate(subject.predict, subject.images, subject.labels, **options)


def test_one_evaluation_can_be_a_string(tmp_path):
  assert set(call(tmp_path, evaluations="calibration").stored) == {"calibration"}


def test_the_path_of_the_report_is_printed(tmp_path, capsys):
  call(tmp_path / "run", progress=True)
  path = tmp_path / "run" / "report" / "report.html"
  assert f"\nreport: {path}\n" in capsys.readouterr().out and path.exists()


@pytest.mark.parametrize("epsilon", [np.float32(0.25), np.array(0.25), jnp.float32(0.25), 0.25])
def test_the_default_curve_of_numbers_of_any_kind(tmp_path, epsilon):
  found = call(tmp_path, epsilon=epsilon, evaluations="noise", noise=dict(num_draws=1))
  options = found.stored["noise"].options
  assert tuple(options["epsilons"]) == (0, 0.125, 0.25, 0.375, 0.5)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(norm="l2"), "norm is 'l2', but epsilon is not given; type epsilon=VALUE"),
    (dict(norm="l2", epsilon=128), "by at most 8 in l2; did you mean 128/255?"),
    (dict(norm="l1", epsilon=64.0), "by at most 64 in l1"),
    (dict(seed=jax.random.key(0)), "evaluate.seed is"),
    (dict(workdir=None), "workdir is None; expected the path of a folder"),
    (dict(epsilon="8/255"), "evaluate.epsilon is '8/255'; it must be a number"),
    (dict(steps=10), "Did you mean 'num_steps'?"),
    (dict(eps=0.1), "Did you mean 'epsilon'?"),
    (dict(evaluation="pgd"), "Did you mean 'evaluations'?"),
    (dict(strength={"step": (5,)}), "Did you mean 'steps'?"),
    (dict(evaluations="fgsm"), "an entry is 'fgsm'; choose one of"),
  ],
)
def test_wrong_arguments_name_the_right_ones(tmp_path, changes, message):
  with pytest.raises(UserError) as error:
    call(tmp_path, **changes)
  assert message in str(error.value)


def test_grey_images_need_channels():
  with pytest.raises(UserError, match=r"For grey images give images\[..., None\]"):
    preflight.check_data(np.zeros((5, 8, 8), np.float32), np.zeros(5, int))


class Convolution(nnx.Module):
  def __init__(self):
    self.convolution = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))

  def __call__(self, images):
    return self.convolution(images).mean((1, 2))


@pytest.mark.parametrize(
  "shape, message",
  [
    ((3, 8, 8), r"accepts \(2, 8, 8, 3\).* channels first: give images.transpose\(0, 2, 3, 1\)"),
    ((8, 8, 1), "images of another size or number of channels"),
  ],
)
def test_an_nnx_convolution_on_other_channels(shape, message):
  model = subject_lib.as_pytree(Convolution())
  with pytest.raises(UserError, match=message):
    preflight.check_trace("the model", model, shape)
  assert preflight.check_trace("the model", model, (8, 8, 3)).shape == (2, 4)
