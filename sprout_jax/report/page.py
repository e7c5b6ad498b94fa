"""A document as one self-contained HTML page: images are data URIs, nothing is loaded."""

import base64
import functools
import html
import re

from sprout_jax.report.document import Caution
from sprout_jax.report.document import Figure
from sprout_jax.report.document import Gallery
from sprout_jax.report.document import Group
from sprout_jax.report.document import Paragraph
from sprout_jax.report.document import Table

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  overflow-wrap: break-word; }
main { max-width: 72rem; margin: 0 auto; padding: 0.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 0.5rem; border-top: 1px solid #bbb; }
a { color: #004a80; }
nav ul { margin: 0.5rem 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0.35rem 1.1rem; }
nav a { display: inline-block; padding: 0.2rem 0; }
.caution { border-left: 5px solid #b33a00; background: #fff1e8; padding: 0.5rem 0.75rem; font-weight: 600;
  margin: 0.5rem 0; }
.caption { margin: 1.2rem 0 0.4rem; max-width: 46rem; }
.scroll { overflow-x: auto; border: 1px solid #ccc; position: relative; width: fit-content; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; vertical-align: top; text-align: left; }
td, thead th { min-width: 5.5rem; max-width: 22rem; }
td.number { white-space: nowrap; }
td.missing { color: #595959; }
td.failed { color: #9c2f00; font-weight: 600; }
thead th { background: #eef2f5; vertical-align: bottom; }
tbody th.head { position: sticky; left: 0; z-index: 1; background: #f8f9fa; font-weight: 500;
  min-width: 8rem; max-width: 40vw; border-right: 1px solid #ccc; }
tbody th.short { min-width: 0; white-space: nowrap; }
thead th:first-child { position: sticky; left: 0; z-index: 2; border-right: 1px solid #ccc; min-width: 0; }
tr.group th { background: #e3e9ee; font-weight: 600; max-width: none; }
tr.group span { position: sticky; left: 0.6rem; display: inline-block;
  max-width: min(60rem, calc(100vw - 4.5rem)); }
small { display: block; font-size: 0.8rem; font-weight: 400; color: #4d4d4d; }
sup a { padding: 0 0.15rem; font-weight: 700; color: #9c2f00; }
.notes { font-size: 0.9rem; margin: 0.5rem 0; padding: 0; list-style: none; max-width: 60rem; }
.notes li { padding: 0.15rem 0; }
.notes li.failed { color: #7d2600; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; width: 36rem; display: block; }
figcaption { max-width: 46rem; font-size: 0.9rem; }
.gallery { display: flex; flex-wrap: wrap; gap: 0.9rem; }
.gallery figure { margin: 0; width: 19rem; max-width: 100%; }
.gallery .images { display: flex; gap: 0.25rem; }
.gallery img { flex: 1 1 0; min-width: 0; width: 33%; image-rendering: pixelated; border: 1px solid #ccc; }
@media print {
  nav { display: none; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; border: 0; } table { font-size: 0.7rem; }
  td, thead th, tbody th.head { min-width: 0; } tbody th.head, thead th:first-child { position: static; }
  tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{lead}
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
{sections}
</main>
</body>
</html>
"""
SHORT = 18  # letters that go on one line, on a phone too
_text = functools.partial(html.escape, quote=True)


def render(document):
  """The page as a string."""
  return PAGE.format(
    title=_text(document.title),
    style=STYLE,
    lead="\n".join(_block(block, "lead") for block in document.lead),
    contents="\n".join(
      f'<li><a href="#{_text(section.anchor)}">{_text(section.title)}</a></li>'
      for section in document.sections
    ),
    sections="\n".join(map(_section, document.sections)),
  )


def _section(section):
  blocks = "\n".join(
    _block(block, f"{section.anchor}-{number}") for number, block in enumerate(section.blocks)
  )
  return (
    f'<section id="{_text(section.anchor)}">\n<h2>{_text(section.title)}</h2>\n{blocks}\n</section>'
  )


def _block(block, anchor):
  """One block; `anchor` is the page's name for it."""
  match block:
    case Caution():
      return f'<p class="caution" role="note">{_text(block.text)}</p>'
    case Paragraph():
      return f"<p>{_text(block.text)}</p>"
    case Figure():
      return (
        f"<figure>{_image(block.picture)}<figcaption>{_text(block.caption)}</figcaption></figure>"
      )
    case Gallery():
      items = "\n".join(
        f'<figure><div class="images">{"".join(map(_image, pictures))}</div>'
        f"<figcaption>{_text(text)}</figcaption></figure>"
        for pictures, text in block.items
      )
      return (
        f'<p class="caption">{_text(block.caption)}</p>\n<div class="gallery">\n{items}\n</div>'
      )
    case Table():
      return _table(block, anchor)
  raise TypeError(f"a page has no {type(block).__name__}")


def _image(picture):
  return (
    f'<img src="data:image/png;base64,{base64.b64encode(picture.png).decode()}" '
    f'alt="{_text(picture.alt)}">'
  )


def _table(table, anchor):
  header = "".join(f'<th scope="col">{_cell(cell, anchor)}</th>' for cell in table.header)
  lines = "\n".join(_line(line, len(table.header), anchor) for line in table.lines)
  notes = "\n".join(_note(mark, text, anchor) for mark, text in table.notes)
  return (
    f'<p class="caption" id="{_text(anchor)}">{_text(table.caption)}</p>\n'
    f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{_text(anchor)}">'
    f'<table aria-labelledby="{_text(anchor)}">\n<thead><tr>{header}</tr></thead>\n'
    f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    + (f'\n<ul class="notes">\n{notes}\n</ul>' if notes else "")
  )


def _line(line, columns, anchor):
  if isinstance(line, Group):
    return (
      f'<tr class="group"><th colspan="{columns}" scope="colgroup"><span>{_text(line.text)}</span></th>'
      "</tr>"
    )
  cells = "".join(f"<td{_kind(cell)}>{_cell(cell, anchor)}</td>" for cell in line.cells)
  kind = "head short" if len(line.head.text) < SHORT and not line.head.detail else "head"
  return f'<tr><th class="{kind}" scope="row">{_cell(line.head, anchor)}</th>{cells}</tr>'


def _kind(cell):
  """The class of a cell, for its looks."""
  if cell.marks:
    return ' class="number failed"'
  if cell.text in ("not measured", "not run"):
    return ' class="missing"'
  return ' class="number"' if len(cell.text) < SHORT else ""


def _cell(cell, anchor):
  marks = "".join(
    f'<sup><a href="#{_text(f"{anchor}-{mark}")}">{_text(mark)}</a></sup>' for mark in cell.marks
  )
  detail = f"<small>{_breakable(cell.detail)}</small>" if cell.detail else ""
  return f"{_breakable(cell.text)}{marks}{detail}"


def _breakable(text):
  """Long names of keys and methods may go on after an underscore or a dot."""
  return re.sub(r"(?<=[^\W\d])([_./])(?=\w)", r"\1<wbr>", _text(text))


def _note(mark, text, anchor):
  if not mark:
    return f"<li>{_text(text)}</li>"
  return f'<li class="failed" id="{_text(f"{anchor}-{mark}")}"><sup>{_text(mark)}</sup> {_text(text)}</li>'
