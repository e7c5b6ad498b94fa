"""The page in a real browser: it shows all images, and does not scroll sideways on a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest

from sprout_jax import report
from tests.report import synthetic

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
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
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe id="frame" width="{width}" height="800" style="border:0"
 srcdoc="{page}"></iframe><pre id="found"></pre><script>
onload = () => {{
  const view = document.getElementById("frame").contentWindow, page = view.document;
  document.getElementById("found").textContent = JSON.stringify({{
    width: view.innerWidth, needed: page.documentElement.scrollWidth, images: page.images.length,
    broken: Array.from(page.images).filter(i => !(i.complete && i.naturalWidth > 0)).length,
    sticking_out: Array.from(page.images).filter(i => i.getBoundingClientRect().right > view.innerWidth).length,
    text: page.body.innerText}});
}};
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("browser")
  workdirs = [
    synthetic.workdir(folder / method, method, level)
    for method, level in (
      ("sprout", 0.4),
      ("natural_with_a_name_that_is_far_too_long_for_a_phone", 0.1),
      ("pgd", 0.5),
    )
  ]
  report.compare(workdirs)
  return (workdirs[0] / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_is_complete(source, tmp_path, width):
  (tmp_path / "frame.html").write_text(
    FRAME.format(width=width, page=html.escape(source)), encoding="utf-8"
  )
  done = subprocess.run(
    [
      BROWSER,
      *FLAGS,
      f"--user-data-dir={tmp_path / 'profile'}",
      "--window-size=1400,900",
      "--dump-dom",
      (tmp_path / "frame.html").as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]))
  assert found["width"] == width
  assert found["needed"] <= width
  assert found["images"] > 20 and found["broken"] == 0 and found["sticking_out"] == 0
  for name in (
    "sprout paper sample, vgg16, cifar10, seed 0",
    "pgd, vgg16, cifar10, seed 0",
    "natural_with_a_name_that_is_far_too_long_for_a_phone, vgg16, cifar10, seed 0",
  ):
    assert name in found["text"]
