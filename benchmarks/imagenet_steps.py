"""Trains a ResNet-50 on drawn JPEGs in 1,000 classes, with two processes that are killed.

    python benchmarks/imagenet_steps.py --data DIR

The JPEGs are those of input_pipeline.py: 3,000 training images of about 224 pixels, as a folder and
as a TFDS set. There are two parts:

- "reading": two processes read one epoch of each set. Every example of the epoch must be read once.
- "training": configs/imagenet.py on the folder, with two processes that talk over the loopback
  interface. One run is stopped after `--steps` steps. In another one, both processes are killed
  (SIGKILL) after `--kill` steps, in the middle of an epoch, and the same commands continue. Where
  it continues with exactly the next example, all losses equal those of the first run.

The result is in benchmarks/results/cpu/imagenet_steps.json. What it has is not measured again.
"""

import argparse
import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "benchmarks"))

import ports  # noqa: E402
import timing  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "cpu" / "imagenet_steps.json"
PROCESSES = 2
BATCH_SIZE = 8
EVERY = 4  # steps from checkpoint to checkpoint
SECONDS = 1800  # after which a run that does not get on is given up


def prepare(root):
  """Draws the JPEGs, unless they are there."""
  import input_pipeline

  if not (root / "folder").exists():
    input_pipeline.write_folder(root / "folder")
  if not (root / "tfds").exists():
    input_pipeline.write_tfds(root / "tfds")


def read(root, kind, process):
  """Reads this process's part of an epoch; returns the numbers of the examples that it decoded."""
  import input_pipeline

  split = input_pipeline.load_streams(root, 0)[kind].train
  part = BATCH_SIZE // PROCESSES
  decode, found = split.decoder.training, []

  def noting(example, *rest):
    found.append(int(example))
    return decode(example, *rest)

  object.__setattr__(split.decoder, "training", noting)
  rows = slice(process * part, (process + 1) * part)
  for _ in split.batches(0, 0, len(split) // BATCH_SIZE, BATCH_SIZE, rows):
    pass
  return found


def reading(root):
  """{kind: how often the examples of an epoch were read by all processes together}."""
  result = {}
  for kind in ("folder", "TFDS"):
    children = [
      subprocess.Popen(
        [sys.executable, __file__, "--data", root, "--read", kind, "--process", str(process)],
        stdout=subprocess.PIPE,
        text=True,
      )
      for process in range(PROCESSES)
    ]
    lists = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    times = collections.Counter(example for found in lists for example in found)
    result[kind] = {
      "examples_of_each_process": [len(found) for found in lists],
      "different_examples": len(times),
      "most_often": max(times.values()),
    }
    print(f"{kind}: {result[kind]}", flush=True)
  return result


def command(root, workdir):
  """The arguments of launch.py, without those of the processes."""
  values = {
    "batch_size": BATCH_SIZE,
    "log_every": 1,
    "model.dtype": "float32",  # bfloat16 is slow on a CPU
    "checkpoint.every_steps": EVERY,
    "dataset.cache_dir": root / "cache",
    "evaluation.after_training": "()",
  }
  return [
    *("--config", f"configs/imagenet.py:dir={root / 'folder'},method=natural"),
    *("--workdir", str(workdir)),
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def losses(workdir):
  """{step: loss}, as far as the log of a run has them."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  found = {}
  for line in lines:
    try:
      record = json.loads(line)
    except json.JSONDecodeError:  # the last line, which is being written
      continue
    if record.get("split") == "train":
      found[record["step"]] = record["loss"]
  return found


def start(root, workdir, out):
  """Starts the processes of a training; they write to the file `out`."""
  port = ports.free()
  several = ["--coordinator", f"127.0.0.1:{port}", "--num_processes", str(PROCESSES)]
  return [
    subprocess.Popen(
      [sys.executable, "launch.py", *command(root, workdir), *several, "--process_id", str(i)],
      cwd=ROOT,
      stdout=out,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for i in range(PROCESSES)
  ]


def run_until(root, workdir, steps):
  """Trains, and kills both processes when the log has `steps` steps; returns the seconds."""
  began = time.monotonic()
  with open(workdir.with_suffix(".log"), "a") as out:
    children = start(root, workdir, out)
    try:
      while max(losses(workdir), default=0) < steps:
        if any(child.poll() is not None for child in children):
          raise RuntimeError(f"a process ended; see {out.name}")
        if time.monotonic() - began > SECONDS:
          raise RuntimeError(f"no {steps} steps after {SECONDS} s; see {out.name}")
        time.sleep(0.2)
    finally:
      for child in children:
        if child.poll() is None:
          os.killpg(child.pid, signal.SIGKILL)
        child.wait()
  return time.monotonic() - began


def training(root, steps, kill):
  """Compares a run that was killed and continued with one that was not."""
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "killed"
    seconds = {"whole": run_until(root, whole, steps)}
    seconds["until the kill"] = run_until(root, killed, kill)
    reached = max(losses(killed))
    seconds["continued"] = run_until(root, killed, steps)
    first, second = losses(whole), losses(killed)
    compared = [step for step in sorted(set(first) & set(second)) if step > reached]
    lines = killed.with_suffix(".log").read_text().splitlines()
    said = [line for line in lines if line.startswith("continuing after step")]
    if not compared or not said:
      raise RuntimeError(f"nothing was continued: {reached} steps before the kill, {lines[-5:]}")
  result = {
    "command": ["launch.py", *command(pathlib.Path("DATA"), pathlib.Path("DIR"))],
    "processes": PROCESSES,
    "steps_per_epoch": 3000 * 99 // 100 // BATCH_SIZE,
    "steps_before_the_kill": reached,
    "said": said[:1],
    "steps_compared_after_the_kill": compared,
    "losses": [second[step] for step in compared],
    "largest_difference": max(abs(first[step] - second[step]) for step in compared),
    "seconds": seconds,
    "hardware": timing.hardware(),
  }
  print(result, flush=True)
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the JPEGs")
  parser.add_argument("--steps", type=int, default=16)
  parser.add_argument("--kill", type=int, default=10, help="steps until the kill")
  parser.add_argument("--read", help=argparse.SUPPRESS)
  parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  root = args.data.absolute()
  if args.read:
    print(json.dumps(read(root, args.read, args.process)))
    return
  prepare(root)
  found = timing.read(RESULT) or {}
  if "reading" not in found:
    found["reading"] = reading(root)
    timing.write(RESULT, found)
  if "training" not in found:
    found["training"] = training(root, args.steps, args.kill)
    timing.write(RESULT, found)


if __name__ == "__main__":
  main()
