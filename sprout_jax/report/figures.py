"""What all plots share: panels, one look per run, legends, heat maps.

Plots are 4.8 inches wide, so that their letters can be read on a phone. Colours are the Okabe-Ito
palette, which colour-blind readers can tell apart; runs also differ in marker and line, for prints
in grey.
"""

import io

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^vPXD<>*h"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
WIDTH, DPI = 4.8, 200  # inches, pixels per inch
MAP = "cividis"  # perceptually uniform, also for colour-blind readers


def panels(count, columns=2, height=2.0, extra=0.0, **options):
  """A figure with `count` panels (axes); `extra` is the height of its legend, in inches.

  pyplot is not used: it keeps global state, and is slow to import.
  """
  from matplotlib import figure  # slow to import

  columns = min(columns, count)
  rows = -(-count // columns)
  fig = figure.Figure(figsize=(WIDTH, rows * height + extra), layout="constrained", dpi=DPI)
  axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
  for unused in axes[count:]:
    unused.remove()
  for panel in axes[:count]:
    panel.tick_params(labelsize=8.5)
  return fig, axes[:count]


def lines(count=1, columns=2, height=2.0, extra=0.0, **options):
  """Panels with a grid, for curves."""
  fig, axes = panels(count, columns, height, extra, **options)
  for panel in axes:
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
  return fig, axes


def style(number):
  """How a run is drawn: colour, marker and line."""
  return {
    "color": COLOURS[number % len(COLOURS)],
    "marker": MARKERS[number % len(MARKERS)],
    "linestyle": LINES[number % len(LINES)],
  }


def shortened(text, length=24):
  """Text of a file as a plot takes it: cut, and without matplotlib's formulas."""
  return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def handle(**look):
  """An entry of a legend."""
  from matplotlib import lines as matplotlib_lines  # slow to import

  return matplotlib_lines.Line2D([], [], **look)


def legend(fig, handles, names):
  """The legend below all panels."""
  fig.legend(
    handles,
    names,
    loc="outside lower center",
    ncols=2,
    fontsize=9,
    frameon=False,
    handlelength=2.2,
    columnspacing=0.8,
  )


def legend_height(count):
  """Inches that a legend of `count` names takes."""
  return 0.2 * -(-count // 2) + 0.2


def end_labels(axes, ends):
  """Writes the runs' keys at the ends of their curves; keys that would overlap share one place.

  Args:
    axes: whose y axis goes from 0 to 100.
    ends: (x, y, key, colour).
  """
  groups = []
  for x, y, key, colour in sorted(ends, key=lambda end: end[:2]):
    if groups and groups[-1][0] == x and y - groups[-1][1] < 6:
      groups[-1][2].append(key)
    else:
      groups.append((x, y, [key], colour))
  for x, y, keys, colour in groups:
    axes.annotate(
      " ".join(sorted(keys)),
      (x, y),
      xytext=(6, 0),
      textcoords="offset points",
      fontsize=9,
      va="center",
      color=colour if len(keys) == 1 else "black",
      annotation_clip=False,
    )


def heat(axes, values, rows, columns, *, low, high, text="{:.0f}"):
  """A heat map with its numbers in the cells; NaN is a dash on white."""
  values = np.array(values, float)
  image = axes.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto")
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(length=0)
  for (row, column), value in np.ndenumerate(values):
    bright = not value < low + 0.5 * (high - low)  # NaN too
    axes.text(
      column,
      row,
      "–" if np.isnan(value) else text.format(value),
      ha="center",
      va="center",
      fontsize=8,
      color="black" if bright else "white",
    )
  return image


def png(fig):
  """The figure as the bytes of a PNG file."""
  stream = io.BytesIO()
  fig.savefig(stream, format="png")
  return stream.getvalue()


def enlarged(data, side=96):
  """A PNG with every pixel repeated until its shorter side has at least `side` pixels."""
  from matplotlib import image  # slow to import

  pixels = np.atleast_3d(image.imread(io.BytesIO(data), format="png"))
  factor = -(-side // min(pixels.shape[:2]))
  pixels = pixels.repeat(factor, 0).repeat(factor, 1)
  pixels = pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
  stream = io.BytesIO()
  image.imsave(stream, pixels, format="png")
  return stream.getvalue()
