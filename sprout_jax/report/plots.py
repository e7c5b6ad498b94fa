"""The plots of one run, as PNG files in its folder."""

import numpy as np

from sprout_jax.report import curves
from sprout_jax.report import figures


def save(fig, path):
  path.write_bytes(figures.png(fig))
  return path


def training(records, folder):
  """Training curves, and one curve per entry of what the method learned (SPROUT: beta).

  Args:
    records: of metrics.jsonl.
    folder: where the PNGs go.

  Returns:
    The paths that were written.
  """
  train, validation = curves.steady(records), curves.split(records, "validation")
  written = [save(_progress(train, validation), folder / "training.png")]
  if train and "beta" in train[-1]:
    written.append(save(_beta(train), folder / "beta.png"))
  return written


def _progress(train, validation):
  fig, (axes,) = figures.lines(1, height=3.4)
  axes.plot([r["epoch"] for r in train], [r["loss"] for r in train], color=figures.COLOURS[0])
  axes.set_xlabel("epoch")
  axes.set_ylabel("training loss (nats)", color=figures.COLOURS[0])
  axes.set_ylim(bottom=0)
  right = axes.twinx()
  right.plot(
    [r["epoch"] for r in train],
    [100 * r["accuracy"] for r in train],
    color=figures.COLOURS[1],
    alpha=0.5,
    label="training, on the vicinity",
  )
  if validation:
    right.plot(
      [r["epoch"] for r in validation],
      [100 * r["accuracy"] for r in validation],
      ".-",
      color=figures.COLOURS[1],
      label="validation",
    )
    if "robust_accuracy" in validation[-1]:
      right.plot(
        [r["epoch"] for r in validation],
        [100 * r["robust_accuracy"] for r in validation],
        ".--",
        color=figures.COLOURS[2],
        label="validation, under PGD",
      )
  right.set_ylabel("accuracy (%)", color=figures.COLOURS[1])
  right.set_ylim(0, 100)
  fig.legend(fontsize=8, loc="outside upper right", ncols=2)
  return fig


def _beta(train):
  fig, (axes,) = figures.lines(1, height=3.4)
  beta = np.array([record["beta"] for record in train])
  for label in range(beta.shape[1]):
    axes.plot(
      [r["epoch"] for r in train],
      beta[:, label],
      linewidth=1,
      label=str(label),
      color=figures.COLOURS[label % 7],
      linestyle=("-", "--", ":")[label // 7 % 3],
    )
  axes.set_xlabel("epoch")
  axes.set_ylabel("beta (concentration per class)")
  if beta.shape[1] <= 20:
    fig.legend(fontsize=7, title="class", loc="outside right upper")
  return fig
