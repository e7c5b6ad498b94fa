"""The paper's radar chart: eight measures, each divided by the best run on it, and their mean."""

import dataclasses

import numpy as np

from sprout_jax.report import figures
from sprout_jax.report import wording

NAMED = ("rotation by 10 degrees", "brightness x1.5", "contrast x2", "grayscale")
AXES = ("clean", "PGD-20", "C&W", *NAMED, "training speed")


@dataclasses.dataclass(frozen=True)
class Radar:
  """`raw` and `relative` are {axis: [value per run]}, `scores` one per run, `left_out` {axis: why}."""

  raw: dict
  relative: dict
  scores: list
  left_out: dict


def measured(results):
  """{axis: (value, all that defines it)} of one run, for the axes that it has."""
  data = results["dataset"]["fingerprint"]
  found = {"clean": (results["clean"]["accuracy"], f"{data}, {results['clean']['count']} images")}
  seconds = results["training"].get("seconds_per_epoch")  # runs of earlier versions have none
  if seconds:
    found["training speed"] = (1 / seconds, f"{data}, on {wording.trained_on(results)}")
  for axis, entry in (("PGD-20", _pgd(results)), ("C&W", _carlini_wagner(results))):
    if entry:
      found[axis] = (
        entry["accuracy"],
        f"{data}, {wording.attack_spec(entry)}, epsilon {entry['epsilon']:g}, "
        f"{entry['count']} images",
      )
  if "invariance" in results["evaluations"]:
    for row in results["evaluations"]["invariance"]["transformations"].values():
      found |= {
        point["named"]: (point["accuracy"], f"{data}, {point['count']} images")
        for point in row["points"]
        if point["named"] in NAMED
      }
  return found


def is_measured(results):
  """Whether there is an axis that not every run has anyway."""
  return bool(set(measured(results)) - {"clean", "training speed"})


def _pgd(results):
  """PGD-20 on the cross-entropy at the headline radius, with the fewest restarts there are."""
  return min(
    (entry for entry in _strength(results, "cross_entropy") if entry["steps"] == 20),
    key=lambda entry: entry["restarts"],
    default=None,
  )


def _carlini_wagner(results):
  """PGD on the margin: the fewest restarts and, with those, the most steps there are."""
  return min(
    _strength(results, "margin"),
    key=lambda entry: (entry["restarts"], -entry["steps"]),
    default=None,
  )


def _strength(results, loss):
  if "strength" not in results["evaluations"]:
    return []
  return [
    entry
    for entry in results["evaluations"]["strength"]["entries"]
    if entry["loss"] == loss and entry["norm"] == "linf"
  ]


def compute(runs):
  """The radar chart over the axes that all runs have, measured alike."""
  found = {run.name: measured(run.results) for run in runs}
  raw, left_out = {}, {}
  for axis in AXES:
    lacking = [name for name, axes in found.items() if axis not in axes]
    if lacking:
      left_out[axis] = f"not measured for {', '.join(lacking)}"
    elif len({axes[axis][1] for axes in found.values()}) > 1:
      left_out[axis] = "measured in different ways"
    elif max(axes[axis][0] for axes in found.values()) <= 0:
      left_out[axis] = "no run is above 0"
    else:
      raw[axis] = [axes[axis][0] for axes in found.values()]
  relative = {axis: [value / max(values) for value in values] for axis, values in raw.items()}
  scores = [float(np.mean(shares)) for shares in zip(*relative.values())]
  return Radar(raw, relative, scores, left_out)


def draw(runs, radar):
  """The chart as a figure; at least three axes."""
  names = list(radar.relative)
  angles = 2 * np.pi * np.arange(len(names) + 1) / len(names)
  fig, (axes,) = figures.lines(
    1, height=3.7, extra=figures.legend_height(len(runs)), subplot_kw={"projection": "polar"}
  )
  handles = []
  for place, run in enumerate(runs):
    values = [radar.relative[name][place] for name in names]
    look = figures.style(run.number)
    handles += axes.plot(angles, [*values, values[0]], linewidth=1.4, markersize=4, **look)
  axes.set_theta_offset(np.pi / 2)
  axes.set_theta_direction(-1)
  axes.set_xticks(
    angles[:-1], [name.replace(" by ", "\nby ").replace(" s", "\ns") for name in names]
  )
  axes.tick_params(axis="x", pad=3, labelsize=9)
  for angle, text in zip(angles, axes.get_xticklabels()):  # away from the circle
    side = np.sin(angle)
    text.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")
  axes.set_ylim(0, 1.02)
  axes.set_yticks((0.25, 0.5, 0.75, 1), ("0.25", "0.5", "0.75", "1"), fontsize=7)
  axes.set_rlabel_position(180 / len(names))
  figures.legend(
    fig,
    handles,
    [f"{figures.shortened(run.name, 17)}: {score:.3f}" for run, score in zip(runs, radar.scores)],
  )
  return fig
