"""A document as Markdown, with its pictures as files beside it."""

import html
import re

from sprout_jax.report.document import Caution
from sprout_jax.report.document import Figure
from sprout_jax.report.document import Gallery
from sprout_jax.report.document import Group
from sprout_jax.report.document import Paragraph
from sprout_jax.report.document import Table


def render(document, folder):
  """The text; pictures are at `folder`/NAME.png, seen from its file."""
  parts = [f"# {_text(document.title)}", *(_block(block, folder) for block in document.lead)]
  for section in document.sections:
    parts += [f"## {_text(section.title)}", *(_block(block, folder) for block in section.blocks)]
  return "\n\n".join(parts) + "\n"


def _text(text):
  """Plain text with everything escaped that Markdown or HTML would take for its own."""
  return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _block(block, folder):
  match block:
    case Caution():
      return f"> **{_text(block.text)}**"
    case Paragraph():
      return _text(block.text)
    case Figure():
      return f"{_image(block.picture, folder)}\n\n{_text(block.caption)}"
    case Gallery():
      return "\n\n".join(
        [
          _text(block.caption),
          *(
            " ".join(_image(picture, folder) for picture in pictures) + f"\n\n{_text(text)}"
            for pictures, text in block.items
          ),
        ]
      )
    case Table():
      return _table(block)
  raise TypeError(f"Markdown has no {type(block).__name__}")


def _image(picture, folder):
  return f"![{_text(picture.alt)}]({folder}/{picture.name}.png)"


def _table(table):
  lines = [_row(map(_cell, table.header)), _row(["---"] * len(table.header))]
  for line in table.lines:
    if isinstance(line, Group):
      lines.append(_row([f"**{_text(line.text)}**"] + [""] * (len(table.header) - 1)))
    else:
      lines.append(_row(map(_cell, (line.head, *line.cells))))
  notes = "\n".join(
    f"- {f'<sup>{mark}</sup> ' if mark else ''}{_text(text)}" for mark, text in table.notes
  )
  return "\n\n".join(filter(None, [_text(table.caption), "\n".join(lines), notes]))


def _row(cells):
  return f"| {' | '.join(cells)} |"


def _cell(cell):
  marks = "".join(f"<sup>{mark}</sup>" for mark in cell.marks)
  return " ".join(filter(None, [_text(cell.text) + marks, _text(cell.detail)]))
