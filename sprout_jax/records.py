"""What runs leave as files: metrics.jsonl and results.json. No JAX."""

import json
import os
import pathlib

# What configs of earlier versions lack, with the values that they amount to.
ADDED_TO_CONFIGS = {
  "awp_gamma": 0.0,
  "penalty": {"name": "none"},
  "validation": {"epsilon": 0.0, "step_size": 2 / 255, "num_steps": 10},
}


def complete(config):
  """A config's dictionary with what those of earlier versions lack, but for the evaluation's options."""
  evaluation = dict(config["evaluation"])
  names = {"autoattack": "auto_attack"}
  attacks = evaluation.pop("attacks", ("pgd",))
  evaluation = {"after_training": tuple(names.get(name, name) for name in attacks)} | evaluation
  return ADDED_TO_CONFIGS | config | {"evaluation": evaluation}


def write_json(path, value):
  """Writes a JSON file whole or not at all."""
  temporary = pathlib.Path(path).with_suffix(
    f".{os.getpid()}.tmp"
  )  # another process may write, too
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(temporary, path)


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
  if not path.exists():
    return None
  results = json.loads(path.read_text())
  results["config"] = complete(results["config"])
  results["checkpoint"] = {"selected_by": "clean validation accuracy"} | results["checkpoint"]
  results = {"evaluations": {}, "checks": []} | results
  return results
