"""Plots as PNG files, from result files. Colours are the Okabe-Ito palette, which colour-blind
readers can tell apart."""

import matplotlib
import numpy as np

from sprout_jax.records import read_metrics
from sprout_jax.report import tables

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def _figure():
  """A figure without pyplot's global state, and its axes; matplotlib is slow to import."""
  matplotlib.use("Agg")
  from matplotlib import figure
  fig = figure.Figure(figsize=(6.4, 4.0), layout="constrained", dpi=150)
  axes = fig.add_subplot()
  axes.grid(alpha=0.3)
  return fig, axes


def _save(fig, path):
  fig.savefig(path)
  return path


def robustness(results, path):
  """Accuracy under attack against epsilon, with 95 % intervals; one curve per run.

  Args:
    results: {label: content of results.json}.
    path: the PNG to write.
  """
  fig, axes = _figure()
  names = set()
  for number, (label, found) in enumerate(results.items()):
    colour = COLOURS[number % len(COLOURS)]
    for name, attacks in tables.families(found["attacks"]).items():
      epsilon = [entry["epsilon"] for entry in attacks]
      low, high = 100 * np.array([entry["interval"] for entry in attacks]).T
      is_ensemble = "per_attack" in attacks[0]
      axes.plot(epsilon, [100 * entry["accuracy"] for entry in attacks],
                "D--" if is_ensemble else "o-", markersize=5 if is_ensemble else 3, color=colour,
                label=f"{label}, {name}" if is_ensemble else label)
      axes.fill_between(epsilon, low, high, color=colour, alpha=0.2, linewidth=0)
      names.add(f"{name} {tables.NORMS[attacks[0]['norm']]}")
  axes.set_xlabel("epsilon (pixels in [0, 1])")
  axes.set_ylabel(f"accuracy under {' / '.join(sorted(names)) or 'attack'} (%)")
  axes.set_ylim(0, 100)
  if names:
    axes.legend(fontsize="small")
  return _save(fig, path)


def training(workdir, folder):
  """Training curves, and one curve per entry of what the method learned (SPROUT: beta).

  Args:
    workdir: a run's folder, with metrics.jsonl.
    folder: where the PNGs go.

  Returns:
    The paths that were written.
  """
  records = read_metrics(workdir)
  train = [record for record in records if record["split"] == "train"]
  # A record of a few steps before a checkpoint is no average to plot.
  longest = max((record["steps"] for record in train), default=0)
  train = [record for record in train if 2 * record["steps"] >= longest]
  validation = [record for record in records if record["split"] == "validation"]
  fig, axes = _figure()
  axes.plot([r["epoch"] for r in train], [r["loss"] for r in train], color=COLOURS[0])
  axes.set_xlabel("epoch")
  axes.set_ylabel("training loss (nats)", color=COLOURS[0])
  axes.set_ylim(bottom=0)
  right = axes.twinx()
  right.plot([r["epoch"] for r in train], [100 * r["accuracy"] for r in train], color=COLOURS[1],
             alpha=0.5, label="training, on the vicinity")
  if validation:
    right.plot([r["epoch"] for r in validation], [100 * r["accuracy"] for r in validation], ".-",
               color=COLOURS[1], label="validation")
    if "robust_accuracy" in validation[-1]:
      right.plot([r["epoch"] for r in validation], [100 * r["robust_accuracy"] for r in validation],
                 ".--", color=COLOURS[2], label="validation, under PGD")
  right.set_ylabel("accuracy (%)", color=COLOURS[1])
  right.set_ylim(0, 100)
  fig.legend(fontsize="small", loc="outside upper right", ncols=2)
  written = [_save(fig, folder / "training.png")]
  if train and "beta" in train[-1]:
    fig, axes = _figure()
    beta = np.array([record["beta"] for record in train])
    few = beta.shape[1] <= 20
    for label in range(beta.shape[1]):
      axes.plot([r["epoch"] for r in train], beta[:, label], linewidth=1, label=str(label),
                color=COLOURS[label % 7], linestyle=("-", "--", ":")[label // 7 % 3])
    axes.set_xlabel("epoch")
    axes.set_ylabel("beta (concentration per class)")
    if few:
      fig.legend(fontsize="x-small", title="class", loc="outside right upper")
    written.append(_save(fig, folder / "beta.png"))
  return written
