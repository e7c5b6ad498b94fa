"""The same networks and steps in PyTorch, for comparison with the JAX steps.

They are written from the papers, in PyTorch's usual way: `nn.Conv2d`, `nn.BatchNorm2d`,
`torch.optim.SGD`. Minibatches are in memory as floats. Crops and flips are left out, which favours
PyTorch.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10


class SmallCNN(nn.Module):
  def __init__(self):
    super().__init__()
    self.convs = nn.ModuleList(
      nn.Conv2d(a, b, 3, s, 1) for a, b, s in ((3, 32, 1), (32, 64, 2), (64, 128, 2))
    )
    self.dense = nn.Linear(512, CLASSES)

  def forward(self, x):
    for conv in self.convs:
      x = F.relu(conv(x))
    return self.dense(F.adaptive_avg_pool2d(x, 2).flatten(1))


def vgg16():
  layers, channels = [], 3
  for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
    for _ in range(count):
      layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
      channels = width
    layers.append(nn.MaxPool2d(2))
  return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, CLASSES))


class Block(nn.Module):
  """Pre-activation block, He et al. (2016b)."""

  def __init__(self, channels, width, stride):
    super().__init__()
    self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
    self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.shortcut = (
      nn.Conv2d(channels, width, 1, stride, bias=False)
      if stride != 1 or channels != width
      else None
    )

  def forward(self, x):
    a = F.relu(self.norm1(x))
    if self.shortcut is not None:
      x = self.shortcut(a)
    return x + self.conv2(F.relu(self.norm2(self.conv1(a))))


class ResNet(nn.Module):
  """A stem, stages of pre-activation blocks (the first of each but stage 1 has stride 2)."""

  def __init__(self, stem, widths, blocks, final_norm):
    super().__init__()
    layers, channels = [nn.Conv2d(3, stem, 3, padding=1, bias=False)], stem
    for stage, width in enumerate(widths):
      for i in range(blocks):
        layers.append(Block(channels, width, 2 if stage and not i else 1))
        channels = width
    if final_norm:
      layers += [nn.BatchNorm2d(channels), nn.ReLU(True)]
    self.layers, self.dense = nn.Sequential(*layers), nn.Linear(channels, CLASSES)

  def forward(self, x):
    return self.dense(self.layers(x).mean((2, 3)))


MODELS = {
  "small_cnn": SmallCNN,
  "vgg16": vgg16,
  "preact_resnet18": functools.partial(ResNet, 64, (64, 128, 256, 512), 2, False),
  "wrn_16_4": functools.partial(ResNet, 16, (64, 128, 256), 2, True),
  "wrn_28_10": functools.partial(ResNet, 16, (160, 320, 640), 4, True),
}


def _wait(device):
  if device == "cuda":
    torch.cuda.synchronize()


def _layout(channels_last):
  return torch.channels_last if channels_last else torch.contiguous_format


def _batch(images, labels, device, channels_last):
  """uint8 NHWC arrays -> float NCHW in [0, 1] of the layout, and labels."""
  x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
  return (
    x.to(device).contiguous(memory_format=_layout(channels_last)),
    torch.from_numpy(labels).long().to(device),
  )


def natural(model, x, y):
  return F.cross_entropy(model(x), y)


def sprout_released(model, x, y):
  """The released code's loss: noise, mixup, and a Dirichlet draw for each of the two labels."""
  noisy = x + 0.1 * torch.randn_like(x)
  weight = np.random.beta(0.2, 0.2)
  partners = torch.randperm(len(x), device=x.device)
  log_probs = F.log_softmax(model(weight * noisy + (1 - weight) * noisy[partners]), -1)

  def cross_entropy(labels):
    concentration = 10 * F.one_hot(labels, CLASSES).float() + model.u
    drawn = torch.distributions.Dirichlet(concentration).rsample()
    return -(drawn * log_probs).sum(-1).mean()

  return weight * cross_entropy(y) + (1 - weight) * cross_entropy(y[partners])


def pgd(model, x, y, epsilon=8 / 255, step_size=2 / 255, num_steps=10):
  """Madry's loss; the attack sees batch norm in training mode."""
  attacked = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
  for _ in range(num_steps):
    attacked.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
    attacked = attacked.detach() + step_size * gradient.sign()
    attacked = torch.min(torch.max(attacked, x - epsilon), x + epsilon).clamp(0, 1)
  return F.cross_entropy(model(attacked), y)


LOSSES = {"natural": natural, "sprout_released": sprout_released, "pgd": pgd}


def training(
  name,
  images,
  labels,
  num_steps,
  *,
  channels_last,
  loss="natural",
  device="cpu",
  mixed_precision=False,
  compiled=False,
):
  """A function that trains `num_steps` steps on one minibatch, and waits for them.

  "sprout_released" takes three steps of the model and one of u per minibatch, as its authors' code.
  """
  model = MODELS[name]().to(device, memory_format=_layout(channels_last)).train()
  model.u = nn.Parameter(torch.ones(CLASSES, device=device)) if loss == "sprout_released" else None
  weights = [p for n, p in model.named_parameters() if n != "u"]
  optimizer = torch.optim.SGD(weights, 0.01, momentum=0.9, weight_decay=5e-4)
  u_optimizer = (
    torch.optim.SGD([model.u], 0.01, momentum=0.9, weight_decay=5e-4)
    if model.u is not None
    else None
  )
  x, y = _batch(images, labels, device, channels_last)
  loss_fn = torch.compile(LOSSES[loss]) if compiled else LOSSES[loss]
  cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=mixed_precision)

  def steps():
    for _ in range(num_steps):
      for _ in range(3 if u_optimizer else 1):
        optimizer.zero_grad(set_to_none=True)
        with cast():
          value = loss_fn(model, x, y)
        value.backward()
        optimizer.step()
      if u_optimizer:
        u_optimizer.zero_grad(set_to_none=True)
        with cast():
          drawn = torch.distributions.Dirichlet(
            10 * F.one_hot(y, CLASSES).float() + model.u
          ).rsample()
          value = (drawn * F.log_softmax(model(x), -1)).sum(-1).mean()
        value.backward()
        u_optimizer.step()
        with torch.no_grad():
          model.u.clamp_(min=0)
    _wait(device)

  steps()
  return steps


def attacking(
  name,
  images,
  labels,
  num_steps,
  *,
  channels_last,
  device="cpu",
  mixed_precision=False,
  compiled=False,
):
  """A function that takes `num_steps` signed gradient steps on a minibatch, in evaluation mode."""
  model = MODELS[name]().to(device, memory_format=_layout(channels_last)).eval()
  model.requires_grad_(False)
  x, y = _batch(images, labels, device, channels_last)
  forward = torch.compile(model) if compiled else model

  def steps():
    attacked = x
    for _ in range(num_steps):
      attacked = attacked.detach().requires_grad_(True)
      with torch.autocast(device, torch.bfloat16, enabled=mixed_precision):
        value = F.cross_entropy(forward(attacked), y, reduction="sum")
      (gradient,) = torch.autograd.grad(value, attacked)
      attacked = attacked.detach() + 0.007 * gradient.sign()
      attacked = torch.min(torch.max(attacked, x - 0.03), x + 0.03).clamp(0, 1)
    _wait(device)

  steps()
  return steps
