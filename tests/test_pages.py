"""The measured tables of README and documentation are those of benchmarks/results."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(root):
  return subprocess.run(
    [sys.executable, root / "benchmarks" / "pages.py", "--check"], capture_output=True, text=True
  )


def test_the_tables_are_up_to_date():
  found = check(ROOT)
  assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
  """Pages, scripts and results in a folder of their own."""
  root = tmp_path_factory.mktemp("copy")
  for name in ("benchmarks", "docs", "sprout_jax", "configs"):
    shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("_build"))
  shutil.copy(ROOT / "README.md", root)
  return root


@pytest.mark.parametrize(
  "page, number", [("README.md", "| 97.3 |"), ("docs/attacks.md", "56 / 56")]
)
def test_a_number_that_was_typed_is_found(copy, page, number):
  path = copy / page
  text = path.read_text()
  assert number in text
  path.write_text(text.replace(number, number.replace("6", "5").replace("7", "8")))
  found = check(copy)
  assert found.returncode == 1 and page in found.stderr and "pages.py" in found.stderr
  path.write_text(text)
