"""The command line: parses the arguments and calls a mode.

::

    python launch.py --config configs/digits.py --workdir runs/digits
    python launch.py --mode evaluate --workdir runs/digits --config.evaluation.epsilon=8/255
    python launch.py --mode evaluate --weights FILE --config configs/cifar10.py --workdir runs/file
    python launch.py --mode report --workdir runs/a,runs/b
"""

import argparse
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import sprout_jax
from sprout_jax.errors import ProcessLost
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError
from sprout_jax.errors import did_you_mean
from sprout_jax.results import commands
from sprout_jax.results import workdir as workdir_lib

MODES = ("train", "evaluate", "report")
SPROUT_USAGE = """sprout train CONFIG --workdir DIR [--config.KEY=VALUE ...]
       sprout evaluate DIR [--config.KEY=VALUE ...]
       sprout evaluate --weights FILE --config CONFIG --workdir DIR [--config.KEY=VALUE ...]
       sprout report DIR [DIR ...]"""
HELP = """Train a classifier, evaluate its robustness, and report the results."""
SPROUT_HELP = f"""{HELP}

  train     train, then measure a first evaluation
  evaluate  measure all evaluations of a trained run, or of a file of published weights
  report    write one page about one or several runs

  CONFIG    a config of this package (digits, cifar10) or a file of yours (mine.py); its arguments
            follow a colon: digits:method=natural,epochs=10
  DIR       the folder of the run
  FILE      PyTorch's state dict (.pt, .safetensors, ...) or DeepMind's arrays (.npy, .npz)"""
HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as lost
LEAVING_SECONDS = 10.0  # after an error; processes that all have it end together before


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; type {self.prog} --help for the options")


def parser(prog: str = "launch.py") -> argparse.ArgumentParser:
  """Makes the parser of the command line."""
  is_sprout = prog == "sprout"
  found = _Parser(
    prog,
    usage=SPROUT_USAGE if is_sprout else None,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=SPROUT_HELP if is_sprout else HELP,
    epilog="Change single values of the config with --config.KEY=VALUE, e.g.\n"
    "--config.optimizer.learning_rate=0.1 or --config.evaluation.epsilons=2/255,8/255.",
    allow_abbrev=False,
    exit_on_error=False,
  )
  found.add_argument(
    "--mode",
    choices=MODES,
    default="train",
    help=argparse.SUPPRESS  # `sprout` has it as its first word
    if is_sprout
    else "train: train, then evaluate; evaluate: evaluate a trained run; report: write one page "
    "about several runs (default: train)",
  )
  found.add_argument("--version", action="version", version=f"sprout_jax {sprout_jax.__version__}")
  found.add_argument(
    "--config",
    metavar="FILE[:ARGUMENTS]",
    help="the config: a file, or the name of a config of this package; arguments follow a colon, "
    "e.g. configs/digits.py:method=natural",
  )
  found.add_argument(
    "--workdir",
    metavar="DIR",
    action="append",
    help="the folder of the run; for a report several, separated by commas",
  )
  found.add_argument(
    "--weights",
    metavar="FILE",
    default="",
    help="a file of published weights, which is evaluated in the place of a run; --config gives "
    "the model and the data. FILE:entry=NAME,ignore=PATTERN reads one of several state dicts, or "
    "ignores arrays",
  )
  found.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    default="",
    help="the address of process 0, if several processes train together; 'auto' where JAX finds it "
    "(TPU pods, Slurm)",
  )
  found.add_argument(
    "--num_processes", type=int, help="the number of processes, with --coordinator HOST:PORT"
  )
  found.add_argument(
    "--process_id",
    type=int,
    help="the number of this process, from 0, with --coordinator HOST:PORT",
  )
  return found


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Splits --config.KEY=VALUE (or --config.KEY VALUE) from the other arguments.

  Returns:
    The other arguments, and (KEY, VALUE) of each change.

  Raises:
    UserError: a change has no value.
  """
  rest: list[str] = []
  changes: list[tuple[str, str]] = []
  argv = list(argv)
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


def execute(argv: Sequence[str], prog: str = "launch.py") -> None:
  """Executes a command: parses the arguments, loads the config, and calls the mode.

  Raises:
    UserError: wrong input; the message says what to change.
  """
  rest, changes = split_changes(argv)
  args = parser(prog).parse_args(rest)
  workdirs = _workdirs(args)
  if args.weights and args.mode != "evaluate":
    raise UserError(
      "--weights needs --mode evaluate; to train from a file of weights, type "
      f"--config.init_from={args.weights}"
    )
  _connect(args)
  from sprout_jax.launcher import configuration  # imported late: this starts JAX
  from sprout_jax.launcher import modes
  from sprout_jax.launcher import published
  from sprout_jax.launcher import trained

  if args.mode == "report":
    if changes or args.config:
      raise UserError(f"a report needs no config; type {commands.report('DIR_A', 'DIR_B')}")
    modes.show_report(workdirs)
    return
  (workdir,) = workdirs
  if args.config:
    config = configuration.load(args.config)
  elif args.mode == "train":
    example = "digits" if prog == "sprout" else "configs/digits.py"
    raise UserError(f"--config is missing; type e.g. {commands.train(example, workdir)}")
  elif args.weights and not workdir_lib.is_run(workdir):
    raise published.missing_config(args.weights, workdir)
  else:
    config = trained.read_config(workdir).unlock()
  configuration.override(config, changes)
  typed = [key for key, _ in changes]
  if args.mode == "train":
    modes.train(config.lock(), workdir, typed=typed)
  else:
    modes.evaluate(config.lock(), workdir, weights=args.weights, typed=typed)


def _workdirs(args: argparse.Namespace) -> list[pathlib.Path]:
  """Returns the folders of --workdir. Those of a report can be separated by commas."""
  if not args.workdir:
    raise UserError("--workdir is missing; name the folder of the run, e.g. --workdir runs/digits")
  named: list[pathlib.Path] = []
  for text in args.workdir:
    whole = pathlib.Path(text).expanduser()
    joined = args.mode == "report" and not os.path.isdir(whole)  # a folder's name can have a comma
    named += [pathlib.Path(part).expanduser() for part in text.split(",")] if joined else [whole]
  if args.mode != "report" and len(named) > 1:
    raise UserError(f"{args.mode} takes one --workdir, but {len(named)} were given")
  return named


def _connect(args: argparse.Namespace) -> None:
  """Connects to the other processes, if there are any."""
  several = args.num_processes, args.process_id
  detects = args.coordinator in ("", "auto")
  if detects and several != (None, None):
    raise UserError("--num_processes and --process_id need --coordinator HOST:PORT")
  if not detects and None in several:
    raise UserError("--coordinator HOST:PORT needs --num_processes and --process_id as well")
  if args.coordinator:
    import jax

    jax.distributed.initialize(
      coordinator_address=None if detects else args.coordinator,
      num_processes=args.num_processes,
      process_id=args.process_id,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def main(argv: Sequence[str], prog: str = "launch.py") -> int | str:
  """Executes a command and returns its exit status.

  An error that the user can fix becomes one message, without a traceback.
  """
  commands.program = prog
  try:
    execute(argv, prog)
  except ProcessLost as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # JAX's shutdown would wait for the lost process
  except (UserError, TrainingDiverged, argparse.ArgumentError) as error:
    _leave_soon()
    return f"error: {error}"
  except OSError as error:
    _leave_soon()
    if error.filename is None:
      raise
    path = str(error.filename)
    shown = path if len(path) <= 200 else f"{path[:197]}..."
    return (
      f"error: {shown} cannot be opened ({error.strerror}); check the name and the permissions, "
      "then type the same command again"
    )
  except KeyboardInterrupt:  # before training and evaluation, which have handlers of their own
    return "Stopped by Ctrl-C. The same command continues."
  except Exception:
    _leave_soon()
    raise
  return 0


def _leave_soon() -> None:
  """Ends this process after LEAVING_SECONDS, if it belongs to several processes.

  JAX lets a process wait at its end until all others end as well. The others do not, where only
  this process has an error. They notice within HEARTBEAT_SECONDS that it is gone.
  """
  jax = sys.modules.get("jax")
  if jax is not None and jax.distributed.is_initialized():
    timer = threading.Timer(LEAVING_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def sprout() -> NoReturn:
  """Executes the command `sprout train CONFIG --workdir DIR|evaluate DIR|report DIR [DIR ...]`."""
  try:
    argv = _from_words(sys.argv[1:])
  except UserError as error:
    sys.exit(f"error: {error}")
  sys.exit(main(argv, "sprout") if argv else f"usage: {SPROUT_USAGE}\n\n{SPROUT_HELP}")


def _from_words(argv: Sequence[str]) -> list[str]:
  """Turns the words after `sprout` into flags: the command, and its config or workdirs.

  Raises:
    UserError: the first word is no command.
  """
  if not argv or argv[0].startswith("-"):
    return list(argv)
  mode, *rest = argv
  if mode not in MODES:
    hint = did_you_mean(mode, MODES)
    raise UserError(f"sprout has no command {mode!r}.{hint} Its commands are: {', '.join(MODES)}")
  flag = "--config" if mode == "train" else "--workdir"
  words: list[str] = []
  while rest and not rest[0].startswith("-") and not (mode == "train" and words):
    words += [flag, rest.pop(0)]
  return ["--mode", mode, *words, *rest]
