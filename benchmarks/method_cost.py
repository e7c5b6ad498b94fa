"""What a training step of each method costs, in steps of natural training.

    python benchmarks/method_cost.py --model vgg16 --batch_size 64 --output FILE.json

Every row is a method with its default options, on random images. The two of a pair, natural
training and the row, are timed next to each other; the table has the median and the range of the
pairs' ratios, never a ratio of times that were taken minutes apart.
"""

import argparse
import functools
import json
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import default  # noqa: E402: after the path
from sprout_jax import configuration  # noqa: E402
from sprout_jax import methods  # noqa: E402
from sprout_jax import models  # noqa: E402
from sprout_jax import sharding  # noqa: E402
from sprout_jax.training import parallel  # noqa: E402
from sprout_jax.training import state as state_lib  # noqa: E402
from sprout_jax.training import step as step_lib  # noqa: E402

ROWS = {name: dict(method=name) for name in methods.METHODS} | {
    "sprout, draw=mean": dict(method="sprout", draw="mean"),
    "sprout, released": dict(method="sprout", variant="released"),
    "natural + gradient_norm": dict(method="natural", penalty="gradient_norm"),
    "natural + cure": dict(method="natural", penalty="cure"),
    "sprout + gradient_norm": dict(method="sprout", penalty="gradient_norm"),
    "pgd + awp": dict(method="pgd", awp_gamma=5e-3),
}
CLASSES = 10


def compile_row(row, model_name, image_shape, batch_size, num_steps, mesh):
  """A function that runs `num_steps` steps of one row and waits for them."""
  row = dict(row)
  draw, awp_gamma = row.pop("draw", None), row.pop("awp_gamma", 0.0)
  config = default.get_config(**row)
  config.batch_size, config.awp_gamma = batch_size, awp_gamma
  config.dataset.crop_padding, config.dataset.flip = 4, True
  config.model.name = model_name
  if draw:
    config.method.draw = draw
  options = [configuration.options(section)
             for section in (config.method, config.penalty, config.model)]
  model = models.create(model_name, num_classes=CLASSES, image_shape=image_shape, **options[2])
  recipe = state_lib.make_recipe(
      config, model, methods.create(config.method.name, options[0]),
      methods.create_penalty(config.penalty.name, options[1]), CLASSES, steps_per_epoch=100)
  run = parallel.compile_steps(functools.partial(step_lib.train_step, recipe), mesh, "jit", num_steps)
  state = jax.jit(functools.partial(state_lib.create, recipe, image_shape),
                  out_shardings=sharding.replicated(mesh))()
  rng = np.random.default_rng(0)
  data = sharding.put((rng.integers(0, 256, (batch_size, *image_shape), dtype=np.uint8),
                       rng.integers(0, CLASSES, batch_size, dtype=np.int32)),
                      sharding.replicated(mesh))
  indices = np.tile(np.arange(batch_size), (num_steps, 1))

  def steps():
    nonlocal state
    state, metrics = run(state, *data, indices)
    jax.block_until_ready((state, metrics))
  steps()  # compiles
  return steps


def seconds(run):
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--image_shape", default="32,32,3", help="height, width, channels")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_steps", type=int, default=2, help="steps per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--rows", default=",".join(name.replace(", ", "/") for name in ROWS),
                      help="names of rows; write 'sprout/released' for 'sprout, released'")
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  shape = tuple(int(size) for size in args.image_shape.split(","))
  mesh = sharding.make_mesh()
  results = []
  natural = compile_row(ROWS["natural"], args.model, shape, args.batch_size, args.num_steps, mesh)
  print(f"{args.model}, batch {args.batch_size}, {jax.devices()[0].device_kind}, "
        f"{args.rounds} pairs of {args.num_steps} steps")
  print(f"{'':26} {'natural steps':>13}  {'range':>13}  {'seconds per minibatch':>21}")
  for name in (name.replace("/", ", ") for name in args.rows.split(",")):
    run = compile_row(ROWS[name], args.model, shape, args.batch_size, args.num_steps, mesh)
    pairs = [(seconds(natural), seconds(run)) for _ in range(args.rounds)]
    ratios = sorted(own / reference for reference, own in pairs)
    results.append({
        "method": name, "model": args.model, "image_shape": shape, "batch_size": args.batch_size,
        "device": jax.devices()[0].device_kind, "natural_steps": float(np.median(ratios)),
        "ratios": ratios, "seconds": float(np.median([own for _, own in pairs])) / args.num_steps})
    print(f"{name:26} {np.median(ratios):13.2f}  {ratios[0]:5.2f} - {ratios[-1]:5.2f}  "
          f"{results[-1]['seconds']:21.4f}", flush=True)
    if args.output:
      pathlib.Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  main()
