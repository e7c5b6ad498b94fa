"""Imports: which rooms each room may import, and which libraries it needs."""

import ast
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
    ".arguments",
    ".losses",
    ".intervals",
    ".vicinity",
  }
  assert not foreign.strip()


def test_nothing_imports_tensorflow():
  done = run_python(
    "import sys; from sprout_jax.launcher import modes\nfrom sprout_jax import data\n"
    "from sprout_jax.data import prepare\n"
    "assert not any(name.split('.')[0] == 'tensorflow' for name in sys.modules)"
  )
  assert done.returncode == 0, done.stderr


def test_arrows_point_one_way():
  """Each room imports only those that docs/architecture.md allows."""
  pure = {"vicinity", "losses", "attacks", "intervals"}
  allowed = {
    "arguments": set(),
    "vicinity": {"arguments"},
    "losses": {"arguments"},
    "intervals": set(),
    "attacks": {"arguments", "losses", "intervals"},
    "errors": set(),
    "sharding": {"errors"},
    "progress": set(),
    "methods": pure | {"errors"},
    "models": {"errors"},
    "data": {"errors"},
    "results": {"errors", "intervals"},
    "training": {"methods", "models", "data", "errors", "sharding", "progress", "results"},
    "evaluation": pure | {"errors", "sharding", "progress", "results"},
    "report": {"errors", "results"},
    "configs": {"errors", "evaluation", "launcher"},
    "zoo": {"errors"},
  }
  found = {}
  for path in (ROOT / "sprout_jax").rglob("*.py"):
    room = path.relative_to(ROOT / "sprout_jax").parts[0].removesuffix(".py")
    names = re.findall(r"^from sprout_jax(?:\.(\w+)\S*)? import (\w+)", path.read_text(), re.M)
    found.setdefault(room, set()).update({first or second for first, second in names} - {room})
  for room, imported in found.items():
    if room not in ("launcher", "__init__"):
      assert imported <= allowed[room], f"{room} imports {imported - allowed[room]}"


def test_no_function_shadows_its_module():
  """`import sprout_jax.attacks.NAME as module` gives the module of that name."""
  found = 0
  for path in (ROOT / "sprout_jax").rglob("__init__.py"):
    package = ".".join(path.parent.relative_to(ROOT).parts)
    modules = {other.stem for other in path.parent.glob("*.py")}
    imports = re.findall(r"^ *from (\S+) import (\w+)", path.read_text(), re.M)
    found += len(imports)
    shadows = {name for source, name in imports if name in modules and source != package}
    assert not shadows, f"{package} exports {shadows}"
  assert found > 50


def test_results_and_reports_import_no_jax():
  done = run_python(
    "import sys; from sprout_jax import report, results\n"
    "assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
  )
  assert done.returncode == 0, done.stderr


def test_no_check_is_an_assertion():
  """`python -O` removes assertions, and callers expect a ValueError; chex raises them, too."""
  files = [*(ROOT / "sprout_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
  assert len(files) > 100
  for path in files:
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
    assert "chex" not in names, path


def test_there_is_no_room_for_anything():
  names = {path.stem for path in (ROOT / "sprout_jax").rglob("*.py")}
  assert not names & {"utils", "util", "helpers", "common", "misc"}
