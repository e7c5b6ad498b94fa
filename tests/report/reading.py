"""Reads a written report back: sections, tables, images and links of the page and of the Markdown."""

import dataclasses
import html
import html.parser
import re


@dataclasses.dataclass
class Report:
  titles: list = dataclasses.field(default_factory=list)
  tables: list = dataclasses.field(default_factory=list)  # of rows of texts
  images: list = dataclasses.field(default_factory=list)  # (source, alternative text)
  links: list = dataclasses.field(default_factory=list)
  ids: list = dataclasses.field(default_factory=list)
  tags: set = dataclasses.field(default_factory=set)
  text: str = ""

  def table(self, title, number=0):
    """{head of a row: cells} of a section's table, the header as the row "header"."""
    rows = [table for section, table in self.tables if section == title][number]
    return {"header": rows[0][1:]} | {row[0]: row[1:] for row in rows[1:]}


class _Parser(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.report, self._title, self._cell = Report(), None, None

  def handle_starttag(self, tag, attributes):
    found, attributes = self.report, dict(attributes)
    found.tags.add(tag)
    if "id" in attributes:
      found.ids.append(attributes["id"])
    if tag == "h2":
      found.titles.append("")
    elif tag == "img":
      found.images.append((attributes["src"], attributes["alt"]))
    elif tag == "a":
      found.links.append(attributes["href"])
    elif tag == "table":
      found.tables.append((found.titles[-1], []))
    elif tag == "tr":
      found.tables[-1][1].append([])
    elif tag in ("td", "th"):
      found.tables[-1][1][-1].append("")
      self._cell = True
    elif tag == "small":
      self.handle_data(" ")
    self._title = tag == "h2"

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self._cell = None
    if tag == "h2":
      self._title = False

  def handle_data(self, data):
    found = self.report
    found.text += data
    if self._title:
      found.titles[-1] += data
    if self._cell:
      found.tables[-1][1][-1][-1] += data


def page(text):
  parser = _Parser()
  parser.feed(text)
  return parser.report


def markdown(text):
  found = Report()
  in_table = False
  for line in text.splitlines():
    if line.startswith("## "):
      found.titles.append(_plain(line[3:]))
    found.images += re.findall(r"!\[.*?\]\((\S+?)\)", line)
    if line.startswith("|"):
      if not in_table:
        found.tables.append((found.titles[-1], []))
      if not line.startswith("| --- "):
        found.tables[-1][1].append(
          [_plain(cell) for cell in re.split(r" (?<!\\)\| ", f" {line[2:-2]} ")]
        )
    in_table = line.startswith("|")
  for _, rows in found.tables:
    for row in rows[1:]:
      if not any(row[1:]):  # a group: one cell over all columns
        del row[1:]
  found.text = _plain(text)
  return found


def _plain(text):
  text = html.unescape(re.sub(r"</?sup>", "", text)).replace("**", "")
  return re.sub(r"\\(.)", r"\1", text).strip()
