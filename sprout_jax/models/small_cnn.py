"""A small network that trains in minutes on a CPU; the attacks' reference results are on it."""

from typing import Any

import jax

from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import average_pool


class SmallCNN(Classifier):
  """Three 3x3 convolutions (32, 64, 128; strides 1, 2, 2; padding 1; bias), no batch norm.

  An activation follows each. Averages down to a 2x2 map give 512 features in the order (row,
  column, channel). PyTorch flattens (channel, row, column). So its dense weight w [classes, 512]
  becomes this kernel by::

      w.reshape(classes, 128, 2, 2).transpose(2, 3, 1, 0).reshape(512, classes)

  and its convolution weights [output, input, height, width] by transpose(2, 3, 1, 0).
  """

  smallest = 8
  multiple = 8  # a quarter of the size must be even, for the 2x2 map

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    del train  # no layer depends on it
    for i, (width, strides) in enumerate(((32, 1), (64, 2), (128, 2)), start=1):

      def block(
        self: Any, x: jax.Array, i: int = i, width: int = width, strides: int = strides
      ) -> jax.Array:
        conv = Conv(width, 3, strides, 1, use_bias=True, dtype=self.dtype, name=f"conv{i}")
        return self.act(conv(x))

      x = self.block(block, x)
    return average_pool(x, 2).reshape(len(x), -1)
