"""stopping: which signals ask for the end, in this process and in real ones."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sprout_jax.training import stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_a_request_and_handlers_are_put_back(number):
  before = [signal.getsignal(each) for each in stopping.SIGNALS]
  threads = threading.active_count()
  with stopping.requests() as requests:
    assert requests.first() == ""
    signal.raise_signal(number)
    assert requests.first() == number.name
    assert all(signal.getsignal(each) == signal.SIG_DFL for each in stopping.SIGNALS)
  assert [signal.getsignal(each) for each in stopping.SIGNALS] == before
  assert threading.active_count() == threads
  assert signal.set_wakeup_fd(-1) == -1


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with stopping.requests() as requests:
      signal.raise_signal(signal.SIGHUP)
      assert requests.first() == ""
      signal.raise_signal(signal.SIGTERM)
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
      assert requests.first() == "SIGTERM"
  finally:
    signal.signal(signal.SIGHUP, before)


def run(script, *signals):
  """Runs a script, sends it signals once it has said "ready", and waits for its end."""
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script)],
    env={**os.environ, "XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  start = time.monotonic()
  for number in signals:
    process.send_signal(number)
    time.sleep(0.5)
  out, err = process.communicate(timeout=60)
  return process.returncode, out, err, time.monotonic() - start


COMPILED = """
  import jax, jax.numpy as jnp
  from sprout_jax.training import stopping
  endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: x * 1.0, x))
  with stopping.requests() as requests, requests.nothing_to_save("Checkpoint 7 is there."):
    print("ready", flush=True)
    endless(jnp.float32(1)).block_until_ready()
"""


def test_while_there_is_nothing_to_save_a_signal_ends_compiled_code_with_a_line():
  code, out, err, seconds = run(COMPILED, signal.SIGTERM)
  assert (code, out) == (0, "Stopped by SIGTERM. Checkpoint 7 is there.\n"), err
  assert seconds < 10


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGHUP])
def test_the_second_signal_of_any_kind_ends_at_once(second):
  code, out, _, seconds = run(
    """
    import time
    from sprout_jax.training import stopping
    with stopping.requests() as requests:
      print("ready", flush=True)
      while True:
        time.sleep(0.05)
    """,
    signal.SIGTERM,
    second,
  )
  assert (code, out) == (-second, "")
  assert seconds < 10
