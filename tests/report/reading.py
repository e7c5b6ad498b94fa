"""Reads a written page back: sections, tables, images and texts."""

import dataclasses
import html.parser

VOID = {"meta", "img", "br", "link", "input"}


@dataclasses.dataclass
class Page:
  """Sections are the titles of the page's foldable parts; what is above the first is in "" ."""

  titles: list = dataclasses.field(default_factory=list)
  opened: list = dataclasses.field(default_factory=list)  # titles of the sections that are open
  tables: list = dataclasses.field(default_factory=list)  # (section, rows of texts)
  classes: list = dataclasses.field(default_factory=list)  # as `tables`, of CSS classes
  images: list = dataclasses.field(default_factory=list)  # (section, source, alternative text)
  items: list = dataclasses.field(
    default_factory=list
  )  # (section, text of a list item or paragraph)
  tags: set = dataclasses.field(default_factory=set)
  attributes: set = dataclasses.field(default_factory=set)
  text: str = ""

  def table(self, section, number=0, cells="tables"):
    """{head of a row: cells} of a section's table, the header as the row "header"."""
    rows = [rows for title, rows in getattr(self, cells) if title == section][number]
    heads = [rows for title, rows in self.tables if title == section][number]
    return {("header" if k == 0 else heads[k][0]): row[1:] for k, row in enumerate(rows)}

  def said(self, section):
    """The texts of a section's list items and paragraphs."""
    return [text for title, text in self.items if title == section]


class _Parser(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.page, self.stack, self.section, self.is_open = Page(), [], "", False
    self.sinks = []  # lists whose last text grows

  def handle_starttag(self, tag, attributes):
    page, attributes = self.page, dict(attributes)
    page.tags.add(tag)
    page.attributes |= set(attributes)
    if tag not in VOID:
      self.stack.append(tag)
    if tag == "details":
      self.is_open = "open" in attributes
    elif tag == "h2":
      page.titles.append("")
      self.section = None
    elif tag == "img":
      page.images.append((self.section, attributes["src"], attributes["alt"]))
    elif tag == "table":
      page.tables.append((self.section, []))
      page.classes.append((self.section, []))
    elif tag == "tr":
      page.tables[-1][1].append([])
      page.classes[-1][1].append([])
    elif tag in ("td", "th"):
      page.tables[-1][1][-1].append("")
      page.classes[-1][1][-1].append(attributes.get("class", ""))
    elif tag in ("p", "li"):
      page.items.append((self.section, ""))
    elif tag in ("small", "sup"):
      self.handle_data(" ")

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag, f"{tag} closes another tag"
    if tag == "h2":
      self.section = self.page.titles[-1]
      self.page.opened += [self.section] if self.is_open else []

  def handle_data(self, data):
    page = self.page
    page.text += data
    if "h2" in self.stack:
      page.titles[-1] += data
    elif self.stack and {"td", "th"} & set(self.stack):
      row = page.tables[-1][1][-1]
      row[-1] = " ".join((row[-1] + data).split()) + " " * data.endswith(" ")
    elif {"p", "li"} & set(self.stack):
      section, text = page.items[-1]
      page.items[-1] = (section, text + data)


def read(text: str) -> Page:
  """Parses a page; an assertion fails where tags are not closed in their order."""
  parser = _Parser()
  parser.feed(text)
  parser.close()
  assert not parser.stack
  strip = lambda rows: [[cell.strip() for cell in row] for row in rows]
  parser.page.tables = [(title, strip(rows)) for title, rows in parser.page.tables]
  return parser.page
