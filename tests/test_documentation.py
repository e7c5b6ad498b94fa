"""Every Python example of the README and of docs/ runs, and prints what the page says."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n?```text\n(.*?)```)?", re.S)
MARK = "--- end of an example ---"


def examples(page):
  return EXAMPLE.findall(page.read_text())


def test_there_are_examples():
  assert sum(len(examples(page)) for page in PAGES) >= 5


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(page, tmp_path):
  code = "".join(f"{block}\nprint({MARK!r})\n" for block, _ in examples(page))
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={
      "PYTHONPATH": str(ROOT),
      "PATH": "",
      "HOME": str(tmp_path),
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    },
    check=False,
  )
  assert done.returncode == 0, done.stderr
  printed = done.stdout.split(MARK)
  for (_, expected), found in zip(examples(page), printed):
    if expected:
      assert found.strip() == expected.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
    assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short():
  assert (ROOT / "README.md").stat().st_size <= 7 * 1024
