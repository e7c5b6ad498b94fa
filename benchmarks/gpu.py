"""Measures speed, memory and AutoAttack on a GPU, and trains the long runs, in resumable pieces.

    python benchmarks/gpu.py --list                                  # the pieces, and their state
    python benchmarks/gpu.py --minutes 9 --data cifar10.tar.xz   # as many as fit, in order
    python benchmarks/gpu.py --only speed_vgg16_bfloat16             # one piece
    python benchmarks/gpu.py --table                                 # the results, in Markdown
    python benchmarks/gpu.py --dry                                   # everything, tiny, on a CPU

Every piece writes one JSON file into the output folder, row by row, as its numbers are found. A
piece without a file is not measured. Rows that the file has are not repeated. A piece works for at
most 4 minutes at a time. An unfinished piece continues in the same call or in the next one. A
training run continues from its last checkpoint, with the same result bit for bit, and is evaluated
on the same machine. Its weights are stored in 8 bits each (one scale per output channel). The
evaluation uses these stored weights, so the numbers can be measured again from the file.

Some GPU machines are available only for minutes, and return only a few small files. For these,
`--bundle DIR` copies the results of this call to at most 8 files: one file with all records, the
weights, and the checkpoint of an unfinished run (16 bits for each weight, 8 bits for each
momentum). `--merge DIR` copies such a bundle into the output folder. The next call continues from
there, on any machine.

    GPU machine:  python benchmarks/gpu.py --minutes 9 --data FILE --bundle OUT --commit ID
    at home:      python benchmarks/gpu.py --merge OUT

Images: `--data` is an archive of JPEG files SPLIT/CLASS/NAME.jpg (train, test). It is decoded once.
Without it, the images are random, and the records say so: the speeds are valid, the accuracies are
not. Speed is always measured on random images on the device.

The program needs JAX, Flax, Optax, SciPy, and Pillow for --data. Comparisons need PyTorch.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from collections.abc import Iterable

# JAX and PyTorch share the GPU: neither may take all of its memory at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

# After the settings that JAX reads.
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import timing  # noqa: E402
from flax import linen as nn  # noqa: E402

from sprout_jax import attacks  # noqa: E402
from sprout_jax import losses  # noqa: E402
from sprout_jax import methods  # noqa: E402
from sprout_jax import models  # noqa: E402
from sprout_jax.attacks import ensemble  # noqa: E402
from sprout_jax.attacks import slots  # noqa: E402
from sprout_jax.attacks.attack import example_keys  # noqa: E402
from sprout_jax.data import order  # noqa: E402
from sprout_jax.methods.method import cross_entropy  # noqa: E402
from sprout_jax.models.layers import Conv  # noqa: E402
from sprout_jax.training import state as state_lib  # noqa: E402
from sprout_jax.training import step as step_lib  # noqa: E402

STARTED = time.perf_counter()
CLASSES = (
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
)
EPSILON = 8 / 255
SLICE_MINUTES = 4.0  # the longest that a piece works before the next one is chosen
SMALLEST_SLICE_MINUTES = 1.5  # of a run: less would be spent on compilation alone
CHECKPOINT_SECONDS = 30.0  # between two checkpoints of a run
BUNDLE_FILES, BUNDLE_BYTES, FILE_BYTES = 8, 62 * 2**20, 15 * 2**20

# Dense peaks of the data sheets, in operations per second. XLA and PyTorch multiply float32 in TF32
# here (PyTorch: convolutions).
PEAKS = {
  "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 495e12},
  "NVIDIA H200": {"bfloat16": 989e12, "float32": 495e12},
}

# The methods, with the options of configs/methods.py (a test compares them): that folder needs
# ml_collections, which a lent machine may lack. "nfgsm" is built below.
SPROUT = {
  "noise_stddev": 0.1,
  "mixup_alpha": 0.2,
  "concentration": "paper",
  "alpha": None,
  "draw": "sample",
  "label_draws": 1,
  "steps_per_batch": 1,
  "beta_batch": "same",
  "beta": {
    "init": "uniform",
    "minimum": 1e-3,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0,
  },
}
SPROUT_RELEASED = SPROUT | {
  "concentration": "released",
  "label_draws": 2,
  "steps_per_batch": 3,
  "beta_batch": "clean",
  "beta": SPROUT["beta"] | {"init": "ones", "weight_decay": 5e-4},
}
PGD = {
  "epsilon": EPSILON,
  "step_size": 2 / 255,
  "num_steps": 10,
  "norm": "linf",
  "start": "uniform",
  "batch_norm": "train",
}
GRADIENT_NORM = {"epsilon": EPSILON, "norm": "linf", "batch_norm": "train"}


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of `sprout_jax.methods` with its options, its penalty, and the model's activation."""

  name: str
  options: dict = dataclasses.field(default_factory=dict)
  penalty: dict | None = None
  activation: str = "relu"


METHODS = {
  "natural": Method("natural"),
  "sprout": Method("sprout", SPROUT),
  "sprout_mean": Method("sprout", SPROUT | {"draw": "mean"}),
  "sprout_released": Method("sprout", SPROUT_RELEASED),
  "sprout_gradient_norm": Method("sprout", SPROUT, GRADIENT_NORM, "gelu"),
  "pgd": Method("pgd", PGD),
  "nfgsm": Method("nfgsm"),
}
# Forward passes that a training step of an image is worth: a gradient for the images costs one
# more, that of the weights another. Where it is not listed, no utilisation is stated.
PASSES = {"natural": 3, "sprout": 3, "sprout_mean": 3, "pgd": 10 * 2 + 3, "nfgsm": 2 + 3}
PASSES["attack"] = 2  # of one step of an attack


def nfgsm() -> methods.Method:
  """Fast adversarial training with a noisy start: x~ = clip(x + u + epsilon sign(grad at x + u)).

  u ~ U(-2 epsilon, 2 epsilon), epsilon = 8/255; the perturbation is not cut to the ball. (de Jorge
  et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022.)
  """

  def probe(key, indices, network, x, y):
    keys = example_keys(key, indices)
    draw = lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, -2 * EPSILON, 2 * EPSILON)
    noisy = x + jax.vmap(draw)(keys)
    predict = network.predict("train")
    total = lambda images: jnp.sum(losses.soft_cross_entropy(predict(images), y))
    return jnp.clip(noisy + EPSILON * jnp.sign(jax.grad(total)(noisy)), 0, 1)

  return methods.Method(
    vicinity=lambda key, images, labels, adversary: (images, labels),
    probe=probe,
    loss=lambda network, x, y, found: cross_entropy(network, found, y),
  )


# Programs.


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a training program is made from; equal settings share one compiled program.

  Attributes:
    model, method: keys of the models' table and of METHODS.
    dtype, batch_size, remat, image_shape, seed: as in a config.
    epochs, steps_per_epoch: of the learning rate's schedule.
    learning_rate: its peak.
    boundaries: epochs at which it is divided by 10; () is a cosine to 0.
    warmup_epochs: of a linear rise from 0.
  """

  model: str
  method: str
  dtype: str = "bfloat16"
  batch_size: int = 128
  remat: bool = False
  image_shape: tuple = (32, 32, 3)
  seed: int = 0
  epochs: int = 1
  steps_per_epoch: int = 100
  learning_rate: float = 0.01
  boundaries: tuple = ()
  warmup_epochs: float = 0.0


def make_model(setting: Setting, dtype: str | None = None) -> nn.Module:
  return models.create(
    setting.model,
    num_classes=len(CLASSES),
    image_shape=setting.image_shape,
    activation=METHODS[setting.method].activation,
    dtype=dtype or setting.dtype,
    remat=setting.remat,
  )


def make_recipe(setting: Setting) -> state_lib.Recipe:
  """The recipe of a training step, from a plain namespace in place of a config."""
  method = METHODS[setting.method]
  config = types.SimpleNamespace(
    num_epochs=setting.epochs,
    batch_size=setting.batch_size,
    seed=setting.seed,
    ema_decay=0.0,
    awp_gamma=0.0,
    dataset=types.SimpleNamespace(crop_padding=4, flip=True),
    optimizer=types.SimpleNamespace(
      name="sgd",
      learning_rate=setting.learning_rate,
      momentum=0.9,
      nesterov=False,
      weight_decay=5e-4,
      gradient_clip=0.0,
      schedule="piecewise" if setting.boundaries else "cosine",
      boundaries=setting.boundaries,
      decay_factor=0.1,
      warmup_epochs=setting.warmup_epochs,
      accumulate_steps=1,
    ),
  )
  own = nfgsm() if method.name == "nfgsm" else methods.create(method.name, method.options)
  penalty = method.penalty and methods.create_penalty("gradient_norm", method.penalty)
  return state_lib.make_recipe(
    config, make_model(setting), own, penalty, len(CLASSES), setting.steps_per_epoch
  )


@dataclasses.dataclass(frozen=True)
class Program:
  """Compiled steps.

  Attributes:
    steps: training: (state, images, labels, indices [steps, batch]) -> state, metrics [steps, ...],
      with the state donated; attack: (variables, images, labels) -> images.
    peak_bytes: of the device's memory in a call, as the compiler plans it.
    compile_seconds: with other programs beside it.
  """

  steps: Callable
  peak_bytes: int
  compile_seconds: float


# Methods whose first state is the same: what they learn against the model, and how it begins.
FIRST_STATES = {"pgd": "natural", "nfgsm": "natural"}
FIRST_STATES |= {"sprout_mean": "sprout", "sprout_gradient_norm": "sprout"}


def initial(setting: Setting) -> Setting:
  """The setting whose first state is that of this one."""
  method = FIRST_STATES.get(setting.method, setting.method)
  return Setting(setting.model, method, image_shape=setting.image_shape, seed=setting.seed)


@functools.cache
def creator(setting: Setting) -> Callable:
  """Compiles () -> state, for a setting of `initial`."""
  recipe = make_recipe(setting)
  return jax.jit(lambda: state_lib.create(recipe, setting.image_shape)).lower().compile()


@functools.cache
def training(setting: Setting, steps: int, examples: int) -> Program:
  """Compiles `steps` training steps over `examples` images on the device, as one call."""
  recipe = make_recipe(setting)
  same = lambda x: x

  def run(state, images, labels, indices):
    def one_step(state, rows):
      return step_lib.train_step(recipe, state, images[rows], labels[rows], shard=same, mean=same)

    return jax.lax.scan(one_step, state, indices)

  start, shape = time.perf_counter(), jax.ShapeDtypeStruct
  arguments = (
    abstract_state(setting),
    shape((examples, *setting.image_shape), jnp.uint8),
    shape((examples,), jnp.int32),
    shape((steps, setting.batch_size), jnp.int32),
  )
  compiled = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
  return Program(compiled, peak_bytes(compiled), time.perf_counter() - start)


def abstract_state(setting: Setting) -> state_lib.TrainState:
  """Shapes and types."""
  recipe = make_recipe(setting)
  return jax.eval_shape(lambda: state_lib.create(recipe, setting.image_shape))


@functools.cache
def attacking(setting: Setting, steps: int) -> Program:
  """Compiles signed gradient steps on a batch, with the model in evaluation mode."""
  model = make_model(setting)

  def run(variables, images, labels):
    return attacks.pgd(
      jax.random.key(1),
      lambda x: model.apply(variables, x, train=False),
      images,
      labels,
      epsilon=EPSILON,
      step_size=2 / 255,
      num_steps=steps,
      keep="last",
    )

  start, shape = time.perf_counter(), jax.ShapeDtypeStruct
  images = shape((setting.batch_size, *setting.image_shape), jnp.float32)
  labels = shape((setting.batch_size,), jnp.int32)
  compiled = jax.jit(run).lower(abstract_state(setting).variables(), images, labels).compile()
  return Program(compiled, peak_bytes(compiled), time.perf_counter() - start)


def peak_bytes(compiled) -> int:
  """Arguments, results that are no arguments' memory, and what lies between."""
  plan = compiled.memory_analysis()
  return (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )


def compile_all(jobs: dict, settings: Iterable[Setting]) -> dict:
  """Calls functions that compile, side by side; {name: what it returned, or its exception}.

  The first states of the settings are compiled along with them.
  """

  def call(job):
    try:
      return job()
    except Exception as error:  # the other programs are worth having
      return error

  states = {initial(setting): None for setting in settings}
  jobs = jobs | {setting: functools.partial(creator, setting) for setting in states}
  workers = 8 if jax.default_backend() != "cpu" else 2
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    return dict(zip(jobs, pool.map(call, jobs.values())))


def multiplications(setting: Setting) -> int:
  """Of one image's forward pass: outputs times inputs per output, over all layers."""
  total = 0

  def count(call, args, kwargs, context):
    nonlocal total
    out = call(*args, **kwargs)
    if context.method_name == "__call__" and isinstance(context.module, (Conv, nn.Dense)):
      kernel = context.module.variables["params"]["kernel"]
      total += out.size * kernel.size // kernel.shape[-1]
    return out

  model = make_model(setting)
  with nn.intercept_methods(count):
    jax.eval_shape(
      lambda: model.init_with_output(
        jax.random.key(0), jnp.zeros((1, *setting.image_shape)), train=False
      )
    )
  return total


# What is measured, and how large it is.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Real sizes, and those of the dry run."""

  models: dict  # of a name in PIECES, the model that is run
  batches: dict  # of a batch size in PIECES, the one that is run
  image_shape: tuple
  steps: int  # of a timing
  timed_images: int  # that its steps choose from
  rounds: int
  train_images: int
  test_images: int
  attacked_images: int
  epochs: Callable
  attack_batch: int
  matmul: int


REAL = Sizes(
  models={name: name for name in ("vgg16", "preact_resnet18", "wrn_28_10")},
  batches={size: size for size in (128, 512, 1024)},
  image_shape=(32, 32, 3),
  steps=20,
  timed_images=4_096,
  rounds=5,
  train_images=50_000,
  test_images=10_000,
  attacked_images=1_000,
  epochs=lambda epochs: epochs,
  attack_batch=512,
  matmul=8192,
)
DRY = Sizes(
  models={"vgg16": "small_cnn", "preact_resnet18": "small_cnn", "wrn_28_10": "wrn_10_1"},
  batches={128: 8, 512: 8, 1024: 8},
  image_shape=(8, 8, 3),
  steps=2,
  timed_images=16,
  rounds=2,
  train_images=16,
  test_images=16,
  attacked_images=8,
  epochs=lambda epochs: min(epochs, 2),
  attack_batch=8,
  matmul=128,
)

LARGE = {"vgg16": 1024, "preact_resnet18": 1024, "wrn_28_10": 512}  # the larger of two batch sizes


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run and its evaluation; shares of all epochs where `Setting` has epochs."""

  model: str
  method: str
  epochs: int
  learning_rate: float
  boundaries: tuple = ()
  warmup: float = 0.0
  start: str = ""  # the piece whose weights it starts from
  evaluations: tuple = ("clean", "pgd20", "auto_attack")


@dataclasses.dataclass(frozen=True)
class Piece:
  """A unit of work with a file of its own.

  Attributes:
    name: of the file.
    minutes: what it is expected to take on an H100 before anything is measured.
    what: a line for people.
    work: (Context) -> whether it is complete.
    run: its training run, if it is one.
  """

  name: str
  minutes: float
  what: str
  work: Callable
  run: Run | None = None


class OutOfTime(Exception):
  """The piece must stop; what it has found is kept."""


# Speed and memory.


def speed(context, model, dtype, groups, compiled=False):
  """Rows of steps that take turns within a group, ours beside PyTorch's in channels-last.

  Args:
    groups: ((batch size, methods), ...); "attack" is a step of an attack.
    compiled: PyTorch's model is compiled by torch.compile.
  """
  sizes, record = context.sizes, context.record
  rows = record.setdefault("rows", [])
  done = {(row["batch_size"], row["method"]) for row in rows}
  groups = [(sizes.batches[batch], names) for batch, names in groups]
  groups = [
    (batch, names) for batch, names in groups if not done >= {(batch, name) for name in names}
  ]
  settings = {
    (batch, name): context.setting(model, "natural" if name == "attack" else name, dtype, batch)
    for batch, names in groups
    for name in names
  }
  programs = compile_all(
    {
      key: functools.partial(attacking, setting, sizes.steps)
      if key[1] == "attack"
      else functools.partial(training, setting, sizes.steps, sizes.timed_images)
      for key, setting in settings.items()
    },
    settings.values(),
  )
  if "matmul_tflop_per_second" not in record:
    record["matmul_tflop_per_second"] = matmul_speed(sizes.matmul, dtype)
    context.save()
  for batch, names in groups:
    context.check(20, first=(batch, names) == groups[0])
    rows += speed_group(
      context,
      dtype,
      {name: (settings[batch, name], programs[batch, name]) for name in names},
      compiled,
    )
    context.save()
  return True


def speed_group(context, dtype, members, compiled):
  """Rows of {method: (setting, its programs or their error)}, timed in turn."""
  sizes, record = context.sizes, context.record
  runs, rows = {}, {}
  for name, (setting, program) in members.items():
    rows[name] = row = {
      "model": setting.model,
      "method": name,
      "batch_size": setting.batch_size,
      "dtype": dtype,
      "steps": sizes.steps,
    }
    if isinstance(program, Exception):
      row["error"] = short(program)
      continue
    row |= {"peak_bytes": program.peak_bytes, "compile_seconds": program.compile_seconds}
    runs[name] = attempt(row, "error", stepper, name, setting, program, sizes)
    if torch_is_here() and name in ("natural", "pgd", "attack"):
      label = "torch_compile" if compiled else "torch"
      arguments = (name, setting, dtype, sizes, compiled, row, label)
      runs[f"{label}/{name}"] = attempt(row, f"{label}_error", torch_stepper, *arguments)
  runs = {name: run for name, run in runs.items() if run}
  seconds = timing.alternate(runs, sizes.rounds)
  for name, row in rows.items():
    if name not in seconds:
      continue
    setting, count = members[name][0], sizes.steps * members[name][0].batch_size
    row["seconds"] = seconds[name]
    row["seconds_per_step"] = timing.median(seconds[name]) / sizes.steps
    row["images_per_second"] = count / timing.median(seconds[name])
    if "natural" in seconds and name not in ("natural", "attack"):
      row["natural_steps"] = timing.median(timing.ratios(seconds[name], seconds["natural"]))
    row |= utilisation(setting, name, dtype, row["images_per_second"])
    for label in ("torch", "torch_compile"):
      if f"{label}/{name}" in seconds:
        other = seconds[f"{label}/{name}"]
        row[f"{label}_images_per_second"] = count / timing.median(other)
        row[f"{label}_ratios"] = timing.ratios(other, seconds[name])
  for name in {"natural", "pgd", "attack"} & set(seconds):
    attempt(rows[name], "profile_error", profile, rows[name], runs[name], sizes.steps)
  runs.clear()
  release()
  record["rounds"] = sizes.rounds
  return list(rows.values())


def profile(row, run, steps):
  """Records the slowest kernels, in milliseconds per step.

  "kernels_ms" is the sum over all kernels. If it is less than the time of a step, the device was
  idle for the rest.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    trace = jax.profiler.ProfileData.from_file(str(path))
  times = collections.Counter()
  for plane in trace.planes:
    for line in plane.lines if "GPU" in plane.name else ():
      for event in line.events if line.name.startswith("Stream") else ():
        times[event.name[:80]] += event.duration_ns / 1e6 / steps
  row["kernels_ms"] = sum(times.values())
  row["kernels"] = [(name, round(ms, 4)) for name, ms in times.most_common(24)]


def stepper(name, setting, program, sizes):
  """A function that runs the compiled steps on random images on the device and waits for them."""
  rng = np.random.default_rng(0)
  count = setting.batch_size if name == "attack" else sizes.timed_images
  images = rng.integers(0, 256, (count, *setting.image_shape), np.uint8)
  labels = jax.device_put(rng.integers(0, len(CLASSES), count, np.int32))
  state = creator(initial(setting))()
  if name == "attack":
    variables = state.variables()
    images = jax.device_put(images.astype(np.float32) / 255)
    run = lambda: jax.block_until_ready(program.steps(variables, images, labels))
  else:
    images = jax.device_put(images)
    rows = rng.integers(0, count, (sizes.steps, setting.batch_size), np.int32)
    indices = jax.device_put(rows)

    def run():
      nonlocal state
      state, metrics = program.steps(state, images, labels, indices)
      jax.block_until_ready((state, metrics))

  run()  # loads the program
  return run


def torch_is_here():
  return importlib.util.find_spec("torch") is not None


def torch_stepper(name, setting, dtype, sizes, compiled, row, label):
  """The same steps in PyTorch: channels-last, mixed precision for bfloat16."""
  import torch
  import torch_baseline

  torch_baseline.MODELS.setdefault(
    "wrn_10_1", functools.partial(torch_baseline.ResNet, 16, (16, 32, 64), 1, True)
  )
  torch.backends.cudnn.benchmark = True
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if compiled:
    torch.compiler.reset()
  if device == "cuda":
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (setting.batch_size, *setting.image_shape), np.uint8)
  labels = rng.integers(0, len(CLASSES), setting.batch_size, np.int32)
  make = torch_baseline.attacking if name == "attack" else torch_baseline.training
  start = time.perf_counter()
  run = make(
    setting.model,
    images,
    labels,
    sizes.steps,
    channels_last=True,
    device=device,
    mixed_precision=dtype == "bfloat16",
    compiled=compiled,
    **({} if name == "attack" else {"loss": name}),
  )
  row[f"{label}_first_call_seconds"] = time.perf_counter() - start
  row[f"{label}_device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
  if device == "cuda":
    row[f"{label}_peak_bytes"] = torch.cuda.max_memory_allocated() - before
  return run


def utilisation(setting, name, dtype, images_per_second):
  """Operations per second that the model's own multiplications are, and their share of the peak."""
  if name not in PASSES:
    return {}
  rate = 2 * PASSES[name] * multiplications(setting) * images_per_second
  peak = PEAKS.get(jax.devices()[0].device_kind, {}).get(dtype)
  return {"model_tflop_per_second": rate / 1e12} | ({"utilisation": rate / peak} if peak else {})


def matmul_speed(size, dtype):
  """TFLOP/s of one large matmul of random numbers: what a program can reach on this device."""
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  run = jax.jit(lambda a: a @ a)
  times = timing.alternate({"": lambda: jax.block_until_ready(run(a))}, 11)[""]
  return 2 * size**3 / timing.median(times[1:]) / 1e12


def release():
  """Gives PyTorch's unused memory back to the device."""
  torch = sys.modules.get("torch")
  if torch is not None and torch.cuda.is_available():
    torch.cuda.empty_cache()


def memory(context, model):
  """Natural steps with and without `remat`, at two batch sizes: peak memory and time."""
  sizes, rows = context.sizes, context.record.setdefault("rows", [])
  done = {(row["batch_size"], row["remat"]) for row in rows}
  batches = sorted({sizes.batches[128], sizes.batches[LARGE[model]]})
  todo = {
    batch: {
      remat: dataclasses.replace(context.setting(model, "natural", "bfloat16", batch), remat=remat)
      for remat in (False, True)
    }
    for batch in batches
    if not done >= {(batch, False), (batch, True)}
  }
  programs = compile_all(
    {
      (batch, remat): functools.partial(training, setting, sizes.steps, sizes.timed_images)
      for batch, pair in todo.items()
      for remat, setting in pair.items()
    },
    [setting for pair in todo.values() for setting in pair.values()],
  )
  for batch, pair in todo.items():
    context.check(15, first=batch == min(todo))
    found, runs = {}, {}
    for remat, setting in pair.items():
      own = programs[batch, remat]
      found[remat] = row = {"model": setting.model, "batch_size": batch, "remat": remat}
      if isinstance(own, Exception):
        row["error"] = short(own)
        continue
      row["peak_bytes"] = own.peak_bytes
      runs[remat] = attempt(row, "error", stepper, "natural", setting, own, sizes)
    runs = {remat: run for remat, run in runs.items() if run}
    for remat, seconds in timing.alternate(runs, sizes.rounds).items():
      found[remat]["seconds"] = seconds
      found[remat]["images_per_second"] = sizes.steps * batch / timing.median(seconds)
    rows += found.values()
    context.save()
  return True


def cost(context, model):
  """One whole epoch over the training images per method: seconds, and in epochs of natural."""
  names = ("natural", "sprout", "sprout_mean", "nfgsm", "sprout_gradient_norm", "pgd")
  rows, data = context.record.setdefault("rows", []), context.data()
  done = {row["method"] for row in rows}
  count, context.record["images"] = len(data.train_labels), data.source
  settings = {
    name: context.setting(model, name, "bfloat16", context.sizes.batches[128])
    for name in names
    if name not in done
  }
  per_epoch = count // context.sizes.batches[128]
  call = next(size for size in (130, per_epoch) if per_epoch % size == 0)
  programs = compile_all(
    {name: functools.partial(training, setting, call, count) for name, setting in settings.items()},
    settings.values(),
  )
  images, labels = jax.device_put((data.train_images, data.train_labels))
  for name, setting in settings.items():
    context.check(60 if name == "pgd" else 30, first=name == next(iter(settings)))
    own, row = programs[name], {"model": setting.model, "method": name, "dtype": "bfloat16"}
    row |= {"batch_size": setting.batch_size, "images": count}
    if isinstance(own, Exception):
      row["error"] = short(own)
    else:
      state = creator(initial(setting))()
      indices = order.batch_indices(0, 0, per_epoch, count, setting.batch_size)
      jax.block_until_ready((state, images))
      start = time.perf_counter()
      for first in range(0, per_epoch, call):
        state, metrics = own.steps(state, images, labels, indices[first : first + call])
      jax.block_until_ready((state, metrics))
      row["seconds_per_epoch"] = time.perf_counter() - start
      row["images_per_second"] = per_epoch * setting.batch_size / row["seconds_per_epoch"]
      row |= {"peak_bytes": own.peak_bytes, "compile_seconds": own.compile_seconds}
      row |= utilisation(setting, name, "bfloat16", row["images_per_second"])
    rows.append(row)
    natural = next((r.get("seconds_per_epoch") for r in rows if r["method"] == "natural"), None)
    if natural and "seconds_per_epoch" in row:
      row["natural_epochs"] = row["seconds_per_epoch"] / natural
    context.save()
  return True


def attempt(row, key, action, *arguments):
  """What the action returns; None where it raises, and its exception as a text in the row."""
  try:
    return action(*arguments)
  except Exception as error:
    traceback.print_exc()
    row[key] = short(error)
    return None


def short(error):
  return f"{type(error).__name__}: {error}"[:400]


# Images.


@dataclasses.dataclass(frozen=True)
class Images:
  """uint8 images [n, height, width, 3] and int32 labels [n], and a line on where they come from."""

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  source: str
  digest: str


def decode(archive: pathlib.Path) -> dict[str, np.ndarray]:
  """{"train_images", "train_labels", "test_images", "test_labels"} of an archive of JPEG files.

  Members are SPLIT/CLASS/NAME.jpg; they are taken in the order of their names.

  Raises:
    ValueError: a split has no images, or a folder is none of CLASSES.
  """
  from PIL import Image

  members = []
  with tarfile.open(archive) as tar:
    for member in tar:
      parts = pathlib.PurePosixPath(member.name).parts
      if member.isfile() and member.name.endswith(".jpg"):
        members.append((*parts[-3:], tar.extractfile(member).read()))
  members.sort(key=lambda member: member[:3])

  def pixels(member):
    return np.asarray(Image.open(io.BytesIO(member[3])).convert("RGB"))

  arrays = {}
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for split in ("train", "test"):
      own = [member for member in members if member[0] == split]
      unknown = {member[1] for member in own} - set(CLASSES)
      if unknown or not own:
        raise ValueError(
          f"{archive} has {len(own)} files {split}/CLASS/NAME.jpg, and folders {sorted(unknown)} "
          f"that are no class; expected images of the classes {', '.join(CLASSES)}"
        )
      arrays[f"{split}_images"] = np.stack(list(pool.map(pixels, own)))
      labels = [CLASSES.index(member[1]) for member in own]
      arrays[f"{split}_labels"] = np.array(labels, np.int32)
  return arrays


def load_images(archive: pathlib.Path | None, cache: pathlib.Path, sizes: Sizes) -> Images:
  """The images of the archive, or random ones; a few small ones in the dry run."""
  if archive is None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", sizes.train_images), ("test", sizes.test_images)):
      arrays[f"{split}_images"] = rng.integers(0, 256, (count, *sizes.image_shape), np.uint8)
      arrays[f"{split}_labels"] = rng.integers(0, len(CLASSES), count, np.int32)
    return Images(**arrays, source="random images", digest="random")
  digest = hashlib.sha256(archive.read_bytes()).hexdigest()
  path = cache / f"images-{digest[:16]}.npz"
  if not path.exists():
    replace(path, lambda file: np.savez(file, **decode(archive)))
  with np.load(path) as stored:
    arrays = dict(stored)
  side = arrays["train_images"].shape[1]
  if sizes is DRY:
    stride = side // sizes.image_shape[0]
    for split, count in (("train", sizes.train_images), ("test", sizes.test_images)):
      some = np.random.RandomState(0).permutation(len(arrays[f"{split}_labels"]))[:count]
      arrays[f"{split}_images"] = arrays[f"{split}_images"][some][:, ::stride, ::stride]
      arrays[f"{split}_labels"] = arrays[f"{split}_labels"][some]
  return Images(**arrays, source=archive.name, digest=digest)


# Files: weights and checkpoints.


def replace(path: pathlib.Path, fill: Callable) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  with part.open("wb") as file:
    fill(file)
  part.replace(path)


def encode(array: np.ndarray, bits: int) -> dict[str, np.ndarray]:
  """A float array in integers of 8 or 16 bits, with one scale per entry of the last axis.

      value = q scale,  scale = max|value| / (2^(bits - 1) - 1) over all other axes

  Arrays of fewer than two axes, and integers, stay as they are. The error is at most scale / 2.
  """
  if array.ndim < 2 or not np.issubdtype(array.dtype, np.floating):
    return {"": array}
  largest = 2 ** (bits - 1) - 1
  scale = np.abs(array).max(tuple(range(array.ndim - 1))).astype(np.float32) / largest
  scale = np.where(scale > 0, scale, np.float32(1))
  shape = (1,) * (array.ndim - 1) + scale.shape
  codes = np.rint(array / scale.reshape(shape)).astype({8: np.int8, 16: np.int16}[bits])
  return {"": codes, ".scale": scale}


def decode_array(stored: dict, name: str) -> np.ndarray:
  """The inverse of `encode`, from a file's {name + suffix: array}."""
  if f"{name}.scale" not in stored:
    return stored[name]
  scale = stored[f"{name}.scale"]
  return stored[name].astype(np.float32) * scale.reshape(
    (1,) * (stored[name].ndim - 1) + scale.shape
  )


def leaf_names(tree) -> list[str]:
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(tree)
  ]


def save_weights(path: pathlib.Path, variables, identity: str) -> None:
  """{"params", "batch_stats"} at 8 bits a weight, in a compressed .npz file."""
  arrays = {"identity": np.array(identity)}
  for name, leaf in zip(leaf_names(variables), jax.tree.leaves(variables)):
    arrays |= {name + suffix: a for suffix, a in encode(np.asarray(leaf), 8).items()}
  replace(path, lambda file: np.savez_compressed(file, **arrays))


def load_weights(path: pathlib.Path):
  """(variables as float32 host arrays, the identity they were saved with)."""
  with np.load(path, allow_pickle=False) as file:
    stored = dict(file)
  identity, variables = str(stored.pop("identity")), {"params": {}, "batch_stats": {}}
  for name in stored:
    if not name.endswith(".scale"):
      *parents, last = name.split("/")
      node = variables
      for parent in parents:
        node = node.setdefault(parent, {})
      node[last] = decode_array(stored, name)
  return variables, identity


def save_checkpoint(path: pathlib.Path, state) -> None:
  """The whole state, to the last bit."""
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  replace(path, lambda file: np.savez(file, *leaves))


def load_checkpoint(path: pathlib.Path, like):
  """The state of `save_checkpoint`; `like` has its structure."""
  with np.load(path, allow_pickle=False) as file:
    leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def save_travelling(folder: pathlib.Path, stem: str, state, identity: str) -> list[pathlib.Path]:
  """The state in files of at most 15 MiB: 16 bits a weight, 8 bits a momentum, the rest exact."""
  parts, size = [{}], 0
  for name, leaf in zip(leaf_names(state), jax.tree.leaves(state)):
    arrays = encode(np.asarray(leaf), 8 if name.startswith("opt_state") else 16)
    bytes_ = sum(array.nbytes for array in arrays.values())
    if size + bytes_ > FILE_BYTES and parts[-1]:
      parts.append({})
      size = 0
    parts[-1] |= {name + suffix: array for suffix, array in arrays.items()}
    size += bytes_
  paths = []
  for number, arrays in enumerate(parts):
    arrays["identity"], arrays["parts"] = np.array(identity), np.array(len(parts))
    arrays["at"] = np.asarray(state.step)
    paths.append(folder / f"{stem}.checkpoint.{number}.npz")
    replace(paths[-1], lambda file, arrays=arrays: np.savez_compressed(file, **arrays))
  return paths


def load_travelling(folder: pathlib.Path, stem: str, like, identity: str):
  """The state that `save_travelling` wrote; None where there is none, or it is of another run."""
  stored, steps, expected = {}, set(), 1
  paths = sorted(folder.glob(f"{stem}.checkpoint.*.npz"))
  for path in paths:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    if str(arrays["identity"]) != identity:
      return None
    expected = int(arrays["parts"])
    steps.add(int(arrays["at"]))
    stored |= arrays
  if not paths or len(paths) != expected or len(steps) != 1:
    return None
  leaves = [decode_array(stored, name) for name in leaf_names(like)]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


# Runs.


def train_and_evaluate(context):
  """A training run up to its evaluation."""
  run, record, data = context.piece.run, context.record, context.data()
  variables, start_hash = None, ""
  if run.start:
    path = context.output / f"{run.start}.weights.npz"
    variables, start_hash = load_weights(path)[0], sha256(path)
  setting = context.run_setting(run, len(data.train_labels))
  protocol = dataclasses.asdict(setting) | {
    "start": run.start,
    "start_sha256": start_hash,
    "data_sha256": data.digest,
    "options": dataclasses.asdict(METHODS[run.method]),
  }
  identity = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]
  if record.get("identity") != identity:  # other images, another protocol
    for key in ("training", "evaluation", "weights"):
      record.pop(key, None)
  record |= {
    "identity": identity,
    "protocol": protocol,
    "data": {
      "source": data.source,
      "sha256": data.digest,
      "train": len(data.train_labels),
      "test": len(data.test_labels),
    },
    "checkpoint": "the last; no image of the test set selected anything",
  }
  weights = context.output / f"{context.piece.name}.weights.npz"
  if not (weights.exists() and load_weights(weights)[1] == identity):
    state = train(context, setting, data, identity, variables)
    exact = {"params": state.params, "batch_stats": state.batch_stats}
    record["clean_before_rounding"] = proportion(is_right(context, setting, exact, data))
    save_weights(weights, exact, identity)
    context.bundle_file(weights)
    context.drop_checkpoints(identity)
  kept = {"file": weights.name, "sha256": sha256(weights), "bytes": weights.stat().st_size}
  if record.get("weights", kept)["sha256"] != kept["sha256"]:
    record.pop("evaluation", None)  # of weights that are lost
  shapes = jax.tree.leaves(abstract_state(setting).params)
  record["weights"] = kept | {"bits": 8, "parameters": sum(math.prod(x.shape) for x in shapes)}
  context.save()
  evaluate(context, setting, load_weights(weights)[0], data, record["weights"]["sha256"])
  return True


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def train(context, setting, data, identity, variables):
  """Trains to the last epoch, an epoch per call; returns the state.

  Raises:
    OutOfTime: a checkpoint is saved.
    RuntimeError: a value is not finite.
  """
  record, per_epoch = context.record, setting.steps_per_epoch
  program = training(setting, per_epoch, len(data.train_labels))
  like = abstract_state(setting)
  local = context.cache / f"{identity}.checkpoint.npz"
  state = load_checkpoint(local, like) if local.exists() else None
  rounded = state is None and load_travelling(context.output, context.piece.name, like, identity)
  if rounded:
    state = rounded
  log = record.setdefault("training", {"seconds": 0.0, "epochs": [], "from_rounded_checkpoint": []})
  if state is None:
    state = creator(initial(setting))()
    if variables is not None:
      state = state_lib.start_from(state, variables)
  done = int(state.step)
  if rounded:
    log["from_rounded_checkpoint"].append(done)
  log["epochs"] = [row for row in log["epochs"] if row["step"] <= done]
  log["seconds"] = log["epochs"][-1]["seconds"] if log["epochs"] else 0.0
  log |= {
    "steps_in_all": setting.epochs * per_epoch,
    "steps": done,
    "peak_bytes": program.peak_bytes,
    "compile_seconds": program.compile_seconds,
  }
  state, images, labels = jax.device_put((state, data.train_images, data.train_labels))
  jax.block_until_ready((state, images))
  pending, read_at, saved_at, longest = None, time.perf_counter(), time.perf_counter(), 0.0

  def read():
    """Takes the metrics of the call before; training time ends where they are there."""
    nonlocal pending, read_at, longest
    if pending is None:
      return
    (metrics, end), pending = pending, None
    metrics = {name: np.asarray(values) for name, values in metrics.items()}
    seconds, read_at = time.perf_counter() - read_at, time.perf_counter()
    longest = max(longest, seconds)
    if not all(np.isfinite(values).all() for values in metrics.values()):
      raise RuntimeError(f"a value of steps {end - per_epoch + 1} to {end} is not finite")
    log["seconds"] += seconds
    row = {"step": end, "seconds": log["seconds"]}
    row |= {name: float(metrics[name].mean()) for name in ("loss", "accuracy")}
    if "beta" in metrics:
      row["beta"] = [round(float(value), 4) for value in metrics["beta"][-1]]
    log["epochs"].append(row)
    log["steps"] = end

  def save():
    nonlocal read_at, saved_at
    read()
    save_checkpoint(local, state)
    context.save()
    read_at = saved_at = time.perf_counter()

  while done < log["steps_in_all"]:
    indices = order.batch_indices(
      setting.seed, done, per_epoch, len(data.train_labels), setting.batch_size
    )
    state, metrics = program.steps(state, images, labels, indices)
    read()
    done += per_epoch
    pending = metrics, done
    stop = context.left() < 15 + 2 * longest and done < log["steps_in_all"]
    if stop or time.perf_counter() - saved_at > context.checkpoint_seconds:
      save()
    if stop:
      context.bundle_checkpoint(state, identity)
      raise OutOfTime
  save()
  return state


@functools.cache
def predictor(setting):
  """(variables, images) -> logits in evaluation mode, in float32 without rounded products."""
  model = make_model(setting, "float32")

  def predict(variables, images):
    with jax.default_matmul_precision("highest"):
      return model.apply(variables, images, train=False)

  return predict


def predict_fn(setting, variables):
  # Only what shapes the network: models of one architecture share the attacks' programs.
  network = Setting(setting.model, setting.method, image_shape=setting.image_shape)
  if METHODS[setting.method].activation == "relu":
    network = dataclasses.replace(network, method="natural")
  return jax.tree_util.Partial(predictor(network), jax.device_put(variables))


@jax.jit
def right(predict, images, labels):
  logits = predict(images.astype(jnp.float32) / 255)
  return (jnp.argmax(logits, -1) == labels) & jnp.all(jnp.isfinite(logits), -1)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def right_under_pgd(predict, images, labels, indices, epsilon, step_size, num_steps):
  adversarial = attacks.pgd(
    jax.random.key(0),
    predict,
    images.astype(jnp.float32) / 255,
    labels,
    epsilon=epsilon,
    step_size=step_size,
    num_steps=num_steps,
    indices=indices,
  )
  return jnp.argmax(predict(adversarial), -1) == labels


def in_batches(fn, count, batch):
  """Joins fn(rows [batch]) over all rows; the last batch is filled up with row 0."""
  found = []
  for start in range(0, count, batch):
    rows = np.arange(start, start + batch)
    found.append(np.asarray(fn(np.where(rows < count, rows, 0)))[: count - start])
  return np.concatenate(found)


def is_right(context, setting, variables, data):
  predict = predict_fn(setting, variables)
  return in_batches(
    lambda rows: right(predict, data.test_images[rows], data.test_labels[rows]),
    len(data.test_labels),
    context.sizes.attack_batch,
  )


def evaluate(context, setting, variables, data, weights_hash):
  """The evaluations of a run that its record lacks."""
  record, sizes = context.record, context.sizes
  found = record.setdefault("evaluation", {})
  predict = predict_fn(setting, variables)
  count = len(data.test_labels)
  chosen = np.random.RandomState(0).permutation(count)[: sizes.attacked_images]
  for name in context.piece.run.evaluations:
    if name in found:
      continue
    context.check(20)
    start = time.perf_counter()
    if name == "clean":
      outcomes = is_right(context, setting, variables, data)
      result = {"images": "all of the test set"}
    elif name == "pgd20":
      outcomes, result = pgd20(context, predict, data)
    elif name == "auto_attack":
      outcomes, result = auto_attack(context, predict, data, chosen, weights_hash)
    else:
      found[name] = pass_seconds(context, predict, data, chosen, found.get("auto_attack"))
      context.save()
      continue
    result |= proportion(outcomes) | {"outcomes": np.packbits(outcomes).tobytes().hex()}
    found[name] = result | {"seconds": result.get("seconds", time.perf_counter() - start)}
    context.save()


def pgd20(context, predict, data):
  """(robust [n], record) of the paper's protocol: PGD with 20 steps of 0.007 within 0.03."""
  constants = {"epsilon": 0.03, "step_size": 0.007, "num_steps": 20}

  def batch(rows):
    images, labels = data.test_images[rows], data.test_labels[rows]
    return right_under_pgd(predict, images, labels, rows, *constants.values())

  outcomes = in_batches(batch, len(data.test_labels), context.sizes.attack_batch)
  result = {"name": "pgd", "norm": "linf", "loss": "cross_entropy", "restarts": 1, "seed": 0}
  result |= constants | {"images": "all of the test set", "start": "uniform", "keep": "best"}
  return outcomes, result


def auto_attack(context, predict, data, chosen, weights_hash):
  """(robust [n], record) of AutoAttack standard at 8/255; a call that is stopped continues."""
  state_file = context.cache / f"{weights_hash[:16]}.auto_attack.npz"
  compile_seconds = compile_auto_attack(context, predict, data, chosen)
  record, start = context.record, time.perf_counter()
  earlier = record.get("auto_attack_seconds", 0.0)

  def look(progress):
    record["auto_attack_seconds"] = earlier + time.perf_counter() - start
    context.check(5)

  try:
    result = attacks.auto_attack(
      jax.random.key(0),
      predict,
      data.test_images[chosen].astype(np.float32) / 255,
      data.test_labels[chosen],
      epsilon=EPSILON,
      version="standard",
      batch_size=context.sizes.attack_batch,
      indices=chosen,
      on_progress=look,
      state_file=state_file,
      save_seconds=5.0,
    )
  except OutOfTime:
    context.save()
    raise
  seconds = earlier + time.perf_counter() - start
  record.pop("auto_attack_seconds", None)
  state_file.unlink(missing_ok=True)
  return result.robust, {
    "name": "auto_attack",
    "norm": "linf",
    "epsilon": EPSILON,
    "seed": 0,
    "images": "RandomState(0).permutation(test images), the first",
    "batch_size": context.sizes.attack_batch,
    "per_attack": {
      name: np.packbits(outcomes).tobytes().hex() for name, outcomes in result.per_attack.items()
    },
    "accuracy_after": {name: float(o.mean()) for name, o in result.per_attack.items()},
    "compile_seconds": compile_seconds,
    "seconds": seconds,
    "images_per_second": len(chosen) / seconds,
    "spec": json.loads(json.dumps(result.spec, default=str)),
  }


def compile_auto_attack(context, predict, data, chosen):
  """Compiles the programs of AutoAttack standard, all attacks in parallel; returns the seconds.

  Each attack starts once per number of slots, with all of them in use. It stops after a few calls.
  """

  class Enough(Exception):
    pass

  start, batch_size = time.perf_counter(), context.sizes.attack_batch
  images = data.test_images[chosen].astype(np.float32) / 255
  mesh = jax.make_mesh((jax.device_count(),), ("examples",))

  def compile_one(name):
    attack = attacks.ATTACKS[name].build("linf", 10, images.shape[1:], 1, 1)
    # After the calls of a run, slots are filled again: then all programs are compiled.
    most = attack.num_steps // slots.chunk(attack.num_steps) + 2
    for size in slots.sizes(attack, batch_size, mesh):
      count, calls = len(chosen) if size == batch_size else size, iter(range(most))

      def look(progress, calls=calls):
        if next(calls, None) is None:
          raise Enough

      with contextlib.suppress(Enough):
        attacks.auto_attack(
          jax.random.key(0),
          predict,
          images[:count],
          data.test_labels[chosen[:count]],
          epsilon=EPSILON,
          version=(name,),
          batch_size=batch_size,
          on_progress=look,
        )

  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(compile_one, ensemble.VERSIONS["standard"]))
  return time.perf_counter() - start


# Passes that AutoAttack standard needs for an image that stays robust: two APGDs (1 + 9 runs of 101
# looks) and FAB (9 runs of 100 steps) are 1,910 gradients and 900 forward passes; Square has 5,001.
SURVIVOR_GRADIENTS, SURVIVOR_FORWARDS = 1_910, 5_901


def pass_seconds(context, predict, data, chosen, attacked):
  """Seconds of a forward pass and of an input gradient per image, and AutoAttack's limit from them.

  The limit is what the survivors alone need, at the cheapest pass per image of any batch size.
  """
  images = jnp.asarray(data.test_images[chosen], jnp.float32) / 255
  labels = jnp.asarray(data.test_labels[chosen])
  forward = jax.jit(lambda predict, x: predict(x))
  gradient = jax.jit(jax.grad(lambda x, y, predict: jnp.sum(losses.cross_entropy(predict(x), y))))
  rows = []
  for batch in sorted({max(1, len(chosen) // share) for share in (1, 2, 4, 8)}):
    x, y = images[:batch], labels[:batch]
    runs = {
      "forward": functools.partial(wait_for, forward, predict, x),
      "gradient": functools.partial(wait_for, gradient, x, y, predict),
    }
    for run in runs.values():
      run()
    seconds = timing.alternate(runs, 5)
    row = {name: timing.median(values) / batch for name, values in seconds.items()}
    rows.append({"batch_size": batch} | row)
  found = {"seconds_per_image": rows}
  if attacked:
    robust = round(attacked["accuracy"] * attacked["count"])
    least = {name: min(row[name] for row in rows) for name in ("forward", "gradient")}
    limit = robust * (SURVIVOR_GRADIENTS * least["gradient"] + SURVIVOR_FORWARDS * least["forward"])
    found |= {"robust": robust, "auto_attack_limit_seconds": limit}
    if limit:
      found["auto_attack_over_limit"] = attacked["seconds"] / limit
  return found


def wait_for(fn, *arguments):
  jax.block_until_ready(fn(*arguments))


def proportion(mask: np.ndarray) -> dict:
  """{"accuracy", "count", "interval": 95 % Wilson} of a [n] bool array.

  (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
  """
  count, share, z = len(mask), float(np.mean(mask)), 1.959963984540054
  middle = share + z * z / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
  low, high = ((middle + sign * half) / (1 + z * z / count) for sign in (-1, 1))
  return {"accuracy": share, "count": count, "interval": [max(0.0, low), min(1.0, high)]}


# The pieces, most valuable first.

STEPS = ((128, ("natural", "sprout", "sprout_mean", "pgd")),)  # with a larger batch below
VGG16 = functools.partial(Run, "vgg16", epochs=200, learning_rate=0.01, boundaries=(0.4, 0.7, 0.9))
FRONTIER = functools.partial(Run, "preact_resnet18", learning_rate=0.1, warmup=0.1)


def speed_piece(model, dtype, minutes):
  groups = (*STEPS, (LARGE[model], ("natural",)), (LARGE[model], ("attack",)))
  return Piece(
    f"speed_{model}_{dtype}",
    minutes,
    f"steps of {model} in {dtype}, beside PyTorch channels-last",
    lambda context: speed(context, model, dtype, groups),
  )


def compiled_piece(model, minutes):
  groups = ((128, ("natural",)), (LARGE[model], ("natural",)), (LARGE[model], ("attack",)))
  return Piece(
    f"torch_compile_{model}",
    minutes,
    f"steps of {model} in bfloat16, beside torch.compile with mixed precision",
    lambda context: speed(context, model, "bfloat16", groups, compiled=True),
  )


def memory_piece(model, minutes):
  what = f"peak memory and time of {model} with and without remat"
  return Piece(f"memory_{model}", minutes, what, lambda context: memory(context, model))


def run_piece(name, minutes, run, purpose=""):
  what = f"{purpose}{run.model}, {run.method}, {run.epochs} epochs" + f", from {run.start}" * bool(
    run.start
  )
  return Piece(name, minutes, what, train_and_evaluate, run)


PIECES = (
  speed_piece("vgg16", "bfloat16", 3.0),
  speed_piece("preact_resnet18", "bfloat16", 3.5),
  speed_piece("wrn_28_10", "bfloat16", 3.9),
  run_piece(
    "auto_attack_preact_resnet18",
    3.9,
    FRONTIER(method="nfgsm", epochs=3, evaluations=("clean", "auto_attack", "passes")),
    "AutoAttack's time on 1,000 images, after a brief training: ",
  ),
  run_piece("vgg16_natural", 5.0, VGG16(method="natural")),
  run_piece("vgg16_sprout", 5.5, VGG16(method="sprout", start="vgg16_natural")),
  compiled_piece("vgg16", 3.9),
  run_piece(
    "preact_30_sprout_gradient_norm", 5.0, FRONTIER(method="sprout_gradient_norm", epochs=30)
  ),
  run_piece("preact_30_nfgsm", 4.5, FRONTIER(method="nfgsm", epochs=30)),
  run_piece("preact_30_pgd", 8.0, FRONTIER(method="pgd", epochs=30)),
  Piece(
    "cost_wrn_28_10",
    3.9,
    "one epoch of wrn_28_10 per method",
    lambda context: cost(context, "wrn_28_10"),
  ),
  memory_piece("wrn_28_10", 2.5),
  compiled_piece("wrn_28_10", 3.9),
  compiled_piece("preact_resnet18", 3.9),
  memory_piece("vgg16", 1.5),
  memory_piece("preact_resnet18", 2.0),
  speed_piece("vgg16", "float32", 3.0),
  speed_piece("preact_resnet18", "float32", 3.5),
  speed_piece("wrn_28_10", "float32", 3.9),
  run_piece("vgg16_sprout_released", 15.0, VGG16(method="sprout_released", start="vgg16_natural")),
  run_piece(
    "preact_100_sprout_gradient_norm", 12.0, FRONTIER(method="sprout_gradient_norm", epochs=100)
  ),
  run_piece("preact_100_nfgsm", 8.0, FRONTIER(method="nfgsm", epochs=100)),
  run_piece("preact_100_pgd", 22.0, FRONTIER(method="pgd", epochs=100)),
)
NAMES = tuple(piece.name for piece in PIECES)


# The campaign.


class Context:
  """What a piece works with: its record, its time, its sizes, its folders."""

  def __init__(self, args, piece, end):
    self.args, self.piece, self.end = args, piece, end
    self.deadline = min(end, time.perf_counter() + 60 * SLICE_MINUTES)
    self.sizes = DRY if args.dry else REAL
    self.output, self.cache = args.output, args.cache
    self.checkpoint_seconds = 0.0 if args.dry else CHECKPOINT_SECONDS
    self.started = time.perf_counter()
    self.record = read_record(args, piece.name) or {"piece": piece.name, "complete": False}
    self.record["complete"] = False
    self.earlier = self.record.get("seconds", 0.0)
    self.record.setdefault("calls", []).append({})
    self.record.pop("error", None)

  def left(self):
    """Seconds."""
    return self.deadline - time.perf_counter()

  def check(self, seconds, first=False):
    """Raises OutOfTime where less than so many seconds are left: of the slice, or of the call.

    The first thing that a slice measures may begin late: compilation may have taken the slice.
    """
    if (self.end - time.perf_counter() if first else self.left()) < seconds:
      raise OutOfTime

  def save(self):
    """Writes the record as it is."""
    self.record |= provenance(self.args, self.piece)
    seconds = time.perf_counter() - self.started
    self.record["seconds"] = self.earlier + seconds
    self.record["calls"][-1] = {
      "device": jax.devices()[0].device_kind,
      "commit": commit(self.args.commit),
      "source_sha256": source_sha256(),
      "seconds": seconds,
    }
    timing.write(self.output / f"{self.piece.name}.json", self.record)
    if self.args.bundle:
      path = self.args.bundle / "records.json"
      records = json.loads(path.read_text()) if path.exists() else {}
      timing.write(path, records | {self.piece.name: self.record})

  def data(self):
    return load_images_once(self.args.data, self.cache, self.args.dry)

  def setting(self, model, method, dtype, batch_size):
    """Of steps that are timed; `batch_size` is one that is run."""
    return Setting(
      self.sizes.models[model],
      method,
      dtype,
      batch_size,
      image_shape=self.sizes.image_shape,
    )

  def run_setting(self, run, examples):
    epochs, batch = self.sizes.epochs(run.epochs), self.sizes.batches[128]
    return Setting(
      self.sizes.models[run.model],
      run.method,
      batch_size=batch,
      image_shape=self.sizes.image_shape,
      epochs=epochs,
      steps_per_epoch=examples // batch,
      learning_rate=run.learning_rate,
      boundaries=tuple(share * epochs for share in run.boundaries),
      warmup_epochs=run.warmup * epochs,
    )

  def drop_checkpoints(self, identity):
    """Of a run that is trained."""
    (self.cache / f"{identity}.checkpoint.npz").unlink(missing_ok=True)
    for folder in filter(None, (self.output, self.args.bundle)):
      for path in folder.glob(f"{self.piece.name}.checkpoint.*.npz"):
        path.unlink()

  def bundle_checkpoint(self, state, identity):
    """Keeps a checkpoint of this run, in place of any other, in the bundle."""
    if self.args.bundle:
      for path in self.args.bundle.glob("*.checkpoint.*.npz"):
        path.unlink()
      for path in save_travelling(self.args.bundle, self.piece.name, state, identity):
        self.check_bundle(path)

  def bundle_file(self, path):
    if self.args.bundle:
      self.args.bundle.mkdir(parents=True, exist_ok=True)
      shutil.copy(path, self.args.bundle / path.name)
      self.check_bundle(self.args.bundle / path.name)

  def check_bundle(self, newest):
    """Says so where the bundle has become more than a lent machine returns."""
    sizes = [path.stat().st_size for path in self.args.bundle.iterdir()]
    if len(sizes) > BUNDLE_FILES or sum(sizes) > BUNDLE_BYTES or max(sizes) > 2**24:
      size = sum(sizes) / 2**20
      say(f"the bundle has {len(sizes)} files, {size:.0f} MiB: fetch it soon ({newest.name})")


@functools.cache
def load_images_once(archive, cache, dry):
  start = time.perf_counter()
  data = load_images(archive, cache, DRY if dry else REAL)
  say(
    f"images: {data.source}, {len(data.train_labels)} and {len(data.test_labels)}, "
    f"{time.perf_counter() - start:.1f} s"
  )
  return data


@functools.cache
def source_sha256():
  """Of the package's files and this one."""
  digest = hashlib.sha256()
  for path in sorted([*(HERE.parent / "sprout_jax").rglob("*.py"), HERE / "gpu.py"]):
    digest.update(path.read_bytes())
  return digest.hexdigest()


@functools.cache
def commit(given):
  """The commit that was given, or git's, with "+" where files differ from it; None without git."""
  if given:
    return given
  git = lambda *words: subprocess.run(
    ["git", *words], cwd=HERE, check=True, capture_output=True, text=True
  ).stdout.strip()
  try:
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../sprout_jax", "gpu.py")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
  except (OSError, subprocess.CalledProcessError):
    return None


@functools.cache
def versions():
  found = {}
  for name in ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found | {"platform": jax.devices()[0].client.platform_version.splitlines()[0]}


def provenance(args, piece):
  command = f"python benchmarks/gpu.py --only {piece.name}" + " --dry" * args.dry
  return {
    "what": piece.what,
    "dry": args.dry,
    "command": command + (f" --data {args.data.name}" if args.data else ""),
    "hardware": timing.hardware(),
    "versions": versions(),
    "commit": commit(args.commit),
    "source_sha256": source_sha256(),
  }


def read_record(args, name):
  """The record of a piece; None without a file."""
  path = args.output / f"{name}.json"
  record = json.loads(path.read_text()) if path.exists() else None
  if record and record.get("dry", args.dry) != args.dry:
    sys.exit(
      f"{path} is from a {'dry' if record['dry'] else 'real'} run; give another --output: dry and "
      "real records do not share a folder"
    )
  return record


def read_records(args):
  found = {name: read_record(args, name) for name in NAMES}
  return {name: record for name, record in found.items() if record}


def is_done(args, piece, records):
  """Whether nothing is left to do.

  A run on random images is done again where there are real ones, and one whose weights are lost
  where another run still has to start from them.
  """
  record = records.get(piece.name)
  if not record or not record["complete"]:
    return False
  if args.data and record.get("data", {}).get("source") == "random images":
    return False
  waiting = [p.name for p in PIECES if p.run and p.run.start == piece.name]
  is_needed = any(not records.get(name, {"complete": False})["complete"] for name in waiting)
  return not is_needed or (args.output / f"{piece.name}.weights.npz").exists()


def expected_minutes(piece, records, dry=False):
  """What a piece still takes: from what was measured, where something was, else as stated."""
  own = records.get(piece.name, {})
  if dry:
    return 0.2
  if piece.run:
    steps = piece.run.epochs * (REAL.train_images // 128)
    log = own.get("training", {})
    left = steps - log.get("steps", 0)
    timed = log.get("seconds", 0) / log["steps"] if log.get("steps") else None
    speeds = records.get(f"speed_{piece.run.model}_bfloat16", {}).get("rows", [])
    for row in speeds:
      if timed is None and (row["method"], row["batch_size"]) == (piece.run.method, 128):
        timed = row.get("seconds_per_step")
    if timed is not None:
      return left * timed / 60 + 1.5  # compilation and evaluation
    return piece.minutes * left / steps
  kind = piece.name.split("_")[0]
  others = [
    r["seconds"] / 60 for n, r in records.items() if n.split("_")[0] == kind and r["complete"]
  ]
  return max([0.5, *others]) if others else piece.minutes


def is_ready(args, piece):
  """Whether the weights that it starts from are there."""
  start = piece.run.start if piece.run else ""
  return not start or (args.output / f"{start}.weights.npz").exists()


def campaign(args, pieces):
  """Works on the pieces, the first that fits first, until nothing is left or fits."""
  end = math.inf if args.minutes is None else STARTED + 60 * args.minutes
  over, failed = set(), []
  while True:
    records = read_records(args)
    piece = next(
      (
        piece
        for piece in pieces
        if piece.name not in over
        and not is_done(args, piece, records)
        and not (records.get(piece.name, {}).get("error") and not args.only)
        and is_ready(args, piece)
        and fits(piece, records, (end - time.perf_counter()) / 60, args.dry)
      ),
      None,
    )
    if piece is None:
      return failed
    now, cpu_before = time.perf_counter(), time.process_time()
    context = Context(args, piece, end)
    say(f"{piece.name}: {piece.what}")
    before = progress(context.record)
    try:
      context.record["complete"] = bool(piece.work(context))
      state = "complete"
    except OutOfTime:
      state = "to be continued"
    except Exception as error:
      traceback.print_exc()
      context.record["error"] = state = short(error)
      failed.append(piece.name)
    context.save()
    release()
    cpu = time.process_time() - cpu_before
    say(f"{piece.name}: {state}, {time.perf_counter() - now:.1f} s, {cpu:.1f} s of CPU")
    if context.record.get("error") or progress(context.record) == before:
      over.add(piece.name)  # it would do the same again


def progress(record):
  """What grows when a piece gets on."""
  return (
    record["complete"],
    len(record.get("rows", [])),
    record.get("training", {}).get("steps", 0),
    len(record.get("evaluation", {})),
    record.get("auto_attack_seconds", 0.0),
  )


def fits(piece, records, minutes, dry):
  """Whether a piece can be worked on in so many minutes; a run can be cut anywhere."""
  needed = expected_minutes(piece, records, dry)
  return minutes >= (min(needed, SMALLEST_SLICE_MINUTES) if piece.run else needed)


def merge(args):
  """Puts a bundle into the output folder: records that are newer there, weights, checkpoints."""
  args.output.mkdir(parents=True, exist_ok=True)
  for name, record in json.loads((args.merge / "records.json").read_text()).items():
    own = read_record(args, name)
    if own is None or (record["complete"], record["seconds"]) > (own["complete"], own["seconds"]):
      timing.write(args.output / f"{name}.json", record)
      say(f"{name}: {'complete' if record['complete'] else 'in part'}")
  arriving = sorted(args.merge.glob("*.npz"))
  for stem in {path.name.split(".")[0] for path in arriving}:
    for old in args.output.glob(f"{stem}.checkpoint.*.npz"):
      old.unlink()  # of an earlier step
  for path in arriving:
    shutil.copy(path, args.output / path.name)
    say(path.name)


def say(text):
  print(f"[{time.perf_counter() - STARTED:6.1f} s] {text}", flush=True)


# What is printed.


def listing(args):
  """A line per piece: what is there, and the minutes that it still takes."""
  records = read_records(args)
  lines = [f"{'piece':34} {'state':14} {'minutes':>7}  what"]
  for piece in PIECES:
    record = records.get(piece.name)
    done = is_done(args, piece, records)
    state = "not measured"
    if record:
      state = "done" if done else "failed" if "error" in record else "in part"
    if not done and not is_ready(args, piece):
      state = f"after {piece.run.start.rpartition('_')[2]}"
    minutes = "" if done else f"{expected_minutes(piece, records, args.dry):.1f}"
    lines.append(f"{piece.name:34} {state:14} {minutes:>7}  {piece.what}")
  return "\n".join(lines)


def markdown(header, rows):
  cells = lambda row: f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |"
  return "\n".join([cells(header), "|---" * len(header) + "|", *map(cells, rows)])


def number(value, digits=0):
  return None if value is None else f"{value:,.{digits}f}"


def percent(value):
  return None if value is None else f"{100 * value:.1f} %"


def accuracy(entry):
  if entry is None:
    return None
  low, high = entry["interval"]
  return f"{100 * entry['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def ratio(values):
  """Median, smallest, largest."""
  return None if not values else f"{timing.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"


def gibibytes(value):
  return None if value is None else f"{value / 2**30:.2f}"


def table(args):
  """Markdown of all records: speed, memory, runs, cost, and what is not measured."""
  records = read_records(args)
  parts = []
  if args.dry:
    parts.append("Dry run on a CPU with tiny sizes: these numbers mean nothing.")
  devices = sorted({record["hardware"]["device"] for record in records.values()})
  commits = sorted({str(record["commit"]) for record in records.values()})
  if records:
    parts.append(f"Devices: {', '.join(devices)}. Commits: {', '.join(commits)}.")

  def rows_of(prefix):
    return [
      (record, row)
      for name, record in records.items()
      if name.startswith(prefix)
      for row in record.get("rows", [])
    ]

  speeds = [
    (
      row["model"],
      row["method"],
      row["batch_size"],
      row["dtype"],
      number(row.get("images_per_second")) or row.get("error"),
      percent(row.get("utilisation")),
      number(row.get("natural_steps"), 2),
      gibibytes(row.get("peak_bytes")),
      ratio(row.get("torch_ratios")),
      ratio(row.get("torch_compile_ratios")),
      record["hardware"]["device"],
    )
    for prefix in ("speed_", "torch_compile_")
    for record, row in rows_of(prefix)
  ]
  if speeds:
    header = ("model", "step", "batch", "type", "images/s", "utilisation", "natural steps", "GiB")
    header += ("over PyTorch", "over torch.compile", "device")
    parts += ["### Steps", markdown(header, speeds)]
  memories = [
    (
      row["model"],
      row["batch_size"],
      "yes" if row["remat"] else "no",
      gibibytes(row.get("peak_bytes")),
      number(row.get("images_per_second")) or row.get("error"),
    )
    for _, row in rows_of("memory_")
  ]
  if memories:
    header = ("model", "batch", "remat", "GiB", "images/s")
    parts += ["### Memory of a natural step, bfloat16", markdown(header, memories)]
  costs = [
    (
      row["model"],
      row["method"],
      number(row.get("seconds_per_epoch"), 1) or row.get("error"),
      number(row.get("natural_epochs"), 2),
      gibibytes(row.get("peak_bytes")),
      percent(row.get("utilisation")),
    )
    for _, row in rows_of("cost_")
  ]
  if costs:
    header = ("model", "method", "seconds an epoch", "natural epochs", "GiB", "utilisation")
    parts += ["### Cost of an epoch", markdown(header, costs)]
  runs = []
  for name, record in records.items():
    if "training" not in record and "evaluation" not in record:
      continue
    log, found = record.get("training", {}), record.get("evaluation", {})
    attacked = found.get("auto_attack", {})
    runs.append(
      (
        name,
        f"{log.get('steps', 0)}/{log.get('steps_in_all', '?')}",
        number(log.get("seconds"), 1),
        accuracy(found.get("clean")),
        accuracy(found.get("pgd20")),
        accuracy(attacked or None),
        number(attacked.get("seconds"), 1),
        number(found.get("passes", {}).get("auto_attack_over_limit"), 2),
        record["data"]["source"],
      )
    )
  if runs:
    header = ("run", "steps", "training s", "clean", "PGD-20, 0.03", "AutoAttack, 8/255")
    header += ("AutoAttack s", "over its limit", "images")
    parts += ["### Runs (accuracy in percent, 95 % interval)", markdown(header, runs)]
  missing = [name for name in NAMES if name not in records]
  failures = [f"{name} ({r['error']})" for name, r in records.items() if "error" in r]
  if failures:
    parts.append("Failed: " + "; ".join(failures))
  parts.append(f"Not measured: {', '.join(missing) or 'nothing'}.")
  return "\n\n".join(parts)


def parse(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, help="folder of the records")
  parser.add_argument("--data", type=pathlib.Path, help="archive of JPEG files; else random images")
  parser.add_argument(
    "--cache", type=pathlib.Path, help="folder of images, checkpoints, compiled programs"
  )
  parser.add_argument(
    "--minutes", type=float, help="time for this call; a piece starts only if it fits"
  )
  parser.add_argument("--only", help=f"comma-separated: {', '.join(NAMES)}")
  parser.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU")
  parser.add_argument("--commit", help="commit of the code, if there is no git")
  parser.add_argument("--bundle", type=pathlib.Path, help="folder for a copy in a few files")
  parser.add_argument("--merge", type=pathlib.Path, help="bundle to put into the output folder")
  parser.add_argument("--list", action="store_true", help="print the pieces")
  parser.add_argument("--table", action="store_true", help="print the measured tables")
  args = parser.parse_args(arguments)
  names = args.only.split(",") if args.only else NAMES
  if unknown := sorted(set(names) - set(NAMES)):
    parser.error(f"--only: {', '.join(unknown)} unknown; choose from: {', '.join(NAMES)}")
  if args.data and not args.data.is_file():
    parser.error(f"--data {args.data}: no such file; leave it out for random images")
  results = HERE.parent / "runs" / "gpu_dry" if args.dry else HERE / "results" / "gpu"
  args.output = args.output or results
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  args.cache = args.cache or pathlib.Path(base).expanduser() / "sprout_jax" / "gpu"
  return args, [piece for piece in PIECES if piece.name in names]


def main():
  args, pieces = parse()
  if args.list or args.table:
    return print(listing(args) if args.list else table(args))
  if args.merge:
    return merge(args)
  if args.dry:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # torch.compile takes minutes on a CPU
    args.cache /= "dry"
  elif jax.default_backend() == "cpu":
    sys.exit("JAX sees no GPU on this machine; for a try on a CPU type --dry")
  for folder in filter(None, (args.output, args.cache, args.bundle)):
    folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(args.cache / "compiled"))
  failed = campaign(args, pieces)
  print(listing(args), flush=True)
  if failed:
    sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
  main()
