"""Trains, evaluates and reports.

python launch.py --config configs/digits.py --workdir runs/digits
python launch.py --mode evaluate --workdir runs/digits
python launch.py --mode report --workdir runs/a,runs/b
"""

import signal
import sys

# Outside the training loop, which saves first, Ctrl-C and SIGTERM end the process at once.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from sprout_jax.launcher import command  # noqa: E402

if __name__ == "__main__":
  sys.exit(command.main(sys.argv[1:]))
