"""Two real processes: an error in one ends both, and both write and read the same checkpoints."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import ports

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  """The results of both processes in each scene, their messages, and the workdir."""
  workdir = tmp_path_factory.mktemp("several")
  port = ports.free()
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.training.two_processes", str(number), str(port), str(workdir)],
      cwd=ROOT,
      env={**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  outputs = [process.communicate(timeout=900) for process in processes]
  seen = [
    dict(json.loads(line) for line in out.splitlines() if line.startswith('["'))
    for out, _ in outputs
  ]
  assert "lost" in seen[0], outputs
  return seen, outputs, workdir


def test_texts_of_all_processes_reach_all(scenes):
  for seen in scenes[0]:
    assert seen["gather"] == ["nought", ""]
    assert seen["gather nothing"] == ["", ""]
    assert seen["from first"] == "from 0"


def test_what_one_process_raises_ends_both_and_names_it(scenes):
  first, second = scenes[0]
  assert first["user error"] == ["UserError", "process 1 of 2: the disk is full"]
  assert second["user error"] == first["user error"]
  assert first["other error"] == ["KeyError", "'beta'"]
  assert second["other error"] == ["UserError", "process 0 of 2: KeyError: 'beta'"]


def test_different_values_end_both(scenes):
  for seen in scenes[0]:
    assert seen["different values"].startswith(
      "the processes were started with different values: config.seed is 0 in process 0 and 1 in "
      "process 1. Start the same command"
    )


def test_both_read_the_same_and_skip_the_same_damage(scenes):
  (first, second), outputs, workdir = scenes
  assert first["finished"] and first["finished again"]
  assert first["trained"] == second["trained"] == first["trained again"] == second["trained again"]
  assert first["trained"][0] == 10 and len(set(first["trained"][2])) == 10
  assert (workdir / "damaged_checkpoints" / "10").is_dir()
  assert "Checkpoint 10 is damaged" in outputs[0][1] and "damaged" not in outputs[1][1]


def test_a_signal_to_one_stops_both_saved(scenes):
  (first, second), outputs, workdir = scenes
  assert first["one is told to stop"] is False and second["one is told to stop"] is False
  saved = workdir / "checkpoints" / "16"  # the call after the validation at step 15
  assert f"Stopped by SIGTERM after step 16 of 20; the state is saved in {saved}." in outputs[0][0]
  assert "Stopped" not in outputs[1][0]


def test_a_full_disk_of_one_ends_both_with_one_error(scenes):
  (first, second), outputs, workdir = scenes
  assert first["full disk"] == second["full disk"]
  assert first["full disk"].startswith("process 0 of 2: checkpoint 20 cannot be saved in")
  assert "the newest is 16. Free some space" in first["full disk"]
  assert abs(first["time of the full disk"] - second["time of the full disk"]) < 60
  assert "Traceback" not in outputs[0][1] + outputs[1][1]
  names = os.listdir(workdir / "checkpoints")
  assert "16" in names and all(name.isdigit() for name in names)


def test_the_death_of_one_is_an_error_of_the_other(scenes):
  first = scenes[0][0]
  assert first["lost"].startswith("process 0 of 2 lost process 1 (")
  assert first["seconds of the loss"] < 60
