"""progress: plain lines without a terminal, a bar on one."""

import io
import sys

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
  assert "training 10/10 |" in text and "left 00:00" in text and "loss 0.5" in text and "\r" in text


def test_other_processes_are_silent(capsys):
  bar = progress.Progress(10, 0, "steps", "training", seconds_per_line=0, enabled=False)
  bar.update(10, "loss 0.5")
  bar.close()
  assert capsys.readouterr().err == ""
