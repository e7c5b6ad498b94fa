"""Measures the cost of a training step of each method, in steps of natural training.

    python benchmarks/method_cost.py --model vgg16 --batch_size 64 --output FILE.json

Every row is a method with its default options, on random images. Natural training and the row are
timed as a pair, one right after the other. The table has the median and the range of the ratios of
the pairs. No ratio uses times that were taken minutes apart. Rows that FILE has are not measured
again.
"""

import argparse
import functools

import steps
import timing

from sprout_jax import methods

GELU = {"model.activation": "gelu"}  # as compare_methods.py trains them
ROWS = {name: dict(method=name) for name in methods.METHODS} | {
  "sprout_mean": dict(method="sprout", options={"method.draw": "mean"}),
  "sprout_released": dict(method="sprout", variant="released"),
  "gradient_norm": dict(method="natural", penalty="gradient_norm", options=GELU),
  "cure": dict(method="natural", penalty="cure"),
  "sprout_gradient_norm": dict(method="sprout", penalty="gradient_norm", options=GELU),
  "pgd_awp": dict(method="pgd", options={"awp_gamma": 5e-3}),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vgg16")
  parser.add_argument("--image_shape", default="32,32,3", help="height, width, channels")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_steps", type=int, default=2, help="steps per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  if unknown := set(args.rows.split(",")) - set(ROWS):
    parser.error(f"unknown rows {sorted(unknown)}; choose from: {', '.join(ROWS)}")
  shape = tuple(int(size) for size in args.image_shape.split(","))
  make = functools.partial(steps.training, args.model, shape, args.batch_size, args.num_steps)
  hardware, rows = timing.hardware(), timing.read(args.output)
  natural = make()
  print(
    f"{args.model}, batch {args.batch_size}, {hardware['cpu']}, {hardware['device']}, "
    f"{args.rounds} pairs of {args.num_steps} steps"
  )
  print(f"{'':26} {'natural steps':>13}  {'range':>13}  {'seconds per minibatch':>21}")
  for name in args.rows.split(","):
    row = next(
      (
        row
        for row in rows
        if (row["method"], row["model"], row["batch_size"]) == (name, args.model, args.batch_size)
      ),
      None,
    )
    if row is None:
      seconds = timing.alternate({"natural": natural, "own": make(**ROWS[name])}, args.rounds)
      ratios = timing.ratios(seconds["own"], seconds["natural"])
      row = {
        "method": name,
        "model": args.model,
        "image_shape": shape,
        "batch_size": args.batch_size,
        "natural_steps": timing.median(ratios),
        "ratios": ratios,
        "seconds": timing.median(seconds["own"]) / args.num_steps,
        "hardware": hardware,
      }
      rows.append(row)
      timing.write(args.output, rows)
    ratios = row["ratios"]
    print(
      f"{name:26} {row['natural_steps']:13.2f}  {ratios[0]:5.2f} - {ratios[-1]:5.2f}  "
      f"{row['seconds']:21.4f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
