"""Trains for many steps, and samples the memory, the threads and the file handles of the process.

    python benchmarks/long_run.py --steps 20000 --output benchmarks/results/cpu/long_run.json

The launcher trains SPROUT on the digits. It logs every 20 steps and saves a checkpoint every 100
steps. It validates after each epoch and evaluates at the end. The program needs Linux, because it
reads /proc. Each sample is stored with the last step in metrics.jsonl.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import timing  # noqa: E402

STEPS_PER_EPOCH = 21  # of the digits in batches of 64, without the validation split
SETTLED = 2_000  # steps until all programs are compiled and all caches are full


def command(steps, workdir):
  return [
    *(sys.executable, "launch.py", "--workdir", str(workdir)),
    *("--config", f"configs/digits.py:epochs={-(-steps // STEPS_PER_EPOCH)}"),
    *("--config.log_every=20", "--config.checkpoint.every_steps=100"),
    "--config.evaluation.num_steps=10",
  ]


def sample(pid, workdir):
  """{"step", "memory_bytes", "threads", "handles"} of a process; None before its first record."""
  try:
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    status = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    handles = len(os.listdir(f"/proc/{pid}/fd"))
  except OSError:  # nothing is written yet, or the process has ended
    return None
  values = {
    name: value.split()[0]
    for name, _, value in (line.partition(":") for line in status)
    if value.split()
  }
  if not lines or "VmRSS" not in values:
    return None
  return {
    "step": json.loads(lines[-1])["step"],
    "memory_bytes": 1024 * int(values["VmRSS"]),
    "threads": int(values["Threads"]),
    "handles": handles,
  }


def summary(samples, steps):
  """What has grown since the process settled, and the speed of the last quarter over the second."""
  settled = [row for row in samples if row["step"] >= min(SETTLED, steps // 10)]
  first, last = settled[0], settled[-1]

  def speed(begin, end):
    rows = [row for row in settled if begin * steps <= row["step"] <= end * steps]
    if len(rows) < 2:
      sys.exit(f"error: {steps} steps are too few; give --steps 5000 or more")
    return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"])

  return {
    "from_step": first["step"],
    "to_step": last["step"],
    **{
      f"{name}_growth": max(row[name] for row in settled) - first[name]
      for name in ("memory_bytes", "threads", "handles")
    },
    "speed_ratio": speed(0.75, 1) / speed(0.25, 0.5),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=20_000)
  parser.add_argument("--seconds", type=float, default=1.0, help="time between two samples")
  parser.add_argument("--output", type=pathlib.Path, help="JSON file")
  args = parser.parse_args()
  samples, start = [], time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    arguments = command(args.steps, workdir)
    with open(pathlib.Path(folder) / "output", "w+") as output:
      process = subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
      while process.poll() is None:
        time.sleep(args.seconds)
        found = sample(process.pid, workdir)
        if found and (not samples or found["step"] > samples[-1]["step"]):
          samples.append({"seconds": round(time.monotonic() - start, 2), **found})
      if process.returncode:
        output.seek(0)
        sys.exit(f"error: {arguments} ended with {process.returncode}:\n{output.read()}")
    results = json.loads((workdir / "results.json").read_text())
  found = summary(samples, results["training"]["steps"])
  print(json.dumps(found, indent=1))
  timing.write(
    args.output,
    {
      "command": f"python benchmarks/long_run.py --steps {args.steps}",
      "steps": results["training"]["steps"],
      **found,
      "hardware": timing.hardware(),
      "samples": samples,
    },
  )


if __name__ == "__main__":
  main()
