"""metrics.jsonl and event files: one record per step, whatever a kill or a full disk left."""

import json
import resource
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from sprout_jax.errors import UserError
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.training import metrics


def test_records_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
  log = metrics.MetricsLog(tmp_path, 0)
  for step in (5, 10, 15):
    log.write(step, "train", {"loss": step / 10, "beta": [1.0, 2.0]})
  log.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 20, "los')
  assert [record["step"] for record in workdir_lib.read_metrics(tmp_path)] == [5, 10, 15]
  log = metrics.MetricsLog(tmp_path, 10)
  log.write(15, "train", {"loss": 7.0})
  log.close()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in lines] == [(5, 0.5), (10, 1.0), (15, 7.0)]


def events(workdir):
  """The events of a workdir's newest event file, in TensorFlow's record format."""
  content = max((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
  content, found = content.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def test_events_hold_the_scalars_and_say_where_a_resumed_run_starts(tmp_path):
  log = metrics.MetricsLog(tmp_path, 0)
  log.write(5, "train", {"loss": 0.5, "beta": [1.0, 2.0]})
  log.close()
  first, *scalars = events(tmp_path)
  assert first.file_version == "brain.Event:2"
  found = [(event.step, event.summary.value[0]) for event in scalars]
  assert [(step, value.tag, value.simple_value) for step, value in found] == [
    (5, "train/loss", 0.5),
    (5, "beta/0", 1.0),
    (5, "beta/1", 2.0),
  ]
  metrics.MetricsLog(tmp_path, 5).close()
  start = events(tmp_path)[-1]
  assert (start.step, start.session_log.status) == (6, event_pb2.SessionLog.START)


def test_a_full_disk_is_an_error_of_the_call_that_met_it(tmp_path):
  log = metrics.MetricsLog(tmp_path, 0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
  try:
    log.write(5, "train", {"loss": 0.5})
    with pytest.raises(UserError, match="cannot be written .* free some space"):
      for step in range(6, 12):
        log.write(step, "train", {"loss": 0.5})
    log.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  kept = [record["step"] for record in workdir_lib.read_metrics(tmp_path)]
  assert kept and kept == list(range(5, 5 + len(kept)))
  metrics.MetricsLog(tmp_path, kept[-1]).close()  # with space again, it goes on from there
  assert [record["step"] for record in workdir_lib.read_metrics(tmp_path)] == kept


def test_records_without_a_step_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{}\n{"step": "2"}\n')
  metrics.MetricsLog(tmp_path, 5).close()
  assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_peak_memory_is_in_bytes():
  """Once an array larger than all before is filled, the peak is between its size and both."""
  before = metrics.peak_memory()
  used = np.ones(before // 8 + 2**25)
  assert used.nbytes <= metrics.peak_memory() <= used.nbytes + 1.1 * before
