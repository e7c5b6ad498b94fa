"""Files of a workdir: written whole or not at all, and sealed by a digest that readers check."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from sprout_jax.errors import UserError

SEAL = "sha256"  # the key of a sealed file's digest
LARGEST = 256 * 2**20  # bytes of a JSON file that is still read


class Damaged(UserError):
  """A file that cannot be what was written. The message names it."""


def write(path: pathlib.Path | str, content: str | bytes) -> None:
  """Writes a file whole or not at all.

  Raises:
    UserError: the file cannot be written (a full disk, no permission).
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name[:100]}.{os.getpid()}.tmp")
  try:
    # Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become their escapes.
    is_text = isinstance(content, str)
    temporary.write_bytes(content.encode("utf-8", "backslashreplace") if is_text else content)
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise UserError(_unwritable(path, error)) from error


def _unwritable(path, error):
  return (
    f"{path} cannot be written ({error.strerror or error}); free space or change the folder's "
    "permissions, then type the same command again"
  )


def plain(value: Any) -> Any:
  """A value as JSON gives it back: tuples become lists, numbers that are not finite None."""

  def finite(value):
    if isinstance(value, dict):
      return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
      return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return json.loads(json.dumps(finite(value)))


def digest(value: Any) -> str:
  """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: pathlib.Path | str, value: dict) -> None:
  """Writes a dictionary as a JSON file, without a seal."""
  write(path, json.dumps(value, indent=2) + "\n")


def write_sealed(path: pathlib.Path | str, value: dict) -> None:
  """Writes a dictionary as a JSON file with the digest of its content."""
  value = plain(value)
  write_json(path, value | {SEAL: digest(value)})


def read_json(path: pathlib.Path | str) -> dict:
  """Reads a dictionary from a JSON file.

  Raises:
    Damaged: the file is no JSON, holds no dictionary, or is larger than `LARGEST`.
    UserError: the file cannot be read.
  """
  path = pathlib.Path(path)
  try:
    if path.stat().st_size > LARGEST:
      raise Damaged(f"{path} is larger than {LARGEST >> 20} MiB; it is no file of this package")
    value = json.loads(path.read_bytes())
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
  except (ValueError, RecursionError) as error:
    raise Damaged(f"{path} is damaged: it is no JSON ({str(error)[:100]})") from error
  if not isinstance(value, dict):
    raise Damaged(f"{path} is damaged: it holds {type(value).__name__}, expected an object")
  return value


def read_sealed(path: pathlib.Path | str) -> dict:
  """Reads what `write_sealed` wrote, without the digest.

  Raises:
    Damaged: the content is not the one that was written.
    UserError: the file cannot be read.
  """
  value = read_json(path)
  seal = value.pop(SEAL, None)
  if seal != digest(value):
    raise Damaged(f"{path} was changed after it was written: its digest does not fit its content")
  return value


def append_line(path: pathlib.Path | str, value: dict) -> None:
  """Appends a dictionary as one line of JSON with the digest of its content."""
  value = plain(value)
  line = json.dumps(value | {SEAL: digest(value)}).encode() + b"\n"
  try:
    with open(path, "ab+") as file:
      if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a kill has cut the last line: it must not spoil this one
          line = b"\n" + line
      file.write(line)
  except OSError as error:
    raise UserError(_unwritable(path, error)) from error


def read_lines(
  path: pathlib.Path | str, on_damage: Callable[[str], None], sealed: bool = False
) -> list[dict]:
  """Reads a file of one dictionary a line; a line that is damaged is left out.

  Args:
    path: the file; one that does not exist has no lines.
    on_damage: called with a sentence for each line that is left out, but for a last line that a
      kill has cut.
    sealed: whether `append_line` wrote them: each has its digest, which is checked and taken off.
  """
  path, found = pathlib.Path(path), []
  lines = path.read_bytes().split(b"\n") if path.exists() else []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      value = json.loads(line)
      if (sealed and value.pop(SEAL, None) != digest(value)) or not isinstance(value, dict):
        raise ValueError
    except (ValueError, AttributeError, TypeError, RecursionError):
      if number < len(lines):  # without a newline behind it, the line was cut
        on_damage(f"line {number} of {path} is damaged; it is left out")
      continue
    found.append(value)
  return found
