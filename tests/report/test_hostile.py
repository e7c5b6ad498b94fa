"""Everything that comes from a workdir is escaped: names, options, findings, notes."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess

import pytest

from sprout_jax import report
from sprout_jax.report import wording
from sprout_jax.results import files
from sprout_jax.results.numbers import Number
from tests.report import reading
from tests.report import runs

MARK = "<script>alert(1)</script>"
HOSTILE = [
  MARK,
  "\"><img src=x onerror=alert(1)>'",
  "</style></title></textarea><!--",
  "{{ 7 * 7 }}{% raw %}",
  "\u202egnp.exe\u200b\u0000\x1b[31mred\x07",
  r"\input{/etc/passwd} & 50% $x$ #1 ~ ^ _ {}",
  "line\nbreak\ttab\r\u2028",
  "wide " * 4000,
  "W" * 20_000,
  "=cmd|' /C calc'!A1",
  "half a pair \ud800",
  "$\\frac{$ 漢字 اللغة",
]
HIDDEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f\u200b\u202e\u2028\ud800-\udfff]")


def spoil(text):
  """A change that puts a text wherever a workdir has one."""

  def change(evaluations, about):
    about["label"] = {"method": text, "model": text, "data": text, "seed": text}
    about["config"] = {"method": {"name": text}, text: {text: [text]}}
    about["versions"] = {text: text, "devices": text}
    about["data"] |= {"name": text, "provenance": text, "class_names": [text] * 10}
    about["checkpoint"] = {"which": text, "step": text, "selected_by": text, "weights": text}
    about["training"] |= {"devices": text, text: text}
    evaluations.add(
      text[:300],
      [Number(text, 0.5, {"attack": text, "loss": text, "place": text}, text, 3)],
      {text: text},
      [text],
      {text: text},
    )
    spoilt = {}
    for name in ("invariance", "corruptions", "transfer", "gradients", "strength", "auto_attack"):
      kinds = ("transformation", "corruption", "source", "module", "loss", "stage")
      numbers = [
        dataclasses.replace(n, keys={k: text if k in kinds else v for k, v in n.keys.items()})
        for n in evaluations[name].numbers
      ]
      spoilt[name] = numbers, evaluations[name].details
    row = {"unit": text, "identity": 0.0, "named": {text: 10.0}}
    spoilt["invariance"] = spoilt["invariance"][0], {"transformations": {text: row}}
    spoilt["strength"] = spoilt["strength"][0], {"best_loss": {text: [1.0, 2.0]}}
    examples = evaluations["examples"].details
    spoilt["examples"] = [], {**examples, "attack": text, "norm": text}
    for name, (numbers, details) in spoilt.items():
      evaluations.add(name, numbers, details, [text], {"num_steps": 20, "num_restarts": 5})

  return change


@pytest.fixture(scope="module", params=range(len(HOSTILE)))
def written(tmp_path_factory, request):
  """(text, what the terminal shows, folder of the report): of a run spoilt by it, and one not."""
  text, folder = HOSTILE[request.param], tmp_path_factory.mktemp("hostile")
  failed = {text[:200]: text, "noise": text}
  one = runs.workdir(folder / "a", change=spoil(text), failed=failed)
  content = json.loads((one / "results.json").read_text())
  for finding in content["findings"]:  # as if a check had said it
    finding |= {"text": text, "passed": False}
  content.pop(files.SEAL)
  files.write_sealed(one / "results.json", content)
  two = runs.workdir(folder / "b", only=("pgd",), seed=1)
  return text, report.summarize(one) + report.compare([one, two]), one / "report"


def test_the_page_shows_it_as_text(written):
  text, _, folder = written
  source = (folder / "report.html").read_text(encoding="utf-8")
  page = reading.read(source)
  assert page.tags == {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ul", "li"),
    *("div", "table", "thead", "tbody", "tr", "th", "td", "span", "small", "sup", "img"),
    *("details", "summary", "figure", "figcaption"),
  }
  allowed = {"lang", "charset", "name", "content", "class", "open", "tabindex", "scope", "colspan"}
  assert page.attributes <= {*allowed, "src", "alt"}
  assert not HIDDEN.search(source.replace("\n", "")) and "49" not in page.titles
  assert len(source) < 3e6
  for title, data, _ in page.images:
    assert base64.b64decode(data.removeprefix("data:image/png;base64,"), validate=True), title
  known = " ".join(wording.clean(text, 60).split())[:50]
  assert sum(" ".join(shown.split()).count(known) for _, shown in page.items) >= 3
  assert any(known in " ".join(" ".join(row).split()) for _, rows in page.tables for row in rows)


def test_the_terminal_shows_it_as_text(written):
  _, shown, folder = written
  assert not HIDDEN.search(shown.replace("\n", ""))
  text = (folder.parent / "results.txt").read_text(encoding="utf-8")
  assert max(map(len, text.splitlines())) <= 80
  assert len(shown) < 60_000


def test_latex_shows_it_as_text(written):
  _, _, folder = written
  text = (folder / "report.tex").read_text(encoding="utf-8")
  rows = [line for line in text.splitlines() if line.endswith(" \\\\")]
  assert len(rows) == 3
  columns = {len(re.split(r"(?<!\\)&", row)) for row in rows}
  assert len(columns) == 1
  for row in rows:
    bare = re.sub(r"\\text(bf|backslash|asciitilde|asciicircum|less|greater)\{", "{", row)
    bare = re.sub(r"\$(\\pm|\^\\approx|\^\\dagger|\^\?|\^!)\$", "", bare).removesuffix(" \\\\")
    bare = re.sub(r"\\[&%$#_{}]", "", bare)
    assert not re.search(r"[\\$#%^~]", bare), bare
    assert bare.count("{") == bare.count("}")
  assert len(text) < 5000


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on PATH")
def test_latex_compiles(written, tmp_path):
  text, _, folder = written
  body = (folder / "report.tex").read_text(encoding="utf-8")
  if not text.isascii():
    pytest.skip("pdflatex has no such letters")
  source = f"\\documentclass{{article}}\\begin{{document}}\n{body}\\end{{document}}"
  (tmp_path / "a.tex").write_text(source)
  command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
  assert done.returncode == 0, done.stdout[-2000:]


def test_the_csv_has_it_unchanged(written):
  """A table for programs: quoted, not cleaned."""
  import pandas

  text, _, folder = written
  found = pandas.read_csv(folder / "report.csv", keep_default_na=False, lineterminator="\n")
  if not set("\r\0\ud800") & set(text):
    assert text in set(found["run_method"])


@pytest.mark.parametrize("key", ["config", "versions", "label", "data", "checkpoint", "training"])
def test_entries_of_another_kind_are_damage(tmp_path, key):
  """Where a dictionary should be, there is a text."""
  change = lambda evaluations, about: about.update({key: MARK})
  folder = runs.workdir(tmp_path / "a", only=("pgd",), change=change)
  with pytest.raises(files.Damaged, match=key):
    report.summarize(folder)


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\u202eb", "a\u2028b", "a\ud800b", "a\x00b"])
def test_hidden_characters_become_their_escapes(text):
  assert wording.clean(text) == f"a{ascii(text[1])[1:-1]}{text[2:]}"


def test_texts_are_bounded_and_of_one_line():
  assert wording.clean("a\nb\tc") == "a b c"
  assert wording.clean("x" * 5000) == "x" * 1999 + "…"
  assert wording.clean("x" * 60, 60) == "x" * 60
