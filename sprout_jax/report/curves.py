"""Curves of all runs in one plot: each function takes runs and returns a figure."""

import numpy as np

from sprout_jax.report import figures
from sprout_jax.report import wording


def robustness(runs):
  """Accuracy under attack against epsilon with 95 % intervals, AutoAttack as dashed diamonds."""
  fig, (axes,) = figures.lines(1, height=3.4, extra=figures.legend_height(len(runs) + 2))
  names, norms = set(), set()
  for run in runs:
    look = figures.style(run.number)
    for name, attacks in wording.families(run.results["attacks"]).items():
      attacks = sorted(attacks, key=lambda entry: entry["epsilon"])
      epsilon = [entry["epsilon"] for entry in attacks]
      accuracy = [100 * entry["accuracy"] for entry in attacks]
      is_ensemble = wording.is_ensemble(attacks[0])
      drawn = (
        {"marker": "D", "linestyle": "--", "markerfacecolor": "white", "markersize": 5}
        if (is_ensemble)
        else {"marker": look["marker"], "linestyle": "-", "markersize": 4}
      )
      axes.plot(epsilon, accuracy, color=look["color"], linewidth=1.2, **drawn)
      low, high = 100 * np.array([entry["interval"] for entry in attacks]).T
      axes.fill_between(epsilon, low, high, color=look["color"], alpha=0.15, linewidth=0)
      if len(epsilon) == 1:  # a single radius has no width to fill
        axes.vlines(epsilon, low, high, color=look["color"], alpha=0.6, linewidth=1)
      names.add((is_ensemble, name))
      norms.add(wording.NORMS[attacks[0]["norm"]])
  _label_ends(axes, runs)
  axes.set_xlabel(f"epsilon ({' or '.join(sorted(norms)) or 'no attack'}, pixels in [0, 1])")
  axes.set_ylabel("accuracy under attack (%)")
  axes.set_ylim(0, 100)
  axes.margins(x=0.06)
  handles = _handles(runs, linestyle="-") + [
    figures.handle(
      color="grey",
      marker="D" if is_ensemble else None,
      markerfacecolor="white",
      linestyle="--" if is_ensemble else "-",
    )
    for is_ensemble, _ in sorted(names)
  ]
  figures.legend(fig, handles, _names(runs) + [name for _, name in sorted(names)])
  return fig


def _label_ends(axes, runs):
  """The keys beside the last point of every PGD curve."""
  if len(runs) > 1:
    last = [
      (
        max(
          (e for e in run.results["attacks"] if not wording.is_ensemble(e)),
          key=lambda entry: entry["epsilon"],
          default=None,
        ),
        run,
      )
      for run in runs
    ]
    figures.end_labels(
      axes,
      [
        (entry["epsilon"], 100 * entry["accuracy"], run.key, figures.style(run.number)["color"])
        for entry, run in last
        if entry
      ],
    )


def invariance(runs):
  """Accuracy against strength, a panel for each transformation."""
  found = [(run, run.evaluations["invariance"]["transformations"]) for run in runs]
  names = list(dict.fromkeys(name for _, rows in found for name in rows))
  fig, panels = figures.lines(
    len(names), height=1.7, extra=figures.legend_height(len(runs)), sharey=True
  )
  for axes, name in zip(panels, names):
    rows = [
      (run, transformations[name]) for run, transformations in found if name in transformations
    ]
    for run, row in rows:
      axes.plot(
        [point["strength"] for point in row["points"]],
        [100 * point["accuracy"] for point in row["points"]],
        **_look(run),
      )
    axes.axvline(rows[0][1]["identity"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"{name.replace('_', ' ')} ({rows[0][1]['unit']})", fontsize=8.5)
    axes.set_ylim(0, 100)
  fig.supylabel("accuracy (%)", fontsize=9)
  figures.legend(fig, _handles(runs), _names(runs))
  return fig


def best_loss(runs):
  """The running best loss of an attack against its steps, a panel for each loss."""
  found = [(run, losses_over_steps(run)) for run in runs]
  names = list(dict.fromkeys(name for _, losses in found for name in losses))
  fig, panels = figures.lines(len(names), 1, 1.9, figures.legend_height(len(runs)))
  # Attacks on the cross-entropy follow a monotone function of it that never saturates.
  labels = {"cross_entropy": "log odds (nats)", "margin": "margin (logits)", "dlr": "dlr (no unit)"}
  for axes, name in zip(panels, names):
    for run, losses in found:
      if name in losses:
        values = np.array(losses[name], float)
        axes.plot(values, markevery=max(len(values) // 8, 1), **_look(run))
    axes.set_ylabel(labels[name], fontsize=9)
    axes.set_xlabel("steps of PGD", fontsize=9)
  fig.supylabel("running best loss, mean over images", fontsize=9)
  figures.legend(fig, _handles(runs), _names(runs))
  return fig


def losses_over_steps(run):
  """{loss: its running best over the steps}, without those that no image was there for."""
  return {
    name: losses for name, losses in run.evaluations["strength"]["best_loss"].items() if losses
  }


def certified(runs):
  """Certified accuracy against the L2 radius, with 95 % intervals."""
  fig, (axes,) = figures.lines(1, height=2.8, extra=figures.legend_height(len(runs)))
  for run in runs:
    curve, look = run.evaluations["smoothing"]["curve"], _look(run)
    radius = [point["radius"] for point in curve]
    axes.plot(
      radius,
      [100 * point["accuracy"] for point in curve],
      markevery=max(len(curve) // 8, 1),
      **look,
    )
    low, high = 100 * np.array([point["interval"] for point in curve]).T
    axes.fill_between(radius, low, high, color=look["color"], alpha=0.15, linewidth=0)
  axes.set_xlabel("L2 radius (pixels in [0, 1])")
  axes.set_ylabel("certified accuracy (%)")
  axes.set_ylim(0, 100)
  figures.legend(fig, _handles(runs), _names(runs))
  return fig


def training(runs):
  """Loss and accuracies while training, one above the other."""
  fig, panels = figures.lines(2, 1, 2.1, figures.legend_height(len(runs)), sharex=True)
  for run in runs:
    train, validation = steady(run.metrics), split(run.metrics, "validation")
    shown = validation or train
    for axes, records, key, factor in (
      (panels[0], train, "loss", 1),
      (panels[1], shown, "accuracy", 100),
    ):
      axes.plot(
        [record["epoch"] for record in records],
        [factor * record[key] for record in records],
        markevery=max(len(records) // 8, 1),
        **_look(run),
      )
  panels[0].set_ylabel("training loss (nats)", fontsize=9)
  panels[0].set_ylim(bottom=0)
  panels[1].set_ylabel("accuracy (%)", fontsize=9)
  panels[1].set_ylim(0, 100)
  panels[1].set_xlabel("epoch")
  figures.legend(fig, _handles(runs), _names(runs))
  return fig


def split(records, name):
  return [record for record in records if record["split"] == name]


def steady(records):
  """Training records without those of a few steps before a checkpoint, which are no average."""
  train = split(records, "train")
  longest = max((record["steps"] for record in train), default=0)
  return [record for record in train if 2 * record["steps"] >= longest]


def _look(run):
  return {**figures.style(run.number), "markersize": 3.5, "linewidth": 1.2}


def _handles(runs, **changes):
  return [figures.handle(**{**_look(run), **changes}) for run in runs]


def _names(runs):
  return [figures.shortened(run.name) for run in runs]
