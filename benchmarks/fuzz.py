"""Runs the fuzz tests with many examples, and writes how many there were and what failed.

    python benchmarks/fuzz.py --examples 2000 --output benchmarks/results/cpu/fuzz.json

The suite runs the same tests with few examples. An example is a random change of a config, of a
file in a workdir, or of the arguments of a public function.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import timing  # noqa: E402

KINDS = {
  "configs": "tests/launcher/test_fuzz.py",
  "files": "tests/results/test_fuzz.py",
  "calls": "tests/test_fuzz.py",
}
# What Hypothesis prints for each test with --hypothesis-show-statistics.
PASSING = re.compile(r"(\d+) passing[a-z ]*, (\d+) failing[a-z ]*,(?: and)? (\d+) invalid")


def fuzz(path, examples):
  """{"tests", "examples", "failed", "seconds"} of the tests of a file."""
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", path, "--hypothesis-show-statistics"],
    cwd=ROOT,
    env={**os.environ, "FUZZ_EXAMPLES": str(examples)},
    capture_output=True,
    text=True,
  )
  counts = [tuple(map(int, match)) for match in PASSING.findall(done.stdout)]
  if done.returncode not in (0, 1) or not counts:
    sys.exit(f"error: {path} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
  if done.returncode:
    print(done.stdout, flush=True)
  return {
    "tests": len(re.findall(r"^tests/\S+:$", done.stdout, re.M)),
    "examples": sum(passing + failing for passing, failing, _ in counts),
    "failed": sum(failing for _, failing, _ in counts),
    "seconds": round(time.monotonic() - start),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--examples", type=int, default=2_000, help="of each test")
  parser.add_argument(
    "--only", choices=KINDS, help="run one kind only; keep the others in the output"
  )
  parser.add_argument("--output", type=pathlib.Path, help="JSON file")
  args = parser.parse_args()
  found = dict(timing.read(args.output)) if args.output and args.output.exists() else {}
  for kind in [args.only] if args.only else KINDS:
    command = f"python benchmarks/fuzz.py --examples {args.examples} --only {kind}"
    found[kind] = {"command": command, "file": KINDS[kind], **fuzz(KINDS[kind], args.examples)}
    print(kind, found[kind], flush=True)
    timing.write(args.output, found | {"hardware": timing.hardware()})


if __name__ == "__main__":
  main()
