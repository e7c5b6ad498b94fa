"""Plans, trains and lists the runs of the CIFAR-10 results.

    python benchmarks/frontier.py plan                                 # the rows, with their hours
    python benchmarks/frontier.py measure                              # the cost of a step per row
    python benchmarks/frontier.py train --stage 1 --workdir DIR --data DIR
    python benchmarks/frontier.py train --row sprout --seed 1 --workdir DIR --data DIR
    python benchmarks/frontier.py evaluate --workdir DIR --data DIR
    python benchmarks/frontier.py status --workdir DIR

All rows have the same protocol: Wide ResNet 16-1 with GELU, all 50,000 training images, random
crops and flips, 10 epochs in batches of 128, SGD with momentum 0.9, weight decay 5e-4 and a rate
that rises to 0.1 in one epoch and falls to 0 along a cosine. These are common values, and they were
not tuned. The last checkpoint is evaluated, and nothing is selected. The gradient-norm penalty
needs a smooth activation, so all rows have GELU, and all rows have the same network. Rows of stage
2 repeat the main rows with ReLU.

Every run is a workdir of launch.py, DIR/NAME_SEED. The same command continues a run that was
stopped or killed. A complete run has its weights in DIR/weights/NAME_SEED.npz and its record in
benchmarks/results/frontier/NAME_SEED.json. `--stage` skips runs that have a record. The weights of
the main rows with seed 0 are also put into sprout_jax/zoo, from where other rows can start.

`evaluate` measures what EVALUATIONS lists, on the same images for all rows. It takes a row's model
from its complete workdir, or else from the zoo. Its results.json files, without folders of the
machine, are benchmarks/results/frontier/NAME_SEED/EVALUATION.json. Complete parts are not repeated.
"""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "benchmarks"))

import steps  # noqa: E402
import timing  # noqa: E402

from sprout_jax import models  # noqa: E402
from sprout_jax import zoo  # noqa: E402
from sprout_jax.errors import UserError  # noqa: E402
from sprout_jax.launcher import trained as trained_lib  # noqa: E402
from sprout_jax.results import files  # noqa: E402
from sprout_jax.training import checkpoints  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "frontier"
COSTS = RESULTS / "costs.json"

EPOCHS = 10
BATCH_SIZE = 128
STEPS = EPOCHS * (50_000 // BATCH_SIZE)  # the remainder of a batch is dropped
# Seconds of a step of natural training, `wrn_16_1` with ReLU, batch 128, on two cores with nothing
# else to do. `measure` finds what a step of the other rows costs in such steps.
NATURAL_SECONDS = 0.15
# Of training and evaluation together, on two cores.
BUDGET_HOURS = 40

# The same for every row, beside batch, crops and flips of configs/cifar10.py.
PROTOCOL = {
  "model.activation": "gelu",
  "optimizer.learning_rate": 0.1,
  "optimizer.schedule": "cosine",
  "optimizer.boundaries": (),
  "optimizer.warmup_epochs": 1.0,
  "dataset.validation_fraction": 0.0,
  "checkpoint.every_steps": 100,
  "evaluation.checkpoint": "last",
  "evaluation.after_training": (),
}


# Flags of `launch.py --mode evaluate`, one call for each.
EVALUATIONS = {
  # The protocol of SPROUT's paper for CIFAR-10: all test images, 20 steps, one random start.
  "paper": (
    "--config.evaluation.evaluations=('pgd',)",
    "--config.evaluation.epsilon=0.03",
    "--config.evaluation.epsilons=(0.03,)",
    "--config.evaluation.num_steps=20",
    "--config.evaluation.step_size=0.007",
    "--config.evaluation.num_restarts=1",
    "--config.evaluation.num_examples=10000",
  ),
  "main": (
    "--config.evaluation.evaluations=('pgd','auto_attack','noise','invariance','corruptions',"
    "'calibration')",
    "--config.evaluation.epsilon=8/255",
    "--config.evaluation.epsilons=(0.0,0.03137254901960784)",
    "--config.evaluation.num_steps=50",
    "--config.evaluation.step_size=2/255",
    "--config.evaluation.num_restarts=10",
    "--config.evaluation.num_examples=500",
    "--config.evaluation.invariance.num_examples=1000",
    "--config.evaluation.corruptions.num_examples=500",
  ),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One way to train.

  Attributes:
    stage: 1, 2 or 4; stage 3 is further seeds of rows of the others.
    method, penalty, variant, model: arguments of configs/cifar10.py.
    options: {"method.num_steps": 7}: further values of the config, over those of PROTOCOL.
    start: the row whose last weights, of the same seed, this one starts from; "": random weights.
    cost: the row whose steps are taken to cost the same; "": its own are measured.
  """

  stage: int
  method: str
  penalty: str = "none"
  variant: str = "paper"
  model: str = "wrn_16_1"
  options: dict = dataclasses.field(default_factory=dict)
  start: str = ""
  cost: str = ""


RELU = {"model.activation": "relu"}
NO_NOISE = {"method.noise_stddev": 0.0}
NO_MIXUP = {"method.mixup_alpha": 0.0}
# The concentration is then the label itself, and its mean too.
NO_DIRICHLET = {"method.alpha": 0.0, "method.draw": "mean"}
# Madry et al. 2018 train with 7 steps on CIFAR-10; a configuration's default is 10.
SEVEN = {"method.num_steps": 7}


def _sprout(stage, **fields):
  """SPROUT from the natural model, as in its paper."""
  return Row(stage, "sprout", start="natural", cost="sprout", **fields)


# In the order in which they are trained.
ROWS = {
  # 1. The headline.
  "natural": Row(1, "natural"),
  "sprout": Row(1, "sprout", start="natural"),
  "gradient_norm": Row(1, "natural", "gradient_norm"),
  "sprout_gradient_norm": Row(1, "sprout", "gradient_norm"),
  "n_fgsm": Row(1, "n_fgsm"),
  "pgd": Row(1, "pgd", options=SEVEN),
  # 2. The rest of the family.
  "gaussian": Row(2, "gaussian", cost="sprout"),
  "label_smoothing": Row(2, "label_smoothing", cost="natural"),
  "mixup": Row(2, "mixup", cost="natural"),
  # SPROUT's parts, alone and in pairs.
  "sprout_noise": _sprout(2, options=NO_MIXUP | NO_DIRICHLET),
  "sprout_mixup": _sprout(2, options=NO_NOISE | NO_DIRICHLET),
  "sprout_dirichlet": _sprout(2, options=NO_NOISE | NO_MIXUP),
  "sprout_noise_mixup": _sprout(2, options=NO_DIRICHLET),
  "sprout_noise_dirichlet": _sprout(2, options=NO_MIXUP),
  "sprout_mixup_dirichlet": _sprout(2, options=NO_NOISE),
  # A beta of ones that stays: the Dirichlet's mean is then uniform label smoothing.
  "sprout_uniform": _sprout(
    2, options={"method.beta.init": "ones", "method.beta.learning_rate": 0.0}
  ),
  "sprout_mean": _sprout(2, options={"method.draw": "mean"}),
  "sprout_released": Row(2, "sprout", variant="released", start="natural"),
  "sprout_scratch": Row(2, "sprout", cost="sprout"),
  # The main rows with the activation of the papers.
  "natural_relu": Row(2, "natural", options=RELU),
  "sprout_relu": Row(2, "sprout", options=RELU, start="natural_relu", cost="natural_relu"),
  "pgd_relu": Row(2, "pgd", options=RELU | SEVEN, cost="pgd"),
  # 4. Other penalties and attacks; width.
  "cure": Row(4, "natural", "cure"),
  "sprout_cure": Row(4, "sprout", "cure", cost="cure"),
  "trades": Row(4, "trades", options=SEVEN),
  "pgd_awp": Row(4, "pgd", options=SEVEN | {"awp_gamma": 0.01}),
  "natural_width_2": Row(4, "natural", model="wrn_16_2"),
  "sprout_width_2": Row(
    4, "sprout", model="wrn_16_2", start="natural_width_2", cost="natural_width_2"
  ),
  "natural_width_4": Row(4, "natural", model="wrn_16_4"),
  "sprout_width_4": Row(
    4, "sprout", model="wrn_16_4", start="natural_width_4", cost="natural_width_4"
  ),
}
# 3. Further seeds of the rows that carry a conclusion.
SEEDS = {name: (1, 2) for name, row in ROWS.items() if row.stage == 1}
STAGES = (1, 2, 3, 4)


def runs(stage):
  """The (row, seed) of a stage, in their order.

  >>> runs(1)[0]
  ('natural', 0)
  """
  if stage == 3:
    return [(name, seed) for seed in (1, 2) for name in SEEDS if seed in SEEDS[name]]
  return [(name, 0) for name, row in ROWS.items() if row.stage == stage]


def start_of(name, seed, workdir):
  """The run that a run starts from, as `init_from`, and the SHA-256 of its weights.

  A run that was begun keeps its start. Otherwise it is a workdir or, where there is none, a model
  of the zoo, which has seed 0 only.

  Raises:
    RuntimeError: there is neither.
  """
  start = ROWS[name].start
  begun = workdir / f"{name}_{seed}" / "config.json"
  if begun.exists():
    where = json.loads(begun.read_text())["init_from"]
  elif is_complete(workdir / f"{start}_{seed}"):
    where = str(workdir / f"{start}_{seed}")
  elif seed == 0 and zoo_name(start) in zoo.names():
    where = f"{zoo.PREFIX}{zoo_name(start)}"
  else:
    raise RuntimeError(
      f"{name}_{seed} starts from {start}_{seed}, which is not trained in {workdir}; train it "
      f"first: --row {start} --seed {seed}"
    )
  packaged = zoo.find(where)
  card = read_results(pathlib.Path(where)) if packaged is None else zoo.read_card(packaged)
  return where, card["parameters_sha256"]


def launcher_arguments(name, seed, workdir, data, start):
  """The command line of launch.py that trains a run.

  Args:
    name: a key of ROWS.
    seed: of the run, and of the one that it starts from.
    workdir: folder of the workdirs.
    data: folder of the TFDS data sets.
    start: what the run starts from, from `start_of`; "" for random weights.
  """
  row = ROWS[name]
  arguments = dict(
    model=row.model, method=row.method, penalty=row.penalty, variant=row.variant, epochs=EPOCHS
  )
  values = PROTOCOL | row.options | {"seed": seed, "dataset.data_dir": str(data)}
  if start:
    values["init_from"] = start
  return [
    "--config",
    "configs/cifar10.py:" + ",".join(f"{key}={value}" for key, value in arguments.items()),
    "--workdir",
    f"{workdir}/{name}_{seed}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


# The plan.


def hours(name, costs):
  """Hours of a row's training on two idle cores; None where its cost is not measured.

      hours = steps * seconds of a natural step * cost / 3600

  Args:
    name: a key of ROWS.
    costs: {row: steps of natural training that one of its steps costs}.
  """
  cost = costs.get(ROWS[name].cost or name)
  return None if cost is None else STEPS * NATURAL_SECONDS * cost / 3600


def read_costs():
  """Two dictionaries by row, as far as they are known.

  Returns:
    The cost of a row's step in steps of natural training with ReLU; and where it is from, of those
    that are not from `measure`.
  """
  entries = timing.read(COSTS)
  return (
    {entry["row"]: entry["natural_steps"] for entry in entries},
    {entry["row"]: entry["source"] for entry in entries if "source" in entry},
  )


def plan(costs, sources):
  """The table of all runs, with their hours, as text; the arguments are those of `read_costs`."""
  lines = [f"{'stage':5}  {'run':26} {'starts from':16} {'hours':>6} {'sum':>6}"]
  total, unknown = 0.0, []
  for stage in STAGES:
    for name, seed in runs(stage):
      cost = hours(name, costs)
      total += cost or 0
      unknown += [name] * (cost is None)
      start = ROWS[name].start and f"{ROWS[name].start}_{seed}"
      lines.append(
        f"{stage:5}  {f'{name}_{seed}':26} {start:16} "
        f"{'-' if cost is None else f'{cost:.2f}':>6} {total:6.1f}"
      )
  lines += [
    "",
    f"Hours of training on two idle cores: {EPOCHS} epochs are {STEPS} steps;",
    f"a natural step with ReLU takes {NATURAL_SECONDS} s.",
    f"The budget for training and evaluation is {BUDGET_HOURS} hours;",
    "what does not fit is cut from the end.",
  ]
  lines += [f"Cost of {name}: {source}." for name, source in sources.items()]
  if unknown:
    lines.append(f"Not measured, not in the sum: {', '.join(dict.fromkeys(unknown))}.")
  return "\n".join(lines)


def measure(rounds, num_steps):
  """Times a step of every row that has a cost of its own against natural training with ReLU.

  By the CPU seconds of this process: other programs on the machine change them less than the time
  that passes. What it has written to COSTS is not measured again; entries with a "source", which
  were measured otherwise, are replaced.
  """

  def make(row):
    return steps.training(
      row.model,
      (32, 32, 3),
      BATCH_SIZE,
      num_steps,
      method=row.method,
      variant=row.variant,
      penalty=row.penalty,
      options={"model.activation": PROTOCOL["model.activation"]} | row.options,
    )

  found, natural = timing.read(COSTS), None
  for name, row in ROWS.items():
    if row.cost or name in {entry["row"] for entry in found if "ratios" in entry}:
      continue
    natural = natural or make(ROWS["natural_relu"])
    seconds, own = {"natural": [], "own": []}, make(row)
    for _ in range(rounds):
      for kind, run in (("natural", natural), ("own", own)):
        start = time.process_time()
        run()
        seconds[kind].append((time.process_time() - start) / num_steps)
    ratios = timing.ratios(seconds["own"], seconds["natural"])
    found = [entry for entry in found if entry["row"] != name]
    found.append(
      {
        "row": name,
        "natural_steps": timing.median(ratios),
        "ratios": ratios,
        "cpu_seconds": timing.median(seconds["own"]),
        "natural_cpu_seconds": timing.median(seconds["natural"]),
        "hardware": timing.hardware(),
      }
    )
    timing.write(COSTS, found)
    print(
      f"{name:24} {timing.median(ratios):6.2f} natural steps "
      f"({ratios[0]:.2f} - {ratios[-1]:.2f}), {found[-1]['cpu_seconds']:.3f} CPU seconds",
      flush=True,
    )


# Training.


def result_file(name, seed):
  return RESULTS / f"{name}_{seed}.json"


def evaluation_file(name, seed, protocol):
  return RESULTS / f"{name}_{seed}" / f"{protocol}.json"


def read_results(run):
  """The results.json of a run's workdir; {} without one."""
  return dict(timing.read(run / "results.json"))


def is_complete(run):
  """Whether a run's training ended and its results.json was written."""
  results = read_results(run)
  return bool(results) and results["training"]["steps"] == results["training"]["planned_steps"]


def zoo_name(row):
  """The name of a row's model in `sprout_jax.zoo`."""
  return f"{ROWS[row].model}_{row}"


def write_zoo(row, weights, results, command):
  """Puts a model into `sprout_jax.zoo`, with its card."""
  path = zoo.FOLDER / f"{zoo_name(row)}.npz"
  shutil.copyfile(weights, path)
  timing.write(
    path.with_suffix(".json"),
    {
      "command": command,
      "parameters_sha256": results["parameters_sha256"],
      "record": str(result_file(row, 0).relative_to(ROOT)),
      "data": {key: value for key, value in results["data"].items() if key != "count"},
      "config": results["config"],
    },
  )


def record(name, seed, workdir):
  """Writes what is known of a complete run: its weights, and its file in RESULTS.

  Raises:
    RuntimeError: the weights in the file are not those that the run's results are of.
  """
  run = workdir / f"{name}_{seed}"
  results = read_results(run)
  weights = workdir / "weights" / f"{name}_{seed}.npz"
  weights.parent.mkdir(parents=True, exist_ok=True)
  model = trained_lib.load(run, "last")
  models.save_weights(weights, model.model, model.variables)
  stored = models.load_weights(weights, model=model.model)
  digest = checkpoints.sha256(stored.variables)
  if digest != results["parameters_sha256"]:
    raise RuntimeError(
      f"{weights} has the SHA-256 {digest}, but {run}/results.json is of "
      f"{results['parameters_sha256']}; was the run trained further? remove {weights} and try again"
    )
  start_digest = start_of(name, seed, workdir)[1] if ROWS[name].start else ""
  config = without_folders(results["config"])
  arguments = launcher_arguments(name, seed, "DIR", "DATA", config["init_from"])
  command = shlex.join(["python", "launch.py", *arguments])
  if ROWS[name].stage == 1 and seed == 0:
    write_zoo(name, weights, results | {"config": config}, command)
  config = {key: value for key, value in config.items() if key != "evaluation"}
  timing.write(
    result_file(name, seed),
    {
      "row": name,
      "seed": seed,
      "stage": 3 if seed else ROWS[name].stage,
      "command": command,
      "parameters_sha256": digest,
      "start_sha256": start_digest,
      "clean": results["clean"],
      "data": results["data"],
      # Seconds that passed; the machine may have had other work.
      "training": results["training"],
      # Of launch.py, as far as they were not killed: commit, seconds, and the load at the end.
      "calls": [json.loads(line) for line in (run / CALLS).read_text().splitlines()],
      "versions": results["versions"],
      "hardware": timing.hardware(),
      "config": config,
    },
  )


def without_folders(config):
  """A config without the folders of this machine."""
  start = config.get("init_from", "")
  return config | {
    "dataset": config["dataset"] | {"data_dir": "", "cache_dir": ""},
    "init_from": start if not start or zoo.find(start) else f"DIR/{pathlib.Path(start).name}",
  }


CALLS = "calls.jsonl"  # in a run's workdir: a line for each call of launch.py that ended


def commit():
  """The commit of the code, with "+" where a file of the package or of the configs is another."""
  git = lambda *words: subprocess.run(
    ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.strip()
  changed = git("status", "--porcelain", "--", "sprout_jax", "configs", "launch.py")
  return git("rev-parse", "HEAD") + "+" * bool(changed)


def train(name, seed, workdir, data, lock):
  """Trains a run as far as it is not trained, and records it.

  Returns:
    Whether the run is complete; False after SIGTERM (everything is saved then).

  Raises:
    RuntimeError: the run that it starts from is not there, or launch.py failed.
  """
  run = workdir / f"{name}_{seed}"
  start = start_of(name, seed, workdir)[0] if ROWS[name].start else ""
  command = [sys.executable, "launch.py", *launcher_arguments(name, seed, workdir, data, start)]
  say(f"{name}_{seed}: {shlex.join(command[1:])}")
  usage, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
  # The child has the lock, too: where only its parent is killed, nobody else trains until it ends.
  child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, pass_fds=[lock.fileno()])
  received = []

  def forward(number, frame):
    received.append(number)
    child.send_signal(signal.SIGTERM)

  previous = signal.signal(signal.SIGTERM, forward)
  try:
    status = child.wait()
  finally:
    signal.signal(signal.SIGTERM, previous)
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  if status:
    raise RuntimeError(f"{name}_{seed}: launch.py ended with exit status {status}")
  with open(run / CALLS, "a") as file:
    entry = {
      "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "wall_seconds": round(time.monotonic() - began),
      "cpu_seconds": round(used.ru_utime - usage.ru_utime + used.ru_stime - usage.ru_stime),
      "load": os.getloadavg()[0],
      "commit": commit(),
    }
    file.write(json.dumps(entry) + "\n")
  if received or not is_complete(run):
    say(f"{name}_{seed}: stopped by a signal; the same command continues")
    return False
  record(name, seed, workdir)
  say(f"{name}_{seed}: complete, {result_file(name, seed).relative_to(ROOT)}")
  return True


def source(name, seed, workdir, data):
  """Where a row's trained model is, as flags of `launch.py --mode evaluate`; None without one.

  It is the workdir of the complete run, or else the model in the zoo, of a main row with seed 0.
  """
  run = workdir / f"{name}_{seed}"
  if is_complete(run):
    return ["--workdir", str(run)]
  if seed == 0 and zoo_name(name) in zoo.names():
    return [
      *("--weights", f"{zoo.PREFIX}{zoo_name(name)}", "--workdir", str(workdir / "zoo" / name)),
      *("--config", f"configs/cifar10.py:model={ROWS[name].model}"),
      f"--config.dataset.data_dir={data}",
    ]
  return None


def evaluate(name, seed, flags, protocol):
  """Evaluates a row's model by one protocol, and copies the results.

  Args:
    name, seed: the run.
    flags: from `source`.
    protocol: a key of EVALUATIONS.

  Raises:
    RuntimeError: launch.py failed, or the model is not the one that the run's record is of.
  """
  say(f"{name}_{seed}: {protocol}")
  command = [sys.executable, "launch.py", "--mode", "evaluate", *flags, *EVALUATIONS[protocol]]
  status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
  if status:
    raise RuntimeError(f"{name}_{seed}: launch.py ended with exit status {status}")
  results = files.read_sealed(pathlib.Path(flags[flags.index("--workdir") + 1]) / "results.json")
  recorded = json.loads(result_file(name, seed).read_text())
  if results["parameters_sha256"] != recorded["parameters_sha256"]:
    raise RuntimeError(
      f"{name}_{seed}: the evaluated weights have the SHA-256 {results['parameters_sha256']}, but "
      f"{result_file(name, seed)} is of {recorded['parameters_sha256']}"
    )
  path = evaluation_file(name, seed, protocol)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_sealed(path, results | {"config": without_folders(results["config"])})


def evaluate_all(chosen, workdir, data):
  """Evaluates runs as far as they are recorded, their models are there and parts are missing.

  Returns:
    What failed, as a list of messages.
  """
  failed = []
  for name, seed in chosen:
    if not result_file(name, seed).exists():
      continue
    flags = source(name, seed, workdir, data)
    if not flags:
      say(f"{name}_{seed}: there is no model, neither in {workdir} nor in the zoo")
      continue
    for protocol in EVALUATIONS:
      if not evaluation_file(name, seed, protocol).exists():
        try:
          evaluate(name, seed, flags, protocol)
        except (RuntimeError, UserError) as error:  # the others can still be evaluated
          failed.append(str(error))
          say(str(error))
  return failed


def unfinished(stage):
  """The runs of a stage that have no file in RESULTS."""
  return [run for run in runs(stage) if not result_file(*run).exists()]


def train_all(chosen, workdir, data, lock):
  """Trains runs in their order. One that fails does not stop the others; SIGTERM does.

  Returns:
    What failed, as a list of messages.
  """
  failed = []
  for name, seed in chosen:
    try:
      if not train(name, seed, workdir, data, lock):
        break
    except RuntimeError as error:
      failed.append(str(error))
      say(str(error))
  return failed


def say(text):
  print(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}", flush=True)


@contextlib.contextmanager
def locked(workdir):
  """Holds a folder's lock; ends the program where another one has it."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / "lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      sys.exit(f"error: another frontier.py, or a launch.py that it started, trains in {workdir}")
    yield file


def status(workdir):
  """The state of every run, as text."""
  lines = []
  for stage in STAGES:
    for name, seed in runs(stage):
      path, log = result_file(name, seed), workdir / f"{name}_{seed}" / "metrics.jsonl"
      state = "-"
      if path.exists():
        found = json.loads(path.read_text())
        state = (
          f"complete: {100 * found['clean']['accuracy']:.1f} % clean, "
          f"{found['training']['seconds'] / 3600:.1f} hours passed"
        )
      elif log.exists() and (last := last_record(log)):
        state = f"step {last['step']} of {STEPS}, {last['seconds'] / last['steps']:.2f} s a step"
      lines.append(f"{stage}  {f'{name}_{seed}':26} {state}")
  return "\n".join(lines)


def last_record(log):
  """The last whole line of a metrics.jsonl; None without one."""
  lines = log.read_text().split("\n")[:-1]  # what follows the last line break was cut
  return json.loads(lines[-1]) if lines else None


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser("plan", help="print the runs with their hours")
  measuring = commands.add_parser("measure", help=f"write {COSTS.relative_to(ROOT)}")
  measuring.add_argument("--rounds", type=int, default=5)
  measuring.add_argument("--num_steps", type=int, default=2, help="steps per timing")
  training = commands.add_parser("train", help="train one run, or those of a stage")
  what = training.add_mutually_exclusive_group(required=True)
  what.add_argument("--row", choices=ROWS)
  what.add_argument("--stage", type=int, choices=STAGES)
  training.add_argument("--seed", type=int, default=0, help="seed of --row")
  evaluating = commands.add_parser("evaluate", help="evaluate one recorded run, or all")
  evaluating.add_argument("--row", choices=ROWS, help="default: all rows")
  evaluating.add_argument("--seed", type=int, default=0, help="seed of --row")
  for command in (training, evaluating):
    command.add_argument(
      "--data", type=pathlib.Path, required=True, help="folder of the TFDS data sets"
    )
  showing = commands.add_parser("status", help="print how far each run is")
  for command in (training, evaluating, showing):
    command.add_argument(
      "--workdir", type=pathlib.Path, required=True, help="folder of the workdirs"
    )
  args = parser.parse_args()
  if args.command == "plan":
    print(plan(*read_costs()))
  elif args.command == "measure":
    measure(args.rounds, args.num_steps)
  elif args.command == "status":
    print(status(args.workdir))
  elif args.command == "evaluate":
    every = [run for stage in STAGES for run in runs(stage)]
    chosen = [(args.row, args.seed)] if args.row else every
    failed = evaluate_all(chosen, args.workdir.absolute(), args.data.absolute())
    if failed:
      sys.exit("error: " + "; ".join(failed))
  else:
    chosen = [(args.row, args.seed)] if args.row else unfinished(args.stage)
    workdir = args.workdir.absolute()
    with locked(workdir) as lock:
      failed = train_all(chosen, workdir, args.data.absolute(), lock)
    if failed:
      sys.exit("error: " + "; ".join(failed))


if __name__ == "__main__":
  main()
