"""VGG with batch norm: Simonyan and Zisserman (2015), table 1, A, B, D and E.

The convolutions are the paper's, each followed by batch norm. For small images one dense layer
replaces the paper's three, as in the PyTorch code for CIFAR-10 that robustness papers (SPROUT among
them) use: VGG-16 has 14,728,266 parameters at 10 classes. For ImageNet there are three, as in
torchvision's VGG-BN: VGG-16 has 138,365,992 parameters at 1,000 classes.
"""

from typing import Any

import flax.linen as nn
import jax

from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import adaptive_average_pool
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import max_pool
from sprout_jax.models.layers import norm

MAP = 7  # rows and columns of the map that the dense layers take
WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # per stage; the depth counts them and the original's three dense layers
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}


class VGG(Classifier):
  """Five stages of convolution, norm, activation and a 2x2 max pooling; then the global average.

  The last map is 1x1 for images of 32x32, and 7x7 for 224x224. Convolutions have a bias, as in the
  published network, although the norm after them cancels it.

  Attributes:
    depth: a key of CONVOLUTIONS.
    hidden: width of two dense layers before the last one, each with an activation. They take a 7x7
      map, flattened as (row, column, channel), instead of the global average. 0 leaves them out.
      torchvision's dropout between them, which acts in training only, is left out.
  """

  depth: int = 16
  hidden: int = 0

  smallest = 32
  multiple = 32

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    for stage, (width, count) in enumerate(zip(WIDTHS, CONVOLUTIONS[self.depth]), start=1):

      def block(
        self: Any, x: jax.Array, stage: int = stage, width: int = width, count: int = count
      ) -> jax.Array:
        for i in range(1, count + 1):
          x = Conv(width, 3, padding=1, use_bias=True, dtype=self.dtype, name=f"conv{stage}_{i}")(x)
          x = self.act(norm(train, self.dtype, f"norm{stage}_{i}")(x))
        return max_pool(x)

      x = self.block(block, x)
    if not self.hidden:
      return average_pool(x, 1).reshape(len(x), -1)
    x = adaptive_average_pool(x, MAP).reshape(len(x), -1)
    for i in (1, 2):
      x = self.act(nn.Dense(self.hidden, dtype=self.dtype, name=f"dense{i}")(x))
    return x
