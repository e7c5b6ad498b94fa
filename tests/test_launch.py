"""The commands that users type, in real processes: train, stop, kill, damage, evaluate, report."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import ports

ROOT = pathlib.Path(__file__).parent.parent
# Seven seconds of training without compilation: long enough to be killed in the middle.
SHORT = (
  "--config.num_epochs=8",
  "--config.checkpoint.every_epochs=1",
  "--config.log_every=5",
  "--config.checkpoint.every_steps=7",
  "--config.evaluation.epsilons=0",
  "--config.evaluation.num_steps=3",
  "--config.evaluation.num_restarts=1",
  "--config.ema_decay=0.9",
  "--config.evaluation.evaluations=pgd,calibration,noise",
  "--config.evaluation.noise.num_draws=3",
)
BRIEF = ("--config.num_epochs=2",)  # where nothing has to be killed


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One device per process, and compilations shared by the processes of this file."""
  return {
    **os.environ,
    "XLA_FLAGS": "",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
  }


def start(environment, workdir, *flags, config="configs/digits.py"):
  command = [sys.executable, str(ROOT / "launch.py"), "--workdir", str(workdir)]
  if config:
    command += ["--config", str(ROOT / config), *SHORT]
  return subprocess.Popen(
    [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def wait_for_checkpoint(workdir, count):
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    done = [path.parent.name for path in workdir.glob("checkpoints/*/commit_success.txt")]
    steps = [int(name) for name in done if name.isdigit()]  # not those still being written
    if len(steps) >= count or max(steps, default=0) >= 7 * count:
      return
    time.sleep(0.02)
  raise TimeoutError(f"no checkpoint in {workdir}")


def results(workdir):
  return json.loads((workdir / "results.json").read_text())


def records(workdir):
  """metrics.jsonl without the values that depend on time."""
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k not in ("seconds", "images_per_second", "peak_memory_bytes")
    }
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  code, out, err = finish(start(environment, workdir))
  assert code == 0, err
  return workdir, out, err


def test_a_run_leaves_what_it_promises(uninterrupted):
  workdir, out, err = uninterrupted
  found = results(workdir)
  assert set(found) >= {
    "clean",
    "attacks",
    "parameters_sha256",
    "config",
    "versions",
    "wall_seconds",
  }
  assert found["clean"]["count"] == 300 and found["versions"]["jax"]
  assert [entry["epsilon"] for entry in found["attacks"]] == [0.0, 0.1]
  keys = {"name", "norm", "epsilon", "steps", "restarts", "seed", "count", "accuracy", "interval"}
  assert set(found["attacks"][0]) >= keys
  assert found["attacks"][0]["accuracy"] == found["clean"]["accuracy"]  # epsilon 0
  assert "CC BY 4.0" in out and "epsilon 0.1" in out and "PGD, Linf, 3 steps" in out
  assert (workdir / "results.txt").read_text() in out
  (following,) = (line for line in out.splitlines() if line.startswith("next: "))
  assert f"python launch.py --mode evaluate --workdir {workdir}" in following
  assert f"python launch.py --mode report --workdir {workdir}" in following
  for name in ("robustness", "training", "beta"):
    assert (workdir / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  assert list((workdir / "tensorboard").iterdir())
  rows = records(workdir)
  assert rows[-1]["step"] == 168 and len(rows[-2]["beta"]) == 10
  assert [row["step"] for row in rows if row["split"] == "validation"] == list(range(21, 169, 21))
  assert "images/s" in err and "left" in err and "\r" not in err  # plain lines: no terminal


def test_the_same_command_again_changes_nothing(environment, uninterrupted):
  workdir, out, _ = uninterrupted
  before = {path: path.stat().st_mtime_ns for path in workdir.glob("*.json*")}
  code, again, err = finish(start(environment, workdir))
  assert code == 0, err
  assert (workdir / "results.txt").read_text() in again
  assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("checkpoints_before_kill", [1, 4])
def test_killed_and_resumed_equals_uninterrupted(
  environment, uninterrupted, tmp_path, checkpoints_before_kill
):
  workdir = tmp_path / "run"
  process = start(environment, workdir)
  wait_for_checkpoint(workdir, checkpoints_before_kill)
  process.send_signal(signal.SIGKILL)
  assert finish(process)[0] == -signal.SIGKILL
  assert not (workdir / "results.json").exists()
  code, _, err = finish(start(environment, workdir))
  assert code == 0, err
  assert results(workdir)["parameters_sha256"] == results(uninterrupted[0])["parameters_sha256"]
  assert results(workdir)["attacks"] == results(uninterrupted[0])["attacks"]
  assert records(workdir) == records(uninterrupted[0])


def test_sigterm_saves_and_a_damaged_checkpoint_is_skipped(environment, uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  process = start(environment, workdir)
  wait_for_checkpoint(workdir, 3)
  process.send_signal(signal.SIGTERM)
  code, out, err = finish(process)
  assert code == 0 and "The same command continues" in out and "Traceback" not in err, err
  steps = sorted(
    int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
  )
  assert steps[-1] > 21 and not (workdir / "results.json").exists()
  largest = max(
    (path for path in (workdir / "checkpoints" / str(steps[-1])).rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 0xFF  # one byte, in the middle of the weights
  largest.write_bytes(content)
  code, _, err = finish(start(environment, workdir))
  assert code == 0, err
  assert f"Checkpoint {steps[-1]} is damaged" in err
  assert (workdir / "damaged_checkpoints" / str(steps[-1])).is_dir()
  assert results(workdir)["parameters_sha256"] == results(uninterrupted[0])["parameters_sha256"]
  assert records(workdir) == records(uninterrupted[0])


def test_two_processes_train_and_evaluate_like_one(environment, tmp_path):
  code, _, err = finish(start(environment, tmp_path / "one", *BRIEF))
  assert code == 0, err
  port = ports.free()
  processes = [
    start(
      environment,
      tmp_path / "run",
      f"--coordinator=127.0.0.1:{port}",
      "--num_processes=2",
      f"--process_id={number}",
      *BRIEF,
      "--config.evaluation.after_training=pgd,noise,calibration",
    )
    for number in range(2)
  ]
  (code, out, err), (other_code, other_out, _) = (finish(process) for process in processes)
  assert code == other_code == 0, err
  assert "2 device(s)" in out and "clean" in out and "clean" not in other_out
  attacks = (results(tmp_path / name)["attacks"] for name in ("run", "one"))
  for one, two in zip(*attacks, strict=True):
    assert abs(one["accuracy"] - two["accuracy"]) <= 2 / 300  # sums in another order
  assert set(results(tmp_path / "run")["evaluations"]) == {"pgd", "noise", "calibration"}


def test_diverging_training_stops_and_keeps_the_last_checkpoint(environment, tmp_path):
  code, _, err = finish(
    start(
      environment,
      tmp_path / "run",
      "--config.optimizer.learning_rate=900",
      "--config.optimizer.warmup_epochs=8.0",
    )
  )
  assert code == 1 and "at step" in err and "The last good checkpoint" in err
  assert "Traceback" not in err
  assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*/commit_success.txt"))


def test_evaluate_and_report_modes_and_starting_from_a_trained_model(
  environment, uninterrupted, tmp_path
):
  natural = tmp_path / "natural"
  code, _, err = finish(
    start(environment, natural, *BRIEF, config="configs/digits.py:method=natural")
  )
  assert code == 0, err
  first = results(natural)

  sprout = tmp_path / "sprout"
  follow = (*BRIEF, f"--config.init_from={natural}", "--config.optimizer.learning_rate=1e-9")
  code, _, err = finish(start(environment, sprout, *follow))
  assert code == 0, err
  assert abs(results(sprout)["clean"]["accuracy"] - first["clean"]["accuracy"]) < 0.01

  moved = natural.rename(tmp_path / "moved")  # the finished run no longer needs it
  code, _, err = finish(start(environment, sprout, *follow))
  assert code == 0, err
  moved.rename(natural)

  code, out, err = finish(start(environment, natural, "--mode=evaluate", config=None))
  assert code == 0, err
  full = results(natural)
  assert "pgd: already measured" in out and full["attacks"] == first["attacks"]
  assert set(first["evaluations"]) == {"pgd"} and set(full["evaluations"]) == {
    "pgd",
    "calibration",
    "noise",
  }
  assert full["parameters_sha256"] == first["parameters_sha256"]
  # Noise against PGD, where both have outcomes of the same images.
  assert {finding["check"] for finding in full["findings"]} == {"black_box", "monotone", "reach"}
  assert not (natural / "results_previous.json").exists()  # nothing of it is gone
  before = (natural / "results.json").stat().st_mtime_ns
  code, out, err = finish(start(environment, natural, "--mode=evaluate", config=None))
  assert code == 0 and out.count("already measured") == 3, err
  assert (natural / "results.json").stat().st_mtime_ns == before
  code, out, err = finish(
    start(
      environment,
      natural,
      "--mode=evaluate",
      "--config.evaluation.norm=l2",
      "--config.evaluation.epsilon=0.3",
      "--config.evaluation.step_size=0.2",
      "--config.evaluation.use_ema=True",
      config=None,
    )
  )
  assert code == 0, err
  assert results(natural)["attacks"][0]["norm"] == "l2" and ", moving average" in out
  assert results(natural)["parameters_sha256"] != first["parameters_sha256"]
  assert json.loads((natural / "results_previous.json").read_text()) == full

  code, _, err = finish(
    start(  # one that cannot be measured does not keep the next from it
      environment,
      natural,
      "--mode=evaluate",
      "--config.evaluation.evaluations=corruptions,calibration",
      "--config.evaluation.corruptions.origin=tfds",
      "--config.evaluation.calibration.num_bins=4",
      config=None,
    )
  )
  assert code == 1 and "corruptions was not measured: " in err and "Traceback" not in err
  assert results(natural)["evaluations"]["calibration"]["options"] == {"num_bins": 4}
  assert "corruptions" in results(natural)["failed"]

  transfer = "--config.evaluation.evaluations=transfer"
  code, _, err = finish(start(environment, natural, "--mode=evaluate", transfer, config=None))
  assert code == 1 and "--config.evaluation.transfer.sources=" in err and "Traceback" not in err
  code, _, err = finish(
    start(
      environment,
      natural,
      "--mode=evaluate",
      transfer,
      "--config.evaluation.norm=l2",
      "--config.evaluation.epsilon=0.3",
      "--config.evaluation.step_size=0.2",
      "--config.evaluation.use_ema=True",
      f"--config.evaluation.transfer.sources={sprout}",
      config=None,
    )
  )
  assert code == 0, err
  sources = {n["source"] for n in results(natural)["numbers"] if "source" in n}
  (source,) = sources
  assert results(sprout)["parameters_sha256"][:12] in source
  assert source.startswith("sprout paper sample, small_cnn, seed 0")
  assert results(natural)["attacks"]  # PGD with these options is still there

  code, out, err = finish(
    start(environment, f"{uninterrupted[0]},{natural}", "--mode=report", config=None)
  )
  assert code == 0, err
  assert "sprout paper sample" in out and "natural" in out
  page = (uninterrupted[0] / "report" / "report.html").read_text()
  for text in (str(natural), str(uninterrupted[0]), "sprout paper sample", "natural"):
    assert text in page, text
  assert (uninterrupted[0] / "report" / "report.csv").read_text().count("\n") > 10
