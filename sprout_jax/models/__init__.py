"""Image classifiers as Flax modules.

Usage::

    model = models.create("vgg16", num_classes=10, image_shape=(32, 32, 3))
    variables = model.init(key, images, train=False)          # {"params", and "batch_stats" if any}
    logits = model.apply(variables, images, train=False)       # float32 [batch, classes]
    logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])

Every model takes float images [batch, height, width, channels] in [0, 1] and normalises them itself
(`mean`, `std`), so that an attack's epsilon keeps its unit. Parameters, batch statistics, the last
layer and the logits are float32; `dtype="bfloat16"` changes the layers between. The names, with the
sizes of the images that the models take::

    small_cnn                              no batch norm; sizes are multiples of 8
    vgg11, vgg13, vgg16, vgg19             batch norm; multiples of 32
    vgg11_imagenet, and 13, 16, 19         three dense layers, as torchvision's VGG-BN
    wrn_DEPTH_WIDTH                        Wide ResNet of any depth 6n + 4, as wrn_28_10; from 4x4
    wrn_DEPTH_WIDTH_same                   padded as DeepMind's Wide ResNets
    preact_resnet18                        no norm after the last block; from 8x8
    preact_resnet18_final_norm             norm and activation after the last block
    preact_resnet18_raw_shortcut           shortcuts take x, as in fast adversarial training
    preact_resnet18_raw_shortcut_final_norm
    resnet18, resnet50, resnet101, resnet152   ImageNet stem; from 32x32
    resnet18_cifar, and 50, 101, 152       3x3 stem of stride 1; from 8x8

To add a model, write a subclass of `layers.Classifier` in a file of its own and give it a row in
MODELS. The contract test (tests/models/test_models.py) covers every row.
"""

import math
import re
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.models.layers import ACTIVATIONS
from sprout_jax.models.layers import Classifier
from sprout_jax.models.preact_resnet import PreActResNet18
from sprout_jax.models.resnet import BLOCKS
from sprout_jax.models.resnet import ResNet
from sprout_jax.models.small_cnn import SmallCNN
from sprout_jax.models.vgg import CONVOLUTIONS
from sprout_jax.models.vgg import VGG
from sprout_jax.models.weights import load_weights
from sprout_jax.models.weights import save_weights
from sprout_jax.models.wide_resnet import WideResNet

__all__ = ["DTYPES", "MODELS", "check_name", "create", "load_weights", "save_weights"]

MODELS: dict[str, Callable[..., Classifier]] = {
  "small_cnn": SmallCNN,
  **{f"vgg{depth}": partial(VGG, depth=depth) for depth in CONVOLUTIONS},
  **{f"vgg{depth}_imagenet": partial(VGG, depth=depth, hidden=4096) for depth in CONVOLUTIONS},
  "preact_resnet18": PreActResNet18,
  "preact_resnet18_final_norm": partial(PreActResNet18, final_norm=True),
  "preact_resnet18_raw_shortcut": partial(PreActResNet18, raw_shortcut=True),
  "preact_resnet18_raw_shortcut_final_norm": partial(
    PreActResNet18, raw_shortcut=True, final_norm=True
  ),
  **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in BLOCKS},
  **{f"resnet{depth}_cifar": partial(ResNet, depth=depth, small_images=True) for depth in BLOCKS},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create(
  name: str,
  *,
  num_classes: int,
  image_shape: Sequence[int],
  activation: str = "relu",
  dtype: str = "float32",
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  remat: bool = False,
) -> Classifier:
  """Creates a model by its name; its `init` makes the variables, its `apply` computes logits.

  Args:
    name: a key of MODELS, wrn_DEPTH_WIDTH or wrn_DEPTH_WIDTH_same.
    num_classes: number of classes, at least 2.
    image_shape: (height, width, channels) of its images.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype, a key of DTYPES.
    mean: subtracted from the pixels, which are in [0, 1]; one number per channel or one for all.
    std: divides the difference; one number per channel or one for all, greater than 0.
    remat: True saves memory at the cost of time, see `layers.Classifier`.

  Returns:
    An unbound Flax module.

  Raises:
    UserError: a wrong argument, or a model that cannot take images of that size. It is a
      ValueError.
  """
  check_choice("activation", activation, ACTIVATIONS)
  check_choice("dtype", dtype, DTYPES)
  if not _is_count(num_classes) or num_classes < 2:
    raise UserError(f"num_classes is {num_classes!r}; it must be a whole number of at least 2")
  if len(image_shape) != 3 or not all(_is_count(n) for n in image_shape):
    raise UserError(
      f"image_shape is {image_shape!r}; it must be (height, width, channels), such as (32, 32, 3)"
    )
  height, width, channels = image_shape
  model = _factory(name)(
    num_classes=num_classes,
    activation=activation,
    dtype=DTYPES[dtype],
    mean=_per_channel("mean", mean, channels),
    std=_per_channel("std", std, channels),
    remat=remat,
  )
  if min(model.std) <= 0:
    raise UserError(f"std is {std!r}; every entry must be greater than 0")
  if not _takes(model, height, width):
    others = [n for n, f in MODELS.items() if _takes(f(num_classes), height, width)]
    others += ["wrn_28_10"] * _takes(WideResNet(num_classes), height, width)
    multiples = f"multiples of {model.multiple}, " if model.multiple > 1 else ""
    raise UserError(
      f"{name} cannot take {height}x{width} images: height and width must be {multiples}"
      f"at least {model.smallest}; resize or pad the images"
      + (f", or choose one of: {', '.join(sorted(others))}" if others else "")
    )
  return model


def _is_count(value: Any) -> bool:
  """Tests for a whole number of at least 1, of Python or of NumPy."""
  return isinstance(value, Integral) and int(value) >= 1


def check_name(name: str) -> None:
  """Raises UserError, listing the choices, unless `create` knows the name."""
  _factory(name)


def _factory(name: str) -> Callable[..., Classifier]:
  if not str(name).startswith("wrn"):
    check_choice("model", name, [*MODELS, "wrn_DEPTH_WIDTH"])
    return MODELS[name]
  match = re.fullmatch(r"wrn_(\d+)_(\d+)(_same)?", name)
  if not match:
    raise UserError(f"model is {name!r}; a Wide ResNet is named wrn_DEPTH_WIDTH, such as wrn_28_10")
  same = bool(match[3])
  return partial(WideResNet, depth=int(match[1]), width=int(match[2]), same_padding=same)


def _per_channel(what: str, values: Any, channels: int) -> tuple[float, ...]:
  try:
    floats = tuple(float(value) for value in values)
  except (TypeError, ValueError):
    floats = ()
  if len(floats) not in (1, channels) or not all(map(math.isfinite, floats)):
    raise UserError(
      f"{what} is {values!r}; it must be 1 number or {channels}, one per channel, such as (0.5,)"
    )
  return floats


def _takes(model: Classifier, height: int, width: int) -> bool:
  return all(n >= model.smallest and n % model.multiple == 0 for n in (height, width))
