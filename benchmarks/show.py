"""Makes the tables of docs/speed.md from the files of run_all.py and before_after.py.

    python benchmarks/show.py benchmarks/results/cpu                       # prints them
    python benchmarks/show.py benchmarks/results/cpu --page docs/speed.md  # and writes them there

The tables stand between the two lines of MARKS. Nothing between these lines is written by hand.
"""

import argparse
import json
import pathlib

import timing

MARKS = ("<!-- benchmarks/show.py: begin -->", "<!-- benchmarks/show.py: end -->")


def rows(folder, pattern):
  """All rows of the matching files, in the order of their names; a file is a row or a list."""
  found = [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]
  return [row for part in found for row in (part if isinstance(part, list) else [part])]


def table(columns, lines):
  lines = [columns, ["---"] * len(columns), *lines]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(ratios):
  return f"{timing.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def machine(found):
  """One line about all rows: the hardware, versions, and how busy it was."""
  hardware = [row["hardware"] for row in found]
  values = lambda key: ", ".join(sorted({str(h[key]) for h in hardware if h.get(key)}))
  load = [h["load"] for h in hardware]
  return (
    f"{values('cpu')}, {values('cores')} cores, JAX {values('jax')}, PyTorch {values('torch')}, "
    f"Python {values('python')}. The load averages were {min(load):.1f} to {max(load):.1f}, other "
    "programs included."
  )


def before_after(found):
  """Ratios: the time before over the time after, pair by pair."""
  columns = [
    "model",
    "batch",
    "steps",
    "before, images/s",
    "after, images/s",
    "times faster (range)",
  ]
  return table(
    columns,
    [
      [
        f"`{row['model']}`",
        str(row["batch_size"]),
        row["kind"],
        f"{row['before_images_per_second']:.0f}",
        f"{row['images_per_second']:.0f}",
        pairs(row["ratios"]),
      ]
      for row in found
    ],
  )


def beside_torch(found):
  """One line per model and batch size; ratios are PyTorch's time over ours, pair by pair."""
  libraries = sorted(
    {key.removesuffix("_ratios") for row in found for key in row if key.endswith("_ratios")}
  )
  columns = ["model", "batch", "steps of", "images/s"]
  for library in libraries:
    columns += [f"{library.replace('_', ' ')}, images/s", "ratio (range)"]
  lines = []
  for row in found:
    lines.append(
      [
        f"`{row['model']}`",
        str(row["batch_size"]),
        row["method"],
        f"{row['images_per_second']:.0f}",
      ]
    )
    for library in libraries:
      lines[-1] += [f"{row[f'{library}_images_per_second']:.0f}", pairs(row[f"{library}_ratios"])]
  return table(columns, lines)


def costs(found):
  return table(
    ["method", "natural steps (range of the pairs)"],
    [
      [
        row["method"],
        f"{row['natural_steps']:.2f} ({row['ratios'][0]:.2f}-{row['ratios'][-1]:.2f})",
      ]
      for row in found
    ],
  )


def profiles(found):
  """Milliseconds; operations run side by side, and add up to more than the step."""
  kinds = list(dict.fromkeys(kind for row in found for kind in row["seconds"]))
  lines = []
  for row in found:
    seconds = [
      row["step_seconds"],
      row["matmul_bound_seconds"],
      row["done_bound_seconds"],
      *(row["seconds"].get(kind, 0) for kind in kinds),
    ]
    lines.append([f"`{row['model']}`", *(f"{1e3 * value:.0f}" for value in seconds)])
  return table(["model", "step", "bound", "bound with Winograd", *kinds], lines)


def pipeline(row):
  share = row["host_share"]
  parts = ", ".join(
    f"{name} {milliseconds / 10 / row['step_seconds']:.2f} %"
    for name, milliseconds in row["milliseconds"].items()
  )
  return (
    f"With `{row['model']}` and batch {row['batch_size']}, the host adds "
    f"{100 * row['median_host_share']:.2f} % ({100 * min(share):.2f} to {100 * max(share):.2f}) to "
    f"the time of compiled calls of {row['num_steps']} steps. Parts of a step's time: {parts}."
  )


def startup(found):
  return table(
    ["work of the process", "seconds (range)"],
    [
      [row["what"], f"{row['median']:.2f} ({min(row['seconds']):.2f}-{max(row['seconds']):.2f})"]
      for row in found
    ],
  )


SECTIONS = (  # title, files, function of their rows
  ("Training steps before and after, in turn", "before_after.json", before_after),
  ("Training steps", "train_*.json", beside_torch),
  ("Attack steps (forward pass and gradient for the input)", "attack_*.json", beside_torch),
  (
    "Time of a training step by kind of operation, batch 64, milliseconds",
    "profile_*.json",
    profiles,
  ),
  ("Cost of a method, `vgg16`, batch 64", "method_cost.json", costs),
  ("Host and data", "input_pipeline.json", lambda found: pipeline(found[0])),
  ("Start-up", "startup.json", startup),
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--page", type=pathlib.Path, help="a file with the two marks")
  args = parser.parse_args()
  found = [(title, rows(args.folder, pattern), show) for title, pattern, show in SECTIONS]
  text = machine([row for _, part, _ in found for row in part]) + "\n\n"
  text += "\n\n".join(f"**{title}**\n\n{show(part)}" for title, part, show in found if part)
  print(text)
  if args.page:
    if not all(mark in args.page.read_text() for mark in MARKS):
      parser.error(f"{args.page} has no lines {' and '.join(MARKS)}")
    before, _, rest = args.page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    args.page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
  main()
