"""progress: plain lines without a terminal, a bar on one."""

import contextlib
import fcntl
import io
import os
import struct
import sys
import termios

import pytest

from sprout_jax import progress


@pytest.mark.parametrize(
  "seconds, text", [(0, "0:00"), (75, "1:15"), (3700, "1:01:40"), (float("inf"), "?")]
)
def test_format_seconds(seconds, text):
  assert progress.format_seconds(seconds) == text


def test_plain_lines_where_there_is_no_terminal(capsys):
  bar = progress.Progress(10, 0, "steps", "training", seconds_per_line=0)
  bar.update(5, "loss 1.0")
  bar.update(10, "loss 0.5")
  bar.close()
  lines = capsys.readouterr().err.splitlines()
  assert [line.split("  left")[0] for line in lines] == [
    "training 5/10 steps  loss 1.0",
    "training 10/10 steps  loss 0.5",
  ]


def test_a_bar_on_a_terminal(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  bar = progress.Progress(10, 2, "steps", "training")
  bar.update(10, "loss 0.5")
  bar.close()
  text = terminal.getvalue()
  assert "training 10/10 |" in text and "left 0:00" in text and "loss 0.5" in text and "\r" in text


def test_a_time_left_that_is_known_is_shown_on_lines_and_bars(monkeypatch, capsys):
  def show(done, left):
    line = progress.Progress(10, 0, "images", "apgd-t", seconds_per_line=0)
    line.update(done, "run 1 of 9", left)
    bar = progress._Bar(total=10, file=terminal, bar_format="left {left}")
    bar.seconds_left = left
    bar.update(done)
    shown = str(bar)
    bar.close()
    return capsys.readouterr().err.strip().rpartition("  ")[2], shown

  terminal = io.StringIO()
  assert show(9, 754.0) == ("left 12:34", "left 12:34")
  assert show(10, 0.0) == ("left 0:00", "left 0:00")
  assert show(10, 754.0) == ("left 12:34", "left 12:34")  # the attacks that follow


TEXT = "epoch 1.0  loss 1.2345  accuracy 0.9876  12,345 images/s"


@pytest.mark.parametrize(
  "columns, shown",
  [
    (140, TEXT),
    (80, "epoch 1.0  loss 1.2345"),  # what does not fit goes whole: a cut number would mislead
    (60, "epoch 1.0"),
    (40, None),
    (12, None),
  ],
)
def test_a_bar_is_never_wider_than_the_terminal(monkeypatch, columns, shown):
  terminal, end = os.openpty()
  fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
  with open(end, "w") as stderr:
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = progress.Progress(3900, 0, "steps", "training")
    bar.update(3900, TEXT)
    bar.close()
  written = b""
  with contextlib.suppress(OSError):  # the other end is closed: at the end of what was written
    while piece := os.read(terminal, 4096):
      written += piece
  os.close(terminal)
  frames = written.decode().replace("\n", "\r").split("\r")
  assert max(map(len, frames)) <= columns
  last = [frame for frame in frames if frame.strip()][-1].rstrip()
  if shown:
    assert f"|, {shown}  left 0" in last
  if columns >= 60:
    assert last.endswith(("left 0:00", "left ?"))


def test_other_processes_are_silent(capsys):
  bar = progress.Progress(10, 0, "steps", "training", seconds_per_line=0, enabled=False)
  bar.update(10, "loss 0.5")
  bar.close()
  assert capsys.readouterr().err == ""
