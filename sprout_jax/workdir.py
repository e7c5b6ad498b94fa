"""The workdir: one run's folder, what is in it, and whose it is.

config.json      the resolved config; a workdir belongs to one config
versions.json    of everything that could change a number
metrics.jsonl    one record per `log_every` steps and per validation
tensorboard/     the same as event files
checkpoints/     the last few and the best
evaluation/      what each evaluation left (sprout_jax.evaluation.store)
results.json     what was measured: an interface, read by other tools
results.txt      the same as a table
plots/           PNG
"""

import importlib.metadata
import json
import pathlib
import platform

import jax

import sprout_jax
from sprout_jax import configuration
from sprout_jax.errors import UserError
from sprout_jax.records import write_json

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "chex",
  "orbax-checkpoint",
  "numpy",
  "ml_collections",
  "tensorflow-datasets",
)


def versions():
  """Versions of the packages, Python, and the device's kind."""
  found = {"sprout_jax": sprout_jax.__version__, "python": platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  devices = jax.devices()
  found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
  return found


def trained_on(workdir):
  """The devices of the process that trained here, in words; without its versions.json, not known."""
  path = pathlib.Path(workdir) / "versions.json"
  return json.loads(path.read_text())["devices"] if path.exists() else "devices that are not known"


def read_config(workdir):
  """The config that a workdir belongs to.

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(
      f"{workdir} is no workdir of a run (it has no config.json); train there first: "
      f"python launch.py --config CONFIG --workdir {workdir}"
    )
  try:
    return configuration.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is damaged ({error}); choose another --workdir") from error


def check_owner(workdir, config):
  """Raises UserError if the workdir belongs to a config that trains different parameters."""
  path = pathlib.Path(workdir) / "config.json"
  if path.exists():
    differences = configuration.differences(read_config(workdir), config)
    if differences:
      raise UserError(
        f"{workdir} belongs to a different config:\n  "
        + "\n  ".join(differences)
        + "\nChoose another --workdir, or the config that it was made with."
      )
  elif pathlib.Path(workdir).exists() and not pathlib.Path(workdir).is_dir():
    raise UserError(f"--workdir {workdir} is a file; name a folder")


def claim(workdir, config):
  """Makes the workdir this config's: writes config.json and versions.json (process 0)."""
  if jax.process_index() == 0:
    workdir = pathlib.Path(workdir)
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(workdir / "config.json", config.to_dict())
      write_json(workdir / "versions.json", versions())
    except OSError as error:
      raise UserError(
        f"--workdir {workdir} cannot be written ({error}); name another folder"
      ) from error
