"""PreActResNet-18 for small images: the usual network of fast adversarial training.

He et al. (2016b), in the two forms found in released code: without batch norm after the last block
(11,171,146 parameters at 10 classes; the sum of the last block goes to the average as it is) and
with it, as the paper has it (11,172,170).
"""

from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import PreActBlock
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm


class PreActResNet18(Classifier):
  """A 3x3 convolution of stride 1, then four stages of two blocks, 64 to 512 wide; average."""

  final_norm: bool = False

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
            name=f"block{stage}_{i}",
          )(x, train)

        x = self.block(block, x)
    if self.final_norm:
      x = self.act(norm(train, self.dtype, "norm")(x))
    return average_pool(x, 1).reshape(len(x), -1)
