"""Times two or more programs in turn, one right after the other, several times."""

import importlib.metadata
import json
import os
import pathlib
import platform
import time

import jax
import numpy as np


def alternate(runs, rounds):
  """Times each of {name: function that waits for its own result} once per round, in turn.

  Returns:
    {name: seconds, list [rounds]}. Ratios are taken within a round: what else the machine does
    comes and goes between rounds.
  """
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def ratios(numerators, denominators):
  """Ratios of each round, sorted."""
  return sorted(a / b for a, b in zip(numerators, denominators, strict=True))


def median(values):
  return float(np.median(values))


def hardware():
  """What it ran on: {"device", "count", "cpu", "cores", "load", "jax", "torch", "python"}.

  "load" is that of the last minute: beyond about the number of cores, others were running too.
  """
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    names = [
      line.partition(":")[2].strip()
      for line in info.read_text().splitlines()
      if line.startswith("model name")
    ]
    cpu = names[0] if names else cpu
  return {
    "device": jax.devices()[0].device_kind,
    "count": jax.device_count(),
    "cpu": cpu,
    "cores": len(os.sched_getaffinity(0)),
    "load": os.getloadavg()[0],
    "jax": jax.__version__,
    "torch": _version("torch"),
    "python": platform.python_version(),
  }


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def write(path, rows):
  """Writes rows as JSON, whole or not at all; does nothing without a path."""
  if path:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(rows, indent=1) + "\n")
    part.replace(path)


def read(path):
  """The rows that an interrupted benchmark has written; [] without a file."""
  return json.loads(pathlib.Path(path).read_text()) if path and pathlib.Path(path).exists() else []
