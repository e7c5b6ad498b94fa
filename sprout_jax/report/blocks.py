"""The building blocks of a page. They are data; the templates draw and escape them."""

import dataclasses

# Kinds of cells: the best of its column; not significantly different from the best; without a test
# of the difference; measured with another attack or on other images than most; with a failed check;
# without a number.
BEST, SIMILAR, UNTESTED, OTHER = "best", "similar", "untested", "other"
FAILED, MISSING = "failed", "missing"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: the main text.
    detail: small text beside it.
    kinds: `BEST`, `SIMILAR`, ...
    pictures: PNG files, shown above the text.
    notes: sentences that the table shows below its rows.
  """

  text: str
  detail: str = ""
  kinds: tuple[str, ...] = ()
  pictures: tuple[bytes, ...] = ()
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
  """A table. The first cell of a row is its head. A row of one cell is a heading of all columns."""

  header: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  notes: tuple[str, ...] = ()
  test: str = ""  # the test of differences from the best, for the legend

  @property
  def kinds(self) -> set[str]:
    """The kinds of all cells, for the legend."""
    return {kind for row in self.rows for cell in row for kind in cell.kinds}


@dataclasses.dataclass(frozen=True)
class Figure:
  """A PNG file. The templates have its caption under its name."""

  name: str
  png: bytes


@dataclasses.dataclass(frozen=True)
class Text:
  """Sentences. Several sentences are shown as a list."""

  sentences: tuple[str, ...]
  title: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of the page that can be folded: its title, a few words beside it, its blocks."""

  title: str
  state: str
  blocks: tuple[Table | Figure | Text, ...]


def missing(reason: str = "-") -> Cell:
  """Makes the cell of a missing number."""
  return Cell(reason, "", (MISSING,))
