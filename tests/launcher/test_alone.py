"""An error that only one of several processes has ends this process soon, and then the others."""

import subprocess
import sys
import time

from benchmarks import ports

CODE = """
import sys, time
import jax
where, number = f"127.0.0.1:{sys.argv[2]}", int(sys.argv[1])
jax.distributed.initialize(where, 2, number, heartbeat_timeout_seconds=5)
from sprout_jax.errors import UserError
from sprout_jax.launcher import command
from sprout_jax.training import agreement
command.LEAVING_SECONDS = 1.0

def execute(argv, prog):
  agreement.gather("both are here")
  if jax.process_index() == 1:
    raise UserError("an image cannot be decoded")
  while True:
    agreement.gather("still there?")

command.execute = execute
sys.exit(command.main([]))
"""


def test_an_error_of_one_process_ends_all_soon():
  port = ports.free()
  start = time.monotonic()
  both = [
    subprocess.Popen(
      [sys.executable, "-c", CODE, str(number), str(port)], stderr=subprocess.PIPE, text=True
    )
    for number in range(2)
  ]
  errors = [process.communicate(timeout=120)[1] for process in both]
  assert [process.returncode for process in both] == [1, 1]
  assert "error: an image cannot be decoded" in errors[1]
  assert "error: process 0 of 2 lost process 1" in errors[0]
  assert time.monotonic() - start < 60  # JAX would wait for 300 s
