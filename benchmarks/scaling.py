"""Predicts how the training step scales: collective bytes, memory and efficiency per device.

    python benchmarks/scaling.py                        # benchmarks/results/cpu/scaling.json
    python benchmarks/scaling.py --model preact_resnet18 --devices 8

The step is compiled ahead of time for virtual CPU devices, on streamed minibatches, and nothing
runs. From the compiled program come the collective operations of a step, with their bytes, and the
memory of a device. Everything else is a prediction, and the results keep the two apart. Rows that
the file has are not compiled again::

    compute seconds = 6 multiplications images / (peak FLOP/s utilisation)
    transfer seconds = sum over the operations of (bytes on the wire / bandwidth)
    efficiency = compute seconds / (compute seconds + transfer seconds)

A step of SPROUT has a forward and a backward pass, so 3 passes of 2 operations a multiplication.
Bytes on the wire are those of a ring of n devices: 2 (n - 1) / n of an all-reduce's array, (n - 1)
/ n of the whole array of an all-gather, a reduce-scatter or an all-to-all, and all of a permuted
one. The efficiency assumes that no transfer overlaps with computation, so it is a lower bound under
these bandwidths. XLA compiles other collectives for other platforms: the table shows the program of
virtual CPU devices.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "benchmarks"))

RESULT = ROOT / "benchmarks" / "results" / "cpu" / "scaling.json"
# Way: parallelism, shards of the parameters.
WAYS = {"jit": ("jit", 1), "shard_map": ("shard_map", 1), "split in 8": ("jit", 8)}
# An H100 with NVLink within 8 devices, and InfiniBand NDR, one port per device, beyond.
PEAK = 989e12  # FLOP/s in bfloat16, dense
UTILISATION = 0.4
BANDWIDTHS = {8: 450e9, 256: 50e9}  # bytes/s in one direction
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
OPERATION = re.compile(
  r"= (?P<shapes>\([^)]*\)|\S+) "
  r"(?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
  r"(?P<rest>.*)"
)
GROUP = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\})")


def collectives(text, num_devices):
  """The collective operations in a compiled program's text.

  Returns:
    {name: {"count", "bytes", "wire_bytes"}}; bytes are those of one device.
  """
  found = {}
  for line in text.splitlines():
    match = OPERATION.search(line)
    if not match:
      continue
    size = sum(
      SIZES[kind] * functools.reduce(lambda a, b: a * int(b), filter(None, shape.split(",")), 1)
      for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
    )
    group = GROUP.search(match["rest"])
    members = num_devices
    if group:
      members = int(group[1]) if group[1] else len(group[2].split(","))
    share = (members - 1) / members
    name = match["name"]
    wire = {
      "all-reduce": 2 * share * size,
      "all-gather": share * size,
      "reduce-scatter": share * size * members,
      "all-to-all": share * size,
      "collective-permute": size,
    }[name]
    entry = found.setdefault(name, {"count": 0, "bytes": 0, "wire_bytes": 0.0})
    entry["count"] += 1
    entry["bytes"] += size
    entry["wire_bytes"] += wire
  return found


def compile_row(model_name, way, num_devices, images_per_device, image_shape, num_classes):
  """Compiles a step and returns what the program says."""
  import jax
  import jax.numpy as jnp
  import steps

  from sprout_jax import methods
  from sprout_jax import models
  from sprout_jax import sharding
  from sprout_jax.configs import default
  from sprout_jax.launcher import configuration
  from sprout_jax.training import parallel
  from sprout_jax.training import state as state_lib
  from sprout_jax.training import step as step_lib

  parallelism, shards = WAYS[way]
  config = default.get_config(method="sprout")
  config.batch_size = images_per_device * num_devices
  config.dataset.flip = True
  options = configuration.options(config.model) | {"dtype": "bfloat16"}
  recipe = state_lib.make_recipe(
    config,
    models.create(model_name, num_classes=num_classes, image_shape=image_shape, **options),
    methods.create(config.method.name, configuration.options(config.method)),
    None,
    num_classes,
    steps_per_epoch=100,
  )
  mesh = sharding.make_mesh(parameter_shards=shards)
  shapes = jax.eval_shape(lambda: state_lib.create(recipe, image_shape))
  placed = sharding.of_state(mesh, shapes)
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  state = jax.tree.map(place, shapes, placed)
  split = sharding.batch(mesh)
  batch = (config.batch_size, *image_shape)
  data = (
    jax.ShapeDtypeStruct(batch, jnp.uint8, sharding=split),
    jax.ShapeDtypeStruct(batch[:1], jnp.int32, sharding=split),
  )
  step = parallel.compile_streamed_step(
    functools.partial(step_lib.train_step, recipe), mesh, parallelism, placed
  )
  compiled = step.lower(state, *data).compile()
  memory = compiled.memory_analysis()
  state_bytes = sum(
    leaf.dtype.itemsize
    * int(functools.reduce(lambda a, b: a * b, where.shard_shape(leaf.shape), 1))
    for leaf, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
  )
  return {
    "model": model_name,
    "way": way,
    "devices": num_devices,
    "images_per_device": images_per_device,
    "image_size": image_shape[0],
    "num_classes": num_classes,
    "compiled": {
      "collectives": collectives(compiled.as_text(), num_devices),
      "state_bytes_per_device": state_bytes,
      "temporary_bytes_per_device": memory.temp_size_in_bytes if memory else None,
    },
    "multiplications_per_image": steps.multiplications(model_name, image_shape),
    "jax": jax.__version__,
  }


def predict(row, peak, utilisation, bandwidth):
  """The prediction from a compiled row, with its assumptions."""
  flop = 6 * row["multiplications_per_image"] * row["images_per_device"]
  wire = sum(entry["wire_bytes"] for entry in row["compiled"]["collectives"].values())
  compute, transfer = flop / (peak * utilisation), wire / bandwidth
  return {
    "peak_flop_per_second": peak,
    "utilisation": utilisation,
    "bandwidth_bytes_per_second": bandwidth,
    "flop_per_device": flop,
    "wire_bytes_per_device": wire,
    "compute_seconds": compute,
    "transfer_seconds": transfer,
    "efficiency": compute / (compute + transfer),
  }


def show(row):
  compiled, predicted = row["compiled"], row["predicted"]
  listed = ", ".join(
    f"{entry['count']} {name} {entry['bytes'] / 2**20:.1f} MiB"
    for name, entry in sorted(compiled["collectives"].items())
  )
  return (
    f"{row['model']:16} {row['way']:10} {row['devices']:4} devices  state "
    f"{compiled['state_bytes_per_device'] / 2**20:7.1f} MiB  {listed}  predicted efficiency "
    f"{predicted['efficiency']:.1%}"
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="wrn_28_10")
  parser.add_argument("--devices", type=int, nargs="*", default=[8, 256])
  parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
  parser.add_argument("--images_per_device", type=int, default=64)
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--num_classes", type=int, default=10)
  parser.add_argument("--output", default=RESULT)
  parser.add_argument("--row", help=argparse.SUPPRESS)
  args = parser.parse_args()
  shape = (args.image_size, args.image_size, 3)
  if args.row:
    way, num_devices = json.loads(args.row)
    row = compile_row(args.model, way, num_devices, args.images_per_device, shape, args.num_classes)
    print(json.dumps(row))
    return
  import timing

  rows = timing.read(args.output)
  names = ("image_size", "num_classes", "images_per_device")
  sizes = {name: getattr(args, name) for name in names}
  done = [
    (row["model"], row["way"], row["devices"], {name: row[name] for name in names}) for row in rows
  ]
  for num_devices in args.devices:
    for way in args.ways:
      if (args.model, way, num_devices, sizes) in done:
        continue
      flags = f"--xla_force_host_platform_device_count={num_devices}"
      out = subprocess.run(
        [sys.executable, *sys.argv, "--row", json.dumps([way, num_devices])],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
      ).stdout
      row = json.loads(out.splitlines()[-1])
      bandwidth = BANDWIDTHS[min((n for n in BANDWIDTHS if n >= num_devices), default=256)]
      row |= {"predicted": predict(row, PEAK, UTILISATION, bandwidth), "measured": None}
      rows.append(row)
      print(show(row), flush=True)
      timing.write(args.output, rows)


if __name__ == "__main__":
  main()
