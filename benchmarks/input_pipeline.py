"""Measures the cost of the data: the host's share, and crops, flips and noise in the step.

    python benchmarks/input_pipeline.py --model vgg16 --batch_size 64 --output FILE.json

The host's share compares two times in pairs: the training loop of a user (order of the examples,
records, progress) on a data set of CIFAR-10's size, and the same compiled calls alone. For the
step, each part runs in its own compiled loop. The table has its images/s beside those of the whole
step.
"""

import argparse
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import steps
import timing

from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax import vicinity
from sprout_jax.data import augmentation
from sprout_jax.data import order
from sprout_jax.data import to_float
from sprout_jax.launcher import configuration
from sprout_jax.training import loop

EXAMPLES = 50_000


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
        log.add(history, call * num_steps, (call + 1) * num_steps)
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


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--image_shape", default="32,32,3", help="height, width, channels")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_steps", type=int, default=10, help="steps per compiled call")
  parser.add_argument("--calls", type=int, default=2, help="compiled calls per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file")
  args = parser.parse_args()
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
  timing.write(args.output, result)


if __name__ == "__main__":
  main()
