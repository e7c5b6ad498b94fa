"""What a page is made of. Data only: the templates draw it, and escape all of it."""

import dataclasses

# What a cell can be: the best of its column, without a visible difference from the best, measured
# in another way or on other images than most, beside a failed check, not there.
BEST, SIMILAR, OTHER, FAILED, MISSING = "best", "similar", "other", "failed", "missing"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A text, small text below it, words of what it is, pictures (PNG) above it, notes about it."""

  text: str
  detail: str = ""
  kinds: tuple[str, ...] = ()
  pictures: tuple[bytes, ...] = ()
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells, the first of them the head; a row of one cell is a heading over all columns."""

  header: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  notes: tuple[str, ...] = ()

  @property
  def kinds(self) -> set[str]:
    """What its cells are, for the legend."""
    return {kind for row in self.rows for cell in row for kind in cell.kinds}


@dataclasses.dataclass(frozen=True)
class Figure:
  """A PNG; the templates have its caption by its name."""

  name: str
  png: bytes


@dataclasses.dataclass(frozen=True)
class Text:
  """Sentences, a list where they are several."""

  sentences: tuple[str, ...]
  title: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page that folds: its title, a few words beside it, its blocks."""

  title: str
  state: str
  blocks: tuple[Table | Figure | Text, ...]


def missing(reason: str = "-") -> Cell:
  """The cell of what is not there."""
  return Cell(reason, "", (MISSING,))
