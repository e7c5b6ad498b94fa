"""A free port, for benchmarks and tests that start several processes."""

import socket


def free():
  """A port of the loopback interface that no program uses now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]
