"""Times forms of convolution on a CPU, for each layer, in a compiled loop.

    python benchmarks/convolution.py --batch_size 64 --output FILE.json

The choices in sprout_jax/models/convolution.py are based on these numbers. The table has the
GFLOP/s of the forward pass and of both gradients, for XLA's convolution, for one matmul over whole
windows, for patches of one row for the whole batch, and for the form that the models use. XLA's own
gradients may take minutes: `--forms` selects the forms.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sprout_jax.models import convolution  # noqa: E402: after the path

# Height and width, channels, features, strides: VGG-16's layers, then others of the models.
LAYERS = (
  (32, 3, 64, 1),
  (32, 64, 64, 1),
  (16, 64, 128, 1),
  (16, 128, 128, 1),
  (8, 128, 256, 1),
  (8, 256, 256, 1),
  (4, 256, 512, 1),
  (4, 512, 512, 1),
  (2, 512, 512, 1),
  (32, 16, 64, 1),
  (32, 32, 64, 2),
  (32, 64, 128, 2),
)


def _windows(images, kernel, strides):
  return convolution._by_windows(images, kernel, strides, 1)


def _rows(images, kernel, strides):
  return convolution._by_rows(images, kernel, strides, 1)


def _convolve(images, kernel, strides, **options):
  return convolution.convolve(images, kernel, strides, 1, **options)


FORMS = {
  "xla": functools.partial(_convolve, matmuls=False),
  "windows": _windows,
  "rows": _rows,
  "chosen": functools.partial(_convolve, matmuls=True),
}


def compile_form(form, images, kernel, strides, num_steps):
  """A function that computes value and gradients `num_steps` times, each from the last one's."""

  def step(_, carry):
    images, kernel = carry
    out, pullback = jax.vjp(lambda x, k: FORMS[form](x, k, strides), images, kernel)
    return jax.tree.map(lambda a, d: a + 1e-6 * d, carry, pullback(1e-3 * out))

  loop = jax.jit(lambda carry: jax.lax.fori_loop(0, num_steps, step, carry))
  run = lambda: jax.block_until_ready(loop((images, kernel)))
  run()
  return run


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--forms", default=",".join(FORMS))
  parser.add_argument("--num_steps", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", help="JSON file for the rows")
  args = parser.parse_args()
  rng, rows = np.random.default_rng(0), []
  print(f"{'layer':22} " + " ".join(f"{form:>8}" for form in args.forms.split(",")) + "  GFLOP/s")
  for size, channels, features, strides in LAYERS:
    images = jnp.asarray(rng.normal(size=(args.batch_size, size, size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, features)) / 30, jnp.float32)
    seconds = timing.alternate(
      {
        form: compile_form(form, images, kernel, strides, args.num_steps)
        for form in args.forms.split(",")
      },
      args.rounds,
    )
    flop = (
      3 * 2 * 9 * channels * features * (size // strides) ** 2 * args.batch_size * args.num_steps
    )
    rates = {form: flop / timing.median(times) / 1e9 for form, times in seconds.items()}
    rows.append(
      {
        "size": size,
        "channels": channels,
        "features": features,
        "strides": strides,
        "batch_size": args.batch_size,
        "gflop_per_second": rates,
        "hardware": timing.hardware(),
      }
    )
    print(
      f"{f'{size}x{size} {channels}->{features} /{strides}':22} "
      + " ".join(f"{rate:8.0f}" for rate in rates.values()),
      flush=True,
    )
    timing.write(args.output, rows)


if __name__ == "__main__":
  main()
