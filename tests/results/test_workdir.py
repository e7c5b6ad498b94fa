"""A workdir belongs to one process at a time."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from sprout_jax import evaluation
from sprout_jax.errors import UserError
from sprout_jax.results import workdir

HOLD = """
import sys, time
from sprout_jax.results import workdir
with workdir.lock(sys.argv[1], "trains"):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the workdir."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_the_second_process_is_told_who_is_there(tmp_path, holder):
  told = f"in use: process {holder.pid} on .* trains there since 20"
  with pytest.raises(UserError, match=told), workdir.lock(tmp_path, "evaluates"):
    pytest.fail("two processes have the lock")


def test_an_evaluation_is_refused_too(tmp_path, holder):
  images = np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype(np.float32)
  predict = lambda x: 9 * x.reshape(len(x), -1)[:, :3]
  labels = np.zeros(8, np.int32)
  with pytest.raises(UserError, match="in use"):
    evaluation.evaluate(predict, images, labels, workdir=tmp_path, evaluations=("noise",))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(tmp_path, holder, number):
  (tmp_path / "evaluation").mkdir()
  left = [tmp_path / "results.json.1.tmp", tmp_path / "evaluation" / "pgd.json.1.tmp"]
  for path in left:
    path.write_text("{")
  os.kill(holder.pid, number)
  holder.wait()
  with workdir.lock(tmp_path, "evaluates"):
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
  assert not any(path.exists() for path in left)  # what a killed process left
  with workdir.lock(tmp_path, "evaluates"):  # and again
    pass


def test_a_damaged_lock_file_is_no_obstacle(tmp_path, holder):
  (tmp_path / ".lock").write_bytes(b"\xff")
  told = "in use: another process"
  with pytest.raises(UserError, match=told), workdir.lock(tmp_path, "trains"):
    pass


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  told, place = "cannot be written .*; change", tmp_path / "file" / "run"
  with pytest.raises(UserError, match=told), workdir.lock(place, "trains"):
    pass
