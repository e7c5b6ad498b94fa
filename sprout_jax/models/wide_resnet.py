"""Wide residual networks, Zagoruyko and Komodakis (2016).

Depth counts the first convolution, the 6n of the blocks and the three shortcut convolutions. The
SPROUT paper counts the dense layer but no shortcuts: its Wide ResNet of depth 20 has depth 22 here.
WRN-28-10 has 36,479,194 parameters at 10 classes.
"""

from typing import Any

import jax

from sprout_jax.errors import UserError
from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import PreActBlock
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm


class WideResNet(Classifier):
  """Three groups of (depth - 4) / 6 pre-activation blocks, 16, 32 and 64 times `width` wide.

  The strides are 1, 2, 2. Norm and activation follow the last block, then the global average. There
  is no dropout.

  Attributes:
    depth: 6n + 4, at least 10.
    width: widening factor, at least 1.
    same_padding: True uses "SAME" padding where the stride is 2, as DeepMind's networks do (Gowal
      et al., "Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial
      Examples", 2020). False uses PyTorch's. See `layers.PreActBlock`.

  Raises:
    UserError: the depth is not 6n + 4 with n of at least 1, or the width is below 1.
  """

  depth: int = 28
  width: int = 10
  same_padding: bool = False

  smallest = 4

  def __post_init__(self) -> None:
    if self.depth < 10 or self.depth % 6 != 4:
      hint = "; the SPROUT paper's depth 20 is 22 here: wrn_22_10" if self.depth == 20 else ""
      raise UserError(
        f"Wide ResNet depth is {self.depth}; valid depths are 6n + 4: "
        f"10, 16, 22, 28, 34, 40, ...{hint}"
      )
    if self.width < 1:
      raise UserError(f"Wide ResNet width is {self.width}; it must be at least 1: wrn_28_1")
    super().__post_init__()

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(16, 3, padding=1, dtype=self.dtype, name="conv")(x)
    for group in (1, 2, 3):
      for i in range(1, (self.depth - 4) // 6 + 1):

        def block(self: Any, x: jax.Array, group: int = group, i: int = i) -> jax.Array:
          return PreActBlock(
            8 * 2**group * self.width,
            2 if group > 1 and i == 1 else 1,
            self.activation,
            self.dtype,
            same_padding=self.same_padding,
            name=f"block{group}_{i}",
          )(x, train)

        x = self.block(block, x)
    x = self.act(norm(train, self.dtype, "norm")(x))
    return average_pool(x, 1).reshape(len(x), -1)
