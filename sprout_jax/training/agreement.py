"""Agreement between processes: all of them continue, or all of them stop.

A process that raises alone leaves the others waiting in their next collective operation. An action
that can fail in one process only (a full disk, a file that it does not see) is therefore done
inside `agreed`, which every process enters and leaves together. Every function here is collective:
all processes call it, in the same order. With one process nothing is sent.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sprout_jax.errors import ProcessLost
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError

# JAX's errors about a process that does not answer: how they begin, and words in them. They are
# JaxRuntimeErrors or, where a computation is started, ValueErrors.
LOST = re.compile(
  "(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION)\\b.*"
  "(gloo|connection|socket|heartbeat|coordination|barrier|nccl)",
  re.IGNORECASE | re.DOTALL,
)


def gather(text: str) -> list[str]:
  """Returns the texts of all processes, in the order of their numbers.

  Raises:
    ProcessLost: another process does not answer.
  """
  if jax.process_count() == 1:
    return [text]
  encoded = np.frombuffer(text.encode(), np.uint8)
  with reached():
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(encoded)))).ravel()
    if not lengths.any():
      return [""] * len(lengths)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(encoded)] = encoded
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
  return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


def from_first(text: str) -> str:
  """Returns the text of process 0 in every process; the texts of the others are ignored."""
  return gather(text if jax.process_index() == 0 else "")[0]


def check_same(what: Mapping[str, Any]) -> None:
  """Checks that all processes have the same values.

  Args:
    what: {name: a value that JSON can hold}, such as the keys of a config.

  Raises:
    UserError: they differ; the message names the first process that differs and up to five values.
  """
  texts = [json.loads(text) for text in gather(json.dumps(what, default=str))]
  for number, other in enumerate(texts):
    names = [name for name in sorted({*texts[0], *other}) if texts[0].get(name) != other.get(name)]
    if names:
      listed = "; ".join(
        f"{name} is {texts[0].get(name)!r} in process 0 and {other.get(name)!r} in process {number}"
        for name in names[:5]
      )
      more = f" and {len(names) - 5} more" if len(names) > 5 else ""
      raise UserError(
        f"the processes were started with different values: {listed}{more}. Start the same "
        "command, with the same code and data, in all processes"
      )


@contextlib.contextmanager
def agreed() -> Iterator[None]:
  """Runs a block that all processes leave in the same way. Inside it, nothing is collective.

  Raises:
    UserError: a process raised UserError or OSError in the block; with several processes the
      message names it. A process that raised another error raises that one, the others UserError.
    TrainingDiverged: raised in the block, by every process, because the metrics are the same.
  """
  failure: Exception | None = None
  try:
    yield
  except TrainingDiverged:
    raise
  except Exception as error:  # any error: the others must not wait for this process
    failure = error
  is_known = isinstance(failure, UserError | OSError)
  if failure is None:
    text = ""
  else:
    text = str(failure) if is_known else f"{type(failure).__name__}: {failure}"
  texts = gather(text)
  if failure is not None and not is_known:
    raise failure
  if len(texts) == 1 and isinstance(failure, UserError):
    raise failure
  failed = [
    f"process {number} of {len(texts)}: {text}" if len(texts) > 1 else text
    for number, text in enumerate(texts)
    if text
  ]
  if failed:
    raise UserError("; ".join(failed)) from failure


@contextlib.contextmanager
def reached() -> Iterator[None]:
  """Replaces JAX's error about a process that does not answer by one that says what to do.

  Raises:
    ProcessLost: another process has ended, or cannot be reached.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    if jax.process_count() == 1 or not LOST.match(str(error)):
      raise
    reason = str(error).splitlines()[0][:200]
    other = f"process {1 - jax.process_index()}" if jax.process_count() == 2 else "another process"
    raise ProcessLost(
      f"process {jax.process_index()} of {jax.process_count()} lost {other} ({reason}). The "
      "messages of the lost process say why it ended. Start all processes again: the same commands "
      "continue from the newest checkpoint"
    ) from error
