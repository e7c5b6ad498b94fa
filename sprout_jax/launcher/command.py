"""The command line: what is typed, checked and passed on to a mode.

python launch.py --config configs/digits.py --workdir runs/digits
python launch.py --mode evaluate --workdir runs/digits --config.evaluation.epsilon=8/255
python launch.py --mode report --workdir runs/a,runs/b
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from sprout_jax.errors import ProcessLost
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError

MODES = ("train", "evaluate", "report")
HEARTBEAT_SECONDS = 30  # without a word from a process, after which it counts as lost


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")


def parser(prog: str = "launch.py") -> argparse.ArgumentParser:
  """The flags."""
  found = _Parser(
    prog,
    description="Trains, evaluates and reports.",
    epilog="Single values of the config are changed by --config.KEY=VALUE, e.g. "
    "--config.optimizer.learning_rate=0.1 or --config.evaluation.epsilons=2/255,8/255.",
    allow_abbrev=False,
    exit_on_error=False,
  )
  found.add_argument("--mode", choices=MODES, default="train", help="what to do (default: train)")
  found.add_argument(
    "--config",
    metavar="FILE[:ARGUMENTS]",
    help="a config file, or the name of one of this package, with arguments: "
    "configs/digits.py:method=natural",
  )
  found.add_argument(
    "--workdir", metavar="DIR", action="append", help="folder of the run; several for report"
  )
  found.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    default="",
    help="process 0, for several processes; 'auto' where JAX can find it (TPU pods, Slurm)",
  )
  found.add_argument("--num_processes", type=int, help="with --coordinator: how many")
  found.add_argument("--process_id", type=int, help="with --coordinator: which one this is")
  return found


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Splits --config.KEY=VALUE (or --config.KEY VALUE) from the other arguments."""
  rest, changes, argv = [], [], list(argv)
  while argv:
    argument = argv.pop(0)
    if not argument.startswith("--config."):
      rest.append(argument)
      continue
    key, separator, value = argument.removeprefix("--config.").partition("=")
    if not separator:
      if not argv or argv[0].startswith("--"):
        raise UserError(f"{argument} has no value; type {argument}=VALUE")
      value = argv.pop(0)
    changes.append((key, value))
  return rest, changes


def run(argv: Sequence[str], prog: str = "launch.py") -> None:
  """Does what the arguments say.

  Raises:
    UserError: wrong input; one message says what to change.
  """
  rest, changes = split_changes(argv)
  args = parser(prog).parse_args(rest)
  workdirs = _workdirs(args)
  _connect(args)
  from sprout_jax.launcher import configuration  # after the connection: JAX starts here
  from sprout_jax.launcher import modes
  from sprout_jax.launcher import trained

  if args.mode == "report":
    if changes or args.config:
      raise UserError("--mode report takes no config; type --mode report --workdir DIR,DIR")
    modes.show_report(workdirs)
    return
  (workdir,) = workdirs
  if args.config:
    config = configuration.load(args.config)
  elif args.mode == "train":
    raise UserError("--config is missing; e.g. --config configs/digits.py")
  else:
    config = trained.read_config(workdir).unlock()
  configuration.override(config, changes)
  (modes.train if args.mode == "train" else modes.evaluate)(config.lock(), workdir)


def _workdirs(args):
  """The folders that were named; those of a report may be joined by commas."""
  if not args.workdir:
    raise UserError("--workdir is missing; name the folder of the run, e.g. --workdir runs/digits")
  named = []
  for text in args.workdir:
    whole = pathlib.Path(text).expanduser()
    joined = args.mode == "report" and not whole.is_dir()  # a folder may have a comma in its name
    named += [pathlib.Path(part).expanduser() for part in text.split(",")] if joined else [whole]
  if args.mode != "report" and len(named) > 1:
    raise UserError(f"--mode {args.mode} takes one --workdir; {len(named)} were given")
  return named


def _connect(args):
  """Joins the other processes, where there are any."""
  several = args.num_processes, args.process_id
  detects = args.coordinator in ("", "auto")
  if detects and several != (None, None):
    raise UserError("--num_processes and --process_id need --coordinator HOST:PORT")
  if not detects and None in several:
    raise UserError("--coordinator HOST:PORT needs --num_processes and --process_id as well")
  if args.coordinator:
    import jax

    jax.distributed.initialize(
      *([] if detects else [args.coordinator, *several]),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def main(argv: Sequence[str], prog: str = "launch.py") -> int | str:
  """Runs; what the user can mend is one message, without a traceback. Returns the exit status."""
  try:
    run(argv, prog)
  except ProcessLost as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # JAX's own end would wait for the lost process
  except (UserError, TrainingDiverged, argparse.ArgumentError) as error:
    return f"error: {error}"
  return 0


def sprout() -> NoReturn:
  """The command `sprout train|evaluate|report [CONFIG] --workdir DIR`."""
  argv = sys.argv[1:]
  if argv and argv[0] in MODES:
    mode, *argv = argv
    named = [] if not argv or argv[0].startswith("-") else ["--config", argv.pop(0)]
    argv = ["--mode", mode, *named, *argv]
  sys.exit(main(argv, "sprout"))
