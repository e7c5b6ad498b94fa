"""Measures the memory of an evaluation with 1,000 to 20,000 test images.

    python benchmarks/evaluation_memory.py

The images lie in a file that is mapped into memory, as `sprout_jax.data` maps its cache. The memory
is that of the process without mapped files (RssAnon of /proc, in MiB): the largest value during
`evaluate`, minus the value before. The C library is told to give freed blocks of a megabyte or more
back at once. Else it keeps some of them for later use, and the same evaluation differs from run to
run by up to 300 MiB. The result is in benchmarks/results/cpu/evaluation_memory.json.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "benchmarks"))

RESULT = ROOT / "benchmarks" / "results" / "cpu" / "evaluation_memory.json"
SIDE = 96
CLASSES = 10
ATTACKED = 100
# For glibc; other C libraries ignore them.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}


def anonymous_mib():
  """The memory of this process that is not a mapped file, in MiB."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) / 1024


class Peak:
  """The largest memory of the process while the block runs."""

  def __enter__(self):
    self.before = self.largest = anonymous_mib()
    self._ends = threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    while not self._ends.wait(0.01):
      self.largest = max(self.largest, anonymous_mib())

  def __exit__(self, *error):
    self._ends.set()
    self._thread.join()


def measure(count, folder):
  """Evaluates a model on `count` images; returns the memory in MiB."""
  import jax
  import numpy as np

  from sprout_jax import evaluation

  rng = np.random.default_rng(0)
  path = pathlib.Path(folder) / "images.npy"
  shape = (count, SIDE, SIDE, 3)
  images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
  for start in range(0, count, 100):
    images[start : start + 100] = rng.integers(0, 256, (100, *shape[1:]), np.uint8)
  images.flush()
  images = np.load(path, mmap_mode="r")
  weights = jax.numpy.asarray(rng.normal(size=(8 * 8 * 3, CLASSES)), "float32")

  def predict(weights, x):
    size = SIDE // 8
    return (x.reshape(len(x), 8, size, 8, size, 3).mean((2, 4)) - 0.5).reshape(len(x), -1) @ weights

  labels = rng.integers(0, CLASSES, count).astype(np.int32)
  with Peak() as peak:
    evaluation.evaluate(
      jax.tree_util.Partial(predict, weights),
      images,
      labels,
      workdir=pathlib.Path(folder) / "run",
      evaluations=("pgd", "noise", "calibration"),
      epsilon=8 / 255,
      num_steps=10,
      num_restarts=1,
      num_examples=ATTACKED,
      progress=False,
    )
  return {
    "test_images": count,
    "pixels_mib": count * SIDE * SIDE * 3 / 2**20,
    "attacked_images": ATTACKED,
    "before_mib": peak.before,
    "growth_mib": peak.largest - peak.before,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--counts", type=int, nargs="*", default=[1000, 4000, 10_000, 20_000])
  parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    if args.row:
      print(json.dumps(measure(args.row, folder)))
      return
  import timing

  rows = []
  for count in args.counts:
    start = time.monotonic()
    out = subprocess.run(
      [sys.executable, __file__, "--row", str(count)],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
      env=os.environ | GIVE_BACK,
    ).stdout
    rows.append(json.loads(out.splitlines()[-1]))
    print(
      f"{count:6} test images ({rows[-1]['pixels_mib']:.0f} MiB of pixels): memory grows by "
      f"{rows[-1]['growth_mib']:.0f} MiB ({time.monotonic() - start:.0f} s)",
      flush=True,
    )
  timing.write(RESULT, rows)


if __name__ == "__main__":
  main()
