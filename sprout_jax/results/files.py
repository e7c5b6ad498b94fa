"""Files of a workdir: written atomically, and sealed by a digest that readers check."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from sprout_jax.errors import UserError

SEAL = "sha256"  # the key of a sealed file's digest
LARGEST = 256 * 2**20  # bytes; larger JSON files are refused


class Damaged(UserError):
  """A file whose content was changed or is incomplete. The message names the file."""


def write(path: pathlib.Path | str, content: str | bytes) -> None:
  """Writes a file atomically: a reader sees the old content or the new one, never a part.

  Raises:
    UserError: the file cannot be written (a full disk, no permission).
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name[:100]}.{os.getpid()}.tmp")
  try:
    # JSON can hold lone surrogates and UTF-8 cannot: they are written as escapes.
    raw = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary.write_bytes(raw)
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise UserError(_unwritable(path, error)) from error


def _unwritable(path: pathlib.Path | str, error: OSError) -> str:
  return (
    f"{path} cannot be written ({error.strerror or error}); free space or change the folder's "
    "permissions, then type the same command again"
  )


def plain(value: Any) -> Any:
  """Returns a value as JSON reads it back: tuples become lists, NaN and infinity become None."""

  def finite(value: Any) -> Any:
    if isinstance(value, dict):
      return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
      return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return json.loads(json.dumps(finite(value)))


def digest(value: Any) -> str:
  """Returns the SHA-256 (hex) of a JSON value. The order of its keys does not matter."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: pathlib.Path | str, value: dict[str, Any]) -> None:
  """Writes a dictionary as a JSON file, without a digest."""
  write(path, json.dumps(value, indent=2) + "\n")


def write_sealed(path: pathlib.Path | str, value: dict[str, Any]) -> None:
  """Writes a dictionary as a JSON file with the digest of its content."""
  value = plain(value)
  write_json(path, value | {SEAL: digest(value)})


def read_json(path: pathlib.Path | str) -> dict[str, Any]:
  """Reads a dictionary from a JSON file.

  Raises:
    Damaged: the file is not JSON, holds no dictionary, or is larger than `LARGEST`.
    UserError: the file cannot be read.
  """
  path = pathlib.Path(path)
  try:
    is_too_large = path.stat().st_size > LARGEST
    content = b"" if is_too_large else path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
  if is_too_large:
    raise Damaged(f"{path} is larger than {LARGEST >> 20} MiB; this package writes no such files")
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise Damaged(f"{path} is damaged: it is not valid JSON ({str(error)[:100]})") from error
  if not isinstance(value, dict):
    raise Damaged(f"{path} is damaged: it holds {type(value).__name__}, expected an object")
  return value


def read_sealed(path: pathlib.Path | str) -> dict[str, Any]:
  """Reads a file of `write_sealed`, checks its digest, and returns its content without it.

  Raises:
    Damaged: the content does not match the digest, or is not a JSON object.
    UserError: the file cannot be read.
  """
  value = read_json(path)
  seal = value.pop(SEAL, None)
  if seal != digest(value):
    raise Damaged(f"{path} was changed after it was written: its digest does not match its content")
  return value


def append_line(path: pathlib.Path | str, value: dict[str, Any]) -> None:
  """Appends a dictionary as one line of JSON with the digest of its content.

  Raises:
    UserError: the file cannot be written (a full disk, no permission).
  """
  value = plain(value)
  line = json.dumps(value | {SEAL: digest(value)}).encode() + b"\n"
  try:
    with open(path, "ab+") as file:
      if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a killed process left half a line: start a new one
          line = b"\n" + line
      file.write(line)
  except OSError as error:
    raise UserError(_unwritable(path, error)) from error


def read_lines(
  path: pathlib.Path | str, on_damage: Callable[[str], None], sealed: bool = False
) -> list[dict[str, Any]]:
  """Reads a file with one JSON dictionary per line. Damaged lines are skipped.

  Args:
    path: the file; a file that does not exist has no lines.
    on_damage: called with a sentence for each skipped line. A last line without a newline is
      skipped silently: the process was killed while it wrote.
    sealed: whether `append_line` wrote the lines. Their digests are then checked and removed.

  Returns:
    The dictionaries, in the order of the lines.
  """
  path = pathlib.Path(path)
  found: list[dict[str, Any]] = []
  lines = path.read_bytes().split(b"\n") if path.exists() else []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      value = json.loads(line)
      if (sealed and value.pop(SEAL, None) != digest(value)) or not isinstance(value, dict):
        raise ValueError
    except (ValueError, AttributeError, TypeError, RecursionError):
      if number < len(lines):  # a last line without a newline was cut off by a kill
        on_damage(f"line {number} of {path} is damaged; it is skipped")
      continue
    found.append(value)
  return found
