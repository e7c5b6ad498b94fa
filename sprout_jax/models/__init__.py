"""Image classifiers, as Flax modules: one table, one way to make them, one way to call them.

    model = models.create("vgg16", num_classes=10, image_shape=(32, 32, 3))
    variables = model.init(key, images, train=False)          # {"params", and "batch_stats" if any}
    logits = model.apply(variables, images, train=False)       # float32 [batch, classes]
    logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])

Every model takes float images in [0, 1], [batch, height, width, channels], and normalises them
itself (`mean`, `std`), so that an attack's epsilon keeps its unit. Parameters, batch statistics,
the last layer and the logits are float32; `dtype="bfloat16"` changes what lies between.

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

A new model is a subclass of `layers.Classifier` in a file of its own and a row of MODELS; the
contract test (tests/models/test_models.py) runs over every row.
"""

import math
import re
from functools import partial
from numbers import Integral

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
from sprout_jax.models.wide_resnet import WideResNet

MODELS = {
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
  name,
  *,
  num_classes,
  image_shape,
  activation="relu",
  dtype="float32",
  mean=(0.0,),
  std=(1.0,),
  remat=False,
) -> Classifier:
  """The named model, unbound: `init` makes its variables, `apply` runs it.

  Args:
    name: a key of MODELS, wrn_DEPTH_WIDTH or wrn_DEPTH_WIDTH_same.
    num_classes: 2 or more.
    image_shape: (height, width, channels) that it will be given.
    activation: a key of ACTIVATIONS.
    dtype: compute dtype, a key of DTYPES.
    mean, std: subtracted, then divided by; one number per channel or one for all, in [0, 1] pixels.
    remat: less memory for more time, see `layers.Classifier`.

  Raises:
    UserError: an argument is none of these, or the model cannot take images of that size.
  """
  check_choice("activation", activation, ACTIVATIONS)
  check_choice("dtype", dtype, DTYPES)
  if not isinstance(num_classes, Integral) or num_classes < 2:
    raise UserError(f"num_classes is {num_classes!r}; it must be a whole number, 2 or more")
  if len(image_shape) != 3 or not all(isinstance(n, Integral) and n > 0 for n in image_shape):
    raise UserError(
      f"image_shape is {image_shape!r}; it must be (height, width, channels), as (32, 32, 3)"
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
      f"{model.smallest} or more; resize or pad the images"
      + (f", or choose one of: {', '.join(sorted(others))}" if others else "")
    )
  return model


def check_name(name):
  """Raises UserError, listing the choices, unless `create` knows the name; needs no data."""
  _factory(name)


def _factory(name):
  if not str(name).startswith("wrn"):
    check_choice("model", name, [*MODELS, "wrn_DEPTH_WIDTH"])
    return MODELS[name]
  match = re.fullmatch(r"wrn_(\d+)_(\d+)(_same)?", name)
  if not match:
    raise UserError(f"model is {name!r}; a Wide ResNet is named wrn_DEPTH_WIDTH, as wrn_28_10")
  same = bool(match[3])
  return partial(WideResNet, depth=int(match[1]), width=int(match[2]), same_padding=same)


def _per_channel(what, values, channels):
  try:
    floats = tuple(float(value) for value in values)
  except (TypeError, ValueError):
    floats = ()
  if len(floats) not in (1, channels) or not all(map(math.isfinite, floats)):
    raise UserError(
      f"{what} is {values!r}; it must be 1 number or {channels}, one per channel, as (0.5,)"
    )
  return floats


def _takes(model, height, width):
  return all(n >= model.smallest and n % model.multiple == 0 for n in (height, width))
