"""Times input gradients of models with plain convolutions on a CPU, beside PyTorch's.

    python benchmarks/plain_convolutions.py --output FILE.json

The networks have random weights and are written as users write them: plain `lax` in both layouts,
Flax linen, Flax NNX, and Equinox (channels first, vmapped over images). Each network is timed with
its own convolutions and with the replaced ones. Each round times all of them in turn. A ratio is
that of two times within a round. The wall time is the waiting time of a user. The CPU time of all
threads depends less on other programs on the machine. Without PyTorch, its column is left out.
"""

import argparse
import functools
import itertools
import pathlib
import sys
import time

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import timing
from flax import nnx
from jax import lax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sprout_jax.attacks import convolutions

CLASSES = 10


def lax_valid(layout):
  """3x3 convolutions without padding, of 64, 128 and 64 channels."""
  rng, widths = np.random.default_rng(0), (3, 64, 128, 64)
  kernels = [
    jnp.asarray(rng.normal(size=(3, 3, a, b)) * (2 / 9 / a) ** 0.5, jnp.float32)
    for a, b in itertools.pairwise(widths)
  ]
  dense = jnp.asarray(rng.normal(size=(64, CLASSES)) / 8, jnp.float32)
  if layout == "NCHW":
    kernels = [kernel.transpose(3, 2, 0, 1) for kernel in kernels]
  numbers = (layout, "OIHW" if layout == "NCHW" else "HWIO", layout)

  def predict(weights, images):
    kernels, dense = weights
    x = images.transpose(0, 3, 1, 2) if layout == "NCHW" else images
    for kernel in kernels:
      x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
      x = jax.nn.relu(x)
    return x.mean([layout.index("H"), layout.index("W")]) @ dense

  return jax.tree_util.Partial(predict, (kernels, dense))


class _Block(nn.Module):
  features: int
  strides: int

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.BatchNorm, use_running_average=True)
    conv = functools.partial(nn.Conv, self.features, use_bias=False)
    y = nn.relu(norm()(conv((3, 3), (self.strides, self.strides))(x)))
    y = norm()(conv((3, 3))(y))
    if x.shape != y.shape:
      x = norm()(conv((1, 1), (self.strides, self.strides))(x))
    return nn.relu(x + y)


class _ResNet18(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(64, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    for stage, features in enumerate((64, 128, 256, 512)):
      for block in range(2):
        x = _Block(features, 2 if stage and not block else 1)(x)
    return nn.Dense(CLASSES)(x.mean((1, 2)))


class _Strided(nn.Module):
  """Larger windows and strides: 7x7 and 3x3 by 2, then windows of 2x2 that lie side by side."""

  @nn.compact
  def __call__(self, x):
    for features, window, strides in ((64, 7, 2), (128, 3, 2), (128, 3, 1), (256, 2, 2)):
      x = nn.relu(nn.Conv(features, (window, window), (strides, strides))(x))
    return nn.Dense(CLASSES)(x.mean((1, 2)))


def _linen(model):
  variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return jax.tree_util.Partial(model.apply, variables)


class _NnxCnn(nnx.Module):
  def __init__(self, rngs):
    self.conv1 = nnx.Conv(3, 32, (3, 3), rngs=rngs)
    self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
    self.dense1 = nnx.Linear(64 * 8 * 8, 256, rngs=rngs)
    self.dense2 = nnx.Linear(256, CLASSES, rngs=rngs)

  def __call__(self, x):
    x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
    x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
    return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


def nnx_cnn():
  return _NnxCnn(nnx.Rngs(0))


def equinox_cnn():
  keys = jax.random.split(jax.random.key(0), 4)
  model = eqx.nn.Sequential(
    [
      eqx.nn.Conv2d(3, 32, 3, padding=1, key=keys[0]),
      eqx.nn.Lambda(jax.nn.relu),
      eqx.nn.AvgPool2d(2, 2),
      eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1]),
      eqx.nn.Lambda(jax.nn.relu),
      eqx.nn.AvgPool2d(2, 2),
      eqx.nn.Conv2d(64, 128, 3, padding=1, key=keys[2]),
      eqx.nn.Lambda(lambda x: jax.nn.relu(x).mean((1, 2))),
      eqx.nn.Linear(128, CLASSES, key=keys[3]),
    ]
  )
  weights, rest = eqx.partition(model, eqx.is_array)

  def predict(weights, images):
    return jax.vmap(eqx.combine(weights, rest))(images.transpose(0, 3, 1, 2))

  return jax.tree_util.Partial(predict, weights)


NETWORKS = {
  "lax_last": lambda: lax_valid("NHWC"),
  "lax_first": lambda: lax_valid("NCHW"),
  "linen_resnet18": lambda: _linen(_ResNet18()),
  "nnx_cnn": nnx_cnn,
  "equinox_cnn": equinox_cnn,
  "linen_strided": lambda: _linen(_Strided()),
}


def gradient_loop(predict, images, num_steps):
  """Compiles `num_steps` input gradients in a loop; returns a timed function and the seconds."""
  structure, leaves = jax.tree.structure(predict), jax.tree.leaves(predict)

  def run(leaves, images, num_steps):
    predict = jax.tree.unflatten(structure, leaves)
    loss = lambda images: jnp.sum(jnp.square(predict(images)))
    step = lambda _, images: images + 1e-3 * jnp.sign(jax.grad(loss)(images))
    return lax.fori_loop(0, num_steps, step, images)

  start = time.perf_counter()
  compiled = jax.jit(run).lower(leaves, images, num_steps).compile()
  seconds = time.perf_counter() - start
  return lambda: jax.block_until_ready(compiled(leaves, images, num_steps)), seconds


def torch_loop(name, images, num_steps):
  """The same number of input gradients of the same network in PyTorch, channels last."""
  import torch
  from torch import nn as tnn

  def block(a, b, strides):
    return _torch_block(tnn, a, b, strides)

  conv, relu = tnn.Conv2d, tnn.ReLU
  head = lambda width: (tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(width, CLASSES))
  layers = {
    "lax": lambda: (
      conv(3, 64, 3, bias=False),
      relu(),
      conv(64, 128, 3, bias=False),
      relu(),
      conv(128, 64, 3, bias=False),
      relu(),
      *head(64),
    ),
    "linen_resnet18": lambda: (
      conv(3, 64, 3, padding=1, bias=False),
      tnn.BatchNorm2d(64),
      relu(),
      *(block(64, 64, 1) for _ in range(2)),
      *(
        block(a, b, strides)
        for width in (128, 256, 512)
        for a, b, strides in ((width // 2, width, 2), (width, width, 1))
      ),
      *head(512),
    ),
    "nnx_cnn": lambda: (
      conv(3, 32, 3, padding=1),
      relu(),
      tnn.AvgPool2d(2),
      conv(32, 64, 3, padding=1),
      relu(),
      tnn.AvgPool2d(2),
      tnn.Flatten(),
      tnn.Linear(64 * 8 * 8, 256),
      relu(),
      tnn.Linear(256, CLASSES),
    ),
    "equinox_cnn": lambda: (
      conv(3, 32, 3, padding=1),
      relu(),
      tnn.AvgPool2d(2),
      conv(32, 64, 3, padding=1),
      relu(),
      tnn.AvgPool2d(2),
      conv(64, 128, 3, padding=1),
      relu(),
      *head(128),
    ),
    "linen_strided": lambda: (
      conv(3, 64, 7, 2, 3),
      relu(),
      conv(64, 128, 3, 2, 1),
      relu(),
      conv(128, 128, 3, 1, 1),
      relu(),
      conv(128, 256, 2, 2),
      relu(),
      *head(256),
    ),
  }
  torch.manual_seed(0)
  model = (
    tnn.Sequential(*layers[name.removesuffix("_last").removesuffix("_first")]())
    .eval()
    .requires_grad_(False)
  )
  model = model.to(memory_format=torch.channels_last)
  start = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2))
  start = start.contiguous(memory_format=torch.channels_last)

  def run():
    x = start
    for _ in range(num_steps):
      x = x.detach().requires_grad_()
      (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
      x = x.detach() + 1e-3 * gradient.sign()
    return x

  return run


def _torch_block(tnn, a, b, strides):
  class Block(tnn.Module):
    def __init__(self):
      super().__init__()
      self.body = tnn.Sequential(
        tnn.Conv2d(a, b, 3, strides, 1, bias=False),
        tnn.BatchNorm2d(b),
        tnn.ReLU(),
        tnn.Conv2d(b, b, 3, 1, 1, bias=False),
        tnn.BatchNorm2d(b),
      )
      self.shortcut = (
        tnn.Identity()
        if a == b
        else tnn.Sequential(tnn.Conv2d(a, b, 1, strides, bias=False), tnn.BatchNorm2d(b))
      )

    def forward(self, x):
      return (self.body(x) + self.shortcut(x)).relu()

  return Block()


def measure(name, args):
  predict = NETWORKS[name]()
  exchanged = convolutions.exchange_convolutions(predict)
  images = jax.random.uniform(jax.random.key(1), (args.images, 32, 32, 3))
  call = jax.jit(lambda fn, images: fn(images))
  forward = [np.asarray(call(fn, images)) for fn in (predict, exchanged)]
  gradient = jax.jit(lambda fn, images: jax.grad(lambda x: jnp.sum(jnp.square(fn(x))))(images))
  plain = gradient(predict, images)
  row = {
    "network": name,
    "images": args.images,
    "forward_equal": bool((forward[0] == forward[1]).all()),
    "gradient_difference": float(
      jnp.abs(gradient(exchanged, images) - plain).max() / jnp.abs(plain).max()
    ),
  }
  runs = {}
  for label, fn in (("plain", predict), ("exchanged", exchanged)):
    runs[label], row[f"{label}_compile_seconds"] = gradient_loop(fn, images, args.num_steps)
  try:
    runs["torch"] = torch_loop(name, images, args.num_steps)
  except ImportError:
    print("PyTorch is not installed, so its column is left out", file=sys.stderr)
  wall, cpu = {label: [] for label in runs}, {label: [] for label in runs}
  for run in runs.values():
    run()
  for _ in range(args.rounds):
    for label, run in runs.items():
      begin = time.perf_counter(), time.process_time()
      run()
      wall[label].append((time.perf_counter() - begin[0]) / args.num_steps)
      cpu[label].append((time.process_time() - begin[1]) / args.num_steps)
  row |= {"wall_seconds": wall, "cpu_seconds": cpu}
  start = time.perf_counter()
  row["pays"] = convolutions.pays(predict, images)
  row["pays_seconds"] = time.perf_counter() - start
  return row | {"hardware": timing.hardware()}


def show(row):
  wall, cpu = row["wall_seconds"], row["cpu_seconds"]
  text = f"{row['network']:15}"
  for label, times in wall.items():
    text += f" {label} {timing.median(times):.3f} s ({timing.median(cpu[label]):.3f} CPU)"
  for other in ("plain", "torch"):
    if other in wall:
      pairs = timing.ratios(wall[other], wall["exchanged"])
      text += f" | {other}/exchanged {timing.median(pairs):.2f} ({pairs[0]:.2f}-{pairs[-1]:.2f})"
      text += f", CPU {timing.median(timing.ratios(cpu[other], cpu['exchanged'])):.2f}"
  text += f" | differ {row['gradient_difference']:.1e}, forward equal: {row['forward_equal']}"
  text += f" | pays: {row['pays']} after {row['pays_seconds']:.1f} s"
  print(text, flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--networks", default=",".join(NETWORKS))
  parser.add_argument("--images", type=int, default=100)
  parser.add_argument("--num_steps", type=int, default=1, help="input gradients per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  rows = timing.read(args.output)
  print(f"JAX {jax.__version__}; seconds per input gradient of {args.images} images, in a loop")
  for name in args.networks.split(","):
    row = next((row for row in rows if row["network"] == name), None)
    if row is None:
      row = measure(name, args)
      rows.append(row)
      timing.write(args.output, rows)
    show(row)


if __name__ == "__main__":
  main()
