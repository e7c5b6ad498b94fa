"""Strict settings: 8 virtual CPU devices, errors for rank promotion, errors for warnings."""

import importlib.metadata
import os

# One part per program and plain LLVM code: compilation, most of the suite's time, takes half as
# long. jaxlib ends the process at a flag that it does not know, and 0.12 dropped the last one.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
chosen = os.environ.get("XLA_FLAGS", "").split()
names = {flag.partition("=")[0] for flag in chosen}
os.environ["XLA_FLAGS"] = " ".join(
  chosen + [flag for flag in FLAGS if flag.partition("=")[0] not in names]
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite's time is compilation: without LLVM's expensive passes it takes half as long.
jax.config.update("jax_disable_most_optimizations", True)


# The slowest files go first. If one came last, the other worker would be idle.
LONGEST = (
  *("test_launch.py", "test_contract.py", "test_weights.py", "test_auto_attack.py"),
  *("test_documentation.py", "test_findings.py", "test_reference.py", "test_step.py"),
  *("test_several.py", "test_processes.py"),
)


def pytest_configure(config):
  config.option.loadscopereorder = False  # of xdist, which begins with the files of most tests


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _release_programs():
  """Forgets what a module has compiled.

  Every program keeps some memory maps, of which Linux allows a process 65,530: with those of the
  whole suite the compiler gets no more and ends the process by a segmentation fault.
  """
  yield
  jax.clear_caches()
