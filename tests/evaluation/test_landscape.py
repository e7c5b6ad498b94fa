"""landscape: a linear model's loss is known everywhere on the plane."""

import numpy as np

from sprout_jax.evaluation import landscape
from tests.evaluation import subjects
from tests.linear import linear_problem

A, B = np.linspace(-0.5, 0.5, 5), np.array([-0.3, 0.0, 0.7])


def surface(seed=0, rows=slice(None), scale=1.0, batch_size=8):
  subject, _, _ = subjects.two_classes(6, scale=scale, batch_size=batch_size)
  return landscape.surfaces(subject, subject.take(np.arange(6)[rows]), A, B, seed)


def test_linear_model_by_its_formula():
  """softplus(-(margin - a |w|_1 + b w . r)): along the sign gradient the margin falls by |w|_1.

  w . r is not known, but is the same number along the whole row; pixels leave [0, 1] and the
  formula still holds, so nothing is clipped.
  """
  _, _, margin, norm = linear_problem(6)
  values = surface()
  assert values.shape == (6, 5, 3)
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
    lead = -np.log(np.expm1(surface(seed)))
    slopes.append(lead[:, 2, 2] - lead[:, 2, 0])
    assert np.abs(slopes[-1][:, None] - sums).min(1).max() < 5e-3
  assert np.abs(slopes[0] - slopes[1]).max() > 0.1 and len(set(np.round(slopes[0], 3))) > 3


def test_an_image_is_drawn_by_its_index_on_any_devices():
  whole = surface()
  with subjects.devices(1):
    part = surface(rows=slice(4, 6), batch_size=4)
  np.testing.assert_allclose(part, whole[4:], rtol=1e-5)


def test_a_confident_model_still_has_a_sign_gradient():
  """Where softmax saturates the cross-entropy's gradient is zero, but not the plane's direction."""
  values = surface(scale=2000.0)[:, :, 1]
  assert (values[:, 0] < values[:, -1]).all()


def test_a_surface_that_is_not_finite_has_no_highest_loss():
  """A plane without numbers is JSON all the same (see `results.files.plain`)."""
  subject, _, _ = subjects.two_classes(6, scale=np.nan)
  found = subjects.measure("landscape", subject, landscape={"num_points": 3})
  (number,) = found.numbers
  assert number.value is None and number.count == 6
  assert np.isnan(found.details["loss"]).all() and np.shape(found.details["loss"]) == (3, 3)
