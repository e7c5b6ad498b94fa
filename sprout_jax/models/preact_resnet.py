"""PreActResNet-18 for small images, He et al. (2016b).

Released code differs in two things:

- Some networks have no batch norm after the last block: its sum is averaged directly (11,171,146
  parameters at 10 classes). Others have one, as in the paper (11,172,170).
- The convolution of a shortcut takes act(norm1(x)), as in the paper, or x. The parameters have the
  same names and shapes in both cases, so that a file of weights does not show which it needs.

In RobustBench, fast adversarial training (Wong et al., 2020) and Andriushchenko and Flammarion
(2020) have x and no last norm. Rice et al. (2020) and Kireev et al. (2021) have act(norm1(x)) and a
last norm.
"""

from typing import Any

import jax

from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import PreActBlock
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm


class PreActResNet18(Classifier):
  """A 3x3 convolution of stride 1, four stages of two blocks (64 to 512 wide), global average.

  Attributes:
    final_norm: True adds batch norm and activation after the last block.
    raw_shortcut: True lets the convolutions of shortcuts take x, see `layers.PreActBlock`.
  """

  final_norm: bool = False
  raw_shortcut: bool = False

  smallest = 8

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(64, 3, padding=1, dtype=self.dtype, name="conv")(x)
    for stage in (1, 2, 3, 4):
      for i in (1, 2):

        def block(self: Any, x: jax.Array, stage: int = stage, i: int = i) -> jax.Array:
          return PreActBlock(
            32 * 2**stage,
            2 if stage > 1 and i == 1 else 1,
            self.activation,
            self.dtype,
            self.raw_shortcut,
            name=f"block{stage}_{i}",
          )(x, train)

        x = self.block(block, x)
    if self.final_norm:
      x = self.act(norm(train, self.dtype, "norm")(x))
    return average_pool(x, 1).reshape(len(x), -1)
