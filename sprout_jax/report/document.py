"""What a report says, before it is HTML or Markdown.

A document is sections of blocks; all text in it is plain, the writers (`page`, `markdown`) escape it.
"""

import dataclasses

from sprout_jax.report import wording


@dataclasses.dataclass(frozen=True)
class Paragraph:
  text: str


@dataclasses.dataclass(frozen=True)
class Caution:
  """What a reader must know before anything else."""

  text: str


@dataclasses.dataclass(frozen=True)
class Cell:
  """A table's cell: its text, what stands below it in small print, and the marks of footnotes."""

  text: str
  detail: str = ""
  marks: tuple = ()


@dataclasses.dataclass(frozen=True)
class Row:
  """A head and a cell for each of the other columns."""

  head: Cell
  cells: tuple


@dataclasses.dataclass(frozen=True)
class Group:
  """A line across the table, about the rows below it."""

  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  """`header` has one cell per column, `lines` are rows and groups, `notes` are (mark, text)."""

  caption: str
  header: tuple
  lines: tuple
  notes: tuple = ()


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG, the name of its file without ending, and what it shows in words."""

  name: str
  png: bytes
  alt: str


@dataclasses.dataclass(frozen=True)
class Figure:
  picture: Picture
  caption: str


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Small pictures side by side: `items` are (pictures, text below them)."""

  caption: str
  items: tuple


@dataclasses.dataclass(frozen=True)
class Section:
  title: str
  blocks: tuple

  @property
  def anchor(self):
    return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclasses.dataclass(frozen=True)
class Document:
  title: str
  lead: tuple
  sections: tuple

  def pictures(self):
    """All pictures, in order."""
    for section in self.sections:
      for block in section.blocks:
        if isinstance(block, Figure):
          yield block.picture
        elif isinstance(block, Gallery):
          for pictures, _ in block.items:
            yield from pictures


class Footnotes:
  """The notes of one table: a, b, c, ...; the same text has the same mark."""

  def __init__(self):
    self._marks = {}

  def mark(self, text):
    return self._marks.setdefault(text, wording.letters(len(self._marks), "a"))

  def notes(self):
    return tuple((mark, text) for text, mark in self._marks.items())
