"""Reading what runs have left: metrics.jsonl and results.json. Files only; no JAX."""

import json
import pathlib


def read_metrics(workdir):
  """Records of a workdir's metrics.jsonl; a last line that was cut by a kill is ignored."""
  records, path = [], pathlib.Path(workdir) / "metrics.jsonl"
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        records.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return records


def read_results(workdir):
  """A workdir's results.json, or None if there is none (yet)."""
  path = pathlib.Path(workdir) / "results.json"
  return json.loads(path.read_text()) if path.exists() else None
