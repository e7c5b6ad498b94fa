"""The launcher: train a classifier, evaluate its robustness, report the results.

python launch.py --config configs/digits.py --workdir runs/digits
python launch.py --mode evaluate --workdir runs/digits
python launch.py --mode report --workdir runs/a,runs/b
"""

import signal
import sys

# Ctrl-C ends the process at once, except in the training loop, which saves first.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from sprout_jax.launcher import command  # noqa: E402

if __name__ == "__main__":
  sys.exit(command.main(sys.argv[1:]))
