"""Reference networks in PyTorch with the names of published state dicts, and their outputs.

    python -m tests.models.make_weights_golden             # with torch 2.13; weights_golden.json
    python -m tests.models.make_weights_golden published   # the same at the published sizes

The second command writes weights_published.json, which `tests.models.compare_published` reads.
The networks are written after the published descriptions; names and shapes of their state dicts are
those of torchvision (ResNet, VGG-BN), RobustBench (Wide ResNet, PreActResNet-18, ResNet for
CIFAR-10), DeepMind's PyTorch code (Wide ResNet) and kuangliu's CIFAR-10 code (VGG). Weights are
drawn by NumPy, from a seed that is a checksum of their name: the tests draw the same ones, and need
no PyTorch. Importing this file needs none either.
"""

import hashlib
import json
import pathlib
import sys
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("weights_golden.json")
PUBLISHED = pathlib.Path(__file__).with_name("weights_published.json")
VGG = {
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}
RESNET = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# name: (function that builds it, its arguments, image size).
CASES = {
  "wrn": ("wide_resnet", {"depth": 10, "width": 2, "sub_block": True, "inside": True}, 32),
  "wrn_16": ("wide_resnet", {"depth": 16, "width": 1}, 32),  # blocks without a convolution beside
  "deepmind": ("deepmind", {"depth": 10, "width": 2}, 32),
  "deepmind_16": ("deepmind", {"depth": 16, "width": 1}, 32),
  "preact": ("preact_resnet18", {}, 32),
  "preact_final_norm": ("preact_resnet18", {"final_norm": True}, 32),
  "preact_raw": ("preact_resnet18", {"raw": True}, 32),
  "resnet18_cifar": ("resnet", {"depth": 18, "small": True, "classes": 10}, 32),
  "resnet18": ("resnet", {"depth": 18, "classes": 12}, 64),
  "resnet50": ("resnet", {"depth": 50, "classes": 12}, 64),
  "vgg16": ("vgg", {"depth": 16}, 32),
  "vgg11_imagenet": ("vgg", {"depth": 11, "hidden": 64, "classes": 12}, 64),
}
# Names and shapes only, as a digest: the same functions at published sizes.
LISTED = {
  "wrn_28_10": ("wide_resnet", {"depth": 28, "width": 10, "sub_block": True}),
  "wrn_34_10": ("wide_resnet", {"depth": 34, "width": 10, "sub_block": True}),
  "wrn_70_16": ("wide_resnet", {"depth": 70, "width": 16, "sub_block": True}),
  "wrn_28_10_same": ("deepmind", {"depth": 28, "width": 10}),
  "wrn_70_16_same": ("deepmind", {"depth": 70, "width": 16}),
  **{f"resnet{n}": ("resnet", {"depth": n, "classes": 1000}) for n in RESNET},
  **{f"resnet{n}_cifar": ("resnet", {"depth": n, "small": True}) for n in RESNET},
  **{f"vgg{n}": ("vgg", {"depth": n}) for n in VGG},
  **{f"vgg{n}_imagenet": ("vgg", {"depth": n, "hidden": 4096, "classes": 1000}) for n in VGG},
}
PREACT = {
  "preact_resnet18": {},
  "preact_resnet18_final_norm": {"final_norm": True},
  "preact_resnet18_raw_shortcut": {"raw": True},
}
# Networks whose logits are compared at their published size: as LISTED, and the image size.
SIZES = {
  **{name: (*LISTED[name], 32) for name in LISTED if name.startswith("wrn")},
  **{name: ("preact_resnet18", options, 32) for name, options in PREACT.items()},
  **{f"resnet{n}": (*LISTED[f"resnet{n}"], 224) for n in RESNET},
  **{f"resnet{n}_cifar": (*LISTED[f"resnet{n}_cifar"], 32) for n in (18, 50)},
  "vgg16": (*LISTED["vgg16"], 32),
  **{f"vgg{n}_imagenet": (*LISTED[f"vgg{n}_imagenet"], 224) for n in VGG},
}
# Those whose outcomes under PGD are compared too.
ATTACKED_SIZES = ("wrn_28_10", "preact_resnet18_raw_shortcut", "vgg16")
# Cases, one for each kind of block.
ATTACKED = ("wrn", "deepmind", "preact_raw", "resnet18", "vgg11_imagenet")
STEPS = 5  # of PGD in Linf, of a quarter of epsilon; from the clean images
EPSILONS = tuple(2.0**-i for i in range(8, 18))


def draw(name, shape):
  """An array of a state dict: random, of the size that keeps activations near 1."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  last = name.rpartition(".")[2]
  if last == "num_batches_tracked":
    return np.array(7, np.int64)
  if last in ("mu", "mean"):
    values = rng.uniform(0.4, 0.5, shape)
  elif last in ("sigma", "std"):
    values = rng.uniform(0.2, 0.3, shape)
  elif last == "running_var" or (last == "weight" and len(shape) == 1):
    values = rng.uniform(0.5, 1.5, shape)
  elif last in ("running_mean", "bias"):
    values = 0.2 * rng.normal(size=shape)
  else:
    values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
  return values.astype(np.float32)


def images_of(count, size):
  """[count, height, width, channels] in [0, 1]."""
  return np.random.default_rng(size).uniform(size=(count, size, size, 3)).astype(np.float32)


def digest(listing):
  """Of {name: shape}, whatever its order."""
  text = json.dumps(sorted((name, list(shape)) for name, shape in listing.items()))
  return hashlib.sha256(text.encode()).hexdigest()


def build(function, **options):
  """One of the networks below, in evaluation mode, with drawn weights."""
  import torch

  network = globals()[function](**options).eval()
  state = network.state_dict()
  network.load_state_dict(
    {name: torch.from_numpy(np.array(draw(name, tuple(t.shape)))) for name, t in state.items()}
  )
  return network


def logits(network, images):
  import torch

  with torch.no_grad():
    return network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()


def normalised(network, mean, std):
  """Normalisation as a first step, by buffers of these names in the network itself."""
  import torch

  network.register_buffer(mean, torch.zeros(1, 3, 1, 1))
  network.register_buffer(std, torch.ones(1, 3, 1, 1))
  network.register_forward_pre_hook(
    lambda module, inputs: ((inputs[0] - getattr(module, mean)) / getattr(module, std),)
  )
  return network


def _module(children, forward):
  """A module with named children, whose forward pass is a function of it and x."""
  from torch import nn

  class Module(nn.Module):
    def forward(self, x):
      return forward(self, x)

  module = Module()
  for name, child in children.items():
    module.add_module(name, child)
  return module


def _conv(inputs, outputs, size=3, stride=1, padding=None, bias=False):
  from torch import nn

  padding = size // 2 if padding is None else padding
  return nn.Conv2d(inputs, outputs, size, stride, padding, bias=bias)


def wide_resnet(depth, width, sub_block=False, inside=False, classes=10):
  """Zagoruyko and Komodakis (2016), as in TRADES and RobustBench; normalisation `inside`."""
  from torch import nn
  from torch.nn import functional as F

  def block(inputs, outputs, stride):
    def forward(self, x):
      a = F.relu(self.bn1(x))
      out = self.conv2(F.relu(self.bn2(self.conv1(a))))
      return out + (x if inputs == outputs else self.convShortcut(a))

    children = {
      "bn1": nn.BatchNorm2d(inputs),
      "conv1": _conv(inputs, outputs, stride=stride),
      "bn2": nn.BatchNorm2d(outputs),
      "conv2": _conv(outputs, outputs),
    }
    if inputs != outputs:
      children["convShortcut"] = _conv(inputs, outputs, 1, stride)
    return _module(children, forward)

  def group(inputs, outputs, stride):
    first = block(inputs, outputs, stride)
    rest = [block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
    layer = nn.Sequential(first, *rest)
    return _module({"layer": layer}, lambda self, x: self.layer(x))

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(F.relu(self.bn1(x)).mean((2, 3)))

  widths = (16, 16 * width, 32 * width, 64 * width)
  children = {"conv1": _conv(3, 16), "block1": group(*widths[:2], 1)}
  if sub_block:  # it is in the files; the forward pass leaves it out
    children["sub_block1"] = group(*widths[:2], 1)
  children |= {
    "block2": group(*widths[1:3], 2),
    "block3": group(*widths[2:], 2),
    "bn1": nn.BatchNorm2d(widths[-1]),
    "fc": nn.Linear(widths[-1], classes),
  }
  network = _module(children, forward)
  return normalised(network, "mu", "sigma") if inside else network


def deepmind(depth, width, classes=10):
  """Gowal et al. (2020): SiLU, and zeros below and on the right only where the stride is 2."""
  from torch import nn
  from torch.nn import functional as F

  def block(inputs, outputs, stride):
    def forward(self, x):
      a = F.silu(self.batchnorm_0(x))
      edges = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
      out = F.silu(self.batchnorm_1(self.conv_0(F.pad(a, edges))))
      return self.conv_1(out) + (x if inputs == outputs else self.shortcut(a))

    children = {
      "batchnorm_0": nn.BatchNorm2d(inputs),
      "conv_0": _conv(inputs, outputs, stride=stride, padding=0),
      "batchnorm_1": nn.BatchNorm2d(outputs),
      "conv_1": _conv(outputs, outputs),
    }
    if inputs != outputs:
      children["shortcut"] = _conv(inputs, outputs, 1, stride)
    return _module(children, forward)

  def group(inputs, outputs, stride):
    first = block(inputs, outputs, stride)
    rest = [block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
    return _module({"block": nn.Sequential(first, *rest)}, lambda self, x: self.block(x))

  widths = (16, 16 * width, 32 * width, 64 * width)
  groups = [group(*widths[i : i + 2], 1 if i == 0 else 2) for i in range(3)]
  children = {
    "init_conv": _conv(3, 16),
    "layer": nn.Sequential(*groups),
    "batchnorm": nn.BatchNorm2d(widths[-1]),
    "logits": nn.Linear(widths[-1], classes),
  }

  def forward(self, x):
    x = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
    return self.logits(x.mean((2, 3)))

  return normalised(_module(children, forward), "mean", "std")


def preact_resnet18(raw=False, final_norm=False, classes=10):
  """He et al. (2016b); a shortcut's convolution takes x where `raw`, else relu(bn1(x))."""
  from torch import nn
  from torch.nn import functional as F

  def block(inputs, outputs, stride):
    projects = stride != 1 or inputs != outputs

    def forward(self, x):
      a = F.relu(self.bn1(x))
      kept = self.shortcut(x if raw else a) if projects else x
      return self.conv2(F.relu(self.bn2(self.conv1(a)))) + kept

    children = {
      "bn1": nn.BatchNorm2d(inputs),
      "conv1": _conv(inputs, outputs, stride=stride),
      "bn2": nn.BatchNorm2d(outputs),
      "conv2": _conv(outputs, outputs),
    }
    if projects:
      children["shortcut"] = nn.Sequential(_conv(inputs, outputs, 1, stride))
    return _module(children, forward)

  children = {"conv1": _conv(3, 64)}
  for number, (inputs, outputs) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
    children[f"layer{number}"] = nn.Sequential(
      block(inputs, outputs, 1 if number == 1 else 2), block(outputs, outputs, 1)
    )
  if final_norm:
    children["bn"] = nn.BatchNorm2d(512)
  children["linear"] = nn.Linear(512, classes)

  def forward(self, x):
    x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
    return self.linear((F.relu(self.bn(x)) if final_norm else x).mean((2, 3)))

  return _module(children, forward)


def resnet(depth, small=False, classes=10):
  """He et al. (2016a), the stride on the 3x3 convolution: torchvision's, or for CIFAR-10."""
  from torch import nn
  from torch.nn import functional as F

  expansion = 1 if depth == 18 else 4
  shortcut_name = "shortcut" if small else "downsample"

  def block(inputs, width, stride):
    outputs = expansion * width
    projects = stride != 1 or inputs != outputs

    def forward(self, x):
      y = F.relu(self.bn1(self.conv1(x)))
      y = self.bn2(self.conv2(y))
      if expansion == 4:
        y = self.bn3(self.conv3(F.relu(y)))
      return F.relu(y + (getattr(self, shortcut_name)(x) if projects else x))

    if expansion == 1:
      convolutions = [_conv(inputs, width, stride=stride), _conv(width, width)]
    else:
      convolutions = [
        _conv(inputs, width, 1),
        _conv(width, width, stride=stride),
        _conv(width, outputs, 1),
      ]
    children = {}
    for number, convolution in enumerate(convolutions, 1):
      children[f"conv{number}"] = convolution
      children[f"bn{number}"] = nn.BatchNorm2d(convolution.out_channels)
    if projects:
      children[shortcut_name] = nn.Sequential(
        _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
      )
    return _module(children, forward)

  children = {"conv1": _conv(3, 64) if small else _conv(3, 64, 7, 2), "bn1": nn.BatchNorm2d(64)}
  inputs = 64
  for number, count in enumerate(RESNET[depth], 1):
    width = 32 * 2**number
    blocks = [block(inputs, width, 1 if number == 1 else 2)]
    inputs = expansion * width
    blocks += [block(inputs, width, 1) for _ in range(count - 1)]
    children[f"layer{number}"] = nn.Sequential(*blocks)
  children["linear" if small else "fc"] = nn.Linear(inputs, classes)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    if not small:
      x = F.max_pool2d(x, 3, 2, 1)
    x = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
    return self.linear(x) if small else self.fc(x)

  return _module(children, forward)


def vgg(depth, hidden=0, classes=10):
  """Simonyan and Zisserman (2015), batch norm: torchvision's where `hidden`, or for CIFAR-10."""
  from torch import nn

  layers, inputs = [], 3
  for width, count in zip((64, 128, 256, 512, 512), VGG[depth], strict=True):
    for _ in range(count):
      layers += [_conv(inputs, width, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
      inputs = width
    layers.append(nn.MaxPool2d(2, 2))
  if hidden:
    dense = [nn.Linear(512 * 49, hidden), nn.ReLU(), nn.Dropout()]
    dense += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)]
    classifier = nn.Sequential(*dense)
  else:
    classifier = nn.Linear(512, classes)
  pool = nn.AdaptiveAvgPool2d(7 if hidden else 1)
  return _module(
    {"features": nn.Sequential(*layers), "classifier": classifier},
    lambda self, x: self.classifier(pool(self.features(x)).flatten(1)),
  )


def attack(network, images, labels, epsilon, step_size, num_steps):
  """PGD on the margin, Linf, from the clean image: the least margin of each image.

  The gradient of the cross-entropy is 0 where the label leads by 100, as in deep random networks.
  """
  import torch

  clean = torch.from_numpy(images.transpose(0, 3, 1, 2))
  labels = torch.from_numpy(labels)
  x, margins = clean.clone(), []
  for step in range(num_steps + 1):
    x.requires_grad_(True)
    out = network(x)
    true = out.gather(1, labels[:, None])[:, 0]
    margin = true - out.scatter(1, labels[:, None], -torch.inf).max(1).values
    margins.append(margin.detach())
    if step < num_steps:
      gradient = torch.autograd.grad(-margin.sum(), x)[0]
      x = (x + step_size * gradient.sign()).detach()
      x = clean + (x - clean).clamp(-epsilon, epsilon)
      x = x.clamp(0, 1).detach()
  return torch.stack(margins).min(0).values.numpy()


def attacked(network, images, num_steps=STEPS):
  """PGD with the first epsilon that breaks some images and not others, with no margin near 0.

  The labels are the clean predictions. The last bias is set so that every class has the mean logit
  0 on these images: else all of them are of one class, and far from any other.
  """
  import torch

  name = [key for key in network.state_dict() if key.endswith("bias")][-1]
  bias = network.get_parameter(name)
  with torch.no_grad():
    bias -= torch.from_numpy(logits(network, images).mean(0))
    bias.copy_(torch.tensor([float(f"{value:.5g}") for value in bias]))
  clean = logits(network, images)
  labels, scale = clean.argmax(1), np.abs(clean).max()
  for epsilon in EPSILONS:
    margins = attack(network, images, labels, epsilon, epsilon / 4, num_steps)
    robust, distance = margins > 0, np.abs(margins).min() / scale
    print(f"  PGD at {epsilon:.2g}: {robust.sum()} of {len(images)}, nearest {distance:.2g}")
    if len(images) / 4 <= robust.sum() < len(images) and distance > 2e-3:
      return {
        "bias": [name, [float(f"{value:.5g}") for value in bias]],
        "epsilon": epsilon,
        "num_steps": num_steps,
        "labels": labels.tolist(),
        "robust": robust.tolist(),
      }
  raise ValueError("no epsilon breaks some images and not others")


def published(names):
  """Writes logits and PGD's outcomes at published sizes for a few images: of these networks."""
  import torch

  golden = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
  for name in names or SIZES:
    function, options, size = SIZES[name]
    print(name, flush=True)
    network, images = build(function, **options), images_of(4, size)
    found = logits(network, images)
    golden[name] = {
      "torch": torch.__version__,
      "largest": float(np.abs(found).max()),
      "logits": [[float(f"{value:.8g}") for value in row[:20]] for row in found],
      "pgd": attacked(network, images, num_steps=3) if name in ATTACKED_SIZES else None,
    }
    PUBLISHED.write_text(json.dumps(golden, indent=1) + "\n")


def main():
  import torch

  golden = {"torch": torch.__version__, "cases": {}, "digests": {}, "pgd": {}}
  for name, (function, options, size) in CASES.items():
    network = build(function, **options)
    golden["cases"][name] = {
      "arrays": {key: list(tensor.shape) for key, tensor in network.state_dict().items()},
      "logits": logits(network, images_of(2, size)).tolist(),
    }
    print(name, np.abs(golden["cases"][name]["logits"]).max())
  for name, (function, options) in LISTED.items():
    with torch.device("meta"):
      state = globals()[function](**options).state_dict()
    golden["digests"][name] = digest({key: tuple(tensor.shape) for key, tensor in state.items()})
  for name in ATTACKED:
    function, options, size = CASES[name]
    print(name)
    golden["pgd"][name] = attacked(build(function, **options), images_of(8, size))
  GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  published(sys.argv[2:]) if sys.argv[1:2] == ["published"] else main()
