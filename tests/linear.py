"""A linear model of two classes and images for it, whose accuracy under attack is known."""

import flax.linen as nn
import numpy as np

from sprout_jax.data import Split


class Linear(nn.Module):
  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(2)((images - 0.5).reshape(len(images), -1))


def linear_problem(count=37):
  rng = np.random.default_rng(0)
  images = rng.uniform(0.4, 0.6, (count, 3, 3, 1)).astype(np.float32)
  kernel = rng.normal(size=(9, 2)).astype(np.float32)
  variables = {"params": {"Dense_0": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}
  labels = rng.integers(2, size=count).astype(np.int32)
  scores = (images.reshape(count, 9) - 0.5) @ (kernel[:, 0] - kernel[:, 1])
  margin = np.where(labels == 0, scores, -scores)
  return Split(images, labels), variables, margin, np.abs(kernel[:, 0] - kernel[:, 1]).sum()
