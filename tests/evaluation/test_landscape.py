"""landscape: a linear model's loss is known everywhere on the plane."""

import functools
import json

import jax
import numpy as np

from sprout_jax import sharding
from sprout_jax.evaluation import landscape
from tests.linear import Linear
from tests.linear import linear_problem

ALONE = sharding.make_mesh(jax.devices()[:1])  # compiles faster than eight
A, B = np.linspace(-0.5, 0.5, 5), np.array([-0.3, 0.0, 0.7])
surface_fn = functools.cache(landscape.surface_fn)


def surface(mesh, seed=0, count=6, rows=slice(None), scale=1.0):
  split, variables, _, _ = linear_problem(count)
  variables = jax.tree.map(lambda leaf: scale * leaf, variables)
  return landscape.landscape(
    surface_fn(Linear(), seed, mesh),
    variables,
    split.images[rows],
    split.labels[rows],
    np.arange(count)[rows],
    A,
    B,
    seed,
    8,
    mesh,
  )


def test_linear_model_by_its_formula():
  """softplus(-(margin - a |w|_1 + b w . r)): along the sign gradient the margin falls by |w|_1.

  w . r is not known, but is the same number along the whole row; pixels leave [0, 1] and the
  formula still holds, so nothing is clipped.
  """
  _, _, margin, norm = linear_problem(6)
  found = surface(ALONE)
  values = np.array(found["per_image"])
  lead = -np.log(np.expm1(values))  # softplus(-lead) inverted
  np.testing.assert_allclose(lead[:, :, 1], margin[:, None] - A * norm, atol=2e-3)
  along = lead - lead[:, :, 1:2]  # b w . r, for every a
  np.testing.assert_allclose(along, np.broadcast_to(along[:, 2:3], along.shape), atol=5e-3)
  np.testing.assert_allclose(along[:, 2, 2] / 0.7, along[:, 2, 0] / -0.3, atol=5e-3)


def test_random_direction_is_a_sign_for_every_pixel():
  """w . r is one of the 2^9 sums of +-w, and another one for other images and seeds."""
  _, variables, _, _ = linear_problem(6)
  kernel = variables["params"]["Dense_0"]["kernel"]
  w = kernel[:, 0] - kernel[:, 1]
  signs = 2 * ((np.arange(512)[:, None] >> np.arange(9)) & 1) - 1
  sums = signs @ w
  slopes = []
  for seed in (0, 1):
    lead = -np.log(np.expm1(np.array(surface(ALONE, seed)["per_image"])))
    slopes.append(lead[:, 2, 2] - lead[:, 2, 0])
    assert np.abs(slopes[-1][:, None] - sums).min(1).max() < 5e-3
  assert np.abs(slopes[0] - slopes[1]).max() > 0.1 and len(set(np.round(slopes[0], 3))) > 3


def test_mean_shape_and_record():
  found = surface(ALONE)
  np.testing.assert_allclose(np.mean(found["per_image"], 0), found["loss"], rtol=1e-6)
  assert np.shape(found["loss"]) == (5, 3) and found["count"] == 6 and found["clipped"] is False
  np.testing.assert_allclose(found["sign_gradient"], A)
  np.testing.assert_allclose(found["rademacher"], B, rtol=1e-6)
  json.dumps(found, allow_nan=False)


def test_an_image_is_drawn_by_its_index_on_any_devices():
  whole = surface(ALONE)
  part = surface(sharding.make_mesh(), rows=slice(4, 6))
  np.testing.assert_allclose(part["per_image"], whole["per_image"][4:], rtol=1e-5)
  assert part["indices"] == [4, 5]


def test_a_confident_model_still_has_a_sign_gradient():
  """Where softmax saturates the cross-entropy's gradient is zero, but not the plane's direction."""
  values = np.array(surface(ALONE, scale=2000.0)["per_image"])[:, :, 1]
  assert (values[:, 0] < values[:, -1]).all()
