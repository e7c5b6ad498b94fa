"""Compares several processes with one: training in every way, evaluation, AutoAttack.

    python benchmarks/processes.py                                  # 1, 2 and 4 processes
    python benchmarks/processes.py --counts 1,2 --ways jit,split --evaluations pgd

The processes talk over the loopback interface and have four CPU devices together. Each trains on
the digits, continues what one process saved, and evaluates a model. The largest differences from
one process are printed and written to benchmarks/results/cpu/processes.json.
tests/training/test_processes.py runs a small part.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "benchmarks"))

import ports  # noqa: E402
import timing  # noqa: E402

from configs import digits  # noqa: E402
from sprout_jax import data  # noqa: E402
from sprout_jax import evaluation  # noqa: E402
from sprout_jax import methods  # noqa: E402
from sprout_jax import sharding  # noqa: E402
from sprout_jax.data import order  # noqa: E402
from sprout_jax.launcher import configuration  # noqa: E402
from sprout_jax.training import checkpoints  # noqa: E402
from sprout_jax.training import loop  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "cpu" / "processes.json"
DEVICES = 4
EXAMPLES = 5 * 256  # of an epoch
# A way to train: whether the data are streamed, the parallelism, and the shards of the parameters.
WAYS = {
  "jit": (False, "jit", 1),
  "shard_map": (False, "shard_map", 1),
  "streamed jit": (True, "jit", 1),
  "streamed shard_map": (True, "shard_map", 1),
  "split": (False, "jit", 4),
}


class Network(nn.Module):
  """A small network with batch norm and with an array that is large enough to be split."""

  @nn.compact
  def __call__(self, images, train):
    x = nn.Dense(128)(images.reshape(len(images), -1))
    return nn.Dense(10)(nn.gelu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)))


class Examples:
  """The digits as a streamed set, which counts what this process reads."""

  image_shape = (8, 8, 1)

  def __init__(self, train):
    self.train, self.read = train, []

  def __len__(self):
    return len(self.train.labels)

  def batches(self, seed, first_step, last_step, batch_size, rows):
    for step in range(first_step, last_step):
      chosen = order.batch_indices(seed, step, 1, len(self), batch_size)[0][rows]
      self.read += chosen.tolist()
      yield self.train.images[chosen], self.train.labels[chosen]


def train(workdir, way, method, num_epochs):
  """Trains; returns the arguments of `loop.train`."""
  is_streamed, parallelism, shards = WAYS[way]
  config = digits.get_config(f"method={method}")
  config.update_from_flattened_dict(
    {
      "num_epochs": num_epochs,
      "batch_size": 256,
      "log_every": 5,
      "parallelism": parallelism,
      "parameter_shards": shards,
    }
  )
  dataset = data.load("digits")
  if is_streamed:
    object.__setattr__(dataset, "train", Examples(dataset.train))
  method = methods.create(config.method.name, configuration.options(config.method))
  mesh = sharding.make_mesh(parameter_shards=shards)
  workdir.mkdir(exist_ok=True, parents=True)
  setting = config, workdir, dataset, Network(), method, None, mesh
  assert loop.train(*setting, validate=lambda variables: {"accuracy": 0.5})
  return setting


def read(setting):
  """The state of the newest checkpoint, on the host."""
  config, workdir, dataset, model, method, penalty, mesh = setting
  _, abstract = loop.prepare(config, dataset, model, method, penalty, mesh)
  saved = checkpoints.Checkpoints(workdir, 3)
  state = saved.restore_latest(abstract)
  saved.close()
  return jax.tree.map(np.asarray, sharding.gather(state))


def as_lists(state):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf).ravel().tolist()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def work(number, count, port, workdir, method, ways, evaluations):
  """One process: writes what it found to `workdir`/COUNT_NUMBER.json."""
  jax.config.update("jax_num_cpu_devices", DEVICES // count)
  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
  found = {"states": {}, "read": {}, "outcomes": []}
  for way in ways:
    setting = train(workdir / str(count) / way, way, method, 1)
    found["states"][way] = as_lists(read(setting))
    if WAYS[way][0]:
      found["read"][way] = setting[2].train.read
  saved = workdir / "1" / ways[0]  # by one process
  folder = workdir / str(count) / "continued"
  if number == 0:
    shutil.copytree(saved, folder)
  multihost_utils.sync_global_devices("copied")
  found["states"]["continued"] = as_lists(read(train(folder, ways[-1], method, 2)))
  if evaluations:
    found["outcomes"] = evaluate(workdir / str(count) / "evaluation", evaluations)
  (workdir / f"{count}_{number}.json").write_text(json.dumps(found))


def evaluate(workdir, evaluations):
  """[evaluation, keys, value, outcome of every image] of a linear model on random images."""
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
  images = rng.uniform(size=(30, 8, 8, 1)).astype(np.float32)
  predict = jax.tree_util.Partial(lambda w, x: (x - 0.5).reshape(len(x), -1) @ w, weights)
  labels = np.asarray(predict(images)).argmax(-1).astype(np.int32)
  results = evaluation.evaluate(
    predict,
    images,
    labels,
    workdir=workdir,
    evaluations=evaluations,
    epsilon=0.02,
    num_steps=10,
    progress=False,
  )
  return [
    [number.evaluation, str(number.keys), number.value, np.asarray(number.outcomes).tolist()]
    for number in results.numbers
    if number.outcomes is not None
  ]


def start(count, workdir, *arguments):
  """Runs `work` in `count` processes; returns what each found."""
  port = ports.free()
  started = [
    subprocess.Popen(
      [
        sys.executable,
        __file__,
        "--work",
        json.dumps([number, count, port, str(workdir), *arguments]),
      ],
      env={**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(count)
  ]
  outputs = [process.communicate(timeout=1800)[0] for process in started]
  if any(process.returncode for process in started):
    raise RuntimeError("\n".join(outputs))
  return [json.loads((workdir / f"{count}_{number}.json").read_text()) for number in range(count)]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Several processes beside one.

  Attributes:
    count: the number of processes.
    differences: {way: largest difference of an entry of the training state}.
    agree: {way: whether all processes hold the same state, bit for bit}.
    reads: {way: how often each example of the epoch was read, as a set}.
    different: the numbers of which an image has another outcome than with one process.
    outcomes: the number of outcomes that were compared.
  """

  count: int
  differences: dict
  agree: dict
  reads: dict
  different: list
  outcomes: int


def compare(counts, workdir, method, ways, evaluations):
  """Returns a `Comparison` for each count; the first count must be 1."""
  found = {count: start(count, workdir, method, ways, evaluations) for count in counts}
  one = found[1][0]
  result = []
  for count in counts:
    states = [process["states"] for process in found[count]]
    differences = {
      way: max(
        np.abs(np.subtract(state[way][name], values)).max(initial=0)
        for state in states
        for name, values in one["states"][way].items()
      )
      for way in one["states"]
    }
    reads = {}
    for way in one["read"]:
      read = collections.Counter()
      for process in found[count]:
        read.update(process["read"][way])
      reads[way] = sorted({*read.values(), *([0] if len(read) < EXAMPLES else [])})
    outcomes = [process["outcomes"] for process in found[count]]
    result.append(
      Comparison(
        count=count,
        differences={way: float(value) for way, value in differences.items()},
        agree={way: all(state[way] == states[0][way] for state in states) for way in states[0]},
        reads=reads,
        different=[
          row[:-1]
          for each in outcomes
          for row, expected in zip(each, one["outcomes"], strict=True)
          if row != expected
        ],
        outcomes=sum(len(row[-1]) for row in one["outcomes"]),
      )
    )
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--work", help=argparse.SUPPRESS)
  parser.add_argument("--counts", default="1,2,4")
  parser.add_argument("--ways", default=",".join(WAYS))
  parser.add_argument("--evaluations", default="pgd,auto_attack,noise,invariance")
  args = parser.parse_args()
  if args.work:
    number, count, port, workdir, *rest = json.loads(args.work)
    work(number, count, port, pathlib.Path(workdir), *rest)
    return
  counts = [int(count) for count in args.counts.split(",")]
  with tempfile.TemporaryDirectory() as folder:
    found = compare(
      counts, pathlib.Path(folder), "sprout", args.ways.split(","), args.evaluations.split(",")
    )
  for each in found:
    print(f"{each.count} processes: {each.outcomes} outcomes, different: {each.different}")
    for way, difference in each.differences.items():
      print(
        f"  {way:20} largest difference {difference:.1e}, all processes agree: {each.agree[way]}"
        + (f", examples read {each.reads[way]} times" if way in each.reads else "")
      )
  timing.write(RESULT, [dataclasses.asdict(each) for each in found])


if __name__ == "__main__":
  main()
