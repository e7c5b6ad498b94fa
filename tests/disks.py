"""A full disk, for tests that write."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
  """Limits files to `size` bytes. To the writer this is a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
