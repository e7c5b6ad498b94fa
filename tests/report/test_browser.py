"""The page in a real browser: as wide as a phone or a screen, in the dark, and printed."""

import html
import json
import re
import shutil
import subprocess

import pytest

from sprout_jax import report
from tests.report import runs

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--virtual-time-budget=5000",
]
# Headless windows have a least width; a frame has any.
FRAME = """<!DOCTYPE html><html style="color-scheme: {scheme}"><body style="margin:0">
<iframe id="frame" width="{width}" height="800" style="border:0; color-scheme: {scheme}"
 srcdoc="{page}"></iframe><pre id="found"></pre><script>
onload = () => {{
  const view = document.getElementById("frame").contentWindow, page = view.document;
  const all = query => Array.from(page.querySelectorAll(query));
  const box = element => element.getBoundingClientRect();
  const height = page.documentElement.scrollHeight, first = box(all(".headline td")[0]).bottom;
  const style = view.getComputedStyle(page.body), colours = [style.color, style.backgroundColor];
  all("details").forEach(part => part.open = true);
  const outside = element => box(element).right > view.innerWidth + 1;
  const head = all(".headline tbody th")[0], table = all(".headline .scroll")[0];
  table.scrollLeft = 1000;
  document.getElementById("found").textContent = JSON.stringify({{
    height, first, colours, width: view.innerWidth, needed: page.documentElement.scrollWidth,
    scrolled: table.scrollLeft, stays: box(head).left - box(table).left,
    images: page.images.length,
    broken: Array.from(page.images).filter(i => !(i.complete && i.naturalWidth > 0)).length,
    outside: all("figure img, p, li, summary, .scroll").filter(outside).length,
    text: page.body.innerText}});
}};
</script></body></html>"""
LONG = "natural_with_a_name_that_is_far_too_long_for_a_phone"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The page about five runs."""
  folder = tmp_path_factory.mktemp("browser")
  levels = {"sprout": 0.4, LONG: 0.1, "pgd": 0.5, "trades": 0.45, "mixup": 0.2}
  workdirs = [runs.workdir(folder / name, name, level) for name, level in levels.items()]
  report.compare(workdirs)
  return workdirs[0] / "report" / "report.html"


def browse(folder, *arguments):
  """Runs the browser; returns what it writes."""
  profile = f"--user-data-dir={folder / 'profile'}"
  command = [BROWSER, *FLAGS, profile, "--window-size=1400,900", *arguments]
  done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
  return done.stdout


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_and_is_complete(written, tmp_path, width, scheme):
  page = html.escape(written.read_text(encoding="utf-8"))
  frame = tmp_path / "frame.html"
  frame.write_text(FRAME.format(width=width, scheme=scheme, page=page), encoding="utf-8")
  shown = browse(tmp_path, "--dump-dom", frame.as_uri())
  found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown, re.S)[1]))
  assert found["width"] == width and found["needed"] <= width and found["outside"] == 0
  assert found["images"] > 20 and found["broken"] == 0
  assert found["first"] < 300  # the first accuracy, in pixels from the top
  assert found["height"] < (6000 if width == 1280 else 9000)
  assert (found["scrolled"] > 0) == (width == 390)  # the table scrolls inside,
  assert abs(found["stays"] - 1) < 1  # and its first column stays
  ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found["colours"])
  assert (ink > paper) == (scheme == "dark")
  for name in ("A sprout", "C pgd", f"B {LONG}"):
    assert name in found["text"]


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext on PATH")
def test_all_is_printed_though_it_is_folded(written, tmp_path):
  browse(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", written.as_uri())
  command = ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"]
  text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  flat = " ".join(text.split())
  for part in ("rotation by 10 degrees", "largest certifiable radius", "method.name", "c0ffee"):
    assert part in flat, part
  assert len(re.findall(r"\b10 passed\b", flat)) == 10  # the last column of the first table; Checks
