"""PreActResNet-18 for small images, He et al. (2016b).

Released codes differ in two things. After the last block there is no batch norm (11,171,146
parameters at 10 classes; the sum of the last block is averaged as it is), or there is, as in the
paper (11,172,170). And the convolution of a shortcut takes act(norm1(x)), as in the paper, or x.
Parameters have the same names and shapes in both, so that a file of weights does not tell which it
is. RobustBench has x, and no last norm, for fast adversarial training (Wong et al., 2020) and
Andriushchenko and Flammarion (2020); act(norm1(x)) and a last norm for Rice et al. (2020) and
Kireev et al. (2021).
"""

from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import PreActBlock
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm


class PreActResNet18(Classifier):
  """A 3x3 convolution of stride 1, then four stages of two blocks, 64 to 512 wide; average.

  Attributes:
    final_norm: norm and activation after the last block.
    raw_shortcut: the convolutions of shortcuts take x. See `layers.PreActBlock`.
  """

  final_norm: bool = False
  raw_shortcut: bool = False

  smallest = 8

  def features(self, x, train):
    x = Conv(64, 3, padding=1, dtype=self.dtype, name="conv")(x)
    for stage in (1, 2, 3, 4):
      for i in (1, 2):

        def block(self, x, stage=stage, i=i):
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
