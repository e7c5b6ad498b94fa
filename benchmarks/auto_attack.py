"""Compares AutoAttack with the reference implementation, and measures its speed.

    python benchmarks/auto_attack.py parity --golden DIR --output FILE.json
    python benchmarks/auto_attack.py gains --golden DIR --data TFDS --output FILE.json
    python benchmarks/auto_attack.py speed --golden DIR/natural_1.npz --output FILE.json

DIR has one .npz for each network: images, labels, epsilon, the weights of a small CNN in PyTorch's
layout, and for each image whether it was robust after each attack of the reference implementation.

`parity` runs "standard" and each single attack on every network. It does not repeat rows that the
file has. `gains` runs AutoAttack and the further attacks of `extended_attack` on the same networks,
and on those models of `sprout_jax.zoo` that `ZOO` lists. It stores what each attack breaks and what
it costs. `speed` times "standard", first with compilation and then without, beside its limit: the
passes that it made at the cost of the cheapest pass per image at any batch size. Leave the
environment's JAX_COMPILATION_CACHE_DIR unset: a cache would hide the compilation.
"""

import argparse
import functools
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.append(str(pathlib.Path(__file__).parent))

import timing

import sprout_jax
from sprout_jax import attacks
from sprout_jax import data
from sprout_jax import models
from sprout_jax import zoo
from sprout_jax.evaluation.subject import as_pytree

# {model of the zoo: epsilon}, with radii at which some images stay robust.
ZOO = {"wrn_16_1_natural": 0.5 / 255, "wrn_16_1_sprout": 1 / 255, "wrn_16_1_gradient_norm": 8 / 255}
NUM_IMAGES = 200  # of a model of the zoo

ALONE = ("apgd-ce", "apgd-t", "fab-t", "square")


def load(path, norm="linf"):
  """(predict, images, labels, epsilon, {name: outcomes of the reference}).

  Other norms than Linf: the outcomes of some of the images are in ../NORM/ beside the network's
  folder, with the images' places.
  """
  path = pathlib.Path(path)
  stored = np.load(path)
  params = {
    f"conv{i}": {
      "kernel": stored[f"conv{i}_kernel"].transpose(2, 3, 1, 0),
      "bias": stored[f"conv{i}_bias"],
    }
    for i in (1, 2, 3)
  }
  # See models.small_cnn about the order of the features.
  dense = stored["dense_kernel"].reshape(-1, 128, 2, 2).transpose(2, 3, 1, 0)
  model = models.create("small_cnn", num_classes=dense.shape[-1], image_shape=(32, 32, 3))
  images = stored["images"].astype(np.float32) / 255
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))["params"]
  (head,) = shapes.keys() - params.keys()
  params[head] = {"kernel": dense.reshape(512, -1), "bias": stored["dense_bias"]}
  predict = as_pytree(
    jax.tree_util.Partial(lambda v, x: model.apply(v, x, train=False), {"params": params})
  )
  error = np.abs(predict(images) - stored["logits"]).max()
  if error > 1e-3:
    sys.exit(f"{path}: the logits differ from the reference's by {error}")
  found = stored if norm == "linf" else np.load(path.parents[1] / norm / path.name)
  places = slice(None) if norm == "linf" else found["places"]
  outcomes = {name: found[f"robust_{name.replace('-', '_')}"] for name in (*ALONE, "standard")}
  labels = stored["labels"].astype(np.int32)
  return predict, images[places], labels[places], float(found["epsilon"]), outcomes


def attacked(attack, args, predict, images, labels, epsilon):
  """The result of an attack with the seed and the batch size of the command line."""
  return attack(
    jax.random.key(args.seed),
    predict,
    images,
    labels,
    epsilon=epsilon,
    batch_size=args.batch_size,
  )


def parity(args):
  rows = timing.read(args.output)
  print(f"{'network':16} {'attack':9} {'ours':>5} {'reference':>9} {'differ':>6} {'seconds':>8}")
  for network in sorted(pathlib.Path(args.golden).glob("*.npz")):
    if args.norm != "linf" and not (network.parents[1] / args.norm / network.name).exists():
      continue
    predict, images, labels, epsilon, outcomes = load(network, args.norm)
    for version in args.versions.split(","):
      row = next(
        (
          row
          for row in rows
          if (row["network"], row["norm"], row["attack"]) == (network.stem, args.norm, version)
        ),
        None,
      )
      if row is None:
        start = time.perf_counter()
        run = functools.partial(attacks.auto_attack, norm=args.norm, version=version)
        result = attacked(run, args, predict, images, labels, epsilon)
        expected = outcomes[version]
        row = {
          "network": network.stem,
          "norm": args.norm,
          "attack": version,
          "epsilon": epsilon,
          "images": len(labels),
          "robust": int(result.robust.sum()),
          "reference": int(expected.sum()),
          "differ": int((result.robust != expected).sum()),
          "seed": args.seed,
          "largest_perturbation": result.spec["largest_perturbation"],
          "seconds": time.perf_counter() - start,
          "jax": jax.__version__,
          "device": jax.devices()[0].device_kind,
        }
        rows.append(row)
        timing.write(args.output, rows)
      print(
        f"{row['network']:16} {row['attack']:9} {row['robust']:5} {row['reference']:9} "
        f"{row['differ']:6} {row['seconds']:8.1f}",
        flush=True,
      )


def subjects(args):
  """Yields (name, function that makes (predict, images, labels, epsilon)) of `gains`."""
  for network in sorted(pathlib.Path(args.golden).glob("*.npz")):
    yield network.stem, lambda network=network: load(network)[:4]
  for name, epsilon in ZOO.items():
    if name in zoo.names():

      def make(name=name, epsilon=epsilon):
        test = data.load_test(data.Request("cifar10", data_dir=args.data))
        model = sprout_jax.load(f"{zoo.PREFIX}{name}")
        places = np.random.default_rng(args.seed).permutation(len(test.labels))[:NUM_IMAGES]
        images = np.asarray(test.images[places], np.float32) / 255
        return as_pytree(model.predict), images, np.asarray(test.labels[places]), epsilon

      yield name, make


def gains(args):
  rows = timing.read(args.output)
  for name, make in subjects(args):
    if name in {row["network"] for row in rows}:
      continue
    predict, images, labels, epsilon = make()
    start = time.perf_counter()
    result = attacked(attacks.extended_attack, args, predict, images, labels, epsilon)
    row = {
      "network": name,
      "norm": "linf",
      "epsilon": epsilon,
      "images": len(labels),
      "correct": int(np.sum(np.asarray(predict(images)).argmax(-1) == labels)),
      "robust": {attack: int(robust.sum()) for attack, robust in result.per_attack.items()},
      "gains": result.spec["gains"],
      "seed": args.seed,
      "seconds": time.perf_counter() - start,
      "jax": jax.__version__,
      "device": jax.devices()[0].device_kind,
    }
    rows.append(row)
    timing.write(args.output, rows)
    print(name, f"epsilon {epsilon:.4g}", row["robust"], f"{row['seconds']:.0f} s", flush=True)


def pass_seconds(predict, images, batch_sizes):
  """Seconds per image of a forward pass and of an input gradient, in a compiled loop.

  Returns:
    {"forward": {batch size: seconds}, "gradient": likewise}, the fastest of five timings each.
  """
  gradient = lambda predict, x: jax.grad(lambda x: predict(x)[:, 0].sum())(x)
  looks = {"forward": lambda predict, x: predict(x).sum(), "gradient": gradient}
  found = {kind: {} for kind in looks}
  for size in batch_sizes:
    x, steps = np.resize(images, (size, *images.shape[1:])), max(2, 512 // size)
    for kind, look in looks.items():

      def loop(predict, x, look=look, steps=steps):
        return jax.lax.fori_loop(0, steps, lambda _, x: x + 1e-6 * look(predict, x), x)

      run, times = jax.jit(loop), []
      run(predict, x).block_until_ready()
      for _ in range(5):
        start = time.perf_counter()
        run(predict, x).block_until_ready()
        times.append(time.perf_counter() - start)
      found[kind][size] = min(times) / steps / size
  return found


def speed(args):
  predict, images, labels, epsilon, _ = load(args.golden)
  images, labels = images[: args.num_images], labels[: args.num_images]
  seconds = []
  for _ in range(1 + args.rounds):
    start = time.perf_counter()
    result = attacked(attacks.auto_attack, args, predict, images, labels, epsilon)
    seconds.append(time.perf_counter() - start)
    print(f"{seconds[-1]:.1f} s, {result.robust.sum()} of {len(labels)} robust", flush=True)
  costs = pass_seconds(predict, images, (8, 16, 32, 64, 128))
  forward, gradient = (min(costs[kind].values()) for kind in ("forward", "gradient"))
  passes = result.spec["passes"]
  # A step of APGD is a gradient, one of FAB a gradient and a forward pass, one of Square a pass.
  step = {"apgd": (3, gradient), "fab-": (4, gradient + forward), "squa": (1, forward)}
  limit = sum(count / step[name[:4]][0] * step[name[:4]][1] for name, count in passes.items())
  later = float(np.median(seconds[1:]))
  row = {
    "network": pathlib.Path(args.golden).stem,
    "images": len(labels),
    "robust": int(result.robust.sum()),
    "first_seconds": seconds[0],
    "later_seconds": seconds[1:],
    "passes": passes,
    "pass_seconds": costs,
    "limit_seconds": limit,
    "over_limit": later / limit,
    "hardware": timing.hardware(),
  }
  print(f"limit {limit:.1f} s; {later / limit:.2f} times the limit")
  timing.write(args.output, row)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("parity", "gains", "speed"))
  parser.add_argument("--golden", required=True)
  parser.add_argument("--output", required=True)
  parser.add_argument("--data", default="", help="folder of the TFDS data sets, for gains")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--norm", choices=attacks.NORMS, default="linf", help="norm of the attack, for parity"
  )
  parser.add_argument("--rounds", type=int, default=1, help="timings without compilation")
  parser.add_argument("--num_images", type=int, default=100, help="images of speed")
  parser.add_argument("--versions", default=",".join(("standard", *ALONE)))
  args = parser.parse_args()
  if args.what == "gains" and not args.data:
    parser.error("gains needs --data, the folder of the TFDS data sets")
  {"parity": parity, "gains": gains, "speed": speed}[args.what](args)


if __name__ == "__main__":
  main()
