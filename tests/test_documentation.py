"""The README and docs/: every example runs, every command parses, every name is there.

Python blocks run here, and print what the page says. Pages with code cells are run by the build of
the documentation; their cells are compiled here, and their commands parsed. No test needs Sphinx.
"""

import ast
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from sprout_jax import methods
from sprout_jax.launcher import command
from sprout_jax.launcher import configuration
from sprout_jax.launcher import modes
from sprout_jax.launcher import trained

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = {"_build", "_generated", "jupyter_execute"}
PAGES = [
  ROOT / "README.md",
  *(p for p in sorted(DOCS.rglob("*.md")) if not WRITTEN & set(p.relative_to(DOCS).parts)),
]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
MARK = "--- end of an example ---"


def name(page):
  return page.relative_to(ROOT).as_posix()


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


generate = load(DOCS / "generate.py")
docstrings = load(DOCS / "docstrings.py")


def blocks(text, *languages):
  return [block for language, block in FENCE.findall(text) if language in languages]


def examples(page):
  """[(code, what it prints or "")] of the Python blocks."""
  found = FENCE.findall(page.read_text())
  return [
    (block, found[i + 1][1] if i + 1 < len(found) and found[i + 1][0] == "text" else "")
    for i, (language, block) in enumerate(found)
    if language == "python"
  ]


def cells(text):
  """Code cells of a page without their options."""
  found = blocks(text, "{code-cell} ipython3")
  return [re.sub(r"\A(:.*\n)+\n?", "", block) for block in found]


SHELL = "%%bash -e\n"  # a command that fails ends the build


def is_shell(cell):
  return cell.startswith(SHELL)


def commands(text):
  """Shell commands of the blocks and cells of a page, one list of words each."""
  text = text.replace("\\\n", " ")
  shown = blocks(text, "sh") + [cell.removeprefix(SHELL) for cell in cells(text) if is_shell(cell)]
  lines = "".join(shown).splitlines()
  words = [shlex.split(line, comments=True) for line in lines]
  found = []
  for line in words:
    found.append([])
    for word in line:
      if word in ("&&", "|", ";"):
        found.append([])
      else:
        found[-1].append(word)
  return [line for line in found if line]


def all_commands():
  texts = {name(page): page.read_text() for page in PAGES}
  return [(where, line) for where, text in texts.items() for line in commands(text)]


def test_there_are_examples():
  """21 blocks of Python, 18 cells and 49 commands when this was written."""
  assert sum(len(examples(page)) for page in PAGES) >= 15
  assert sum(len(cells(page.read_text())) for page in PAGES) >= 15
  assert len(all_commands()) >= 25


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=name)
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
  assert len(printed) == len(examples(page)) + 1
  for (_, expected), found in zip(examples(page), printed):
    if expected:
      assert [line.rstrip() for line in found.strip().splitlines()] == [
        line.rstrip() for line in expected.strip().splitlines()
      ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_run_or_checked(page):
  text = page.read_text()
  for language, _ in FENCE.findall(text):
    kind = language.split()[0] if language else "(none)"
    assert kind in KINDS, f"{name(page)} has a block of the kind {kind}"
  assert text.count("\n```") % 2 == 0
  outside = FENCE.sub("", text)
  assert not re.search(r"^ {4}\S", outside, re.M), f"{name(page)} has code outside a block"


KINDS = {
  "python",
  "text",
  "sh",
  "{code-cell}",
  "{eval-rst}",
  "{image}",
  "{include}",
  "{toctree}",
}


@pytest.mark.parametrize("page", [p for p in PAGES if cells(p.read_text())], ids=name)
def test_cells_are_python(page):
  assert page.read_text().startswith("---\nfile_format: mystnb\n")  # else no build runs them
  for cell in cells(page.read_text()):
    if not is_shell(cell):
      assert "%" not in cell.split()[0] and not re.search(r"^!", cell, re.M)  # other magics
      ast.parse(cell)


def test_the_build_runs_the_cells():
  settings = (DOCS / "conf.py").read_text()
  assert 'nb_execution_mode = "force"' in settings
  assert "nb_execution_raise_on_error = True" in settings


# Programs whose words are not looked at.
OTHERS = {".", "git", "head", "pip"}


@pytest.mark.parametrize("where, line", all_commands(), ids=lambda value: str(value)[:40])
def test_commands_parse(where, line, monkeypatch):
  monkeypatch.chdir(ROOT)
  while "=" in line[0]:  # variables of the environment
    line = line[1:]
  program, *words = line
  if program == "sprout":
    asked = []
    monkeypatch.setattr(command, "main", lambda argv, prog: asked.append(argv))
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
      command.sprout()
    check_launcher(*asked, monkeypatch)
  elif program in ("python", "python3"):
    check_python(words, monkeypatch)
  else:
    assert program in OTHERS, f"{where}: nobody checks {program}"


def check_python(words, monkeypatch):
  if words[0] == "launch.py":
    check_launcher(words[1:], monkeypatch)
  elif words[0] == "-m":
    module = words[1].partition(".")[0]
    assert module in ("pytest", "sphinx", "venv", "pre_commit") or (
      importlib.util.find_spec(words[1])
    ), words
  else:
    assert (ROOT / words[0]).is_file(), words


def check_launcher(argv, monkeypatch):
  """The launcher up to the point where a mode begins; the config is read, changed and checked."""
  begun = []

  def begin(config, workdir, **options):
    configuration.validate(config)
    methods.create(config.method.name, configuration.options(config.method))
    begun.append(workdir)

  monkeypatch.setattr(command, "_connect", lambda args: None)
  monkeypatch.setattr(modes, "train", begin)
  monkeypatch.setattr(modes, "evaluate", begin)
  monkeypatch.setattr(modes, "show_report", begun.append)
  monkeypatch.setattr(trained, "read_config", lambda workdir: configuration.load("digits"))
  command.execute(argv)
  assert len(begun) == 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
    assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def toctree(page):
  """The pages that a page's tables of contents list."""
  entries = [line for block in blocks(page.read_text(), "{toctree}") for line in block.splitlines()]
  return [page.parent / f"{entry}.md" for entry in entries if entry and not entry.startswith(":")]


def test_every_page_is_within_two_clicks():
  first = toctree(DOCS / "index.md")
  second = [page for parent in first for page in toctree(parent)]
  found = [DOCS / "index.md", *first, *second]
  assert len(found) == len(set(found))
  assert set(found) == set(PAGES) - {ROOT / "README.md"}


def test_no_table_or_list_was_joined_to_one_line():
  for page in PAGES:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for line in text.splitlines():
      assert not re.search(r"[^|\s-].*\|\s*-{3,}\s*\|", line), (page, line)
      assert not re.search(r"[.:;] - `", line), (page, line)


def test_the_readme_is_short():
  assert (ROOT / "README.md").stat().st_size <= 7 * 1024


# What is generated.


def rows(markdown):
  """The cells of the tables, without their headings."""
  lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown.splitlines() if line[:1] == "|"]
  lines = [[cell.strip() for cell in line] for line in lines]
  heads = {i - 1 for i, line in enumerate(lines) if line[0] == "---"}
  return [line for i, line in enumerate(lines) if i not in heads and line[0] != "---"]


def test_every_generated_part_is_on_a_page():
  """test_pages.py checks that the parts are up to date."""
  found = re.findall(r"^<!-- generated: (\w+) -->$", "".join(p.read_text() for p in PAGES), re.M)
  assert sorted(set(found) & set(generate.PARTS)) == sorted(generate.PARTS)


@pytest.mark.parametrize("part", generate.PARTS)
def test_generated_tables_have_no_empty_meaning(part):
  found = rows(generate.PARTS[part]())
  assert len({len(row) for row in found}) <= 2
  for row in found:
    assert row[0] and (row[2] if part.endswith(("keys", "options")) else row[1]), row


def test_every_key_of_a_config_is_on_the_page():
  config = configuration.load("digits")
  shown = {
    row[0].strip("`"): row
    for part in (generate.config_keys(), generate.evaluation_keys(), generate.shared_options())
    for row in rows(part)
  }
  sections = set()
  for key in generate.flat(config):
    section, _, rest = key.partition(".")
    if section in ("method", "penalty"):
      sections.add(f"`{key}`")
    elif section == "evaluation" and "." in rest:
      assert f"`{rest}`" in generate.evaluation_options()
    else:
      assert shown.get(key) or shown.get(rest), key
  text = generate.method_options() + generate.penalty_options()
  assert {key for key in sections if not key.endswith(".name`")} <= set(
    re.findall(r"`[^`]*`", text)
  )


def test_values_in_the_tables_are_the_defaults():
  shown = {row[0]: row[1] for row in rows(generate.config_keys())}
  assert shown["`batch_size`"] == "`64`" and shown["`model.name`"] == "`'small_cnn'`"
  assert shown["`validation.step_size`"] == "`0.00784314`"  # 2/255
  options = {row[0]: row[1:] for row in rows(generate.evaluation_options())}
  assert options["`noise.num_draws`"][0] == "`100`"
  assert options["`smoothing.alpha`"][1].endswith("(1e-12 to 0.5)")


def test_comments_become_help():
  source = """
def f():
  config.a = 1  # beside
  # above,
  # in two lines
  config.b.c = (
    "x"  # within
  )

  # of something else

  config.d = 2
  other.e = 3  # of another root
"""
  assert generate.comments(source, "config") == {
    "a": "beside",
    "b.c": "above, in two lines within",
    "d": "",
  }


def test_arguments_of_a_docstring_become_help():
  def function():
    """First line.

    Args:
      one, two: the meaning
        in two lines.
      three: another: with a colon.

    Returns:
      four: nothing.
    """

  assert generate.arguments_help(function) == {
    "one": "the meaning in two lines.",
    "two": "the meaning in two lines.",
    "three": "another: with a colon.",
  }


def test_a_bar_does_not_end_a_cell():
  assert rows(generate.table(("a", "b"), [("x | y", "two\nlines")])) == [[r"x \| y", "two lines"]]


def test_every_method_and_penalty_has_its_formula():
  headings = re.findall(r"^### (\w+)$", (DOCS / "methods.md").read_text(), re.M)
  assert set(headings) == {*methods.METHODS, *methods.PENALTIES} - {"none"}


def test_every_room_has_its_reference():
  text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
  for path in (ROOT / "sprout_jax").iterdir():
    room = path.stem
    if not room.startswith("_") and path.suffix in ("", ".py") and room not in INSIDE:
      assert re.search(rf"^\.\. automodule:: sprout_jax\.{room}\b", text, re.M), room


# Rooms without a reference of their own: small parts that the others share, and the configs.
INSIDE = {"arguments", "configs", "intervals", "progress", "py", "sharding"}


def test_tests_that_a_page_names_are_there():
  named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "".join(p.read_text() for p in PAGES))
  assert len(named) >= 30
  for path, function in named:
    assert re.search(rf"^def {function}\b", (ROOT / path).read_text(), re.M), (path, function)


# Docstrings as reStructuredText.


@pytest.mark.parametrize(
  "line, expected",
  [
    ("weight * |grad|", r"weight \* \|grad\|"),
    ("`a * b` and a * b", r"`a * b` and a \* b"),
    ("x_ and x_i", r"x\_ and x_i"),
    (">>> a * b", ">>> a * b"),
    ("  *arrays: of f(*args)", r"  *arrays: of f(\*args)"),
  ],
)
def test_what_looks_like_markup_is_shown_as_it_stands(line, expected):
  assert docstrings.escape(line) == expected


def test_an_indented_block_keeps_its_lines():
  lines = ["Text:", "", "    a * b", "    c", "", "More.", "", "Args:", "  x: a | b"]
  expected = ["Text:", "", "::", "", "    a * b", "    c", "", "More.", "", "Args:", r"  x: a \| b"]
  assert docstrings.to_markup(lines) == expected
  lines = ["Text::", "", "    a * b", "", "More."]  # as reStructuredText has it
  assert docstrings.to_markup(lines) == lines
