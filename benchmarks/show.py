"""The README's tables of speed, from the files of run_all.py.

    python benchmarks/show.py benchmarks/results/cpu [--before DIR]
"""

import argparse
import json
import pathlib

import timing


def rows(folder, pattern):
  """All rows of the matching files, in the order of their names."""
  return [row for path in sorted(folder.glob(pattern)) for row in json.loads(path.read_text())]


def beside_torch(found, before):
  """One line per model and batch size; ratios are PyTorch's time over ours, pair by pair."""
  libraries = sorted({key.removesuffix("_ratios") for row in found for key in row if key.endswith("_ratios")})
  key = lambda row: (row["model"], row["batch_size"], row["method"], row["dtype"])
  earlier = {key(row): row for row in before}
  columns = ["model", "batch", "steps of", *["before, images/s"] * bool(before), "images/s"]
  for library in libraries:
    columns += [f"{library.replace('_', ' ')}, images/s", "ratio (range)"]
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  for row in found:
    cells = [f"`{row['model']}`", str(row["batch_size"]), row["method"]]
    if before:
      cells.append(f"{earlier[key(row)]['images_per_second']:.0f}" if key(row) in earlier else "")
    cells.append(f"{row['images_per_second']:.0f}")
    for library in libraries:
      pairs = row[f"{library}_ratios"]
      cells += [f"{row[f'{library}_images_per_second']:.0f}",
                f"{timing.median(pairs):.2f} ({pairs[0]:.2f}-{pairs[-1]:.2f})"]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def costs(found):
  lines = ["| method | natural steps | range of the pairs |", "|---|---|---|"]
  return "\n".join(lines + [f"| {row['method']} | {row['natural_steps']:.2f} | {row['ratios'][0]:.2f}-"
                            f"{row['ratios'][-1]:.2f} |" for row in found])


def profiles(found):
  kinds = list(found[0]["seconds"])
  lines = [f"| model | ms a step | bound by a matmul's speed | {' | '.join(kinds)} |", "|---" * (3 + len(kinds)) + "|"]
  for row in found:
    cells = [f"{1e3 * row['seconds'][kind]:.0f}" for kind in kinds]
    lines.append(f"| `{row['model']}` | {1e3 * row['step_seconds']:.0f} | "
                 f"{1e3 * row['matmul_bound_seconds']:.0f} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--before", type=pathlib.Path, help="a folder of earlier results")
  args = parser.parse_args()
  earlier = lambda pattern: rows(args.before, pattern) if args.before else []
  sections = {
      "Training": beside_torch(rows(args.folder, "train_*.json"), earlier("train_*.json")),
      "Attacks": beside_torch(rows(args.folder, "attack_*.json"), earlier("attack_*.json")),
      **{path.stem: costs(json.loads(path.read_text())) for path in sorted(args.folder.glob("method_cost*.json"))},
  }
  found = [json.loads(path.read_text()) for path in sorted(args.folder.glob("profile_*.json"))]
  if found:
    sections["Profile of a step, milliseconds"] = profiles(found)
  for title, text in sections.items():
    print(f"{title}\n\n{text}\n")
  for name in ("input_pipeline", "startup"):
    path = args.folder / f"{name}.json"
    if path.exists():
      print(f"{name}: {json.dumps(json.loads(path.read_text()))[:2000]}\n")


if __name__ == "__main__":
  main()
