"""The names and shapes of arrays in files of weights.

A `Form` translates a place in our variables, such as ("params", "block1_1", "conv1", "kernel"), to
the name in files of one family of codes, such as "layer1.0.conv1.weight".
"""

import dataclasses
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.models.layers import Classifier
from sprout_jax.models.preact_resnet import PreActResNet18
from sprout_jax.models.resnet import ResNet
from sprout_jax.models.vgg import CONVOLUTIONS
from sprout_jax.models.vgg import MAP
from sprout_jax.models.vgg import VGG
from sprout_jax.models.wide_resnet import WideResNet

Place = tuple[str, ...]  # a path in the variables
TRACKED = "PyTorch's count of training batches, which evaluation does not use"
AVERAGES = "the state of Haiku's moving averages, which evaluation does not use"
SUB_BLOCK = "TRADES' copy of block1, which its forward pass does not use"


@dataclasses.dataclass(frozen=True)
class Form:
  """The names and shapes that a family of codes gives to the arrays of a model.

  Attributes:
    title: name of the family, for messages.
    layer: (stage, block, layer) -> name of the layer in the file. Stages and blocks count from 1.
      Outside of blocks, both are 0.
    haiku: whether the file has the names and shapes of Haiku.
    own: whether the file has the names and shapes of our variables. Otherwise, and without `haiku`,
      it has those of PyTorch.
    sub_block: whether the file may have a copy of the first group under "sub_block1".
    one_activation: whether all networks of the family have ReLU. Otherwise the activation must be
      given.
  """

  title: str
  layer: Callable[[int, int, str], str]
  haiku: bool = False
  own: bool = False
  sub_block: bool = False
  one_activation: bool = True

  @property
  def inputs_first(self) -> bool:
    """Whether kernels are [rows, columns, in, out] and [in, out], as in JAX."""
    return self.haiku or self.own

  def name(self, place: Place) -> str:
    """Returns the name of an array in the file, without prefix."""
    if self.own:
      return "/".join(place)
    layer, leaf = self._layer(place), place[-1]
    if not self.haiku:
      torch = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
      return f"{layer}.{torch.get(leaf, leaf)}"
    if _is_norm(place):
      leaf = {"bias": "offset", "mean": "~/mean_ema/average", "var": "~/var_ema/average"}.get(
        leaf, leaf
      )
    else:
      leaf = {"kernel": "w", "bias": "b"}[leaf]
    return f"{layer}/{leaf}"

  def _layer(self, place: Place) -> str:
    block = re.fullmatch(r"block(\d+)_(\d+)", place[1])
    stage, number = (int(block[1]), int(block[2])) if block else (0, 0)
    if not block and (numbered := re.fullmatch(r"(conv|norm)(\d+)_(\d+)", place[1])):  # VGG
      return self.layer(int(numbered[2]), int(numbered[3]), numbered[1])
    return self.layer(stage, number, place[-2])

  def unused(self, places: list[Place]) -> dict[str, str]:
    """Returns {name: reason} of the arrays in such files that evaluation does not need."""
    if self.own:
      return {}
    norms = {self._layer(place) for place in places if place[-1] == "mean"}
    if self.haiku:
      return {
        f"{layer}/~/{average}/{part}": AVERAGES
        for layer in norms
        for average in ("mean_ema", "var_ema")
        for part in ("hidden", "counter")
      }
    names = {f"{layer}.num_batches_tracked": TRACKED for layer in norms}
    if self.sub_block:
      copied = [*map(self.name, places), *names]
      names |= {f"sub_{name}": SUB_BLOCK for name in copied if name.startswith("block1.")}
    return names

  def shape(self, place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the file of an array that has `shape` in our variables."""
    if self.inputs_first:
      return (1, 1, 1, *shape) if self.haiku and _is_norm(place) else shape
    if len(shape) == 4:
      return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1]

  def convert(self, place: Place, array: np.ndarray) -> np.ndarray:
    """Converts an array to our layout: kernels [rows, columns, in, out], dense [in, out].

    PyTorch flattens maps as (channel, row, column). Our models flatten (row, column, channel).
    """
    if self.inputs_first:
      return array.reshape(-1) if self.haiku and _is_norm(place) else array
    if array.ndim == 4:
      return array.transpose(2, 3, 1, 0)
    if place[1:] == ("dense1", "kernel"):
      features, inputs = array.shape
      maps = array.reshape(features, inputs // MAP**2, MAP, MAP)
      return maps.transpose(2, 3, 1, 0).reshape(inputs, features)
    return array.T


def _is_norm(place: Place) -> bool:
  return "norm" in place[-2]


def places(model: Classifier, channels: int) -> dict[Place, tuple[int, ...]]:
  """Returns {place: shape} of all variables of a model, without computing them."""
  model = model.clone(mean=(0.0,), std=(1.0,))  # they can have another number of channels
  size = -(-model.smallest // model.multiple) * model.multiple
  images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
  return {
    tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)
  }


def variables(arrays: Mapping[Place, np.ndarray]) -> dict[str, Any]:
  """Returns the nested dictionaries of variables for Flax."""
  tree: dict[str, Any] = {}
  for place, array in arrays.items():
    branch = tree
    for key in place[:-1]:
      branch = branch.setdefault(key, {})
    branch[place[-1]] = jnp.asarray(array)
  return tree


def forms(model: Classifier) -> tuple[Form, ...]:
  """Returns the forms in which weights of a model can be stored: published ones, and OWN."""
  if isinstance(model, WideResNet):
    return (DEEPMIND, DEEPMIND_HAIKU, OWN) if model.same_padding else (WIDE_RESNET, OWN)
  if isinstance(model, PreActResNet18):
    return (PREACT, OWN)
  if isinstance(model, ResNet):
    published = (CIFAR_RESNET, TORCHVISION_RESNET) if model.small_images else (TORCHVISION_RESNET,)
    return (*published, OWN)
  if isinstance(model, VGG):
    return (_vgg(model.depth, bool(model.hidden)), OWN)
  return (OWN,)


def other_forms(model: Classifier) -> dict[Form, str]:
  """Returns {form: model that takes it} of files that are easily confused with this model's."""
  if not isinstance(model, WideResNet):
    return {}
  name = f"wrn_{model.depth}_{model.width}"
  if model.same_padding:
    return {WIDE_RESNET: name}
  return {DEEPMIND: f"{name}_same", DEEPMIND_HAIKU: f"{name}_same"}


def _wide_resnet(stage: int, block: int, layer: str) -> str:
  inside = {"norm1": "bn1", "norm2": "bn2", "shortcut": "convShortcut"}
  outside = {"conv": "conv1", "norm": "bn1", "dense": "fc"}
  return f"block{stage}.layer.{block - 1}.{inside.get(layer, layer)}" if stage else outside[layer]


def _deepmind(stage: int, block: int, layer: str) -> str:
  outside = {"conv": "init_conv", "norm": "batchnorm", "dense": "logits"}
  return f"layer.{stage - 1}.block.{block - 1}.{_DEEPMIND[layer]}" if stage else outside[layer]


def _deepmind_haiku(stage: int, block: int, layer: str) -> str:
  outside = {"conv": "init_conv", "norm": "batchnorm", "dense": "logits"}
  if not stage:
    return outside[layer]
  return f"resnet_lay_{stage - 1}_block_{block - 1}/~/{_DEEPMIND[layer]}"


_DEEPMIND = {
  "norm1": "batchnorm_0",
  "conv1": "conv_0",
  "norm2": "batchnorm_1",
  "conv2": "conv_1",
  "shortcut": "shortcut",
}


def _resnet(shortcut: str, shortcut_norm: str, last: str) -> Callable[[int, int, str], str]:
  """Returns the names of layers in residual networks of PyTorch codes."""

  def layer_name(stage: int, block: int, layer: str) -> str:
    outside = {"conv": "conv1", "norm": "bn1" if shortcut_norm else "bn", "dense": last}
    if not stage:
      return outside[layer]
    special = {"shortcut": shortcut, "shortcut_norm": shortcut_norm}
    return f"layer{stage}.{block - 1}.{special.get(layer, layer.replace('norm', 'bn'))}"

  return layer_name


def _vgg(depth: int, has_hidden: bool) -> Form:
  places = {}  # index of the convolution in PyTorch's Sequential, which also counts activations
  index = 0
  for stage, count in enumerate(CONVOLUTIONS[depth], start=1):
    for number in range(1, count + 1):
      places[stage, number] = index
      index += 3  # convolution, norm, activation
    index += 1  # pooling
  dense = {"dense1": "classifier.0", "dense2": "classifier.3", "dense": "classifier.6"}

  def layer_name(stage: int, block: int, layer: str) -> str:
    if stage:
      return f"features.{places[stage, block] + (layer == 'norm')}"
    return dense[layer] if has_hidden else "classifier"

  title = "torchvision's VGG-BN" if has_hidden else "VGG for CIFAR-10"
  return Form(title, layer_name)


WIDE_RESNET = Form("TRADES' and RobustBench's Wide ResNets", _wide_resnet, sub_block=True)
DEEPMIND = Form("DeepMind's Wide ResNets in PyTorch", _deepmind, one_activation=False)
DEEPMIND_HAIKU = Form(
  "DeepMind's Wide ResNets in JAX", _deepmind_haiku, haiku=True, one_activation=False
)
PREACT = Form("PreActResNet-18 of fast adversarial training", _resnet("shortcut.0", "", "linear"))
CIFAR_RESNET = Form("ResNets for CIFAR-10", _resnet("shortcut.0", "shortcut.1", "linear"))
TORCHVISION_RESNET = Form("torchvision's ResNets", _resnet("downsample.0", "downsample.1", "fc"))
OWN = Form("sprout_jax", lambda *where: "", own=True)
