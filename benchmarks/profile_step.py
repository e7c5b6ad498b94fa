"""Measures the time of a training step by kind of operation, and the speed of its matmuls.

    python benchmarks/profile_step.py --model vgg16 --batch_size 64 --output FILE.json

The times come from JAX's profiler on a CPU. Independent operations run side by side, so their
durations add up to more than the step. The table also has two bounds at the speed of one large
float32 matmul. The first is for the multiplications of the network's convolutions and dense layer,
forward and for both gradients. The second is for the multiplications that remain with the forms of
convolution that the models use.
"""

import argparse
import collections
import glob
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import steps
import timing

KINDS = (  # the first pattern found in an operation's name or in what it computes says what it is
  ("matmul", r"dot|[ _]convolution"),
  ("reductions", r" reduce(-window)?\("),
  (
    "copies",
    r"^(copy|transpose|concatenate|pad|slice|dynamic|wrapped_(broadcast|copy)|bitcast_dynamic)",
  ),
  ("elementwise", r"."),
)


def computations():
  """{operation's name: its name, and the text of what it computes}, over all compiled programs."""
  # Without the metadata, which names the operation that something was derived from.
  texts = [
    re.sub(r", metadata=\{[^}]*\}", "", module.to_string())
    for executable in jax.devices()[0].client.live_executables()
    for module in executable.hlo_modules()
  ]
  bodies, found = {}, {}
  for text in texts:
    bodies |= {body.split(" ", 1)[0]: body for body in re.split(r"\n(?=%|ENTRY)", text)}
  for text in texts:
    for name, called in re.findall(r"%(\S+) = [^\n]* fusion\([^\n]*calls=(%[\w.\-]+)", text):
      found[name] = name + bodies[called]
  return found


def matmul_speed(size=2048, rounds=5):
  """GFLOP/s of one float32 matmul, the best of some."""
  a = jnp.ones((size, size), jnp.float32)
  run = jax.jit(lambda a: a @ a)
  times = timing.alternate({"": lambda: jax.block_until_ready(run(a))}, rounds + 1)[""]
  return 2 * size**3 / min(times[1:]) / 1e9


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_steps", type=int, default=4)
  parser.add_argument("--output", help="JSON file")
  args = parser.parse_args()
  if jax.default_backend() != "cpu":
    sys.exit(
      "this reads the CPU's profile; for a GPU use jax.profiler with TensorBoard or Perfetto"
    )
  shape = (32, 32, 3)
  run = steps.training(args.model, shape, args.batch_size, args.num_steps)
  wall = timing.median(timing.alternate({"": run}, 3)[""]) / args.num_steps
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    profile = jax.profiler.ProfileData.from_file(path)
  seconds, computes = collections.Counter(), computations()
  for plane in profile.planes:
    for line in plane.lines:
      for event in line.events:
        # A loop's own event contains those of its body.
        if "hlo_op" in dict(event.stats) and not event.name.startswith("while"):
          kind = next(
            kind
            for kind, pattern in KINDS
            if re.search(pattern, computes.get(event.name, event.name))
          )
          seconds[kind] += event.duration_ns / 1e9 / args.num_steps
  speed = matmul_speed()
  flop = 3 * 2 * steps.multiplications(args.model, shape) * args.batch_size
  done = 3 * 2 * steps.multiplications_done(args.model, shape) * args.batch_size
  result = {
    "model": args.model,
    "batch_size": args.batch_size,
    "step_seconds": wall,
    "seconds": dict(seconds),
    "gflop": flop / 1e9,
    "matmul_gflop_per_second": speed,
    "matmul_bound_seconds": flop / speed / 1e9,
    "done_bound_seconds": done / speed / 1e9,
    "hardware": timing.hardware(),
  }
  print(
    f"{args.model}, batch {args.batch_size}: {1e3 * wall:.0f} ms a step; {flop / 1e9:.0f} GFLOP at "
    f"{speed:.0f} GFLOP/s would be {1e3 * flop / speed / 1e9:.0f} ms; "
    f"{done / 1e9:.0f} are done: {1e3 * done / speed / 1e9:.0f} ms"
  )
  for kind, value in seconds.most_common():
    print(f"  {kind:28} {1e3 * value:7.1f} ms")
  timing.write(args.output, result)


if __name__ == "__main__":
  main()
