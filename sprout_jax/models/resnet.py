"""Residual networks, He et al. (2016a): ResNet-18, and version 1.5 of ResNet-50, -101 and -152.

Version 1.5 has the stride on the 3x3 convolution, not on the first 1x1. These are torchvision's
networks, with the same numbers of parameters at 1,000 classes: 11,689,512, 25,557,032, 44,549,160
and 60,192,808.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from sprout_jax.models.layers import ACTIVATIONS
from sprout_jax.models.layers import Classifier
from sprout_jax.models.layers import Conv
from sprout_jax.models.layers import average_pool
from sprout_jax.models.layers import norm

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class BasicBlock(nn.Module):
  """Block of ResNet-18: two 3x3 convolutions, each with norm, added to a shortcut.

  The strides are those of the first convolution. An activation follows the first norm and the sum.
  The shortcut is a 1x1 convolution with norm where width or resolution changes, the identity
  elsewhere.

  Attributes:
    features: number of output channels.
    strides: stride of the first convolution and of the shortcut.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype.
  """

  features: int
  strides: int
  activation: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, height, width, channels] to [batch, height / strides, ..., features]."""
    act, conv = ACTIVATIONS[self.activation], partial(Conv, dtype=self.dtype)
    bn = partial(norm, train, self.dtype)
    y = act(bn("norm1")(conv(self.features, 3, self.strides, 1, name="conv1")(x)))
    y = bn("norm2")(conv(self.features, 3, 1, 1, name="conv2")(y))
    if self.strides != 1 or x.shape[-1] != self.features:
      x = bn("shortcut_norm")(conv(self.features, 1, self.strides, name="shortcut")(x))
    return act(x + y)


class Bottleneck(nn.Module):
  """Bottleneck block: convolutions 1x1, 3x3 and 1x1, each with norm, added to a shortcut.

  The strides are those of the 3x3 convolution. The last convolution has 4 * features channels. An
  activation follows the first two norms and the sum. The shortcut is a 1x1 convolution with norm
  where width or resolution changes, the identity elsewhere.

  Attributes:
    features: number of channels of the first two convolutions.
    strides: stride of the 3x3 convolution and of the shortcut.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype.
  """

  features: int
  strides: int
  activation: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, height, width, channels] to [batch, height / strides, ..., 4 * features]."""
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
  2048 wide). The stem is a 7x7 convolution with stride 2 and a 3x3 max pooling with stride
  2.

  Attributes:
    depth: a key of BLOCKS.
    small_images: True makes the stem one 3x3 convolution with stride 1, for CIFAR-10.
  """

  depth: int = 50
  small_images: bool = False

  @property
  def smallest(self) -> int:
    """Smallest height and width of an image."""
    return 8 if self.small_images else 32

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    stem = (64, 3, 1, 1) if self.small_images else (64, 7, 2, 3)
    x = Conv(*stem, dtype=self.dtype, name="conv")(x)
    x = self.act(norm(train, self.dtype, "norm")(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, count in enumerate(BLOCKS[self.depth], start=1):
      for i in range(1, count + 1):

        def block(self: Any, x: jax.Array, stage: int = stage, i: int = i) -> jax.Array:
          return (BasicBlock if self.depth == 18 else Bottleneck)(
            32 * 2**stage,
            2 if stage > 1 and i == 1 else 1,
            self.activation,
            self.dtype,
            name=f"block{stage}_{i}",
          )(x, train)

        x = self.block(block, x)
    return average_pool(x, 1).reshape(len(x), -1)
