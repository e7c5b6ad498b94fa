"""Times the steps of two versions of the code in turn, to show the gain of a change.

    git worktree add DIR COMMIT
    python benchmarks/before_after.py --before DIR --models vgg16 --output FILE.json

Each version runs in its own process. The process compiles this folder's `steps` with the package
and the configs of that version. The two processes take turns, controlled through pipes. A ratio is
the time of the earlier version over ours, within a round. Rows that the output file has are not
measured again.
"""

import argparse
import pathlib
import subprocess
import sys

import timing

HERE = pathlib.Path(__file__).parent
IMAGE_SHAPE = (32, 32, 3)
KINDS = ("training", "attacking")  # functions of `steps`


class Version:
  """A process with the package of a folder; calling it runs the steps there and waits for them."""

  def __init__(self, folder, kind, model, batch_size, num_steps):
    command = [
      sys.executable,
      __file__,
      "--child",
      folder,
      kind,
      model,
      str(batch_size),
      str(num_steps),
    ]
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def wait(self):
    if self.process.stdout.readline() != "done\n":
      sys.exit(f"the process failed: {' '.join(self.process.args)}")

  def __call__(self):
    print("go", file=self.process.stdin, flush=True)
    self.wait()

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def serve(folder, kind, model, batch_size, num_steps):
  """In the child process: compiles, then runs the steps once for every line that comes."""
  sys.path.insert(0, str(pathlib.Path(folder).absolute()))
  import steps

  import configs.default  # noqa: F401

  run = getattr(steps, kind)(model, IMAGE_SHAPE, int(batch_size), int(num_steps))
  print("done", flush=True)
  for _ in sys.stdin:
    run()
    print("done", flush=True)


def commit(folder):
  return subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
  ).stdout.strip()


def measure(before, named, num_steps, rounds):
  arguments = (named["kind"], named["model"], named["batch_size"], num_steps)
  versions = {"before": Version(before, *arguments), "after": Version(str(HERE.parent), *arguments)}
  for version in versions.values():
    version.wait()
  seconds = timing.alternate(versions, rounds)
  for version in versions.values():
    version.close()
  count = named["batch_size"] * num_steps
  return {
    "ratios": timing.ratios(seconds["before"], seconds["after"]),
    "before_images_per_second": count / timing.median(seconds["before"]),
    "images_per_second": count / timing.median(seconds["after"]),
    "hardware": timing.hardware(),
  }


def main():
  if sys.argv[1:2] == ["--child"]:
    return serve(*sys.argv[2:])
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--before", required=True, help="folder of the earlier version")
  parser.add_argument(
    "--kinds", default=",".join(KINDS), help="kinds of steps: training, attacking"
  )
  parser.add_argument("--models", default="vgg16,preact_resnet18,wrn_16_4,small_cnn")
  parser.add_argument("--batch_sizes", default="64")
  parser.add_argument("--num_steps", type=int, default=8, help="steps per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  rows = timing.read(args.output)
  for batch_size in map(int, args.batch_sizes.split(",")):
    for kind in args.kinds.split(","):
      for model in args.models.split(","):
        named = {
          "model": model,
          "batch_size": batch_size,
          "kind": kind,
          "before": commit(args.before),
          "after": commit(HERE),
          "num_steps": args.num_steps,
        }
        row = next((row for row in rows if named.items() <= row.items()), None)
        if row is None:
          row = named | measure(args.before, named, args.num_steps, args.rounds)
          rows.append(row)
          timing.write(args.output, rows)
        print(
          f"{model:16} batch {batch_size:4}  {kind:10} before "
          f"{row['before_images_per_second']:8.1f} images/s, "
          f"after {row['images_per_second']:8.1f}: x{timing.median(row['ratios']):.2f} "
          f"({row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f})",
          flush=True,
        )


if __name__ == "__main__":
  main()
