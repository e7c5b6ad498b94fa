"""benchmarks/gpu.py on a CPU: planning, files, images and imports."""

import io
import itertools
import json
import pathlib
import subprocess
import sys
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import gpu
from configs import methods as options
from sprout_jax import methods

ROOT = pathlib.Path(__file__).parents[2]

BLOCKED = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {blocked}:
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {folder!r})
sys.argv = ["gpu.py", "--list", "--output", {output!r}]
import gpu
gpu.main()
for name in gpu.METHODS:
  gpu.make_recipe(gpu.Setting("small_cnn", name))
print(*(name for name in sys.modules if name.startswith("sprout_jax.")))
"""


def arguments(folder, *more):
  args, pieces = gpu.parse(["--dry", "--output", str(folder / "out"), *more])
  args.cache = folder / "cache"
  args.cache.mkdir(exist_ok=True)
  args.output.mkdir(exist_ok=True)
  return args, pieces


def test_runs_where_data_and_config_packages_are_missing(tmp_path):
  blocked = {"tensorflow_datasets", "tensorflow", "ml_collections", "grain", "tensorboardX", "clu"}
  code = BLOCKED.format(
    blocked=blocked, folder=str(ROOT / "benchmarks"), output=str(tmp_path / "none")
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  lines = done.stdout.splitlines()
  assert [line.split()[0] for line in lines[1:-1]] == list(gpu.NAMES)
  rooms = {name.split(".")[1] for name in lines[-1].split()}
  assert not rooms & {"evaluation", "report", "run", "results", "configuration"}


def test_the_options_are_those_of_the_configs():
  def section(table, name, variant="paper"):
    values = table[name](variant).to_dict()
    values.pop("name", None)
    return values

  table = options.METHOD_OPTIONS
  assert gpu.METHODS["natural"].options == section(table, "natural")
  assert gpu.METHODS["sprout"].options == section(table, "sprout")
  assert gpu.METHODS["sprout_mean"].options == section(table, "sprout") | {"draw": "mean"}
  assert gpu.METHODS["sprout_released"].options == section(table, "sprout", "released")
  assert gpu.METHODS["pgd"].options == section(table, "pgd")
  penalty = section(options.PENALTY_OPTIONS, "gradient_norm")
  assert gpu.METHODS["sprout_gradient_norm"].penalty == penalty


def test_nfgsm_steps_from_noise_along_the_sign():
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(2 * 2 * 3, 2)), jnp.float32)
  apply = lambda x, train: (x.reshape(len(x), -1) @ weights, {})
  x, y = jnp.full((500, 2, 2, 3), 0.5), jax.nn.one_hot(jnp.zeros(500, int), 2)
  found = gpu.nfgsm().probe(jax.random.key(0), jnp.arange(500), methods.Network(apply), x, y)
  # The loss of class 0 rises along w_1 - w_0, whatever the image is.
  sign = np.sign(np.asarray(weights[:, 1] - weights[:, 0])).reshape(2, 2, 3)
  noise = (np.asarray(found) - 0.5) * 255 / 8 - sign
  assert np.abs(noise).max() <= 2 + 1e-4
  assert scipy.stats.kstest(noise.ravel(), "uniform", (-2, 4)).pvalue > 1e-3


def test_multiplications_of_vgg16():
  total, side, before = 512 * 10, 32, 3
  for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
    for _ in range(count):
      total += side * side * 9 * before * width
      before = width
    side //= 2
  assert gpu.multiplications(gpu.Setting("vgg16", "natural")) == total


def test_an_interval_is_wilsons():
  for successes, count in ((0, 10), (3, 10), (10, 10), (517, 1000)):
    found = gpu.proportion(np.arange(count) < successes)
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert found["accuracy"] == successes / count and found["count"] == count
    np.testing.assert_allclose(found["interval"], (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_within_half_a_scale(bits):
  array = np.random.default_rng(0).normal(size=(3, 3, 5, 7)).astype(np.float32)
  array[..., 2] = 0
  stored = {"w" + suffix: value for suffix, value in gpu.encode(array, bits).items()}
  assert stored["w"].dtype.itemsize == bits // 8
  scale = np.abs(array).reshape(-1, 7).max(0) / (2 ** (bits - 1) - 1)
  error = np.abs(gpu.decode_array(stored, "w") - array).reshape(-1, 7).max(0)
  assert (error <= scale * 0.51).all() and error[2] == 0 and error[0] > 0
  vector = np.arange(3.0)
  assert gpu.encode(vector, bits)[""] is vector


def test_weights_of_a_file_are_those_that_are_evaluated(tmp_path):
  setting = gpu.Setting("wrn_10_1", "natural", image_shape=(8, 8, 3))
  model = gpu.make_model(setting)
  variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()
  gpu.save_weights(tmp_path / "w.npz", variables, "mine")
  loaded, identity = gpu.load_weights(tmp_path / "w.npz")
  assert identity == "mine"
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  gpu.save_weights(tmp_path / "again.npz", loaded, "mine")  # rounding twice changes nothing
  again, _ = gpu.load_weights(tmp_path / "again.npz")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, loaded)


def test_images_of_an_archive(tmp_path):
  from PIL import Image

  def archive(classes):
    path, rng = tmp_path / "images.tar.xz", np.random.default_rng(0)
    with tarfile.open(path, "w:xz") as tar:
      for split, name, number in itertools.product(("test", "train"), classes, "10"):
        file = io.BytesIO()
        # One colour each: JPEG keeps it to a few steps.
        colour = rng.integers(0, 256, 3)
        Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(file, "JPEG")
        colours[split, name, number] = colour
        info = tarfile.TarInfo(f"{split}/{name}/{number}.jpg")
        info.size = file.tell()
        file.seek(0)
        tar.addfile(info, file)
    return path

  colours = {}
  data = gpu.load_images(archive(("dog", "cat")), tmp_path, gpu.REAL)
  assert data.train_labels.tolist() == data.test_labels.tolist() == [3, 3, 5, 5]
  keys = itertools.product(("cat", "dog"), "01")
  for image, (name, number) in zip(data.train_images, keys, strict=True):
    assert np.abs(image.astype(int) - colours["train", name, number]).max() < 6
  again = gpu.load_images(tmp_path / "images.tar.xz", tmp_path, gpu.REAL)  # from the cache
  np.testing.assert_array_equal(again.test_images, data.test_images)
  with pytest.raises(ValueError, match=r"\['hen'\]"):
    gpu.decode(archive(("cat", "hen")))


def run_context(folder, deadline):
  """Of a run of two epochs in three files: rounded weights, checkpoint, record."""
  args, _ = arguments(folder, "--bundle", str(folder / "bundle"))
  args.bundle.mkdir(exist_ok=True)
  piece = gpu.run_piece("vgg16_natural", 1.0, gpu.VGG16(method="natural"))
  return gpu.Context(args, piece, deadline)


def test_a_stopped_run_continues(tmp_path, monkeypatch):
  setting = gpu.Setting(
    "small_cnn", "sprout", batch_size=8, image_shape=(8, 8, 3), epochs=2, steps_per_epoch=2
  )
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (16, 8, 8, 3), np.uint8), np.arange(16, dtype=np.int32) % 10
  data = gpu.Images(images, labels, images, labels, "random images", "random")

  asked, choose = [], gpu.order.batch_indices
  monkeypatch.setattr(
    gpu.order,
    "batch_indices",
    lambda seed, first, *rest: asked.append(first) or choose(seed, first, *rest),
  )

  def train(name, deadline):
    asked.clear()
    context = run_context(tmp_path / name, deadline)
    return gpu.train(context, setting, data, "me", None), context.record["training"]

  for name in ("whole", "cut", "moved"):
    (tmp_path / name).mkdir()
  whole, log = train("whole", np.inf)
  assert [row["step"] for row in log["epochs"]] == [2, 4] and int(whole.step) == 4
  assert asked == [0, 2]
  for name in ("cut", "moved"):
    with pytest.raises(gpu.OutOfTime):
      train(name, 0.0)
  cut, log = train("cut", np.inf)
  assert [row["step"] for row in log["epochs"]] == [2, 4] and asked == [2]
  jax.tree.map(np.testing.assert_array_equal, cut, whole)

  # On another machine: what the bundle holds, nothing of the cache.
  for path in (tmp_path / "moved" / "cache").glob("me.*"):
    path.unlink()
  args, _ = arguments(tmp_path / "moved", "--merge", str(tmp_path / "moved" / "bundle"))
  gpu.merge(args)
  moved, log = train("moved", np.inf)
  assert log["from_rounded_checkpoint"] == [2] and int(moved.step) == 4
  kernel = lambda state: np.asarray(state.params["conv2"]["kernel"])
  assert 0 < np.abs(kernel(moved) - kernel(whole)).max() < 1e-3 * np.abs(kernel(whole)).max()


def test_a_travelling_checkpoint_is_whole_or_none(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  state = gpu.state_lib.TrainState(
    step=np.int32(3),
    params={"a": rng.normal(size=(40, 50)).astype(np.float32), "b": np.arange(5.0)},
    batch_stats={},
    opt_state={"trace": rng.normal(size=(40, 50)).astype(np.float32), "count": np.int32(3)},
    adversary={},
    adversary_opt_state=(),
    ema={},
  )
  monkeypatch.setattr(gpu, "FILE_BYTES", 5000)
  paths = gpu.save_travelling(tmp_path, "run", state, "mine")
  assert len(paths) == 2
  loaded = gpu.load_travelling(tmp_path, "run", state, "mine")
  assert loaded.step == 3 and loaded.opt_state["count"] == 3
  np.testing.assert_allclose(loaded.params["a"], state.params["a"], atol=1e-4)
  np.testing.assert_allclose(loaded.opt_state["trace"], state.opt_state["trace"], atol=2e-2)
  assert gpu.load_travelling(tmp_path, "run", state, "another") is None
  assert gpu.load_travelling(tmp_path, "elsewhere", state, "mine") is None
  paths[1].unlink()
  assert gpu.load_travelling(tmp_path, "run", state, "mine") is None


def test_the_campaign_takes_what_fits_and_keeps_what_it_finds(tmp_path, monkeypatch):
  worked = []

  def piece(name, minutes, actions):
    actions = iter(actions)

    def work(context):
      worked.append(name)
      if name != "stuck":
        context.record.setdefault("rows", []).append({})
      context.save()
      action = next(actions)
      if isinstance(action, Exception):
        raise action
      return True

    return gpu.Piece(name, minutes, "", work)

  pieces = [
    piece("long", 9.0, [None]),
    piece("broken", 1.0, [ValueError("no")]),
    piece("stuck", 1.0, [gpu.OutOfTime()]),
    piece("twice", 1.0, [gpu.OutOfTime(), None]),
  ]
  monkeypatch.setattr(gpu, "NAMES", tuple(piece.name for piece in pieces))
  monkeypatch.setattr(gpu, "STARTED", time.perf_counter())
  monkeypatch.setattr(gpu, "expected_minutes", lambda piece, records, dry: piece.minutes)
  args, _ = arguments(tmp_path, "--minutes", "5", "--bundle", str(tmp_path / "bundle"))
  args.bundle.mkdir()
  assert gpu.campaign(args, pieces) == ["broken"]
  assert worked == ["broken", "stuck", "twice", "twice"]
  pieces = [piece for piece in pieces if piece.name != "stuck"]
  assert gpu.campaign(args, pieces) == []  # nothing again, what failed included
  assert len(worked) == 4
  record = json.loads((args.output / "twice.json").read_text())
  assert record["complete"] and len(record["calls"]) == 2
  assert record["hardware"]["device"] == "cpu" and record["command"].endswith("twice --dry")
  assert "no" in json.loads((args.output / "broken.json").read_text())["error"]
  assert not (args.output / "long.json").exists()
  assert set(json.loads((args.bundle / "records.json").read_text())) == {"broken", "stuck", "twice"}
  args.dry = False
  with pytest.raises(SystemExit, match="dry"):
    gpu.campaign(args, pieces)


def test_expected_minutes_follow_what_was_measured():
  piece = next(piece for piece in gpu.PIECES if piece.name == "vgg16_sprout")
  stated = gpu.expected_minutes(piece, {})
  assert stated == piece.minutes
  rows = [{"method": "sprout", "batch_size": 128, "seconds_per_step": 0.01}]
  records = {"speed_vgg16_bfloat16": {"rows": rows, "complete": True, "seconds": 120}}
  assert gpu.expected_minutes(piece, records) == pytest.approx(200 * 390 * 0.01 / 60 + 1.5)
  records["vgg16_sprout"] = {"training": {"steps": 39_000, "seconds": 78.0}}
  assert gpu.expected_minutes(piece, records) == pytest.approx(39_000 * 0.002 / 60 + 1.5)
  other = next(piece for piece in gpu.PIECES if piece.name == "speed_wrn_28_10_bfloat16")
  assert gpu.expected_minutes(other, records) == 2


def test_the_table_shows_rows_and_what_is_missing(tmp_path):
  args, _ = arguments(tmp_path)
  row = {"model": "vgg16", "method": "natural", "batch_size": 128, "dtype": "bfloat16"}
  row |= {"images_per_second": 12345.6, "utilisation": 0.25, "torch_ratios": [1.1, 1.2, 1.4]}
  record = {"rows": [row], "complete": True, "hardware": {"device": "cpu"}, "commit": "abc"}
  (args.output / "speed_vgg16_bfloat16.json").write_text(json.dumps(record))
  text = gpu.table(args)
  assert "| vgg16 | natural | 128 | bfloat16 | 12,346 | 25.0 % |  |  | 1.20 (1.10-1.40) |" in text
  assert "Not measured: speed_preact_resnet18_bfloat16," in text
  assert "mean nothing" in text and "### Runs" not in text
