"""test_several runs it twice: `python -m tests.training.two_processes NUMBER PORT WORKDIR`.

Each process prints its result of each scene as one line of JSON; process 1 dies in the last scene.
"""

import json
import os
import pathlib
import resource
import signal
import sys
import time

import jax

from configs import digits
from sprout_jax import data
from sprout_jax import methods
from sprout_jax import sharding
from sprout_jax.errors import UserError
from sprout_jax.launcher import configuration
from sprout_jax.training import agreement
from sprout_jax.training import checkpoints
from sprout_jax.training import loop
from tests import stepping


def show(scene, value):
  print(json.dumps([scene, value]), flush=True)


def main(number, port, workdir):
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)

  def raised(which, error):
    """The error of this process after one of the two raises an error."""
    try:
      with agreement.agreed():
        if number == which:
          raise error
    except Exception as error:
      return [type(error).__name__, str(error)]

  show("gather", agreement.gather("" if number else "nought"))
  show("gather nothing", agreement.gather(""))
  show("from first", agreement.from_first(f"from {number}"))
  show("user error", raised(1, UserError("the disk is full")))
  show("other error", raised(0, KeyError("beta")))
  try:
    agreement.check_same({"config.seed": number, "config.batch_size": 64})
  except UserError as error:
    show("different values", str(error))
  agreement.check_same({"config.batch_size": 64})

  config = digits.get_config("method=sprout")
  config.update_from_flattened_dict(
    {"num_epochs": 2, "batch_size": 256, "log_every": 2, "checkpoint.every_epochs": 1}
  )
  longer = config.copy_and_resolve_references()
  longer.num_epochs = 4
  dataset = data.load("digits")
  model = stepping.Mlp()  # small: it is compiled four times
  method = methods.create(config.method.name, configuration.options(config.method))
  mesh = sharding.make_mesh()

  def train(config, validate=lambda variables: {"accuracy": 0.5}):
    return loop.train(config, workdir, dataset, model, method, None, mesh, validate=validate)

  def loaded():
    _, abstract = loop.prepare(config, dataset, model, method, None, mesh)
    found = checkpoints.load_model(workdir, "last", checkpoints.split_state(abstract)["model"])
    return [found.step, checkpoints.sha256(found.model), found.beta.tolist()]

  show("finished", train(config))
  show("trained", loaded())
  if number == 0:
    files = [path for path in pathlib.Path(workdir, "checkpoints/10").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
  agreement.gather("")  # both wait until it is damaged
  show("finished again", train(config))
  show("trained again", loaded())

  def stop_one(variables):
    if number == 1:
      signal.raise_signal(signal.SIGTERM)
    return {"accuracy": 0.5}

  show("one is told to stop", train(longer, stop_one))
  if number == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))  # for a writer, a full disk
  try:
    train(longer)
  except UserError as error:
    show("full disk", str(error))
  show("time of the full disk", time.time())

  if number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
  start = time.monotonic()
  try:
    while True:
      agreement.gather("still there?")
  except agreement.ProcessLost as error:
    show("lost", str(error))
  show("seconds of the loss", time.monotonic() - start)
  os._exit(0)


if __name__ == "__main__":
  main(int(sys.argv[1]), *sys.argv[2:])
