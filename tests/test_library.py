"""The pure functions on their own: what importing them imports, and the README's example."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def run_python(code):
  return subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_pure_functions_import_neither_tensorflow_nor_training():
  done = run_python(
    "import sys; from sprout_jax import vicinity, losses, attacks\n"
    "print(*sorted(name for name in sys.modules if name.startswith('sprout_jax')))\n"
    "print(*(name for name in ('tensorflow', 'tensorflow_datasets', 'flax', 'orbax', 'matplotlib',"
    " 'ml_collections', 'tensorboardX') if name in sys.modules))"
  )
  assert done.returncode == 0, done.stderr
  own, foreign = done.stdout.splitlines()
  assert {name.removeprefix("sprout_jax").partition(".attacks")[0] for name in own.split()} == {
    "",
    ".losses",
    ".statistics",
    ".vicinity",
  }
  assert not foreign.strip()


def test_nothing_imports_tensorflow():
  done = run_python(
    "import sys; from sprout_jax import run, data\nfrom sprout_jax.data import prepare\n"
    "assert not any(name.split('.')[0] == 'tensorflow' for name in sys.modules)"
  )
  assert done.returncode == 0, done.stderr


def test_arrows_point_one_way():
  """Which rooms each room may import, as DESIGN and the README say."""
  pure = {"vicinity", "losses", "attacks"}
  allowed = {
    "vicinity": set(),
    "losses": set(),
    "statistics": set(),
    "attacks": {"losses", "statistics"},
    "errors": set(),
    "sharding": {"errors"},
    "progress": set(),
    "methods": pure | {"errors"},
    "models": {"errors"},
    "data": {"errors"},
    "training": {"methods", "models", "data", "errors", "sharding", "progress", "records"},
    "evaluation": pure
    | {"models", "data", "errors", "sharding", "statistics", "progress", "records"},
    "report": {"errors", "records"},
    "records": set(),
    "configuration": {"evaluation", "errors", "records", "training"},
    "workdir": {"configuration", "errors", "records"},
  }
  found = {}
  for path in (ROOT / "sprout_jax").rglob("*.py"):
    room = path.relative_to(ROOT / "sprout_jax").parts[0].removesuffix(".py")
    names = re.findall(r"^\s*from sprout_jax(?:\.(\w+)\S*)? import (\w+)", path.read_text(), re.M)
    found.setdefault(room, set()).update({first or second for first, second in names} - {room})
  for room, imported in found.items():
    if room not in ("run", "results", "__init__"):
      assert imported <= allowed[room], f"{room} imports {imported - allowed[room]}"
  assert not any(
    "loop" in path.read_text()
    for path in (ROOT / "sprout_jax").rglob("*.py")
    if path.name not in ("run.py", "results.py", "loop.py") and "import loop" in path.read_text()
  )


def test_the_examples_of_the_readme_run():
  text = (ROOT / "README.md").read_text()
  examples = re.findall(r"```python\n(.*?)```\n(?:\n?```text\n(.*?)```)?", text, re.S)
  assert examples
  for code, expected in examples:
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    if expected:
      assert done.stdout.strip() == expected.strip()


def test_files_stay_short_and_there_is_no_utils():
  for path in [*(ROOT / "sprout_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
    assert len(path.read_text().splitlines()) <= 300 and path.name != "utils.py", path
