"""Measures the cost of the data: the host's share, parts of the step, streams, and SPROUT's labels.

    python benchmarks/input_pipeline.py --model vgg16 --batch_size 64 --output FILE.json
    python benchmarks/input_pipeline.py --parts stream,labels --output FILE.json

The parts:

- "step": The host's share compares two times in pairs: the training loop of a user (order of the
  examples, records, progress) on a data set of CIFAR-10's size, and the same compiled calls alone.
  For the step, each part runs in its own compiled loop. The table has its images/s beside those of
  the whole step.
- "stream": images/s of streamed training splits, as a folder and as a TFDS set, with threads and
  with worker processes, beside PyTorch's DataLoader with torchvision's transforms on the same
  files, where both are installed. The files are 3,000 JPEGs of about 224 pixels in 1,000 classes,
  drawn by this program. Both make random-resized crops of 224x224 in minibatches of bytes;
  torchvision also flips, which is done here on the device. The start of the workers and the first
  minibatch are not timed.
- "labels": the time of SPROUT's vicinity with 1,000 classes and minibatches of 256, with sampled
  labels and with their mean.

The file keeps the parts that are not measured again, and the rounds of an interrupted "stream".
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import steps
import timing
from PIL import Image

from sprout_jax import data as data_lib
from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax import vicinity
from sprout_jax.data import augmentation
from sprout_jax.data import order
from sprout_jax.data import to_float
from sprout_jax.launcher import configuration
from sprout_jax.training import loop

EXAMPLES = 50_000
CLASSES, PER_CLASS, SIDE, SMALLEST_AREA = 1000, 3, 224, 0.08  # of the part "stream"
LABELS = (1000, 256)  # classes and batch of the part "labels"


def host(model, image_shape, batch_size, num_steps, calls, rounds):
  """Seconds per step of (the compiled calls alone, the same with all that the loop does)."""
  run, state, data, config, recipe = steps.training_program(
    model, image_shape, batch_size, num_steps
  )
  del data
  config.log_every = num_steps
  images, labels = steps.random_data(image_shape, EXAMPLES)
  images, labels = sharding.put((images, labels), sharding.replicated(sharding.make_mesh()))
  indices = order.batch_indices(0, 0, num_steps, EXAMPLES, batch_size)
  state, _ = jax.block_until_ready(run(state, images, labels, indices))

  def alone():
    nonlocal state
    for _ in range(calls):
      state, history = run(state, images, labels, indices)
    jax.block_until_ready((state, history))

  def whole():
    nonlocal state
    with tempfile.TemporaryDirectory() as workdir:
      log = loop.Log(config, workdir, 0, calls * num_steps, EXAMPLES // batch_size, recipe)
      for call in range(calls):
        rows = order.batch_indices(0, call * num_steps, num_steps, EXAMPLES, batch_size)
        state, history = run(state, images, labels, rows)
        log.add(history, call * num_steps, (call + 1) * num_steps, 0.0)
      log.flush()
      log.close()

  whole()  # imports and opens what is opened once
  return timing.alternate({"alone": alone, "whole": whole}, rounds)


def ingredient(fn, images, num_steps):
  """A function that applies fn(key, images) `num_steps` times in a compiled loop."""

  def body(i, total):
    return total + jnp.mean(
      fn(jax.random.fold_in(jax.random.key(0), i), images).astype(jnp.float32)
    )

  program = jax.jit(lambda images: jax.lax.fori_loop(0, num_steps, body, 0.0))
  run = lambda: jax.block_until_ready(program(images))
  run()
  return run


def jpegs():
  """Yields (class, number, JPEG) of smooth random pictures of about 224 pixels."""
  random = np.random.RandomState(0)
  for place in range(CLASSES):
    for number in range(PER_CLASS):
      height, width = random.randint(SIDE - 24, SIDE + 64, 2)
      coarse = Image.fromarray(random.randint(0, 256, (28, 28, 3), np.uint8))
      smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
      noisy = smooth + random.randint(-12, 13, smooth.shape)
      file = io.BytesIO()
      Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
      yield place, number, file.getvalue()


def write_folder(root):
  """The JPEGs as train/CLASS/NUMBER.jpg; the first of each class is the test image as well."""
  for place, number, content in jpegs():
    for split in ("train", "val")[: 1 + (number == 0)]:
      path = root / split / f"{place:04d}" / f"{number}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)


def write_tfds(root):
  """The same as the TFDS set pictures."""
  import tensorflow_datasets as tfds

  with tfds.core.registered.skip_registration():

    class Pictures(tfds.core.GeneratorBasedBuilder):
      name = "pictures"
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        features = {
          "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(features),
          supervised_keys=("image", "label"),
        )

      def _split_generators(self, _):
        return {split: self._generate_examples(split) for split in ("train", "test")}

      def _generate_examples(self, split):
        for place, number, content in jpegs():
          if split == "train" or number == 0:
            yield f"{place}-{number}", {"image": content, "label": place}

  Pictures(data_dir=root, file_format="array_record").download_and_prepare()


def load_streams(root, workers):
  """{kind: data set} of the folder and of the TFDS set."""
  options = dict(
    image_size=(SIDE, SIDE),
    random_resized_crop=SMALLEST_AREA,
    cache_dir=str(root / "cache"),
    validation_fraction=0,
    workers=workers,
  )
  return {
    "folder": data_lib.load("folder", data_dir=str(root / "folder"), **options),
    "TFDS": data_lib.load("pictures", data_dir=str(root / "tfds"), **options),
  }


def stream_iterators(root, batch_size, workers):
  """{name: function that starts an iterator of minibatches, which ends by `close`}."""
  found = {}
  for count in workers:
    for kind, dataset in load_streams(root, count).items():
      assert len(dataset.train) == CLASSES * PER_CLASS
      found[f"{kind}, {count} workers"] = functools.partial(
        dataset.train.batches, 0, 0, 10**6, batch_size, slice(None)
      )
    try:
      found[f"torch, {count} workers"] = torch_iterator(root / "folder", batch_size, count)
    except ImportError as error:
      print(f"PyTorch's DataLoader is left out: {error}")
  return found


def torch_dataset(root):
  """torchvision's data set of the folder, with its transforms."""
  from torchvision import datasets
  from torchvision import transforms

  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(SIDE, scale=(SMALLEST_AREA, 1), ratio=(3 / 4, 4 / 3)),
      transforms.RandomHorizontalFlip(),
      transforms.PILToTensor(),
    ]
  )
  return datasets.ImageFolder(root / "train", transform)


def torch_iterator(root, batch_size, workers):
  """A function that starts PyTorch's DataLoader with torchvision's transforms."""
  import torch

  dataset = torch_dataset(root)

  def start():
    loader = torch.utils.data.DataLoader(
      dataset,
      batch_size,
      shuffle=True,
      num_workers=workers,
      drop_last=True,
      persistent_workers=workers > 0,
    )
    try:
      while True:
        yield from loader
    finally:
      if loader._iterator is not None:
        loader._iterator._shutdown_workers()

  return start


def one_thread(root, rounds, count=300):
  """CPU milliseconds per image of one thread, in turn: {name: list [rounds]}.

  Unlike images/s, they hardly depend on what else the machine does.
  """
  datasets = load_streams(root, 0)
  programs = {
    kind: lambda i, decoder=dataset.train.decoder: decoder.training(i, 0, 0, i)
    for kind, dataset in datasets.items()
  }
  with contextlib.suppress(ImportError):
    programs["torch"] = torch_dataset(root / "folder").__getitem__
  found = {name: [] for name in programs}
  for number in range(rounds + 1):
    for name, program in programs.items():
      began = time.process_time()
      for i in range(0, CLASSES * PER_CLASS, CLASSES * PER_CLASS // count):
        program(i)
      found[name] += [1e3 * (time.process_time() - began) / count] * (number > 0)
  return found


def stream(args, result):
  """Measures the iterators in turn, a round after the other, and stores each round.

  Args:
    args: the flags.
    result: the result of earlier calls, whose rounds are kept.
  """
  settings = {"batch_size": args.batch_size, "minibatches": args.minibatches}
  found = result.get("stream", {})
  if not found.items() >= settings.items():
    found = settings | {"rounds": []}
  root = args.data or pathlib.Path(tempfile.mkdtemp())
  if not (root / "folder").exists():
    write_folder(root / "folder")
  if not (root / "tfds").exists():
    write_tfds(root / "tfds")
  found["bytes_per_image"] = statistics.mean(
    path.stat().st_size for path in (root / "folder" / "train").rglob("*.jpg")
  )
  iterators = stream_iterators(root, args.batch_size, [int(n) for n in args.workers.split(",")])
  while len(found["rounds"]) < args.rounds:
    measured = {"load": os.getloadavg()[0]}
    for name, start in iterators.items():
      began = time.perf_counter()
      iterator = start()
      next(iterator)
      begun = time.perf_counter()
      for _ in itertools.islice(iterator, args.minibatches):
        pass
      ended = time.perf_counter()
      iterator.close()
      measured[name] = {
        "images_per_second": args.batch_size * args.minibatches / (ended - begun),
        "seconds_to_first": begun - began,
      }
      print(
        f"{name:20} {measured[name]['images_per_second']:7.0f} images/s, first minibatch after "
        f"{begun - began:.1f} s",
        flush=True,
      )
    found["rounds"].append(measured)
    timing.write(args.output, result | {"stream": found})
  found["images_per_second"] = {
    name: timing.median([row[name]["images_per_second"] for row in found["rounds"]])
    for name in iterators
  }
  kinds = {
    kind: [n for n in iterators if n.startswith(kind)] for kind in ("folder", "TFDS", "torch")
  }
  best = {
    kind: [max(row[name]["images_per_second"] for name in names) for row in found["rounds"]]
    for kind, names in kinds.items()
    if names
  }
  found["times_torch"] = {}
  for kind in ("folder", "TFDS"):
    if "torch" in best:
      ratios = found["times_torch"][kind] = timing.ratios(best[kind], best["torch"])
      print(
        f"{kind}, fastest number of workers of each round: {timing.median(ratios):.2f} "
        f"({ratios[0]:.2f}-{ratios[-1]:.2f}) times the fastest of torch"
      )
  found["cpu_milliseconds"] = one_thread(root, args.rounds)
  for name, values in found["cpu_milliseconds"].items():
    print(
      f"{name}: {timing.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) ms of CPU time "
      "per image in one thread"
    )
  return found | {"hardware": timing.hardware()}


def labels(rounds):
  """Seconds of SPROUT's vicinity with sampled labels and with their mean, in turn."""
  classes, batch = LABELS
  options = configuration.options(steps.default.get_config().method)
  one_hot = jax.nn.one_hot(np.arange(batch) % classes, classes)
  result = {"classes": classes, "batch_size": batch}
  for name, side in (("small images", 8), ("images of 224 pixels", SIDE)):
    images = jnp.zeros((batch, side, side, 3))
    runs = {}
    for draw in ("sample", "mean"):
      recipe = methods.create("sprout", {**options, "draw": draw})
      beta = recipe.adversary.init(jax.random.key(0), classes, images.shape)
      program = jax.jit(lambda key, x, beta, recipe=recipe: recipe.vicinity(key, x, one_hot, beta))
      run = functools.partial(program, jax.random.key(1), images, beta)
      jax.block_until_ready(run())
      runs[draw] = lambda run=run: jax.block_until_ready([run() for _ in range(3)])
    seconds = timing.alternate(runs, rounds)
    ratios = timing.ratios(seconds["sample"], seconds["mean"])
    result[name] = {
      "milliseconds": {draw: 1e3 * timing.median(seconds[draw]) / 3 for draw in runs},
      "sample_over_mean": ratios,
    }
    print(
      f"{classes} classes, batch {batch}, {name}: sampled labels "
      f"{result[name]['milliseconds']['sample']:.1f} ms a call, mean labels "
      f"{result[name]['milliseconds']['mean']:.1f} ms; {timing.median(ratios):.2f} "
      f"({ratios[0]:.2f}-{ratios[-1]:.2f}) times"
    )
  return result


def step(args):
  """The host's share, and the parts of the step."""
  shape = tuple(int(size) for size in args.image_shape.split(","))
  seconds = host(args.model, shape, args.batch_size, args.num_steps, args.calls, args.rounds)
  share = [whole / alone - 1 for whole, alone in zip(seconds["whole"], seconds["alone"])]
  steps_per_timing = args.num_steps * args.calls
  result = {
    "model": args.model,
    "batch_size": args.batch_size,
    "num_steps": args.num_steps,
    "host_share": share,
    "median_host_share": timing.median(share),
    "step_seconds": timing.median(seconds["alone"]) / steps_per_timing,
    "hardware": timing.hardware(),
  }
  print(
    f"{args.model}, batch {args.batch_size}, calls of {args.num_steps} steps: "
    f"{1e3 * result['step_seconds']:.1f} ms a step; the host adds "
    f"{100 * timing.median(share):.2f} % ({100 * min(share):.2f} to {100 * max(share):.2f})"
  )

  bytes_, _ = steps.random_data(shape, args.batch_size)
  floats = jnp.asarray(bytes_, jnp.float32) / 255
  recipe = methods.create("sprout", configuration.options(steps.default.get_config().method))
  labels = jnp.eye(steps.CLASSES)[np.arange(args.batch_size) % steps.CLASSES]
  beta = recipe.adversary.init(jax.random.key(0), steps.CLASSES, floats.shape)
  parts = {
    "to float": (lambda key, x: to_float(x), bytes_),
    "crop": (lambda key, x: augmentation.random_crop(key, x, 4), bytes_),
    "flip": (augmentation.random_flip, bytes_),
    "Gaussian noise": (functools.partial(vicinity.gaussian_noise, stddev=0.1), floats),
    "SPROUT's vicinity": (
      lambda key, x: sum(jnp.mean(part) for part in recipe.vicinity(key, x, labels, beta)),
      floats,
    ),
  }
  result["milliseconds"] = {}
  for name, (fn, images) in parts.items():
    run = ingredient(fn, jnp.asarray(images), 100)
    times = timing.alternate({"own": run}, args.rounds)["own"]
    result["milliseconds"][name] = 10 * timing.median(times)
    print(
      f"{name:20} {result['milliseconds'][name]:8.3f} ms a minibatch, "
      f"{result['milliseconds'][name] / 10 / result['step_seconds']:6.2f} % of the step"
    )
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--parts", default="step", help="step, stream, labels")
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--image_shape", default="32,32,3", help="height, width, channels")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_steps", type=int, default=10, help="steps per compiled call")
  parser.add_argument("--calls", type=int, default=2, help="compiled calls per timing")
  parser.add_argument(
    "--minibatches", type=int, default=40, help="minibatches of a stream's timing"
  )
  parser.add_argument("--workers", default="0,1,2", help="worker processes of the streams")
  parser.add_argument("--data", type=pathlib.Path, help="folder of the drawn files, to keep them")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file")
  args = parser.parse_args()
  result = timing.read(args.output) or {}
  for part in args.parts.split(","):
    if part == "step":
      result |= step(args)
    elif part == "stream":
      result["stream"] = stream(args, result)
    elif part == "labels":
      result["labels"] = labels(args.rounds) | {"hardware": timing.hardware()}
    else:
      parser.error(f"--parts has {part!r}; choose from step, stream, labels")
    timing.write(args.output, result)


if __name__ == "__main__":
  main()
