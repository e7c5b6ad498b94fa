"""The radar chart: values worked out by hand, and which axes count."""

from sprout_jax.report import radar
from sprout_jax.report import runs as runs_lib
from tests.report import synthetic


def read(tmp_path, *changes):
  """Runs with results that functions changed in place."""
  folders = []
  for number, change in enumerate(changes):
    content = synthetic.results("natural", 0.4, seed=number)
    change(content)
    folders.append(synthetic.write(tmp_path / str(number), content))
  return runs_lib.read(folders)


def only(clean, speed, entries, rotation):
  """A change that leaves these measures and no others."""

  def change(content):
    content["clean"]["accuracy"] = clean
    content["training"]["seconds_per_epoch"] = speed
    content["evaluations"] = {
      "strength": {
        "epsilon": 0.03,
        "norm": "linf",
        "entries": entries,
        "best_loss": {},
        "notes": [],
      },
      "invariance": {
        "transformations": {
          "rotation": {
            "unit": "degrees",
            "identity": 0.0,
            "points": [
              {"strength": 5.0, "named": "", **synthetic.share(0.99)},
              {"strength": 10.0, "named": "rotation by 10 degrees", **synthetic.share(rotation)},
            ],
          }
        }
      },
    }

  return change


def entry(accuracy, steps, restarts, loss):
  return synthetic.pgd(accuracy, steps=steps, name=f"pgd-{steps}", restarts=restarts, loss=loss)


def entries(pgd, margin):
  """The ones that count, among others that must not."""
  return [
    entry(0.01, 20, 10, "cross_entropy"),
    entry(pgd, 20, 1, "cross_entropy"),
    entry(0.02, 100, 1, "cross_entropy"),
    entry(0.03, 200, 10, "margin"),
    entry(0.04, 20, 1, "margin"),
    entry(margin, 200, 1, "margin"),
    entry(0.05, 200, 1, "dlr"),
  ]


def test_values_and_scores_by_hand(tmp_path):
  runs = read(
    tmp_path, only(0.8, 2.0, entries(0.2, 0.1), 0.9), only(0.4, 1.0, entries(0.4, 0.4), 0.6)
  )
  chart = radar.compute(runs)
  assert chart.raw == {
    "clean": [0.8, 0.4],
    "PGD-20": [0.2, 0.4],
    "C&W": [0.1, 0.4],
    "rotation by 10 degrees": [0.9, 0.6],
    "training speed": [0.5, 1.0],
  }
  expected = {
    "clean": [1, 0.5],
    "PGD-20": [0.5, 1],
    "C&W": [0.25, 1],
    "rotation by 10 degrees": [1, 2 / 3],
    "training speed": [0.5, 1],
  }
  for axis, values in expected.items():
    assert all(abs(a - b) < 1e-12 for a, b in zip(chart.relative[axis], values, strict=True)), axis
  assert abs(chart.scores[0] - (1 + 0.5 + 0.25 + 1 + 0.5) / 5) < 1e-12
  assert abs(chart.scores[1] - (0.5 + 1 + 1 + 2 / 3 + 1) / 5) < 1e-12
  assert chart.left_out == dict.fromkeys(
    ("brightness x1.5", "contrast x2", "grayscale"), "not measured for A seed 0, B seed 1"
  )


def test_axes_that_do_not_compare_are_left_out(tmp_path):
  def no_time(content):
    only(0.4, None, [entry(0.0, 20, 5, "cross_entropy"), entry(0.0, 200, 1, "margin")], 0.6)(
      content
    )

  runs = read(tmp_path, only(0.8, 2.0, entries(0.0, 0.0), 0.9), no_time)
  left = radar.compute(runs).left_out
  assert left["PGD-20"] == "measured in different ways"  # 1 and 5 restarts
  assert left["C&W"] == "no run is above 0"
  assert left["training speed"] == "not measured for B seed 1"
