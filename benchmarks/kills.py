"""Kills training and evaluation at random moments, and compares the results with an unkilled run.

    python benchmarks/kills.py --kills 30 --output benchmarks/results/cpu/kills.json

A round trains SPROUT on the digits and evaluates it by the launcher, in a new workdir. Each process
is killed (SIGKILL) after a random time and started again by the same command, until it ends by
itself. Then the parameters' digest and every number of results.json must be those of a round
without kills. Rounds are repeated until there were as many kills as asked for.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import timing  # noqa: E402

TRAIN = (
  *("--config", "configs/digits.py:epochs=8", "--config.checkpoint.every_steps=10"),
  *("--config.log_every=5", "--config.evaluation.after_training=()"),
)
EVALUATE = (
  *("--mode", "evaluate", "--config.evaluation.evaluations=pgd,auto_attack,noise,gradients"),
  *("--config.evaluation.num_examples=60", "--config.evaluation.num_steps=20"),
)


def commands(workdir):
  return {
    "training": [*TRAIN, "--workdir", str(workdir)],
    "evaluation": [*EVALUATE, "--workdir", str(workdir)],
  }


def run(arguments, kill_after=None):
  """Starts launch.py; returns (whether it was killed, seconds, its last line of output)."""
  start = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, "launch.py", *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  try:
    out, _ = process.communicate(timeout=kill_after)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate()
    return True, time.monotonic() - start, out.strip().splitlines()[-1:] or [""]
  if process.returncode:
    raise RuntimeError(f"{arguments} ended with {process.returncode}:\n{out}")
  return False, time.monotonic() - start, out.strip().splitlines()[-1:] or [""]


def outcome(workdir):
  """What must be equal: the digest of the parameters, and every number with its outcomes."""
  found = json.loads((workdir / "results.json").read_text())
  numbers = found["numbers"]
  for number in numbers:
    number.pop("seconds", None)
  return {"parameters": found["parameters_sha256"], "numbers": numbers}


def litter(workdir):
  """Files that a finished run must not leave."""
  return [str(path.relative_to(workdir)) for path in workdir.rglob("*.tmp")]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", default=ROOT / "benchmarks" / "results" / "cpu" / "kills.json")
  args = parser.parse_args()
  rng = random.Random(args.seed)
  log = []
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    seconds = {}
    for name in ("first", "whole"):  # the first compiles, and all others find its programs
      for phase, arguments in commands(folder / name).items():
        seconds[phase] = run(arguments)[1]
    expected = outcome(folder / "whole")
    print(f"seconds without kills: {seconds}", flush=True)
    while sum(entry["killed"] for entry in log) < args.kills:
      number = log[-1]["round"] + 1 if log else 1
      workdir = folder / f"killed_{number}"
      for phase, arguments in commands(workdir).items():
        # Later tries live longer, so that each phase ends.
        tries, killed = 0, True
        while killed:
          after = rng.uniform(0.1, 0.95) * seconds[phase] * (1 + tries / 5)
          killed, passed, line = run(arguments, after)
          tries, line = tries + 1, [text.replace(str(folder), "DIR") for text in line]
          log.append(
            {"round": number, "phase": phase, "killed": killed, "seconds": passed, "line": line[0]}
          )
          print(
            f"round {number}, {phase}: {'killed' if killed else 'ended'} after {passed:.1f} s: "
            f"{line[0][:100]}",
            flush=True,
          )
      found = outcome(workdir)
      is_equal = found == expected
      print(f"round {number}: equal to the unkilled run: {is_equal}", flush=True)
      log[-1] |= {"equal": is_equal, "numbers": len(found["numbers"]), "litter": litter(workdir)}
      timing.write(
        args.output,
        {
          "kills": sum(entry["killed"] for entry in log),
          "rounds_equal": sum(entry.get("equal", False) for entry in log),
          "rounds": number,
          "unkilled_seconds": seconds,
          "log": log,
        },
      )
      if not is_equal:
        sys.exit(f"error: round {number} differs from the unkilled run")


if __name__ == "__main__":
  main()
