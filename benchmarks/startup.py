"""Measures the start-up time: imports, and the first training step.

    python benchmarks/startup.py --model vgg16 --output FILE.json

Each measurement has its own process. The time of the first step is that from the start of the
process to the end of a compiled call of one step, with the launcher's cache settings. It is
measured twice: with an empty compilation cache, and with the cache that the first measurement has
left.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import timing

ROOT = pathlib.Path(__file__).parent.parent
IMPORTS = (
  "import sprout_jax",
  "from sprout_jax import attacks, losses, vicinity",
  "from sprout_jax.launcher import modes",
)


def seconds(command, **environment):
  start = time.perf_counter()
  subprocess.run(command, check=True, cwd=ROOT, env=os.environ | environment)
  return time.perf_counter() - start


def first_step(model, batch_size):
  """In the child process."""
  import steps

  from sprout_jax.launcher import modes

  modes.cache_compilations()
  steps.training(model, (32, 32, 3), batch_size, 1, method="sprout")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    return first_step(args.model, args.batch_size)
  rows = []

  def add(what, values):
    rows.append(
      {
        "what": what,
        "seconds": values,
        "median": timing.median(values),
        "hardware": timing.hardware(),
      }
    )
    timing.write(args.output, rows)
    print(
      f"{what:60} {timing.median(values):6.2f} s ({min(values):.2f}-{max(values):.2f})", flush=True
    )

  for statement in IMPORTS:
    add(statement, [seconds([sys.executable, "-c", statement]) for _ in range(args.rounds)])
  child = [
    sys.executable,
    __file__,
    "--child",
    "--model",
    args.model,
    "--batch_size",
    str(args.batch_size),
  ]
  cold, warm = [], []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as cache:
      cold.append(seconds(child, XDG_CACHE_HOME=cache))
      warm.append(seconds(child, XDG_CACHE_HOME=cache))
  add(f"first step of {args.model}, SPROUT, empty compilation cache", cold)
  add(f"first step of {args.model}, SPROUT, second time", warm)


if __name__ == "__main__":
  main()
