"""Docstrings are plain text: what reStructuredText would take for markup is shown as it stands.

Single backticks mark code. An indented block is a formula or an example, and keeps its lines.
"""

import re

SECTIONS = re.compile(r"(Args|Arguments|Attributes|Example|Examples|Raises|Returns|Yields):$")
MARKUP = re.compile(r"(?<!\\)[*|]|(?<=\w)_(?!\w)")


def to_markup(lines: list[str]) -> list[str]:
  """The lines of a docstring as reStructuredText with Google's sections."""
  found, in_block, in_section, last = [], False, False, ""
  for line in lines:
    if line and not line.startswith(" "):
      in_block, in_section = False, bool(SECTIONS.match(line))
    elif line and not in_section and not in_block and found and not found[-1]:
      if not last.endswith("::"):
        found += ["::", ""]
      in_block = True
    found.append(line if in_block else escape(line))
    last = line.strip() or last
  return found


def escape(line: str) -> str:
  """The line with stars, bars and trailing underscores outside backticks escaped."""
  if line.lstrip().startswith((">>>", "...")):
    return line
  argument = re.match(r"\s*\*{1,2}\w+:", line)  # Napoleon escapes these
  start = argument.end() if argument else 0
  parts = re.split(r"(`[^`]*`)", line[start:])
  shown = [part if part.startswith("`") else MARKUP.sub(r"\\\g<0>", part) for part in parts]
  return line[:start] + "".join(shown)


def connect(app) -> None:
  """Makes autodoc call `to_markup` before Napoleon reads the sections."""

  def process(app, what, name, obj, options, lines):
    lines[:] = to_markup(lines)

  app.connect("autodoc-process-docstring", process, priority=400)
