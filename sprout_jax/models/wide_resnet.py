"""Wide residual networks, Zagoruyko and Komodakis (2016). WRN-28-10, 10 classes: 36,479,194.

Depth counts the first convolution, the 6n of the blocks and the three shortcut convolutions: what
the SPROUT paper calls a Wide ResNet of depth 20, counting no shortcuts but the dense layer, is
depth 22 here.
"""

from sprout_jax.errors import UserError
from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import PreActBlock
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm


class WideResNet(Classifier):
  """Three groups of (depth - 4) / 6 pre-activation blocks, 16, 32 and 64 times `width` wide.

  Strides 1, 2, 2; norm and activation after the last block; global average; no dropout.

  Attributes:
    depth: 6n + 4.
    width: of the groups, in units of the original network's.
    same_padding: "SAME" padding where the stride is 2, as in DeepMind's networks (Gowal et al.,
      "Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial Examples",
      2020); PyTorch's padding otherwise. See `layers.PreActBlock`.

  Raises:
    UserError: the depth is not 6n + 4, n >= 1, or the width is below 1.
  """

  depth: int = 28
  width: int = 10
  same_padding: bool = False

  smallest = 4

  def __post_init__(self):
    if self.depth < 10 or self.depth % 6 != 4:
      hint = "; the SPROUT paper's depth 20 is 22 here, as wrn_22_10" if self.depth == 20 else ""
      raise UserError(
        f"Wide ResNet depth is {self.depth}; valid depths are 6n + 4: "
        f"10, 16, 22, 28, 34, 40, ...{hint}"
      )
    if self.width < 1:
      raise UserError(f"Wide ResNet width is {self.width}; it must be 1 or more, as in wrn_28_10")
    super().__post_init__()

  def features(self, x, train):
    x = Conv(16, 3, padding=1, dtype=self.dtype, name="conv")(x)
    for group in (1, 2, 3):
      for i in range(1, (self.depth - 4) // 6 + 1):

        def block(self, x, group=group, i=i):
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
