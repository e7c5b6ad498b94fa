"""Heat maps, bars and surfaces: each function takes runs and returns a figure."""

import numpy as np

from sprout_jax.report import figures


def invariance(runs):
  """Accuracy at the named points of the invariance tests: runs x points."""
  found = [
    {
      point["named"]: point["accuracy"]
      for row in run.evaluations["invariance"]["transformations"].values()
      for point in row["points"]
      if point["named"]
    }
    for run in runs
  ]
  names = list(dict.fromkeys(name for points in found for name in points))
  values = [
    [100 * points[name] if name in points else np.nan for name in names] for points in found
  ]
  fig, (axes,) = figures.panels(1, height=0.9 + 0.3 * len(runs))
  figures.heat(
    axes,
    values,
    [figures.shortened(run.name, 22) for run in runs],
    [name.replace(" by ", "\nby ").replace(" x", "\nx") for name in names],
    low=0,
    high=100,
  )
  axes.set_title("accuracy (%)", fontsize=9)
  return fig


def corruptions(runs):
  """Accuracy by corruption and run (the mean over severities); of a single run by severity."""
  found = [run.evaluations["corruptions"]["corruptions"] for run in runs]
  names = list(dict.fromkeys(name for rows in found for name in rows))
  if len(runs) == 1:
    values = [[100 * point["accuracy"] for point in found[0][name]] for name in names]
    columns, below = [str(point["severity"]) for point in found[0][names[0]]], "severity"
    title = "accuracy (%)"
  else:
    values = [[_mean(rows[name]) if name in rows else np.nan for rows in found] for name in names]
    columns, below = [run.key for run in runs], "run"
    title = "accuracy (%), mean over the severities"
  fig, (axes,) = figures.panels(1, height=0.9 + 0.26 * len(names))
  figures.heat(axes, values, [name.replace("_", " ") for name in names], columns, low=0, high=100)
  axes.set_xlabel(below, fontsize=9)
  axes.set_title(title, fontsize=9)
  return fig


def _mean(points):
  return 100 * np.mean([point["accuracy"] for point in points])


def landscapes(runs):
  """The loss around images, a panel for each run, on one scale of colours; each run has a finite one."""
  found = [run.evaluations["landscape"] for run in runs]
  surfaces = list(map(surface, runs))
  low, high = min(map(np.nanmin, surfaces)), max(map(np.nanmax, surfaces))
  high = high if high > low else low + 1
  fig, panels = figures.panels(len(runs), height=2.2, extra=0.5)
  for axes, run, one, loss in zip(panels, runs, found, surfaces):
    drawn = axes.pcolormesh(
      one["sign_gradient"],
      one["rademacher"],
      loss.T,
      cmap=figures.MAP,
      vmin=low,
      vmax=high,
      shading="nearest",
      rasterized=True,
    )
    if np.nanmin(loss) < np.nanmax(loss):
      axes.contour(
        one["sign_gradient"],
        one["rademacher"],
        loss.T,
        np.linspace(low, high, 10)[1:-1],
        colors="white",
        linewidths=0.5,
      )
    span = f"{np.nanmin(loss):.2f} to {np.nanmax(loss):.2f} nats"
    axes.set_title(f"{figures.shortened(run.name)}\n{span}", fontsize=8)
  fig.supxlabel("along the sign of the input gradient (pixels)", fontsize=8.5)
  fig.supylabel("along random signs (pixels)", fontsize=8.5)
  fig.colorbar(drawn, ax=list(panels), location="top", shrink=0.8, aspect=40).set_label(
    "cross-entropy (nats)", fontsize=8.5
  )
  return fig


def surface(run):
  """The loss around a run's images, NaN where it is not finite."""
  loss = np.array(run.evaluations["landscape"]["loss"], float)
  return np.where(np.isfinite(loss), loss, np.nan)


def cosines(runs):
  """How alike the input gradients of SPROUT's modules are, a panel for each run."""
  fig, panels = figures.panels(len(runs), height=1.9)
  for axes, run in zip(panels, runs):
    found = run.evaluations["gradients"]
    modules = found["modules"]
    figures.heat(axes, found["cosine"], modules, modules, low=-1, high=1, text="{:.2f}")
    axes.set_title(figures.shortened(run.name), fontsize=8)
  return fig


def reliability(runs):
  """Accuracy against confidence, a panel for each run; bars on the dashed line are calibrated."""
  fig, panels = figures.lines(len(runs), height=1.9, sharex=True, sharey=True)
  for axes, run in zip(panels, runs):
    found = run.evaluations["calibration"]
    bins = [one for one in found["bins"] if one["count"]]
    axes.bar(
      [100 * one["low"] for one in bins],
      [100 * one["accuracy"] for one in bins],
      [100 * (one["high"] - one["low"]) for one in bins],
      align="edge",
      color=figures.style(run.number)["color"],
      edgecolor="white",
      linewidth=0.5,
    )
    axes.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1)
    axes.set_title(f"{figures.shortened(run.name, 20)}, ECE {100 * found['ece']:.1f} %", fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
  fig.supxlabel("confidence (%)", fontsize=9)
  fig.supylabel("accuracy (%)", fontsize=9)
  return fig


def beta(runs):
  """What SPROUT learned as its label distribution: the last beta of each run, a bar per class."""
  fig, panels = figures.lines(len(runs), 1, 1.35, extra=0.5, sharex=True)
  for axes, run in zip(panels, runs):
    last = last_beta(run)
    axes.bar(range(len(last)), last, color=figures.style(run.number)["color"])
    axes.set_title(figures.shortened(run.name, 40), fontsize=8)
    axes.set_ylabel("beta", fontsize=9)
  if len(last) <= 20:
    names = [figures.shortened(runs[-1].class_name(k), 12) for k in range(len(last))]
    panels[-1].set_xticks(range(len(last)), names, rotation=45, ha="right")
  panels[-1].set_xlabel("class", fontsize=9)
  return fig


def last_beta(run):
  """The beta that a run had at last; [] of methods that have none."""
  return next((record["beta"] for record in reversed(run.metrics) if "beta" in record), [])
