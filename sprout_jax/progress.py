"""Progress bars and lines for the terminal."""

import math
import re
import sys
import time
from typing import Any

import tqdm
from tqdm.utils import disp_len


class Progress:
  """A progress bar on a terminal; elsewhere lines, at most one per `seconds_per_line`.

  Args:
    total: the amount of work.
    initial: the amount that is done already.
    unit: the unit of work, for lines.
    description: the name of the work.
    seconds_per_line: the shortest time between two lines.
    enabled: whether to show anything.
  """

  def __init__(
    self,
    total: float,
    initial: float,
    unit: str,
    description: str,
    seconds_per_line: float = 10.0,
    enabled: bool = True,
  ) -> None:
    self._total, self._unit, self._description = total, unit, description
    self._first: float | None = None
    self._start = self._last_line = time.monotonic()
    self._seconds_per_line, self._enabled = seconds_per_line, enabled
    self._bar: _Bar | None = None
    if enabled and sys.stderr.isatty():
      self._bar = _Bar(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        dynamic_ncols=True,
        bar_format="{desc} {n}/{total} |{bar:12}|{postfix}  left {left}",
      )

  def update(self, done: float, text: str, seconds_left: float | None = None) -> None:
    """Shows the amount of work done.

    Args:
      done: the amount.
      text: current values.
      seconds_left: the time left; if None, it is estimated from the speed so far.
    """
    if self._bar is not None:
      self._bar.seconds_left = seconds_left
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(done - self._bar.n)
    now = time.monotonic()
    if self._first is None:  # the time of compilation says nothing about the rest
      self._first, self._start = done, now
    is_due = done == self._total or now - self._last_line >= self._seconds_per_line
    if self._enabled and self._bar is None and is_due:
      self._last_line = now
      speed = (done - self._first) / max(now - self._start, 1e-9)
      left = (self._total - done) / speed if speed else (0 if done == self._total else math.inf)
      left = left if seconds_left is None else seconds_left
      print(
        f"{self._description} {done}/{self._total} {self._unit}  {text}  "
        f"left {format_seconds(left)}",
        file=sys.stderr,
        flush=True,
      )

  def close(self) -> None:
    """Closes the bar."""
    if self._bar is not None:
      self._bar.close()


class _Bar(tqdm.tqdm):
  """A bar that fits the terminal: it shows as many values of its text as there is room for.

  Attributes:
    seconds_left: the time left; None where tqdm estimates it.
  """

  seconds_left: float | None = None

  @property
  def format_dict(self) -> dict[str, Any]:
    found = super().format_dict
    left = self.seconds_left
    if left is None:
      rate = found["rate"] or (found["n"] - found["initial"]) / max(found["elapsed"], 1e-9)
      undone = found["total"] - found["n"]
      left = undone / rate if rate else (math.inf if undone else 0)
    found["left"] = format_seconds(left)
    found["ncols"] = columns = found["ncols"] or 80  # the width of some terminals is unknown
    text = found["postfix"] or ""
    # Values end with two spaces or a comma. A value must not be cut: it would look like another.
    ends = [match.start() for match in re.finditer(r"  |, |$", text)]
    bare = super().format_meter(**found | {"ncols": None, "postfix": None})
    room = columns - disp_len(bare) - len(", ")
    found["postfix"] = text[: max((end for end in ends if disp_len(text[:end]) <= room), default=0)]
    return found


def format_seconds(seconds: float) -> str:
  """Formats a time: 75 as "1:15", 3700 as "1:01:40", infinity as "?"."""
  if not math.isfinite(seconds):
    return "?"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
