"""Training steps per model and batch size, beside the same steps in PyTorch.

    python benchmarks/train_step.py --models vgg16 --batch_sizes 64 --output FILE.json

Each round times ours, PyTorch in channels-last and PyTorch in its default layout, one after
another; ratios are taken within a round. Without PyTorch, its columns are left out. Rows that FILE
has already are not measured again. `--attack` times forward passes and input gradients instead.
"""

import argparse
import functools
import sys

import steps
import timing

IMAGE_SHAPE = (32, 32, 3)


def baselines(args):
  """{name: function that makes a timed function}; none without PyTorch."""
  try:
    import torch
    import torch_baseline
  except ImportError:
    print("PyTorch is not installed: no comparison (pip install torch)", file=sys.stderr)
    return {}
  make = functools.partial(torch_baseline.attacking) if args.attack else functools.partial(
      torch_baseline.training, loss=args.torch_loss)
  if torch.cuda.is_available():
    return {"torch_compiled": functools.partial(make, channels_last=True, device="cuda",
                                                mixed_precision=args.dtype != "float32", compiled=True)}
  return {"torch_channels_last": functools.partial(make, channels_last=True),
          "torch_default": functools.partial(make, channels_last=False)}


def measure(model, batch_size, others, args):
  """One row of the table."""
  own = (steps.attacking(model, IMAGE_SHAPE, batch_size, args.num_steps, args.dtype) if args.attack else
         steps.training(model, IMAGE_SHAPE, batch_size, args.num_steps, method=args.method,
                        variant=args.variant, dtype=args.dtype))
  images, labels = steps.random_data(IMAGE_SHAPE, batch_size)
  runs = {"": own} | {name: make(model, images, labels, args.num_steps) for name, make in others.items()}
  seconds = timing.alternate(runs, args.rounds)
  count = batch_size * args.num_steps
  row = {"model": model, "batch_size": batch_size, "method": "attack" if args.attack else args.method,
         "variant": args.variant, "dtype": args.dtype, "num_steps": args.num_steps,
         "images_per_second": count / timing.median(seconds[""])}
  for name in others:
    row[f"{name}_images_per_second"] = count / timing.median(seconds[name])
    row[f"{name}_ratios"] = timing.ratios(seconds[name], seconds[""])
  return row | {"hardware": timing.hardware()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", default="vgg16,preact_resnet18,wrn_16_4,small_cnn")
  parser.add_argument("--batch_sizes", default="64,128")
  parser.add_argument("--method", default="natural", help="with --torch_loss, its counterpart")
  parser.add_argument("--variant", default="paper")
  parser.add_argument("--torch_loss", default="natural", help="natural, sprout_released or pgd")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--attack", action="store_true", help="attack steps instead of training steps")
  parser.add_argument("--num_steps", type=int, default=2, help="steps per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  rows, others = timing.read(args.output), baselines(args)
  named = {(row["model"], row["batch_size"], row["method"], row["variant"], row["dtype"]) for row in rows}
  for model in args.models.split(","):
    for batch_size in map(int, args.batch_sizes.split(",")):
      method = "attack" if args.attack else args.method
      if (model, batch_size, method, args.variant, args.dtype) not in named:
        rows.append(measure(model, batch_size, others, args))
        timing.write(args.output, rows)
        show(rows[-1], others)


def show(row, others):
  text = (f"{row['model']:16} batch {row['batch_size']:4} {row['method']:10} "
          f"{row['images_per_second']:8.1f} images/s")
  for name in others:
    pairs = row[f"{name}_ratios"]
    text += (f" | {name} {row[f'{name}_images_per_second']:7.1f}: x{timing.median(pairs):.2f} "
             f"({pairs[0]:.2f}-{pairs[-1]:.2f})")
  print(text, flush=True)


if __name__ == "__main__":
  main()
