"""Trains and attacks every method under one protocol, and prints a table.

    python benchmarks/compare_methods.py digits --workdir runs/methods  # 3 seeds
    python benchmarks/compare_methods.py cifar10 --workdir runs/methods --rows natural,sprout
    python benchmarks/compare_methods.py digits --workdir runs/methods --table_only --costs FILE

Each run is a workdir of launch.py. A complete run is not repeated, and a stopped run continues. A
workdir with another config is an error. `--results DIR` copies each results.json to DIR, and the
table reads them from there. `--costs` adds a column with the time of a step, in natural steps. It
reads the file of method_cost.py, which times the steps in pairs. (The training times themselves are
not comparable if the runs shared a machine.)
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sprout_jax import results as results_lib  # noqa: E402

# Name -> (arguments of the config file, flags).
ROWS = {
  "natural": ("method=natural", []),
  "gaussian": ("method=gaussian", []),
  "label_smoothing": ("method=label_smoothing", []),
  "label_smoothing_gaussian": ("method=label_smoothing_gaussian", []),
  "mixup": ("method=mixup", []),
  "stable": ("method=stable", []),
  "sprout": ("method=sprout", []),
  "sprout_mean": ("method=sprout", ["--config.method.draw=mean"]),
  "sprout_released": ("method=sprout,variant=released", []),
  "gradient_norm": ("method=natural,penalty=gradient_norm", ["--config.model.activation=gelu"]),
  "cure": ("method=natural,penalty=cure", []),
  "sprout_gradient_norm": (
    "method=sprout,penalty=gradient_norm",
    ["--config.model.activation=gelu"],
  ),
  "fast": ("method=fast", []),
  "free": ("method=free", []),
  "pgd": ("method=pgd", []),
  "pgd_awp": ("method=pgd", ["--config.awp_gamma=0.01"]),
  "trades": ("method=trades", []),
  "bilateral": ("method=bilateral", []),
}

# The protocols: config file with arguments, seeds, flags of all rows, further flags of some, rows.
PROTOCOLS = {
  "digits": dict(
    config="configs/digits.py:",
    seeds=(0, 1, 2),
    rows=tuple(ROWS),
    # The last checkpoint: the best in clean accuracy is not what all of them train for.
    flags=[
      "--config.evaluation.checkpoint=last",
      "--config.evaluation.epsilons=(0.05, 0.1, 0.15)",
      "--config.evaluation.num_steps=50",
      "--config.evaluation.num_restarts=10",
      "--config.evaluation.step_size=0.01",
    ],
    # 8 replays of each minibatch: an eighth of the 60 epochs, and of their warm-up, rounded up.
    further={"free": ["--config.num_epochs=8", "--config.optimizer.warmup_epochs=0.25"]},
  ),
  "cifar10": dict(
    config="configs/cifar10.py:model=small_cnn,epochs=10,",
    seeds=(0,),
    rows=(
      "natural",
      "gaussian",
      "label_smoothing",
      "mixup",
      "sprout",
      "sprout_released",
      "gradient_norm",
      "cure",
      "fast",
      "pgd",
      "trades",
    ),
    flags=[
      "--config.optimizer.name=adamw",
      "--config.optimizer.learning_rate=0.003",
      "--config.optimizer.schedule=cosine",
      "--config.optimizer.boundaries=()",
      "--config.dataset.validation_fraction=0.0",
      "--config.log_every=100",
      "--config.evaluation.num_examples=1000",
      "--config.evaluation.epsilons=(0.01, 0.02, 0.03, 0.0313725)",
      "--config.evaluation.num_steps=50",
      "--config.evaluation.num_restarts=5",
      "--config.evaluation.step_size=0.003",
    ],
    # Madry et al. 2018 train with 7 steps on CIFAR-10.
    further={name: ["--config.method.num_steps=7"] for name in ("pgd", "trades")},
  ),
}


def train(protocol, row, seed, workdir, *more):
  """Runs launch.py, with more flags; raises where it fails."""
  arguments, flags = ROWS[row]
  command = [
    sys.executable,
    "launch.py",
    "--config",
    protocol["config"] + arguments,
    "--workdir",
    str(workdir.absolute()),
    f"--config.seed={seed}",
    *flags,
    *protocol["flags"],
    *protocol["further"].get(row, []),
    *more,
  ]
  print(f"{workdir.name}: {' '.join(command[1:])}", flush=True)
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def attacks(run):
  """A run's numbers under PGD."""
  return list(run.numbers.where(evaluation="pgd"))


def attack_spec(run):
  """Everything about a run's attacks but what they found."""
  return [(number.keys, number.count) for number in attacks(run)]


def table(results, seeds, costs):
  """Markdown: one row per method; mean +- standard deviation over seeds, or the 95 % interval."""
  first = attacks(next(iter(results.values()))[0])
  specs = [attack_spec(run) for runs in results.values() for run in runs]
  if any(spec != specs[0] for spec in specs):
    sys.exit("the runs were attacked in different ways; evaluate them again with the same flags")
  columns = [
    "method",
    *["step"] * bool(costs),
    "clean",
    *[f"{number['epsilon']:.4g}" for number in first],
  ]
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for row, runs in results.items():
    cells = [[run.clean for run in runs]]
    cells += [[attacks(run)[i] for run in runs] for i in range(len(first))]
    cost = [f"{costs[row]:.2f}" if row in costs else ""] * bool(costs)
    name = f"{row} ({len(runs)} of {seeds} seeds)" if len(runs) < seeds else row
    lines.append(f"| {' | '.join([name, *cost, *map(cell, cells)])} |")
  return "\n".join(lines)


def cell(numbers):
  percent = [100 * number.value for number in numbers]
  if len(numbers) > 1:
    return f"{statistics.mean(percent):.1f} +- {statistics.stdev(percent):.1f}"
  low, high = numbers[0].interval
  return f"{percent[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("protocol", choices=PROTOCOLS)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the workdirs")
  parser.add_argument("--rows", help="comma-separated; default: all rows of the protocol")
  parser.add_argument("--results", type=pathlib.Path, help="folder for copies of results.json")
  parser.add_argument("--costs", type=pathlib.Path, help="JSON file of method_cost.py")
  parser.add_argument("--table_only", action="store_true", help="train nothing")
  args = parser.parse_args()
  protocol, results = PROTOCOLS[args.protocol], {}
  rows = args.rows.split(",") if args.rows else protocol["rows"]
  if not set(rows) <= set(ROWS):
    sys.exit(f"unknown rows {sorted(set(rows) - set(ROWS))}; choose from: {', '.join(ROWS)}")
  for row in rows:
    for seed in protocol["seeds"]:
      name = f"{args.protocol}_{row}_{seed}"
      if not args.table_only:
        train(protocol, row, seed, args.workdir / name)
      if args.results and (args.workdir / name / "results.json").exists():
        (args.results / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(args.workdir / name / "results.json", args.results / name)
      folder = (args.results or args.workdir) / name
      if (folder / "results.json").exists():
        results.setdefault(row, []).append(results_lib.read(folder))
  if not results:
    sys.exit("no results yet")
  attack = attacks(next(iter(results.values()))[0])[0]
  print(
    f"Accuracy in percent: clean, and under PGD-{attack['steps']} ({attack['norm']}, "
    f"{attack['loss']}, "
    f"{attack['restarts']} restarts, step {attack['step_size']:g}, {attack.count} images) per "
    f"epsilon; {len(protocol['seeds'])} seed(s)\n"
  )
  costs = (
    {row["method"]: row["natural_steps"] for row in json.loads(args.costs.read_text())}
    if args.costs
    else {}
  )
  print(table(results, len(protocol["seeds"]), costs))


if __name__ == "__main__":
  main()
