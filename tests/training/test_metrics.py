"""metrics.jsonl: a resumed run leaves one record per step, whatever the kill left behind."""

import json

import numpy as np

from sprout_jax import records
from sprout_jax.training import metrics


def test_records_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
  log = metrics.MetricsLog(tmp_path, 0)
  for step in (5, 10, 15):
    log.write(step, "train", {"loss": step / 10, "beta": [1.0, 2.0]})
  log.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 20, "los')
  assert [record["step"] for record in records.read_metrics(tmp_path)] == [5, 10, 15]
  log = metrics.MetricsLog(tmp_path, 10)
  log.write(15, "train", {"loss": 7.0})
  log.close()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in lines] == [(5, 0.5), (10, 1.0), (15, 7.0)]


def test_no_file_is_no_records(tmp_path):
  assert records.read_metrics(tmp_path) == [] and records.read_results(tmp_path) is None


def test_peak_memory_is_in_bytes():
  """Once an array larger than all before is filled, the peak is between its size and both together."""
  before = metrics.peak_memory()
  used = np.ones(before // 8 + 2**25)
  assert used.nbytes <= metrics.peak_memory() <= used.nbytes + 1.1 * before
