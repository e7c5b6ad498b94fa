"""The whole evaluation in L1, on a linear model with a closed form."""

import jax
import numpy as np

from sprout_jax import evaluation


def test_every_attack_in_l1(tmp_path):
  """A linear model is robust where margin / max |w| is above epsilon, away from the box's faces."""
  rng = np.random.RandomState(0)
  weights = rng.normal(size=(48, 2)).astype(np.float32)
  images = rng.uniform(0.4, 0.6, (30, 4, 4, 3)).astype(np.float32)
  predict = jax.tree_util.Partial(lambda w, x: (x - 0.5).reshape(len(x), -1) @ w, weights)
  logits = np.asarray(predict(images))
  labels = logits.argmax(-1)
  distance = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(weights[:, 0] - weights[:, 1]).max()
  epsilon = float(np.median(distance))
  assert epsilon < 0.4  # one pixel is enough
  found = evaluation.evaluate(
    predict,
    images,
    labels,
    workdir=tmp_path,
    evaluations=("pgd", "auto_attack", "noise", "sanity", "landscape", "examples"),
    norm="l1",
    epsilon=epsilon,
    epsilons=(0.0,),
    num_steps=20,
    num_restarts=1,
    progress=False,
    landscape={"num_examples": 8},
  )
  assert not found.failed
  numbers = found.numbers.where(norm="l1", epsilon=epsilon)
  exact = float((distance > epsilon).mean())
  assert (
    abs(numbers.first(evaluation="pgd").value - exact) <= 1 / 30
  )  # the median image is undecided
  strong = numbers.first(evaluation="auto_attack", stage=None)
  assert abs(strong.value - exact) <= 1 / 30 and strong["norm"] == "l1"
  assert numbers.first(evaluation="noise").value >= exact
  failed = {finding.check for finding in found.findings if not finding.passed}
  assert not failed
  assert "L1" in (tmp_path / "results.txt").read_text()
