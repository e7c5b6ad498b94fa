"""`--coordinator auto` finds the other processes from the variables of a cluster, set by hand."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = """
import json, jax
from sprout_jax.launcher import command
command._connect(command.parser().parse_args(["--coordinator", "auto", "--workdir", "w"]))
from sprout_jax.training import agreement
texts = agreement.gather(f"process {jax.process_index()}")
print(json.dumps([jax.process_index(), jax.process_count(), jax.device_count(), texts]))
"""


def slurm(job, number):
  return {
    "SLURM_JOB_ID": str(job),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(number),
    "SLURM_LOCALID": str(number),
  }


def open_mpi(job, number):
  return {
    "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(number),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
  }


@pytest.mark.parametrize("variables", [slurm, open_mpi])
def test_processes_find_each_other(variables):
  job = random.SystemRandom().randrange(2**20, 2**24)  # JAX derives the port from it
  kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM],
      cwd=ROOT,
      env=kept | {"XLA_FLAGS": ""} | variables(job, number),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  outputs = [process.communicate(timeout=300) for process in processes]
  for number, (out, err) in enumerate(outputs):
    assert out, err
    found = json.loads(out.splitlines()[-1])
    assert found == [number, 2, 2, ["process 0", "process 1"]]
