"""What the user sees while something runs."""

import math
import re
import sys
import time

import tqdm
from tqdm.utils import disp_len


class Progress:
  """A progress bar on a terminal, plain lines elsewhere (at most one in `seconds_per_line`)."""

  def __init__(self, total, initial, unit, description, seconds_per_line=10.0, enabled=True):
    self._total, self._unit, self._description, self._first = total, unit, description, None
    self._start = self._last_line = time.monotonic()
    self._seconds_per_line, self._enabled = seconds_per_line, enabled
    self._bar = None
    if enabled and sys.stderr.isatty():
      self._bar = _Bar(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        dynamic_ncols=True,
        bar_format="{desc} {n}/{total} |{bar:12}|{postfix}  left {remaining}",
      )

  def update(self, done, text):
    """Shows that `done` of the total are done, with a text of current values."""
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(done - self._bar.n)
    now = time.monotonic()
    if self._first is None:  # compilation is no measure of what is left
      self._first, self._start = done, now
    is_due = done == self._total or now - self._last_line >= self._seconds_per_line
    if self._enabled and self._bar is None and is_due:
      self._last_line = now
      speed = (done - self._first) / max(now - self._start, 1e-9)
      left = (self._total - done) / speed if speed else (0 if done == self._total else math.inf)
      print(
        f"{self._description} {done}/{self._total} {self._unit}  {text}  "
        f"left {format_seconds(left)}",
        file=sys.stderr,
        flush=True,
      )

  def close(self):
    if self._bar is not None:
      self._bar.close()


class _Bar(tqdm.tqdm):
  """A bar never wider than the terminal: of its text, as many values as there is room for."""

  @property
  def format_dict(self):
    found = super().format_dict
    found["ncols"] = columns = found["ncols"] or 80  # no size is known of some terminals
    text = found["postfix"] or ""
    # Values end with two spaces or a comma; one that is cut would be read as another number.
    ends = [match.start() for match in re.finditer(r"  |, |$", text)]
    bare = super().format_meter(**found | {"ncols": None, "postfix": None})
    room = columns - disp_len(bare) - len(", ")
    found["postfix"] = text[: max((end for end in ends if disp_len(text[:end]) <= room), default=0)]
    return found


def format_seconds(seconds):
  """75 -> "1:15"; 3700 -> "1:01:40"."""
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
