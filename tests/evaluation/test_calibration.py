"""calibration_errors: three images by hand; a classifier whose calibration error is known."""

import json

import numpy as np
import pytest

from sprout_jax.evaluation.calibration import calibration_errors
from tests.evaluation import subjects


def test_three_images_by_hand():
  """Confidences 0.8 (right), 0.8 (wrong), 0.5 (right), in three bins of a third each."""
  probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.5, 0.5]])
  found = calibration_errors(np.log(probabilities) + 3.0, [0, 0, 0], num_bins=3)
  np.testing.assert_allclose(found["ece"], (2 * abs(0.5 - 0.8) + 1 * abs(1 - 0.5)) / 3)
  np.testing.assert_allclose(found["nll"], -(np.log(0.8) + np.log(0.2) + np.log(0.5)) / 3)
  np.testing.assert_allclose(found["brier"], (2 * 0.2**2 + 2 * 0.8**2 + 2 * 0.5**2) / 3)
  np.testing.assert_allclose([found["confidence"], found["accuracy"]], [0.7, 2 / 3])
  assert [b["count"] for b in found["bins"]] == [0, 1, 2]
  assert found["bins"][0]["confidence"] is None and found["bins"][0]["accuracy"] is None
  last = [found["bins"][2][key] for key in ("low", "high", "confidence", "accuracy")]
  np.testing.assert_allclose(last, [2 / 3, 1, 0.8, 0.5])
  json.dumps(found, allow_nan=False)


def test_bins_are_open_below_and_closed_above():
  """A confidence on an edge belongs to the bin below it; 1 to the last."""
  logits = np.array([[0.0, 0.0], [0.0, 1000.0]])  # confidences 1/2 and 1
  counts = [b["count"] for b in calibration_errors(logits, [0, 1], num_bins=2)["bins"]]
  assert counts == [1, 1]
  assert calibration_errors(logits[:1], [0], num_bins=4)["bins"][1]["count"] == 1


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_a_classifier_with_a_known_error(shift):
  """Right with probability (confidence - shift): the error is the shift, the rest closed forms."""
  rng = np.random.default_rng(0)
  count = 200_000
  p = rng.uniform(0.62, 0.98, count)
  right = rng.random(count) < p - shift
  logits = np.stack([np.log(p / (1 - p)), np.zeros(count)], -1)
  found = calibration_errors(logits, np.where(right, 0, 1))
  np.testing.assert_allclose(found["ece"], shift, atol=4e-3)
  q = p - shift
  brier = np.mean(2 * (q * (1 - p) ** 2 + (1 - q) * p**2))
  nll = -np.mean(q * np.log(p) + (1 - q) * np.log(1 - p))
  np.testing.assert_allclose([found["brier"], found["nll"]], [brier, nll], rtol=0.01)
  assert sum(b["count"] for b in found["bins"]) == count and found["num_bins"] == 15


def test_confident_logits_do_not_overflow():
  found = calibration_errors([[1e4, 0.0], [0.0, 1e4]], [0, 0])
  np.testing.assert_allclose([found["nll"], found["ece"], found["brier"]], [5e3, 0.5, 1])


@pytest.mark.parametrize(
  "logits, labels, message",
  [
    ([[1.0, np.nan]], [0], "logits of 1 images are not finite"),
    ([[1.0, 0.0]], [2], "2 classes"),
    ([[1.0, 0.0]], [0, 1], "expected"),
    (np.zeros((0, 2)), [], "at least 1"),
  ],
)
def test_wrong_input_is_refused(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    calibration_errors(logits, labels)


def test_numbers_of_a_subject():
  """Each number of the function, with its unit and the number of bins."""
  subject, margin, _ = subjects.two_classes()
  found = subjects.measure("calibration", subject, calibration={"num_bins": 4})
  logits = np.stack([margin, 0 * margin], -1)  # the same probabilities, the label first
  expected = calibration_errors(logits, np.zeros(37, int), num_bins=4)
  by = {number.metric: (number.value, number.unit) for number in found.numbers}
  for metric, name, unit in (
    ("expected_calibration_error", "ece", "share"),
    ("mean_confidence", "confidence", "share"),
    ("negative_log_likelihood", "nll", "nats"),
    ("brier_score", "brier", ""),
    ("accuracy", "accuracy", "share"),
  ):
    np.testing.assert_allclose(by[metric][0], expected[name], rtol=1e-4)
    assert by[metric][1] == unit
  np.testing.assert_array_equal(found.numbers.first(metric="accuracy").outcomes, margin > 0)
  assert all(number["bins"] == 4 and number.count == 37 for number in found.numbers)
  assert [b["count"] for b in found.details["bins"]] == [b["count"] for b in expected["bins"]]
