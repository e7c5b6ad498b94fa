"""Trains some methods, runs all evaluations of each, and writes the report about them.

    R=benchmarks/results/evidence
    python benchmarks/full_evaluation.py digits --workdir runs/evidence --results $R
    python benchmarks/full_evaluation.py cifar10 --workdir runs/evidence --results $R

Each run is a workdir of launch.py. Complete parts are not repeated, and stopped parts continue.
`--results DIR` copies the results.json of each run to DIR, and writes the time of this call to
PROTOCOL_seconds.json. At the end, the program prints the table of docs/results.md.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import compare_methods
import timing

from sprout_jax import results as results_lib  # compare_methods has set the path

# Rows of compare_methods.py (its training protocols); flags of the evaluation, beside the config's
# own.
PROTOCOLS = {
  "digits": dict(
    rows=("natural", "sprout", "sprout_released", "gradient_norm", "pgd"),
    flags=[
      "--config.evaluation.checkpoint=last",
      "--config.evaluation.epsilons=(0.0,0.05,0.1,0.15,0.2,0.25,0.3)",
      "--config.evaluation.num_steps=50",
      "--config.evaluation.step_size=0.01",
      "--config.evaluation.num_restarts=5",
      "--config.evaluation.strength.num_examples=100",
    ],
  ),
  # Fewer images and a shorter list: a CPU is enough.
  "cifar10": dict(
    rows=("sprout", "gradient_norm"),
    flags=[
      "--config.evaluation.evaluations=('pgd','noise','invariance','corruptions','calibration','gradients',"
      "'landscape','examples','sanity','auto_attack')",
      "--config.evaluation.epsilons=(0.0,0.01,0.02,0.03,0.03137254901960784)",
      "--config.evaluation.num_examples=200",
      "--config.evaluation.num_steps=50",
      "--config.evaluation.step_size=0.003",
      "--config.evaluation.num_restarts=5",
      "--config.evaluation.invariance.num_examples=1000",
      "--config.evaluation.corruptions.num_examples=500",
      "--config.evaluation.sanity.num_examples=200",
      "--config.evaluation.landscape.num_examples=32",
    ],
  ),
}


def launch(*flags):
  """Runs launch.py and shows what it says; raises where it fails."""
  subprocess.run([sys.executable, "launch.py", *flags], cwd=compare_methods.ROOT, check=True)


def table(results):
  """Markdown: one row per run; accuracies in percent, at the epsilon of the run's config."""
  lines = [
    "| run | clean | PGD | AutoAttack | noise | corruptions | certified | ECE | failed checks |",
    "|---" * 9 + "|",
  ]
  for row, run in results.items():
    epsilon = run.about["config"]["evaluation"]["epsilon"]
    numbers = (
      run.clean,
      run.numbers.first(evaluation="pgd", epsilon=epsilon),
      run.numbers.first(evaluation="auto_attack", epsilon=epsilon, stage=None),
      run.numbers.first(evaluation="noise", epsilon=epsilon),
      run.numbers.first(metric="mean_accuracy", severity=None),
      run.numbers.first(metric="certified_accuracy", radius=0.2),
    )
    cells = ["" if number is None else f"{100 * number.value:.1f}" for number in numbers]
    error = run.numbers.first(metric="expected_calibration_error")
    failed = sorted({finding.check for finding in run.findings if not finding.passed})
    cells = [row, *cells, f"{error.value:.3f}", ", ".join(failed) or "none"]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("protocol", choices=PROTOCOLS)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the workdirs")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--results", type=pathlib.Path, help="folder for copies of results.json")
  args = parser.parse_args()
  protocol, workdirs, start, seconds = PROTOCOLS[args.protocol], [], time.monotonic(), {}
  for row in protocol["rows"]:
    begin, workdir = (
      time.monotonic(),
      (args.workdir / f"{args.protocol}_{row}_{args.seed}").absolute(),
    )
    compare_methods.train(
      compare_methods.PROTOCOLS[args.protocol],
      row,
      args.seed,
      workdir,
      "--config.evaluation.after_training=()",
    )
    launch(
      "--mode",
      "evaluate",
      "--workdir",
      str(workdir),
      *protocol["flags"],
    )
    training = results_lib.read(workdir).about["training"]
    if training["steps"] < training["planned_steps"]:
      sys.exit(f"{workdir}: the training was stopped; the same command continues")
    workdirs.append(workdir)
    seconds[row] = round(time.monotonic() - begin)
  launch("--mode", "report", "--workdir", ",".join(map(str, workdirs)))
  spent = {
    "seconds": seconds,
    "in_all": round(time.monotonic() - start),
    "hardware": timing.hardware(),
  }
  if args.results:
    for workdir in workdirs:
      (args.results / workdir.name).mkdir(parents=True, exist_ok=True)
      shutil.copy(workdir / "results.json", args.results / workdir.name)
    seconds_file = args.results / f"{args.protocol}_seconds.json"
    if (
      spent["in_all"] > (timing.read(seconds_file) or {"in_all": 0})["in_all"]
    ):  # else most was there already
      timing.write(seconds_file, spent)
  print(table({workdir.name: results_lib.read(workdir) for workdir in workdirs}))
  print(json.dumps(spent))


if __name__ == "__main__":
  main()
