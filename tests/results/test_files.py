"""Files of a workdir: whole or not at all, sealed, and named where they are damaged."""

import hashlib
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from sprout_jax.errors import UserError
from sprout_jax.results import files

JSON = strategies.recursive(
  strategies.none()
  | strategies.booleans()
  | strategies.integers()
  | strategies.text(max_size=5)
  | strategies.floats(allow_nan=False, allow_infinity=False),
  lambda inner: (
    strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=8,
)
TABLES = strategies.dictionaries(
  strategies.text(max_size=5).filter(lambda k: k != files.SEAL), JSON
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


@settings(deadline=None)
@given(value=TABLES)
def test_a_sealed_file_comes_back(folder, value):
  files.write_sealed(folder / "a.json", value)
  assert files.read_sealed(folder / "a.json") == value


@settings(deadline=None)
@given(values=strategies.lists(TABLES, max_size=4))
def test_sealed_lines_come_back(folder, values):
  path = folder / "a.jsonl"
  path.unlink(missing_ok=True)
  for value in values:
    files.append_line(path, value)
  assert files.read_lines(path, pytest.fail, sealed=True) == values


def test_the_seal_is_the_digest_of_the_rest(tmp_path):
  files.write_sealed(tmp_path / "a.json", {"b": (1, 2.5), "a": float("nan")})
  written = json.loads((tmp_path / "a.json").read_text())
  seal = written.pop("sha256")
  assert written == {"a": None, "b": [1, 2.5]}  # a tuple is a list, NaN is none
  text = '{"a": null, "b": [1, 2.5]}'
  assert seal == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
  "change",
  [
    lambda text: text.replace("1.5", "1.6"),
    lambda text: text.replace('"a"', '"b"'),
    lambda text: text.replace("sha256", "sha257"),
    lambda text: text[: len(text) // 2],
    lambda text: "",
    lambda text: "[1, 2]",
    lambda text: "null",
    lambda text: "[" * 100_000,
    lambda text: '{"a": ' + "9" * 10_000 + "}",
    lambda text: "\udcff",
  ],
)
def test_a_changed_file_is_damaged_and_named(tmp_path, change):
  path = tmp_path / "a.json"
  files.write_sealed(path, {"a": 1.5})
  path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
  with pytest.raises(files.Damaged, match=str(path)):
    files.read_sealed(path)


def test_spaces_and_the_order_of_keys_do_not_matter(tmp_path):
  path = tmp_path / "a.json"
  files.write_sealed(path, {"a": 1, "b": 2})
  content = json.loads(path.read_text())
  path.write_text(json.dumps(dict(reversed(content.items()))))
  assert files.read_sealed(path) == {"a": 1, "b": 2}


def test_a_file_is_replaced_as_a_whole(tmp_path):
  """A reader that has opened the old file still has the old content: nothing is written into it."""
  path, opened = tmp_path / "a.json", tmp_path / "opened"
  files.write(path, "old")
  os.link(path, opened)
  files.write(path, "new")
  assert path.read_text() == "new" and opened.read_text() == "old"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  path = tmp_path / "a.json"
  with open(path, "wb") as file:
    file.truncate(files.LARGEST + 1)  # a hole: it takes no space
  with pytest.raises(files.Damaged, match="larger than 256 MiB"):
    files.read_json(path)


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match="absent.json cannot be read"):
    files.read_json(tmp_path / "absent.json")
  with pytest.raises(UserError, match="cannot be read"):
    files.read_json(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  files.write_json(path, {"old": 1})

  def full(self, data):
    with open(self, "wb") as file:
      file.write(data[:3])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("pathlib.Path.write_bytes", full)
  with pytest.raises(UserError, match=r"a\.json cannot be written \(No space left on device\)"):
    files.write_json(path, {"new": 2})
  monkeypatch.undo()
  assert files.read_json(path) == {"old": 1}
  assert os.listdir(tmp_path) == ["a.json"]  # nothing else is left


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match="there"):
    files.write(tmp_path / "there" / "a.txt", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours_is_named(tmp_path):
  tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
  with pytest.raises(UserError, match="permissions"):
    files.write(tmp_path / "a.txt", "x")


def test_bytes_and_any_text_are_written(tmp_path):
  files.write(tmp_path / "a", b"\x00\xff")
  assert (tmp_path / "a").read_bytes() == b"\x00\xff"
  files.write(tmp_path / "b", "é\ud800")  # half a pair, as JSON can hold it
  assert (tmp_path / "b").read_bytes() == "é\\ud800".encode()


def test_long_names_are_written(tmp_path):
  path = tmp_path / ("x" * 240)
  files.write(path, "y")
  assert path.read_text() == "y"


def test_a_damaged_line_is_left_out_and_named(tmp_path):
  path, said = tmp_path / "a.jsonl", []
  for step in range(5):
    files.append_line(path, {"step": step})
  lines = path.read_text().splitlines()
  lines[1] = lines[1].replace("1", "7", 1)  # its seal does not fit
  lines[2] = "no JSON"
  lines[3] = "[3]"
  path.write_text("\n".join(lines) + "\n")
  assert files.read_lines(path, said.append, sealed=True) == [{"step": 0}, {"step": 4}]
  assert [sentence.split(" of ")[0] for sentence in said] == ["line 2", "line 3", "line 4"]
  assert all(str(path) in sentence and "it is skipped" in sentence for sentence in said)


def test_a_line_that_a_kill_has_cut_is_left_out_in_silence(tmp_path):
  """The line that is written after it is read."""
  path, said = tmp_path / "a.jsonl", []
  files.append_line(path, {"step": 0})
  whole = path.read_bytes()
  path.write_bytes(whole + whole[:9])
  assert files.read_lines(path, pytest.fail, sealed=True) == [{"step": 0}]
  files.append_line(path, {"step": 1})
  found = files.read_lines(path, said.append, sealed=True)
  assert found == [{"step": 0}, {"step": 1}] and len(said) == 1


def test_lines_without_a_seal(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert files.read_lines(path, pytest.fail) == []
  path.write_text('{"a": 1}\n\n{"a": 2}\n')
  assert files.read_lines(path, pytest.fail) == [{"a": 1}, {"a": 2}]
