"""Compares AutoAttack with the reference implementation, and measures its speed.

    python benchmarks/auto_attack.py parity --golden DIR --output FILE.json
    python benchmarks/auto_attack.py gains --golden DIR --data TFDS --output FILE.json
    python benchmarks/auto_attack.py speed --golden DIR/natural_1.npz --output FILE.json

DIR has one .npz for each network: images, labels, epsilon, the weights of a small CNN in PyTorch's
layout, and for each image whether it was robust after each attack of the reference implementation.

`parity` runs "standard" and each single attack on every network. It does not repeat rows that the
file has. `gains` runs AutoAttack and the further attacks of `extended_attack` on the same networks,
and on those models of `sprout_jax.zoo` that `ZOO` lists. It stores what each attack breaks and what
it costs. `speed` compares the time of "standard" with that of the naive way: every attack, with all
steps and targets, runs on one batch of all images that are classified correctly, and no image is
dropped. The naive programs are compiled before the timing. So are nearly all batch sizes of
"standard".
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import sprout_jax
from sprout_jax import attacks
from sprout_jax import data
from sprout_jax import models
from sprout_jax import zoo
from sprout_jax.attacks.attack import attack_batch
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


def parity(args):
  path = pathlib.Path(args.output)
  rows = json.loads(path.read_text()) if path.exists() else []
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
        result = attacks.auto_attack(
          jax.random.key(args.seed),
          predict,
          images,
          labels,
          epsilon=epsilon,
          norm=args.norm,
          version=version,
          batch_size=args.batch_size,
        )
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
        path.write_text(json.dumps(rows, indent=1) + "\n")
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
  path = pathlib.Path(args.output)
  rows = json.loads(path.read_text()) if path.exists() else []
  for name, make in subjects(args):
    if name in {row["network"] for row in rows}:
      continue
    predict, images, labels, epsilon = make()
    start = time.perf_counter()
    result = attacks.extended_attack(
      jax.random.key(args.seed),
      predict,
      images,
      labels,
      epsilon=epsilon,
      batch_size=args.batch_size,
    )
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
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(name, f"epsilon {epsilon:.4g}", row["robust"], f"{row['seconds']:.0f} s", flush=True)


def speed(args):
  predict, images, labels, epsilon, _ = load(args.golden)
  correct = np.asarray(predict(images)).argmax(-1) == labels
  images, labels, key = images[correct], labels[correct], jax.random.key(args.seed)
  programs = []
  for name in attacks.VERSIONS["standard"]:
    attack = attacks.ATTACKS[name].build("linf", 10, images.shape[1:], 1, 1)
    programs.append(
      jax.jit(lambda key, x, y, attack=attack: attack_batch(attack, key, predict, x, y, epsilon))
      .lower(key, images, labels)
      .compile()
    )

  def naive():
    robust = np.ones(len(labels), bool)
    for number, run in enumerate(programs):
      adversarial = run(jax.random.fold_in(key, number), images, labels)
      robust &= np.asarray(predict(adversarial)).argmax(-1) == labels
    return robust

  def dropping(version="standard", epsilon=epsilon, rows=slice(None)):
    return attacks.auto_attack(
      key,
      predict,
      images[rows],
      labels[rows],
      epsilon=epsilon,
      version=version,
      batch_size=args.batch_size,
    ).robust

  for name in attacks.VERSIONS["standard"]:  # compiles: at this radius all breaks at once
    for rows in (slice(None), slice(args.batch_size // 4)):
      dropping(name, 1.0, rows)
  ways = {"dropping": dropping, "naive": naive}
  times, robust = {name: [] for name in ways}, {}
  for pair in range(args.pairs):
    for name, way in ways.items():
      start = time.perf_counter()
      robust[name] = int(way().sum())
      times[name].append(time.perf_counter() - start)
      print(
        f"pair {pair + 1}: {name:8} {times[name][-1]:7.1f} s, {robust[name]} robust", flush=True
      )
  ratios = sorted(slow / fast for fast, slow in zip(times["dropping"], times["naive"]))

  apgd = jax.jit(lambda x, y: attacks.apgd(key, predict, x, y, epsilon=0.0, num_steps=100))
  apgd(images, labels).block_until_ready()  # at epsilon 0 nothing breaks: every step is taken
  start = time.perf_counter()
  apgd(images, labels).block_until_ready()
  rate = 100 * len(labels) / (time.perf_counter() - start)
  result = {
    "network": pathlib.Path(args.golden).stem,
    "images": len(labels),
    "times": times,
    "naive_over_dropping": ratios,
    "median_ratio": float(np.median(ratios)),
    "robust": robust,
    "apgd_images_x_iterations_per_second": rate,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }
  print(
    f"naive / dropping: {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); APGD: "
    f"{rate:,.0f} images x iterations per second"
  )
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


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
  parser.add_argument("--pairs", type=int, default=1, help="number of pairs of timings")
  parser.add_argument("--versions", default=",".join(("standard", *ALONE)))
  args = parser.parse_args()
  if args.what == "gains" and not args.data:
    parser.error("gains needs --data, the folder of the TFDS data sets")
  {"parity": parity, "gains": gains, "speed": speed}[args.what](args)


if __name__ == "__main__":
  main()
