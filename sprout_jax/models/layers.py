"""Layers that the models share: the classifier around them, convolution, norm, pooling, a block.

Initialisation is the same everywhere. Convolution kernels are normal with variance 2 / (kernel^2 *
features) (He et al., 2015, by fan-out). Dense kernels are LeCun normal, Flax's default. Norm scales
are one, and every bias is zero. Parameters and batch statistics are float32 for any compute dtype.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.models.convolution import convolve

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": nn.relu,
  "gelu": partial(nn.gelu, approximate=False),
  "silu": nn.silu,
  "softplus": nn.softplus,
}
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Classifier(nn.Module):
  """Base of every model: normalisation, then the model's `features`, then one dense layer.

  logits = dense(features((images - mean) / std)).

  The model normalises so that an attack's epsilon keeps its unit, that of the pixels. Normalisation
  and the dense layer are float32 also when `dtype` is bfloat16: logits rounded to eight bits tie,
  and ties mislead margins and attacks. The first convolution still rounds its input to about 1/256
  of its size. So measure robustness at 1/255 in float32. On GPUs and TPUs, where XLA rounds float32
  products too, do it under `jax.default_matmul_precision("highest")`.

  A subclass defines `features`, with its parts inside `self.block`, and its image sizes: height and
  width are at least `smallest` and multiples of `multiple`.

  Attributes:
    num_classes: number of logits.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype of convolutions, norms and activations.
    mean: subtracted from the pixels; one number per channel or one for all, in units of the pixels.
    std: divides the difference; one number per channel or one for all, in units of the pixels.
    remat: True computes the inside of every block again for gradients, instead of keeping it: one
      more forward pass, for the memory of the blocks' inputs and of one block (Chen et al., 2016).
      It helps on GPUs and TPUs. XLA's CPU compiler was seen to need the same memory with it.
  """

  num_classes: int
  activation: str = "relu"
  dtype: Any = jnp.float32
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  remat: bool = False

  # Without an annotation: Flax makes a field of every annotated name.
  multiple = 1

  @property
  def smallest(self) -> int:
    """Smallest height and width of an image."""
    return 1

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Computes the logits of images.

    Args:
      images: float array [batch, height, width, channels] in [0, 1].
      train: False uses the running statistics. True uses those of the batch and updates the running
        ones: models with batch norm then need `mutable=["batch_stats"]`.

    Returns:
      Logits, float32 [batch, classes].

    Raises:
      ValueError: the images are not floating point (bytes: divide by 255 first).
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f"images have dtype {images.dtype}; expected floats in [0, 1]; divide bytes by 255"
      )
    mean, std = (jnp.array(s, jnp.float32).reshape(1, 1, 1, -1) for s in (self.mean, self.std))
    x = self.features((images.astype(jnp.float32) - mean) / std, train)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="dense")(x)

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps normalised images [batch, height, width, channels] to features [batch, features]."""
    raise NotImplementedError

  def block(self, fn: Callable[[Any, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Calls fn(self, x), which may make submodules; with `remat`, again for gradients."""
    return (nn.remat(fn) if self.remat else fn)(self, x)

  def act(self, x: jax.Array) -> jax.Array:
    """Applies the activation."""
    return ACTIVATIONS[self.activation](x)


class Conv(nn.Module):
  """Square convolution with explicit padding, in the form that suits the platform.

  The platform is that of the default backend at trace time; see `convolution`.

  Attributes:
    features: number of output channels.
    kernel_size: rows and columns of the kernel.
    strides: stride in both directions.
    padding: rows and columns of zeros on all four sides.
    use_bias: True adds a bias.
    dtype: compute dtype.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: int = 0
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to [batch, out_height, out_width, features]."""
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


def norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
  """Makes a batch norm with PyTorch's constants and float32 statistics.

  PyTorch's momentum 0.1 is 0.9 here. There is no axis name: the mean is over the global batch under
  jit, over each device's own part under pmap. The running variance follows the batch's variance
  with divisor n, where PyTorch has n - 1.

  Args:
    train: True uses the batch's statistics and updates the running ones.
    dtype: compute dtype.
    name: name of the module.
  """
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
  )


def max_pool(x: jax.Array) -> jax.Array:
  """Takes maxima over 2x2 windows with stride 2.

  The gradient of a window goes to its maximum, and of equal maxima to the first. The gradient of
  XLA's pooling is a slow scatter on a CPU, so that pooling is not used. `jnp.max` over an axis is
  not used either. Its gradient compares each value with the maximum. XLA may compute these values
  again with other rounding; then no value is equal, and the gradient is NaN or wrong.

  Args:
    x: array [batch, height, width, channels]; height and width are even.

  Returns:
    Array [batch, height / 2, width / 2, channels].
  """
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
  columns = _larger(x[:, :, 0], x[:, :, 1])
  return _larger(columns[:, :, :, 0], columns[:, :, :, 1])


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
  """The larger of two values, by one choice: the gradient goes to exactly one. NaN is kept."""
  return jnp.where((a >= b) | jnp.isnan(a), a, b)


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
  """Averages over size x size windows that cover the map, as PyTorch's `AdaptiveAvgPool2d`.

  Window i of n pixels reaches from floor(i n / size) to ceil((i + 1) n / size). Windows overlap, or
  repeat pixels, where `size` does not divide n.

  Args:
    x: array [batch, height, width, channels].
    size: rows and columns of the result.

  Returns:
    Array [batch, size, size, channels].
  """
  if x.shape[1:3] == (size, size):
    return x
  rows, columns = (_window_weights(n, size) for n in x.shape[1:3])
  return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x).astype(x.dtype)


def _window_weights(count: int, size: int) -> np.ndarray:
  """Matrix [size, count] whose row i averages window i."""
  weights = np.zeros((size, count), np.float32)
  for i in range(size):
    low, high = i * count // size, -(-(i + 1) * count // size)
    weights[i, low:high] = 1 / (high - low)
  return weights


def average_pool(x: jax.Array, size: int) -> jax.Array:
  """Averages over equal windows, down to a map of size x size.

  Sums are float32, as in every mean of bfloat16 in JAX.

  Args:
    x: array [batch, height, width, channels]; `size` divides height and width.
    size: rows and columns of the result; 1 is global average pooling.

  Returns:
    Array [batch, size, size, channels].
  """
  batch, height, width, channels = x.shape
  return x.reshape(batch, size, height // size, size, width // size, channels).mean((2, 4))


def pad_same(x: jax.Array, kernel_size: int, strides: int) -> jax.Array:
  """Adds the zeros of "SAME" padding: out = ceil(size / strides), the odd zero below and right.

  Args:
    x: array [batch, height, width, channels].
    kernel_size: rows and columns of the kernel.
    strides: stride in both directions.

  Returns:
    Array like `x` with larger height and width.
  """
  edges = []
  for size in x.shape[1:3]:
    total = max((-(-size // strides) - 1) * strides + kernel_size - size, 0)
    edges.append((total // 2, total - total // 2))
  return jnp.pad(x, ((0, 0), *edges, (0, 0)))


class PreActBlock(nn.Module):
  """Pre-activation block: two 3x3 convolutions, each after norm and activation.

  With a = act(norm1(x)), the output is conv2(act(norm2(conv1(a)))) + shortcut. The shortcut is a
  1x1 convolution of a where width or resolution changes, and x elsewhere. (He et al., 2016b, figure
  4(e).)

  Attributes:
    features: number of output channels.
    strides: stride of the first convolution and of the shortcut.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype.
    raw_shortcut: True lets the shortcut's convolution take x instead of a, as in some published
      networks.
    same_padding: True places zeros as "SAME" does in TensorFlow and JAX. With stride 2 and an even
      size that is one row below and one column to the right, where PyTorch has one on each side.
  """

  features: int
  strides: int
  activation: str
  dtype: Any
  raw_shortcut: bool = False
  same_padding: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, height, width, channels] to [batch, height / strides, ..., features]."""
    act, conv = ACTIVATIONS[self.activation], partial(Conv, dtype=self.dtype)
    a = act(norm(train, self.dtype, "norm1")(x))
    if self.strides != 1 or x.shape[-1] != self.features:
      x = conv(self.features, 1, self.strides, name="shortcut")(x if self.raw_shortcut else a)
    if self.same_padding:
      a = pad_same(a, 3, self.strides)
    a = conv(self.features, 3, self.strides, int(not self.same_padding), name="conv1")(a)
    return x + conv(self.features, 3, 1, 1, name="conv2")(act(norm(train, self.dtype, "norm2")(a)))
