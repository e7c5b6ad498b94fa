"""Figures of runs: curves and maps of stored numbers and details.

Each function takes runs and returns a `blocks.Figure`, or None where there is nothing to draw.
Figures are 4.8 inches wide, so that their text is readable on a phone. The colours are the
Okabe-Ito palette, which colour-blind readers can distinguish. Runs also differ in marker and line
style.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from sprout_jax.report import blocks
from sprout_jax.report import headline
from sprout_jax.report import wording
from sprout_jax.report.runs import Run
from sprout_jax.results import Number

Look = dict[str, Any]  # keyword arguments of matplotlib's lines
# Look, x, y, and the 95 % bounds of y.
Curve = tuple[Look, Sequence[float], Sequence[float | None], Sequence[tuple[float, float]] | None]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, LINES = "os^vPXD<>*h", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
WIDTH, DPI = 4.8, 170  # inches, pixels per inch
MOST_PANELS, LEAST_IN_BIN = 21, 10
LOSS_AXES = {"cross_entropy": "log odds (nats)", "margin": "margin (logits)", "dlr": "DLR loss"}
LARGEST_SIDE, SIDE = 4096, 96  # pixels: the largest picture that is read, the largest shown


@contextlib.contextmanager
def _matplotlib() -> Iterator[None]:
  """Sets matplotlib to its default settings, whatever style and backend the user has.

  pyplot is not used, because it has global state and needs the backend that MPLBACKEND names. A
  command inherits MPLBACKEND from a notebook. If that backend is not installed, the import of
  matplotlib fails.
  """
  inherited = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
  import matplotlib

  if inherited is not None:
    os.environ["MPLBACKEND"] = inherited
    with contextlib.suppress(ValueError):  # it is not installed
      matplotlib.rcParams["backend"] = inherited
  with matplotlib.rc_context(), warnings.catch_warnings():
    matplotlib.rcdefaults()
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in another script
    yield


def _drawn(draw: Callable[[list[Run]], Any]) -> Callable[[list[Run]], blocks.Figure | None]:
  """Makes a function that returns a matplotlib figure or None return a `blocks.Figure` or None."""
  name = getattr(draw, "__name__", "")

  @functools.wraps(draw)
  def as_png(runs: list[Run]) -> blocks.Figure | None:
    with _matplotlib():
      from matplotlib.backends.backend_agg import FigureCanvasAgg

      made, stream = draw(runs), io.BytesIO()
      if made is not None:
        FigureCanvasAgg(made).print_png(stream)
    return None if made is None else blocks.Figure(name, stream.getvalue())

  return as_png


def _panels(
  count: int, columns: int = 2, height: float = 2.0, extra: float = 0.0, **options: Any
) -> tuple[Any, Any]:
  """Makes a figure with `count` panels (axes); `extra` is the height of its legend, in inches."""
  from matplotlib.figure import Figure

  columns = min(columns, count)
  rows = -(-count // columns)
  fig = Figure(figsize=(WIDTH, rows * height + extra), layout="constrained", dpi=DPI)
  axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
  for unused in axes[count:]:
    unused.remove()
  for panel in axes[:count]:
    panel.tick_params(labelsize=8.5)
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
  return fig, axes[:count]


def _curves(
  panels: Sequence[tuple[str, str, bool, Sequence[Curve]]],
  runs: Sequence[Run],
  *,
  columns: int = 2,
  height: float = 2.0,
  up: str = "",
  others: Sequence[tuple[Look, str]] = (),
) -> Any:
  """Draws panels of curves, with a legend below them.

  Args:
    panels: (label of the x axis, label of the y axis, whether y is a share, curves) each.
    runs: the runs in the legend.
    columns: panels side by side.
    height: height of a panel, in inches.
    up: the common label of all y axes.
    others: further entries of the legend, (look, name) each.
  """
  from matplotlib.lines import Line2D

  entries = [*((_look(run), _text(run.name)) for run in runs), *others]
  fig, axes = _panels(len(panels), columns, height, 0.2 * -(-len(entries) // 2) + 0.2)
  for panel, (x_name, y_name, is_share, curves) in zip(axes, panels):
    factor = 100 if is_share else 1
    for look, x, y, bounds in curves:
      panel.plot(x, factor * np.array(y, float), markevery=max(len(x) // 8, 1), **look)
      low, high = factor * np.array(bounds or [], float).reshape(-1, 2).T
      if len(low) == 1:  # a single point has no width to fill
        panel.vlines(x, low, high, color=look["color"], alpha=0.6, linewidth=1)
      elif len(low):
        panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    panel.set_xlabel(x_name, fontsize=8.5)
    panel.set_ylabel(y_name, fontsize=8.5)
    if is_share:
      panel.set_ylim(0, 100)
  fig.supylabel(up, fontsize=9)
  handles = [Line2D([], [], **look) for look, _ in entries]
  look = {"fontsize": 8.5, "frameon": False, "columnspacing": 0.8, "handlelength": 2.2, "ncols": 2}
  fig.legend(handles, [name for _, name in entries], loc="outside lower center", **look)
  return fig


def _look(run: Run, **changes: Any) -> Look:
  colour, marker = COLOURS[run.place % len(COLOURS)], MARKERS[run.place % len(MARKERS)]
  line = LINES[run.place % len(LINES)]
  look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 3.5, "linewidth": 1.2}
  return {**look, **changes}


def _text(text: str, length: int = 26) -> str:
  """Returns a text from a file in a form for figures: cut, and without matplotlib's formulas."""
  return wording.clean(text, length).replace("$", r"\$")


def _along(look: Look, numbers: Iterable[Number], key: str) -> Curve:
  """Returns the curve of accuracies against a key."""
  points = sorted((n for n in numbers if n.value is not None), key=lambda n: n[key])
  bounds = [n.interval or (n.defined, n.defined) for n in points]
  return look, [n[key] for n in points], [n.value for n in points], bounds


@_drawn
def robustness(runs: list[Run]) -> Any:
  """Draws the accuracy under PGD and AutoAttack against epsilon, or the clean accuracy at 0."""
  norm, _ = headline.threat(runs)
  diamond = {"marker": "D", "markerfacecolor": "white", "markersize": 5, "linestyle": "--"}
  curves: list[Curve] = []
  kinds: dict[str, Look] = {}
  for run in runs:
    weak = run.of("pgd", metric="accuracy", norm=norm)
    attacked = run.of("auto_attack", metric="accuracy", stage=None, norm=norm)
    strong = [n for n in attacked if n["version"] in headline.ENSEMBLES]
    clean = dataclasses.replace(run.results.clean, keys={"epsilon": 0.0})
    curves.append(_along(_look(run, linestyle="-"), weak if len(weak) else [clean], "epsilon"))
    kinds |= {"PGD": {"color": "grey"}} if len(weak) else {}
    if strong:
      curves.append(_along(_look(run, **diamond), strong, "epsilon"))
      kinds["AutoAttack"] = {"color": "grey", **diamond}
  named = wording.NORMS.get(norm, norm) if norm else "no attack"
  across = f"epsilon ({_text(named)}, pixels in [0, 1])"
  panel, others = (across, "accuracy (%)", True, curves), [(kinds[kind], kind) for kind in kinds]
  return _curves([panel], runs, height=3.2, others=others)


@_drawn
def best_loss(runs: list[Run]) -> Any:
  """Draws the running best loss of PGD against its steps, one panel per loss."""
  found = {run: run.detail("strength", "best_loss") or {} for run in runs}
  names = list(dict.fromkeys(name for rows in found.values() for name in rows if rows[name]))
  panels = []
  for name in names[:MOST_PANELS]:
    losses = {run: rows[name] for run, rows in found.items() if rows.get(name)}
    curves: list[Curve] = [(_look(run), range(len(y)), y, None) for run, y in losses.items()]
    panels.append(("steps of PGD", LOSS_AXES.get(name, _text(name)), False, curves))
  return _curves(panels, runs, columns=1, height=1.7) if panels else None


def _multiples(
  runs: list[Run], evaluation: str, panel: str, axis: str, units: Mapping[str, str]
) -> Any:
  """Draws the accuracy against one key, one panel per value of another."""
  found = {run: run.of(evaluation, metric="accuracy") for run in runs}
  found, panels = {run: numbers for run, numbers in found.items() if len(numbers)}, []
  names = list(dict.fromkeys(name for numbers in found.values() for name in numbers.values(panel)))
  for name in names[:MOST_PANELS]:
    mine = {run: numbers.where(**{panel: name}) for run, numbers in found.items()}
    curves = [_along(_look(run), numbers, axis) for run, numbers in mine.items() if len(numbers)]
    unit = f"\n({_text(units[name])})" if name in units else ""
    panels.append((f"{_text(wording.name(name))}{unit}", "", True, curves))
  return _curves(panels, list(found), columns=3, height=1.4, up="accuracy (%)") if panels else None


@_drawn
def invariance(runs: list[Run]) -> Any:
  """Draws the accuracy against the strength, one panel per transformation."""
  rows = (run.detail("invariance", "transformations") or {} for run in runs)
  units = {name: row["unit"] for found in rows for name, row in found.items()}
  return _multiples(runs, "invariance", "transformation", "strength", units)


@_drawn
def corruptions(runs: list[Run]) -> Any:
  """Draws the accuracy against the severity, one panel per corruption."""
  return _multiples(runs, "corruptions", "corruption", "severity", {})


@_drawn
def certified(runs: list[Run]) -> Any:
  """Draws the certified accuracy against the L2 radius."""
  found = {run: run.of("smoothing", metric="certified_accuracy") for run in runs}
  curves = [_along(_look(run), numbers, "radius") for run, numbers in found.items() if len(numbers)]
  panel = ("L2 radius (pixels in [0, 1])", "certified accuracy (%)", True, curves)
  return _curves([panel], [run for run in runs if len(found[run])], height=2.8) if curves else None


@_drawn
def reliability(runs: list[Run]) -> Any:
  """Draws the accuracy against the confidence, for bins of at least `LEAST_IN_BIN` images."""
  grey: Look = {"color": "grey", "linestyle": ":"}
  curves: list[Curve] = []
  measured: list[Run] = []
  for run in runs:
    bins = [b for b in run.detail("calibration", "bins") or () if b["count"] >= LEAST_IN_BIN]
    if bins:
      x, y = [100 * one["confidence"] for one in bins], [one["accuracy"] for one in bins]
      curves.append((_look(run), x, y, None))
      measured.append(run)
  curves.append((grey, [0, 100], [0, 1], None))
  panel = ("mean confidence of a bin (%)", "accuracy of its images (%)", True, curves)
  return _curves([panel], measured, height=2.8, others=[(grey, "calibrated")]) if measured else None


@_drawn
def landscapes(runs: list[Run]) -> Any:
  """Draws the loss around images, one panel per run, on one colour scale."""
  found = {run: np.array(loss, float) for run in runs if (loss := run.detail("landscape", "loss"))}
  found = {run: loss for run, loss in found.items() if np.isfinite(loss).any()}
  if not found:
    return None
  low, high = min(map(np.nanmin, found.values())), max(map(np.nanmax, found.values()))
  high = high if high > low else low + 1
  fig, panels = _panels(len(found), 2, 2.2, 0.5)
  for axes, (run, loss) in zip(panels, found.items()):
    x, y = run.detail("landscape", "sign_gradient"), run.detail("landscape", "rademacher")
    look = {"cmap": "cividis", "vmin": low, "vmax": high, "shading": "nearest", "rasterized": True}
    axes.grid(False)
    drawn = axes.pcolormesh(x, y, loss.T, **look)
    span = f"{np.nanmin(loss):.2f} to {np.nanmax(loss):.2f} nats"
    axes.set_title(f"{_text(run.name)}\n{span}", fontsize=8)
  fig.supxlabel("along the sign of the input gradient (pixels)", fontsize=8.5)
  fig.supylabel("along random signs (pixels)", fontsize=8.5)
  bar = fig.colorbar(drawn, ax=list(panels), location="top", shrink=0.8, aspect=40)
  bar.set_label("cross-entropy (nats)", fontsize=8.5)
  return fig


@_drawn
def training(runs: list[Run]) -> Any:
  """Draws the training loss, and below it the accuracies during training."""
  losses: list[Curve] = []
  accuracies: list[Curve] = []
  trained: list[Run] = []
  for run in runs:
    train = [record for record in _split(run, "train") if "loss" in record]
    longest = max((record.get("steps", 1) for record in train), default=0)
    train = [r for r in train if 2 * r.get("steps", 1) >= longest]  # means of few steps are noisy
    validation = _split(run, "validation")
    if train:
      trained.append(run)
      losses.append(_over_epochs(_look(run), train, "loss"))
      accuracies.append(_over_epochs(_look(run), validation or train, "accuracy"))
      accuracies.append(_over_epochs(_look(run, linestyle=":"), validation, "robust_accuracy"))
  if not trained:
    return None
  lower = ("epoch", "accuracy (%)", True, accuracies)
  panels = [("epoch", "training loss (nats)", False, losses), lower]
  return _curves(panels, trained, columns=1, height=1.8)


def _split(run: Run, name: str) -> list[Mapping[str, Any]]:
  return [record for record in run.results.metrics if record.get("split") == name]


def _over_epochs(look: Look, records: Iterable[Mapping[str, Any]], key: str) -> Curve:
  records = [record for record in records if key in record]
  return look, [record["epoch"] for record in records], [record[key] for record in records], None


@_drawn
def beta(runs: list[Run]) -> Any:
  """Draws SPROUT's beta over the epochs, one panel per run and one curve per class."""
  panels: list[tuple[str, str, bool, list[Curve]]] = []
  looks: dict[str, Look] = {}
  for run in runs:
    records = [record for record in _split(run, "train") if record.get("beta")]
    epochs = [record["epoch"] for record in records]
    curves: list[Curve] = []
    for label in range(len(records[-1]["beta"]) if records else 0):
      line = ("-", "--", ":")[label // 7 % 3]
      look = {"color": COLOURS[label % 7], "linestyle": line, "linewidth": 1}
      looks[class_name(run, label)] = look
      curves.append((look, epochs, [record["beta"][label] for record in records], None))
    panels += [(_text(run.name), "", False, curves)] if curves else []
  classes = [(look, _text(name)) for name, look in looks.items()] if len(looks) <= 20 else []
  return _curves(panels, [], up="beta by epoch", others=classes) if panels else None


def class_name(run: Run, label: int) -> str:
  """Returns the name of a class."""
  names = run.about("data").get("class_names") or []
  return wording.clean(names[label] if 0 <= label < len(names) else f"class {label}", 40)


def picture(data: bytes) -> bytes:
  """Decodes a PNG, shrinks it to at most `SIDE` pixels per side, and encodes it again.

  Raises:
    ValueError: the data are not a PNG, or a side has more than `LARGEST_SIDE` pixels.
  """
  from PIL import Image

  sides = [int.from_bytes(data[start : start + 4]) for start in (16, 20)]
  if data[:8] != b"\x89PNG\r\n\x1a\n" or max(sides) > LARGEST_SIDE:
    raise ValueError(f"a picture is not a PNG of at most {LARGEST_SIDE} pixels per side")
  stream = io.BytesIO()
  try:
    shown = Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")
  except (OSError, SyntaxError) as error:  # Pillow raises these for damaged files
    raise ValueError(f"a picture is a damaged PNG ({error})") from error
  shown.thumbnail((SIDE, SIDE))
  shown.save(stream, "PNG")
  return stream.getvalue()
