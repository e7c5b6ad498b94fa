"""Writes the generated parts of README.md and docs/.

Measured tables come from the files in benchmarks/results. Tables of options, checks and models come
from the code (docs/generate.py).

    python benchmarks/pages.py           # writes them
    python benchmarks/pages.py --check   # writes nothing; fails if a page is not up to date

A table stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a key of
`TABLES`. Nothing between these lines is written by hand. show.py writes the tables of
docs/speed.md.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
import textwrap

import compare_methods
import frontier
import full_evaluation

from sprout_jax import results as results_lib  # compare_methods has set the path

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "docs"))

import generate

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
  "README.md",
  "docs/results.md",
  "docs/attacks.md",
  "docs/faults.md",
  "docs/devices.md",
  "docs/speed.md",
  "docs/own_images.md",
  "docs/configs.md",
  "docs/evaluation.md",
  "docs/methods.md",
  "docs/records.md",
)
PLACE = re.compile(r"(<!-- generated: ([a-z0-9_]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Rows of the README's table and their names for readers.
HEADLINE = {
  "natural": "natural",
  "sprout": "SPROUT",
  "sprout_released": "SPROUT, released variant",
  "gradient_norm": "gradient-norm penalty",
  "pgd": "PGD adversarial training",
}


def markdown(columns, rows):
  """A table of Markdown."""
  return "\n".join(
    f"| {' | '.join(map(str, row))} |" for row in (columns, ["---"] * len(columns), *rows)
  )


def methods(name):
  """All methods of a protocol of compare_methods.py under PGD."""
  protocol, found = compare_methods.PROTOCOLS[name], {}
  for row in protocol["rows"]:
    folders = [RESULTS / "methods" / f"{name}_{row}_{seed}" for seed in protocol["seeds"]]
    runs = [results_lib.read(folder) for folder in folders if (folder / "results.json").exists()]
    found |= {row: runs} if runs else {}
  costs = {}
  if name == "digits":
    rows = json.loads((RESULTS / "cpu_earlier" / "method_cost_small_cnn.json").read_text())
    costs = {row["method"]: row["natural_steps"] for row in rows}
  return compare_methods.table(found, len(protocol["seeds"]), costs)


def evidence(name):
  """The whole evaluation of some methods, see full_evaluation.py."""
  rows = full_evaluation.PROTOCOLS[name]["rows"]
  return full_evaluation.table(
    {f"`{row}`": results_lib.read(RESULTS / "evidence" / f"{name}_{row}_0") for row in rows}
  )


def failures(name):
  """The findings of the checks that failed in the whole evaluation of a protocol."""
  lines = []
  for row in full_evaluation.PROTOCOLS[name]["rows"]:
    run = results_lib.read(RESULTS / "evidence" / f"{name}_{row}_0")
    failed = [finding for finding in run.findings if not finding.passed]
    lines += [f"- `{row}`, {finding.check}: {finding.text}" for finding in failed]
  return "\n".join(lines) or "No check failed."


def strong(run):
  """The accuracy of a run under AutoAttack at the epsilon of its config."""
  epsilon = run.about["config"]["evaluation"]["epsilon"]
  return run.numbers.first(evaluation="auto_attack", epsilon=epsilon, stage=None)


def headline():
  """The README's main results: the answer in sentences, and a table of the digits runs."""
  digits = {row: results_lib.read(RESULTS / "evidence" / f"digits_{row}_0") for row in HEADLINE}
  cifar = {
    row: results_lib.read(RESULTS / "evidence" / f"cifar10_{row}_0")
    for row in ("sprout", "gradient_norm")
  }
  costs = json.loads((RESULTS / "cpu_earlier" / "method_cost_small_cnn.json").read_text())
  cost = {row["method"]: row["natural_steps"] for row in costs}
  robust = {row: f"{100 * strong(run).value:.1f} %" for row, run in digits.items()}
  on_cifar = {row: f"{100 * strong(run).value:.1f} %" for row, run in cifar.items()}
  epsilon = digits["sprout"].about["config"]["evaluation"]["epsilon"]
  vgg = gpu("vgg16_sprout")["evaluation"]
  pro = (
    f"**For SPROUT.** On the digits, the accuracy of SPROUT under AutoAttack is {robust['sprout']} "
    f"at epsilon {epsilon:g}. That of natural training is {robust['natural']}. SPROUT needs no "
    f"attack. On this very small network, a step takes {cost['sprout']:.1f} times as long as a "
    f"natural step. It takes {cost['sprout_mean']:.1f} times as long with the mean label "
    "instead of a drawn label."
  )
  contra = (
    f"**Against SPROUT.** PGD adversarial training reaches {robust['pgd']} on the digits. VGG-16 "
    "on CIFAR-10 (JPEG copy, 200 epochs, one seed) reaches "
    f"{100 * vgg['pgd20']['accuracy']:.1f} % under PGD-20 at 0.03, where the paper has 62.2 %, "
    f"and {100 * vgg['auto_attack']['accuracy']:.1f} % under AutoAttack at 8/255. With a small "
    f"network, SPROUT reaches {on_cifar['sprout']}, and an input-gradient penalty "
    f"{on_cifar['gradient_norm']}."
  )
  answer = "\n\n".join(textwrap.fill(text, 120) for text in (pro, contra))
  rows = []
  for row, run in digits.items():
    pgd = run.numbers.first(evaluation="pgd", epsilon=epsilon)
    values = (f"{100 * number.value:.1f}" for number in (run.clean, pgd, strong(run)))
    failed = sorted({finding.check for finding in run.findings if not finding.passed})
    rows.append([HEADLINE[row], *values, ", ".join(failed) or "none"])
  attack = f"PGD-{pgd['steps']}, {pgd['restarts']} restarts"
  caption = (
    f"Digits, Linf, epsilon {epsilon:g}, {pgd.count} test images, accuracy in percent (seed 0):"
  )
  table = markdown(["training", "clean", attack, "AutoAttack", "failed checks"], rows)
  return f"{answer}\n\n{caption}\n\n{table}"


def gpu(name):
  """The record of a piece of gpu.py."""
  return json.loads((RESULTS / "gpu" / f"{name}.json").read_text())


def interval(found):
  """An accuracy with its 95 % interval, in percent; of a record or of a results.json."""
  low, high = found["interval"]
  return (
    f"{100 * found.get('accuracy', found.get('value')):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
  )


def gpu_runs():
  """VGG-16 by the protocol of SPROUT's paper, see gpu.py."""
  rows = []
  for name in ("vgg16_natural", "vgg16_sprout"):
    record = gpu(name)
    found = record["evaluation"]
    cells = (interval(found[key]) for key in ("clean", "pgd20", "auto_attack"))
    rows.append([record["protocol"]["method"], *cells, f"{record['training']['seconds']:.0f}"])
  columns = ["training", "clean", "PGD-20, 0.03", "AutoAttack, 8/255", "seconds of training"]
  return markdown(columns, rows)


def gpu_steps():
  """Steps of VGG-16 on a GPU, see gpu.py."""
  record = gpu("speed_vgg16_bfloat16")
  rows = []
  for row in record["rows"]:
    ratios = row.get("torch_ratios")
    beside = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if ratios else ""
    natural = f"{row['natural_steps']:.2f}" if "natural_steps" in row else ""
    rows.append(
      [
        row["method"],
        row["batch_size"],
        f"{row['images_per_second']:,.0f}",
        natural,
        f"{100 * row['utilisation']:.0f} %",
        f"{row['peak_bytes'] / 2**30:.2f}",
        beside,
      ]
    )
  columns = ["step", "batch", "images/s", "natural steps", "utilisation", "GiB", "over PyTorch"]
  return f"Device: {record['hardware']['device']}.\n\n{markdown(columns, rows)}"


def chosen(numbers, evaluation, metric="accuracy", **keys):
  """The first number of a results.json with these keys; None where there is none."""
  for number in numbers:
    if (number["evaluation"], number["metric"]) == (evaluation, metric) and all(
      number.get(key) == value for key, value in keys.items()
    ):
      return number
  return None


def frontier_rows():
  """The rows of the CIFAR-10 results that are measured, see frontier.py."""
  epsilon = 8 / 255
  wanted = {  # column -> (protocol, evaluation, keys)
    "clean": ("paper", "clean", {}),
    "PGD-20, 0.03": ("paper", "pgd", {"epsilon": 0.03}),
    "PGD-50 x 10, 8/255": ("main", "pgd", {"epsilon": epsilon}),
    "AutoAttack, 8/255": ("main", "auto_attack", {"epsilon": epsilon, "stage": None}),
  }
  rows = []
  runs = [run for stage in frontier.STAGES for run in frontier.runs(stage)]
  for row, seed in runs:
    if not frontier.result_file(row, seed).exists():
      continue
    found = {
      name: json.loads(part.read_text())["numbers"]
      for name in frontier.EVALUATIONS
      if (part := frontier.evaluation_file(row, seed, name)).exists()
    }
    cells = []
    for protocol, evaluation, keys in wanted.values():
      number = chosen(found.get(protocol, []), evaluation, **keys)
      cells.append(interval(number) if number else "not measured")
    rows.append([f"`{row}`", seed, *cells])
  return markdown(["row", "seed", *wanted], rows)


def parity():
  """Outcomes of AutoAttack beside those of the reference implementation, image by image."""
  found = {}
  for path in sorted((RESULTS / "auto_attack").glob("parity*.json")):
    for row in json.loads(path.read_text()):
      found.setdefault((row["norm"], row["network"]), {})[row["attack"]] = row
  attacks = list(dict.fromkeys(attack for rows in found.values() for attack in rows))
  lines = []
  for (norm, network), rows in sorted(found.items()):
    first = next(iter(rows.values()))
    cells = [
      f"{row['robust']} / {row['reference']} ({row['differ']})" if row else ""
      for row in map(rows.get, attacks)
    ]
    lines.append([norm, network, f"{first['epsilon']:.4g}", str(first["images"]), *cells])
  return markdown(["norm", "network", "epsilon", "images", *attacks], lines)


def gains():
  """What AutoAttack and the attacks after it break, and what they cost, see auto_attack.py."""
  path = RESULTS / "auto_attack" / "gains.json"
  found = json.loads(path.read_text()) if path.exists() else []
  attacks = list(dict.fromkeys(attack for row in found for attack in row["gains"]))
  rows = []
  for row in found:
    cells = [
      f"{gain['broken']} ({gain['passes'] / 1e6:.2f})"
      for gain in (row["gains"][attack] for attack in attacks)
    ]
    rows.append([f"`{row['network']}`", f"{row['epsilon']:.4g}", row["correct"], *cells])
  return markdown(["network", "epsilon", "correct", *attacks], rows)


def auto_attack_speed():
  """AutoAttack's time beside the cost of the passes that it made, see auto_attack.py."""
  rows = []
  for path in sorted((RESULTS / "auto_attack").glob("speed*.json")):
    row = json.loads(path.read_text())
    later = statistics.median(row["later_seconds"])
    rows.append(
      [
        f"`{row['network']}`",
        f"{row['robust']} of {row['images']}",
        f"{sum(row['passes'].values()) / 1e6:.2f}",
        f"{row['first_seconds']:.0f}",
        f"{later:.0f}",
        f"{row['limit_seconds']:.0f}",
        f"{row['over_limit']:.2f}",
      ]
    )
  columns = ["network", "robust", "million passes", "first call, s", "second call, s", "limit, s"]
  return markdown([*columns, "second call over limit"], rows)


def defences():
  """Broken defences under attack without and with the hooks, see defences.py."""
  columns = {
    "clean": "clean",
    "pgd": "PGD",
    "auto_attack": "AutoAttack",
    "pgd_with_hook": "PGD with the hook",
    "auto_attack_with_hook": "AutoAttack with the hook",
    "undefended": "undefended, AutoAttack",
  }
  found = json.loads((RESULTS / "auto_attack" / "defences.json").read_text())
  rows = [
    [row["defence"], f"{row['epsilon']:g}", *(f"{100 * row[key]:.0f}" for key in columns)]
    for row in found
  ]
  return markdown(["defence", "epsilon", *columns.values()], rows)


def kills():
  """Training and evaluation under repeated kills, see kills.py."""
  found = json.loads((RESULTS / "cpu" / "kills.json").read_text())
  rows = []
  for phase in ("training", "evaluation"):
    own = [entry for entry in found["log"] if entry["phase"] == phase]
    killed = [entry["seconds"] for entry in own if entry["killed"]]
    rows.append(
      [
        phase,
        f"{found['unkilled_seconds'][phase]:.0f}",
        len(killed),
        f"{min(killed):.1f} to {max(killed):.1f}",
        len(own) - len(killed),
      ]
    )
  text = markdown(
    ["process", "seconds without a kill", "kills", "seconds until the kill", "completed runs"],
    rows,
  )
  return (
    f"{text}\n\nRounds equal to the round without kills: {found['rounds_equal']} of "
    f"{found['rounds']}."
  )


def long_run():
  """Memory, threads and handles of a long training, see long_run.py."""
  found = json.loads((RESULTS / "cpu" / "long_run.json").read_text())
  rows = []
  for step in (2_000, 5_000, 10_000, 15_000, 20_000):
    near = min(found["samples"], key=lambda row: abs(row["step"] - step))
    rows.append(
      [
        f"{near['step']:,}",
        f"{near['seconds']:.0f}",
        f"{near['memory_bytes'] / 2**20:.0f}",
        near["threads"],
        near["handles"],
      ]
    )
  text = markdown(["step", "seconds", "memory in MiB", "threads", "file handles"], rows)
  return (
    f"{text}\n\nThe speed in the last quarter of the steps was {found['speed_ratio']:.2f} times "
    "that in the second quarter."
  )


def processes():
  """Several processes beside one, see processes.py."""
  _, *several = json.loads((RESULTS / "cpu" / "processes.json").read_text())
  columns = [f"{each['count']} processes" for each in several]
  rows = [
    [f"training, {way}", *(f"{each['differences'][way]:.1e}" for each in several)]
    for way in several[0]["differences"]
  ]
  others = [f"{len(each['different'])} of {each['outcomes']:,}" for each in several]
  rows.append(["evaluation: outcomes of images that differ", *others])
  return markdown(["largest difference of an entry of the training state", *columns], rows)


def scaling():
  """State and collective operations of a compiled step, with predictions, see scaling.py."""
  rows = []
  for row in sorted(
    json.loads((RESULTS / "cpu" / "scaling.json").read_text()),
    key=lambda row: (row["model"], row["devices"]),
  ):
    wire = sum(found["wire_bytes"] for found in row["compiled"]["collectives"].values())
    count = sum(found["count"] for found in row["compiled"]["collectives"].values())
    rows.append(
      [
        f"`{row['model']}`",
        row["way"],
        row["devices"],
        f"{row['compiled']['state_bytes_per_device'] / 2**20:.1f}",
        count,
        f"{wire / 2**20:.1f}",
        f"{100 * row['predicted']['efficiency']:.0f} %",
      ]
    )
  columns = ["model", "way", "devices", "state per device, MiB", "collective operations"]
  return markdown([*columns, "MiB sent by a device", "predicted efficiency"], rows)


def streams():
  """Images per second of streamed sets beside PyTorch's DataLoader, see input_pipeline.py."""
  found = json.loads((RESULTS / "cpu" / "input_pipeline.json").read_text())["stream"]
  names = {"folder": "a folder", "TFDS": "a TFDS set", "torch": "PyTorch, the same folder"}
  rows = []
  for kind, name in names.items():
    cells = [
      f"{found['images_per_second'][f'{kind}, {workers} workers']:.0f}" for workers in (0, 1, 2)
    ]
    thread = sorted(found["cpu_milliseconds"][kind])
    cells.append(f"{thread[len(thread) // 2]:.2f} ({thread[0]:.2f}-{thread[-1]:.2f})")
    ratios = found["times_torch"].get(kind)
    cells.append(
      f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if ratios else ""
    )
    rows.append([name, *cells])
  columns = ["images/s from", "no worker process", "1", "2", "CPU ms per image in one thread"]
  return markdown([*columns, "fastest over PyTorch's fastest"], rows)


def imagenet_steps():
  """Reading and training by two processes, see imagenet_steps.py."""
  found = json.loads((RESULTS / "cpu" / "imagenet_steps.json").read_text())
  rows = [
    [
      f"examples read in an epoch, {kind}",
      f"{' + '.join(map(str, part['examples_of_each_process']))}, "
      f"{part['different_examples']:,} different, each at most {part['most_often']} time",
    ]
    for kind, part in found["reading"].items()
  ]
  training = found["training"]
  compared = training["steps_compared_after_the_kill"]
  rows += [
    ["steps before the kill", f"{training['steps_before_the_kill']}; {training['said'][0]}"],
    [
      f"largest difference of the loss in steps {compared[0]} to {compared[-1]}",
      f"{training['largest_difference']:g}",
    ],
  ]
  return markdown(["ResNet-50, two processes", "found"], rows)


def evaluation_memory():
  """Memory of an evaluation by the number of test images, see evaluation_memory.py."""
  rows = [
    [f"{row['test_images']:,}", f"{row['pixels_mib']:.0f}", f"{row['growth_mib']:.0f}"]
    for row in json.loads((RESULTS / "cpu" / "evaluation_memory.json").read_text())
  ]
  return markdown(["test images", "MiB of pixels", "MiB that the evaluation adds"], rows)


def fuzz():
  """Numbers of fuzzed configs, files and calls, see fuzz.py."""
  found = json.loads((RESULTS / "cpu" / "fuzz.json").read_text())
  rows = [
    [
      kind,
      f"`{found[kind]['file']}`",
      found[kind]["tests"],
      f"{found[kind]['examples']:,}",
      found[kind]["failed"],
    ]
    for kind in ("configs", "files", "calls")
  ]
  return markdown(["what is changed", "test", "tests", "examples", "failed"], rows)


TABLES = {
  "headline": headline,
  "methods_digits": lambda: methods("digits"),
  "methods_cifar10": lambda: methods("cifar10"),
  "evidence_digits": lambda: evidence("digits"),
  "evidence_cifar10": lambda: evidence("cifar10"),
  "failures_digits": lambda: failures("digits"),
  "parity": parity,
  "gains": gains,
  "auto_attack_speed": auto_attack_speed,
  "defences": defences,
  "kills": kills,
  "long_run": long_run,
  "imagenet_steps": imagenet_steps,
  "streams": streams,
  "evaluation_memory": evaluation_memory,
  "fuzz": fuzz,
  "frontier_rows": frontier_rows,
  "gpu_runs": gpu_runs,
  "gpu_steps": gpu_steps,
  "processes": processes,
  "scaling": scaling,
} | {name: (lambda make=make: make().strip()) for name, make in generate.PARTS.items()}


def picture():
  """Draws the accuracies of the digits runs against epsilon."""
  from sprout_jax.report import figures  # slow to import
  from sprout_jax.report import runs

  folders = [RESULTS / "evidence" / f"digits_{row}_0" for row in HEADLINE]
  (ROOT / "docs" / "images" / "digits.png").write_bytes(figures.robustness(runs.read(folders)).png)


def renew(text):
  """The text of a page with its tables as the files have them."""

  def table(match):
    if match[2] not in TABLES:
      sys.exit(f"there is no table {match[2]!r}; choose one of: {', '.join(TABLES)}")
    return f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[4]}"

  return PLACE.sub(table, text)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
  parser.add_argument("--picture", action="store_true", help="draw the README's picture as well")
  args = parser.parse_args()
  if args.picture:
    picture()
  old = []
  for page in PAGES:
    path = ROOT / page
    text = path.read_text()
    new = renew(text)
    if new != text:
      old.append(page)
      if not args.check:
        path.write_text(new)
  if args.check and old:
    sys.exit(f"not up to date: {', '.join(old)}; type: python benchmarks/pages.py")
  print(f"{len(PAGES)} pages; {'written' if old else 'up to date'}: {', '.join(old) or 'all'}")


if __name__ == "__main__":
  main()
