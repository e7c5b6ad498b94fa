"""Times our steps and the same steps in PyTorch in turn, and prints a table.

Each round times our step, PyTorch in channels-last layout, and PyTorch in its default layout. A
ratio is PyTorch's time over ours, within a round. Without PyTorch, its columns are left out. Rows
that the output file has are not measured again.
"""

import argparse
import functools
import sys

import steps
import timing

IMAGE_SHAPE = (32, 32, 3)
LOSSES = {
  "natural": "natural",
  "sprout": "natural",
  "sprout_released": "sprout_released",
  "pgd": "pgd",
}


def main(description, kind):
  """`kind`: "training" or "attacking", the functions of `steps` and `torch_baseline`."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--models", default="vgg16,preact_resnet18,wrn_16_4,small_cnn")
  parser.add_argument("--batch_sizes", default="64,128")
  if kind == "training":
    parser.add_argument(
      "--methods",
      default="natural",
      help=f"methods, of {', '.join(LOSSES)}; sprout is compared with natural steps of PyTorch",
    )
  parser.add_argument(
    "--dtype", default="float32", help="bfloat16: PyTorch runs in mixed precision"
  )
  parser.add_argument(
    "--peak_tflops",
    type=float,
    help="peak of the device in that type; prints the share of it that the model's operations "
    "reach (natural steps and attacks)",
  )
  parser.add_argument("--num_steps", type=int, default=4, help="steps per timing")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  rows, libraries = timing.read(args.output), _torch(kind, args)
  for model in args.models.split(","):
    for batch_size in map(int, args.batch_sizes.split(",")):
      for method in args.methods.split(",") if kind == "training" else ["attack"]:
        named = {"model": model, "batch_size": batch_size, "method": method, "dtype": args.dtype}
        row = next((row for row in rows if named.items() <= row.items()), None)
        if row is None:
          row = named | _measure(named, kind, libraries, args)
          rows.append(row)
          timing.write(args.output, rows)
        _show(row, args.peak_tflops)


def _torch(kind, args):
  """{name: function of (model, images, labels, num_steps, **loss)} of timed functions."""
  try:
    import torch
    import torch_baseline
  except ImportError:
    print(
      "PyTorch is not installed, so there is no comparison (pip install torch)", file=sys.stderr
    )
    return {}
  make = functools.partial(getattr(torch_baseline, kind), mixed_precision=args.dtype != "float32")
  if torch.cuda.is_available():
    return {
      "torch_compiled": functools.partial(make, channels_last=True, device="cuda", compiled=True)
    }
  return {
    "torch_channels_last": functools.partial(make, channels_last=True),
    "torch_default": functools.partial(make, channels_last=False),
  }


def _measure(named, kind, libraries, args):
  model, batch_size, method = named["model"], named["batch_size"], named["method"]
  if kind == "training":
    name, _, variant = method.partition("_")
    own = steps.training(
      model,
      IMAGE_SHAPE,
      batch_size,
      args.num_steps,
      method=name,
      variant=variant or "paper",
      dtype=args.dtype,
    )
    loss = {"loss": LOSSES[method]}
  else:
    own, loss = steps.attacking(model, IMAGE_SHAPE, batch_size, args.num_steps, args.dtype), {}
  data = steps.random_data(IMAGE_SHAPE, batch_size)
  runs = {"": own} | {
    library: make(model, *data, args.num_steps, **loss) for library, make in libraries.items()
  }
  seconds = timing.alternate(runs, args.rounds)
  count = batch_size * args.num_steps
  row = {"num_steps": args.num_steps, "images_per_second": count / timing.median(seconds[""])}
  if method in (
    "natural",
    "attack",
  ):  # two operations a multiplication; the input's gradient, the kernel's
    passes = 3 if method == "natural" else 2
    row["model_tflop_per_second"] = (
      2e-12 * passes * steps.multiplications(model, IMAGE_SHAPE) * row["images_per_second"]
    )
  for library in libraries:
    row[f"{library}_images_per_second"] = count / timing.median(seconds[library])
    row[f"{library}_ratios"] = timing.ratios(seconds[library], seconds[""])
  return row | {"hardware": timing.hardware()}


def _show(row, peak_tflops):
  text = (
    f"{row['model']:16} batch {row['batch_size']:4}  {row['method']:16} {row['dtype']}  "
    f"{row['images_per_second']:8.1f} images/s"
  )
  for name in (key.removesuffix("_ratios") for key in row if key.endswith("_ratios")):
    pairs = row[f"{name}_ratios"]
    text += (
      f" | {name} {row[f'{name}_images_per_second']:8.1f}: x{timing.median(pairs):.2f} "
      f"({pairs[0]:.2f}-{pairs[-1]:.2f})"
    )
  if "model_tflop_per_second" in row:
    text += f" | {row['model_tflop_per_second']:.3g} TFLOP/s"
    text += (
      f", {row['model_tflop_per_second'] / peak_tflops:.1%} of the peak" if peak_tflops else ""
    )
  print(text, flush=True)
