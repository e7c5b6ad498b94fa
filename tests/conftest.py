"""Strict settings: 8 virtual CPU devices; rank promotion raises; warnings are errors."""

import os

FLAG = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite's time is compilation: without LLVM's expensive passes it takes half as long.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def _release_programs():
  """Forgets what a module has compiled.

  Every program keeps some memory maps, of which Linux allows a process 65,530: with those of the
  whole suite the compiler gets no more and ends the process by a segmentation fault.
  """
  yield
  jax.clear_caches()
