"""What evaluations leave in a workdir: they are not repeated, and continue where a kill ended them.

    evaluation/NAME-IDENTITY.json             what an evaluation found, its options and its time
    evaluation/NAME-IDENTITY.partial.jsonl    pieces of one that is not finished
    evaluation/NAME-IDENTITY/                 files of its own (AutoAttack's state)

IDENTITY is a hash of all that decides about the numbers: the weights, the data, the versions, and
the evaluation's options. Another radius is another file; going back to an earlier one finds its
numbers again.

All processes read the same files and process 0 writes them. It cannot be a piece ahead of one that has
yet to read: every piece that takes the devices takes those of all processes.
"""

import hashlib
import json
import pathlib
import time

import jax

from sprout_jax.records import write_json


class Memo:
  """memo(name, compute) -> compute(), from disk if it was computed before; values are JSON.

  Attributes:
    folder: where an evaluation may keep files of its own.
  """

  def __init__(self, path):
    """Reads the pieces that an earlier run left in `path`; a last line that was cut is ignored."""
    self.folder = path.with_name(path.name.removesuffix(".partial.jsonl"))
    self._path, self._pieces = path, {}
    if path.exists():
      lines = path.read_text().splitlines()
      for number, line in enumerate(lines):
        try:
          name, value = json.loads(line)
        except json.JSONDecodeError:
          if jax.process_index() == 0:
            path.write_text("".join(f"{whole}\n" for whole in lines[:number]))
          break
        self._pieces[name] = value

  def __call__(self, name, compute):
    if name not in self._pieces:
      # As it is read back, so that a run which was interrupted has no other values.
      self._pieces[name] = json.loads(json.dumps(compute()))
      if jax.process_index() == 0:
        with self._path.open("a") as file:
          file.write(json.dumps([name, self._pieces[name]]) + "\n")
    return self._pieces[name]


class Store:
  """The evaluations of one workdir's weights."""

  def __init__(self, workdir, identity):
    """`identity`: what decides about the numbers besides an evaluation's options, as JSON."""
    self._folder, self._identity = pathlib.Path(workdir) / "evaluation", identity

  def read(self, name, options):
    """What is stored of an evaluation with these options; None if nothing is."""
    path = self._path(name, options)
    return json.loads(path.read_text()) if path.exists() else None

  def run(self, name, options, compute):
    """Returns what is stored, or else stores what `compute`, memo -> dictionary, returns.

    Args:
      name: of the evaluation.
      options: its options, as JSON.
      compute: gets a `Memo`.

    Returns:
      {"options", "wall_seconds" (of all runs since the first piece), and what was computed}.
    """
    found = self.read(name, options)
    if found is None:
      path = self._path(name, options)
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_name(f"{path.stem}.partial.jsonl")
      start, memo = time.monotonic(), Memo(partial)
      found = json.loads(json.dumps({"options": options, **compute(memo)}))
      found = {"wall_seconds": time.monotonic() - start, **found}
      if jax.process_index() == 0:
        write_json(path, found)
        partial.unlink(missing_ok=True)
    return found

  def _path(self, name, options):
    text = json.dumps([self._identity, options], sort_keys=True)
    return self._folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
