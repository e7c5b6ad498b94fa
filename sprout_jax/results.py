"""results.json: what it says of a run, and how it grows from what the evaluations have stored."""

import json
import pathlib

import jax
import numpy as np

from sprout_jax import records
from sprout_jax import statistics
from sprout_jax import workdir as workdir_lib
from sprout_jax.evaluation import checks
from sprout_jax.training import loop

IN_ATTACKS = ("pgd", "auto_attack")  # evaluations whose entries other tools read in "attacks"


def base(config, dataset, subject, digest, step, history, selected_by, trained_on):
  """What results.json says before any evaluation.

  Args:
    config, dataset: of the run.
    subject: `evaluation.subject.Subject`.
    digest, step: SHA-256 of the evaluated weights, and the step that they are from.
    history: records of metrics.jsonl.
    selected_by: what the best checkpoint is best in, in words.
    trained_on: the devices of the training, in words.
  """
  validated = any(record["split"] == "validation" for record in history)
  seconds = sum(record.get("seconds", 0) for record in history)
  # The median: the first record has compilation in it, others a checkpoint.
  per_step = [record["seconds"] / record["steps"] for record in history if "seconds" in record]
  steps = max((record["step"] for record in history), default=step)
  per_epoch = loop.steps_per_epoch(config, dataset)
  return {
    "clean": statistics.proportion(subject.correct.sum(), len(subject.correct)),
    "parameters_sha256": digest,
    "config": config.to_dict(),
    "versions": workdir_lib.versions(),
    "dataset": {
      "name": dataset.name,
      "fingerprint": dataset.fingerprint,
      "provenance": dataset.provenance,
      "class_names": list(dataset.class_names),
    },
    "checkpoint": {
      "which": config.evaluation.checkpoint if validated else "last",
      "step": step,
      "selected_by": selected_by if validated else "",
      "weights": "ema" if config.evaluation.use_ema else "raw",
    },
    "training": {
      "devices": trained_on,
      "seconds": seconds,
      "steps": steps,
      "seconds_per_epoch": float(np.median(per_step)) * per_epoch if per_step else None,
      "peak_memory_bytes": max(
        (record.get("peak_memory_bytes", 0) for record in history), default=0
      ),
      "planned_steps": config.num_epochs * per_epoch,
    },
  }


def learned_beta(history, step):
  """SPROUT's beta as it was recorded last before a step; None for what learns none."""
  found = [record["beta"] for record in history if "beta" in record and record["step"] <= step]
  return found[-1] if found else None


def write(workdir, base_results, store, options, say):
  """Writes results.json of all that is stored for these options; one that says other things is kept.

  Args:
    workdir: where it goes.
    base_results: from `base`.
    store: `evaluation.store.Store`.
    options: {name of an evaluation: its options}.
    say: called with a line for the user.
  """
  if jax.process_index() != 0:
    return
  stored = {
    name: found
    for name, found in ((name, store.read(name, options[name])) for name in options)
    if found
  }
  attacks = [
    entry for name in IN_ATTACKS if name in stored for entry in stored[name].pop("entries")
  ]
  findings = [
    finding | {"evaluation": name}
    for name, found in stored.items()
    for finding in found.pop("findings", ())
  ]
  findings += [finding | {"evaluation": "pgd"} for finding in checks.gaps(attacks)]
  results = json.loads(
    json.dumps(
      base_results
      | {
        "attacks": attacks,
        "checks": findings,
        "evaluations": stored,
        "wall_seconds": sum(found["wall_seconds"] for found in stored.values()),
      }
    )
  )
  path = pathlib.Path(workdir) / "results.json"
  earlier = json.loads(path.read_text()) if path.exists() else None
  if results == earlier:
    return
  if earlier and not extends(results, earlier):
    path.replace(path.with_name("results_previous.json"))
    say("the earlier results.json is now results_previous.json")
  records.write_json(path, results)


def extends(results, earlier):
  """Whether nothing that an earlier results.json measured is missing from a later one."""
  return (
    results["parameters_sha256"] == earlier["parameters_sha256"]
    and all(entry in results["attacks"] for entry in earlier["attacks"])
    and all(
      results["evaluations"].get(name) == found
      for name, found in earlier.get("evaluations", {}).items()
    )
  )
