"""Layers that the models share: the classifier around them, convolution, norm, pooling, one block.

Initialisation, everywhere: convolution kernels are normal with variance 2 / (kernel^2 * features),
He et al. (2015) by fan-out; dense kernels are LeCun normal (Flax's default); norm scales are one;
every bias is zero. Parameters and batch statistics are float32 whatever the compute dtype.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.models.convolution import convolve

ACTIVATIONS = {
  "relu": nn.relu,
  "gelu": partial(nn.gelu, approximate=False),
  "silu": nn.silu,
  "softplus": nn.softplus,
}
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Classifier(nn.Module):
  """Base of every model: normalisation, then the model's `features`, then one dense layer.

      logits = dense(features((images - mean) / std))

  Normalisation lives in here so that an attack's epsilon keeps its unit, that of the pixels.
  Normalisation and the dense layer are float32 also when `dtype` is bfloat16: logits rounded to
  eight bits tie, and ties mislead margins and attacks. (The first convolution still rounds its
  input to about 1/256 of its size: measure robustness at 1/255 in float32, and on GPU and TPU,
  where XLA rounds float32 products too, under `jax.default_matmul_precision("highest")`.)

  Attributes:
    num_classes: number of logits.
    activation: a key of ACTIVATIONS.
    dtype: what convolutions, norms and activations compute in.
    mean, std: per channel, or one number for all of them, in units of the pixels.
    remat: gradients compute the inside of every block again, instead of keeping it: one more
      forward pass, for the memory of the blocks' inputs and of one block (Chen et al., 2016). For
      GPUs and TPUs: XLA's CPU compiler was seen to need the same memory with it.

  A subclass defines `features(x, train) -> [batch, features]`, with its parts inside `self.block`,
  and states its image sizes: height and width are at least `smallest` and multiples of `multiple`.
  """

  num_classes: int
  activation: str = "relu"
  dtype: Any = jnp.float32
  mean: tuple = (0.0,)
  std: tuple = (1.0,)
  remat: bool = False

  # Facts of a class, not fields: Flax makes a field of whatever is annotated.
  smallest = 1
  multiple = 1

  @nn.compact
  def __call__(self, images, train):
    """Float images in [0, 1], [batch, height, width, channels] -> float32 logits.

    Args:
      images: raises TypeError unless they are floating point (bytes: divide by 255 first).
      train: False uses the running statistics; True the batch's, and updates the running ones:
        models with batch norm then need `mutable=["batch_stats"]` (drop the update if unwanted).
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise TypeError(f"images are {images.dtype}; models take floats in [0, 1]: divide by 255")
    mean, std = (jnp.array(s, jnp.float32).reshape(1, 1, 1, -1) for s in (self.mean, self.std))
    x = self.features((images.astype(jnp.float32) - mean) / std, train)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="dense")(x)

  def features(self, x, train):
    raise NotImplementedError

  def block(self, fn, x):
    """fn(self, x), which may make submodules; with `remat`, computed again for gradients."""
    return (nn.remat(fn) if self.remat else fn)(self, x)

  def act(self, x):
    return ACTIVATIONS[self.activation](x)


class Conv(nn.Module):
  """Square convolution with explicit padding, in the form of the platform: see `convolution`.

  The backend is asked for at trace time.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: int = 0
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", HE_FAN_OUT, shape, jnp.float32)
    x = convolve(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      self.strides,
      self.padding,
      matmuls=jax.default_backend() == "cpu",
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      x += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return x


def norm(train, dtype, name):
  """Batch norm with PyTorch's constants (its momentum 0.1 is 0.9 here), statistics in float32.

  No axis name: the mean is over the global batch under jit, over a device's own under pmap. The
  running variance is that of the batch, divided by n where PyTorch divides by n - 1.
  """
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
  )


def max_pool(x):
  """2x2 maxima, stride 2. By reshape: the gradient of XLA's pooling is a slow scatter on a CPU.

  [batch, height, width, channels] -> [batch, height / 2, width / 2, channels]; both must be even.
  """
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def adaptive_average_pool(x, size):
  """Averages over size x size windows that cover the map, as PyTorch's `AdaptiveAvgPool2d`.

  Window i of n pixels reaches from floor(i n / size) to ceil((i + 1) n / size): windows overlap, or
  repeat pixels, where `size` does not divide n. [batch, height, width, channels] -> [batch, size,
  size, channels].
  """
  if x.shape[1:3] == (size, size):
    return x
  rows, columns = (_window_weights(n, size) for n in x.shape[1:3])
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x).astype(x.dtype)


def _window_weights(count, size):
  """[size, count]: row i averages window i."""
  weights = np.zeros((size, count), np.float32)
  for i in range(size):
    low, high = i * count // size, -(-(i + 1) * count // size)
    weights[i, low:high] = 1 / (high - low)
  return weights


def average_pool(x, size):
  """Averages of equal windows, down to a size x size map; 1 is global average pooling.

  [batch, height, width, channels] -> [batch, size, size, channels]; `size` divides both. Sums in
  float32, as NumPy-style means of bfloat16 do in JAX.
  """
  batch, height, width, channels = x.shape
  return x.reshape(batch, size, height // size, size, width // size, channels).mean((2, 4))


def pad_same(x, kernel_size, strides):
  """Adds the zeros of "SAME" padding: out = ceil(size / strides), the odd zero below and right.

  [batch, height, width, channels] -> the same with larger height and width.
  """
  edges = []
  for size in x.shape[1:3]:
    total = max((-(-size // strides) - 1) * strides + kernel_size - size, 0)
    edges.append((total // 2, total - total // 2))
  return jnp.pad(x, ((0, 0), *edges, (0, 0)))


class PreActBlock(nn.Module):
  """Two 3x3 convolutions, each after norm and activation, He et al. (2016b), figure 4(e).

      a = act(norm1(x));  out = conv2(act(norm2(conv1(a)))) + (x, or shortcut(a))

  The shortcut is a 1x1 convolution of `a` wherever width or resolution changes, the identity
  elsewhere. [batch, height, width, channels] -> [batch, height / strides, ..., features].

  Attributes:
    features: width of both convolutions.
    strides: of the first convolution and of the shortcut.
    activation: a key of ACTIVATIONS.
    dtype: of the computation.
    raw_shortcut: the shortcut's convolution takes x, not `a`. Some published networks have this.
    same_padding: zeros as TensorFlow's and JAX's "SAME" places them. With stride 2 and an even size
      that is one row below and one column to the right, where PyTorch has one on each side.
  """

  features: int
  strides: int
  activation: str
  dtype: Any
  raw_shortcut: bool = False
  same_padding: bool = False

  @nn.compact
  def __call__(self, x, train):
    act, conv = ACTIVATIONS[self.activation], partial(Conv, dtype=self.dtype)
    a = act(norm(train, self.dtype, "norm1")(x))
    if self.strides != 1 or x.shape[-1] != self.features:
      x = conv(self.features, 1, self.strides, name="shortcut")(x if self.raw_shortcut else a)
    if self.same_padding:
      a = pad_same(a, 3, self.strides)
    a = conv(self.features, 3, self.strides, int(not self.same_padding), name="conv1")(a)
    return x + conv(self.features, 3, 1, 1, name="conv2")(act(norm(train, self.dtype, "norm2")(a)))
