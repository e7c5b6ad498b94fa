"""Trains, evaluates and reports.

python launch.py --config configs/digits.py --workdir runs/digits
python launch.py --mode evaluate --workdir runs/digits
python launch.py --mode report --workdir runs/a,runs/b
"""

import os
import signal
import sys

# Outside the training loop, which saves first, Ctrl-C and SIGTERM end the process at once.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from configs import stored
from sprout_jax import configuration
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, with arguments after a colon."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; several, with commas, for report."
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "report"], "What to do.")
COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "HOST:PORT of process 0, for several processes where JAX cannot detect them "
  "(on TPU pods and under SLURM it can: give 'auto').",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is.")


def main(argv):
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
  if not WORKDIR.value:
    raise UserError("--workdir is missing; name the folder of the run, e.g. --workdir runs/digits")
  if MODE.value == "train" and CONFIG.value is None:
    raise UserError("--config is missing; e.g. --config configs/digits.py")
  several = NUM_PROCESSES.value, PROCESS_ID.value
  if COORDINATOR.value in ("", "auto") and several != (None, None):
    raise UserError("--num_processes and --process_id need --coordinator HOST:PORT")
  if COORDINATOR.value not in ("", "auto") and None in several:
    raise UserError("--coordinator HOST:PORT needs --num_processes and --process_id as well")
  if COORDINATOR.value:
    import jax

    jax.distributed.initialize(
      *(
        []
        if COORDINATOR.value == "auto"
        else [COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value]
      )
    )
  from sprout_jax import run

  if MODE.value == "train":
    run.train(CONFIG.value, WORKDIR.value)
  elif MODE.value == "evaluate":
    run.evaluate(CONFIG.value or stored.get_config(WORKDIR.value), WORKDIR.value)
  else:
    run.show_report(WORKDIR.value.split(","))


def parse_flags(argv):
  """Parses the command line; a wrong flag or config key is one message, without a traceback."""
  errors = (UserError, flags.Error, AttributeError, KeyError, OSError, TypeError)
  try:
    rest = flags.FLAGS(argv)
    if CONFIG.value is not None:
      CONFIG.value.to_dict()  # a file that is not there shows here, not before
    return rest
  except errors as error:
    message = str(error.args[0] if error.args else error).strip()
  if "Traceback (most recent call last)" in message:  # of an error inside the config file
    message = message.splitlines()[-1].removeprefix("sprout_jax.errors.UserError: ")
  sys.exit(f"error: {missing_file(argv) or unknown_key(argv, errors) or message}")


def missing_file(argv):
  """The message for a --config that is not there; "" if it is."""
  words = " ".join(argv).replace("--config=", "--config ").split()
  named = [after.split(":")[0] for before, after in zip(words, words[1:]) if before == "--config"]
  absent = [path for path in named if not os.path.exists(path)]
  return f"there is no config file {absent[0]}; name one, e.g. configs/digits.py" if absent else ""


def unknown_key(argv, errors):
  """The message for a --config.KEY that the config does not have; "" if it has them all."""
  changes = [
    argument[len("--config.") :].split("=")[0]
    for argument in argv
    if argument.startswith("--config.")
  ]
  sys.argv = [argument for argument in argv if not argument.startswith("--config.")]
  try:
    flags.FLAGS(sys.argv)
    return next(filter(None, (configuration.unknown_key(CONFIG.value, key) for key in changes)), "")
  except errors:
    return ""


def run_reporting_errors(argv):
  """Runs main; what the user can mend is one message and exit status 1, without a traceback."""
  try:
    main(argv)
  except (UserError, TrainingDiverged) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(run_reporting_errors, flags_parser=parse_flags)
