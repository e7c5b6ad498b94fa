"""Signals that stop a run: SIGTERM, SIGHUP (a closed terminal) and Ctrl-C."""

import contextlib
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator

import jax

from sprout_jax.training import agreement

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Requests:
  """The received signals. The first asks the run to stop, and the second ends the process."""

  def __init__(self) -> None:
    self._received = ""
    self._farewell: str | None = None

  def first(self) -> str:
    """Returns the name of the first signal, the same in all processes; "" if there is none."""
    return next(filter(None, agreement.gather(self._received)), "")

  @contextlib.contextmanager
  def nothing_to_save(self, farewell: str) -> Iterator[None]:
    """Runs a block in which the first signal ends the process, after it prints `farewell`.

    Python handles no signal while compiled code or the compiler runs. In the block the process ends
    nevertheless. With several processes the block changes nothing, because they have to agree
    before one ends.
    """
    self._farewell = farewell if jax.process_count() == 1 else None
    try:
      yield
    finally:
      self._farewell = None

  def _receive(self, number: int, frame: types.FrameType | None) -> None:
    self._received = signal.Signals(number).name
    for each in SIGNALS:
      if signal.getsignal(each) == self._receive:
        signal.signal(each, signal.SIG_DFL)

  def _watch(self, wake: socket.socket) -> None:
    # Runs in its own thread. Python's C handler writes the signal's number to `wake` at once.
    while number := wake.recv(1):
      if number[0] in SIGNALS and (farewell := self._farewell):
        print(f"Stopped by {signal.Signals(number[0]).name}. {farewell}", flush=True)
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def requests() -> Iterator[Requests]:
  """Yields the `Requests` of a run. A signal that the process ignores (nohup) stays ignored."""
  found = Requests()
  wake, sender = socket.socketpair()
  sender.setblocking(False)
  watcher = threading.Thread(target=found._watch, args=(wake,), daemon=True)
  watcher.start()
  previous_sender = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
  previous = {each: signal.getsignal(each) for each in SIGNALS}
  for each, handler in previous.items():
    if handler != signal.SIG_IGN:
      signal.signal(each, found._receive)
  try:
    yield found
  finally:
    for each, handler in previous.items():
      signal.signal(each, handler)
    signal.set_wakeup_fd(previous_sender)
    sender.close()  # ends the watcher
    watcher.join()
    wake.close()
