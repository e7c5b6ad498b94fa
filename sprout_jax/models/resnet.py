"""Residual networks, He et al. (2016a): ResNet-18, and version 1.5 of ResNet-50, -101 and -152.

Version 1.5 has the stride on the 3x3 convolution, not on the first 1x1. They are torchvision's
networks, and have their parameter counts (1,000 classes): 11,689,512, 25,557,032, 44,549,160 and
60,192,808.
"""

from functools import partial
from typing import Any

import flax.linen as nn

from sprout_jax.models.layers import ACTIVATIONS
from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class BasicBlock(nn.Module):
  """act(norm(conv 3x3) of act(norm(conv 3x3, strides)) + shortcut): the block of ResNet-18.

  The shortcut is conv 1x1 and norm wherever width or resolution changes, the identity elsewhere.
  [batch, height, width, channels] -> [batch, height / strides, ..., features].
  """

  features: int
  strides: int
  activation: str
  dtype: Any

  @nn.compact
  def __call__(self, x, train):
    act, conv = ACTIVATIONS[self.activation], partial(Conv, dtype=self.dtype)
    bn = partial(norm, train, self.dtype)
    y = act(bn("norm1")(conv(self.features, 3, self.strides, 1, name="conv1")(x)))
    y = bn("norm2")(conv(self.features, 3, 1, 1, name="conv2")(y))
    if self.strides != 1 or x.shape[-1] != self.features:
      x = bn("shortcut_norm")(conv(self.features, 1, self.strides, name="shortcut")(x))
    return act(x + y)


class Bottleneck(nn.Module):
  """act(norm(conv 1x1) -> act(norm(conv 3x3, strides)) -> norm(conv 1x1, 4 * features) + shortcut).

  The shortcut is conv 1x1 and norm wherever width or resolution changes, the identity elsewhere.
  [batch, height, width, channels] -> [batch, height / strides, ..., 4 * features].
  """

  features: int
  strides: int
  activation: str
  dtype: Any

  @nn.compact
  def __call__(self, x, train):
    act, conv = ACTIVATIONS[self.activation], partial(Conv, dtype=self.dtype)
    bn = partial(norm, train, self.dtype)
    y = act(bn("norm1")(conv(self.features, 1, name="conv1")(x)))
    y = act(bn("norm2")(conv(self.features, 3, self.strides, 1, name="conv2")(y)))
    y = bn("norm3")(conv(4 * self.features, 1, name="conv3")(y))
    if self.strides != 1 or x.shape[-1] != 4 * self.features:
      x = bn("shortcut_norm")(conv(4 * self.features, 1, self.strides, name="shortcut")(x))
    return act(x + y)


class ResNet(Classifier):
  """Stem, four stages of blocks, global average.

  Depth 18 has basic blocks (64, 128, 256, 512 wide), the others have bottlenecks (256, 512, 1024,
  2048 wide).

  The stem is 7x7, stride 2 and a 3x3 max pooling, stride 2; `small_images` makes it one 3x3
  convolution, stride 1, as CIFAR-10 needs.
  """

  depth: int = 50
  small_images: bool = False

  @property
  def smallest(self):
    return 8 if self.small_images else 32

  def features(self, x, train):
    stem = (64, 3, 1, 1) if self.small_images else (64, 7, 2, 3)
    x = Conv(*stem, dtype=self.dtype, name="conv")(x)
    x = self.act(norm(train, self.dtype, "norm")(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, count in enumerate(BLOCKS[self.depth], start=1):
      for i in range(1, count + 1):

        def block(self, x, stage=stage, i=i):
          return (BasicBlock if self.depth == 18 else Bottleneck)(
            32 * 2**stage,
            2 if stage > 1 and i == 1 else 1,
            self.activation,
            self.dtype,
            name=f"block{stage}_{i}",
          )(x, train)

        x = self.block(block, x)
    return average_pool(x, 1).reshape(len(x), -1)
