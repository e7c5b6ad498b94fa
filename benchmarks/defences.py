"""Measures defences that are known to be broken, without and with the hooks of the attacks.

    python benchmarks/defences.py --output benchmarks/results/auto_attack/defences.json

The defences are those of tests/defences.py, on small networks for the digits. Of each it measures
the clean accuracy, the accuracy under PGD and under AutoAttack without the hook and with it, and
that of the undefended network under AutoAttack. What attacks find on random models is judged by
fresh draws. Rows that the file has are not measured again.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sprout_jax import attacks
from tests import defences as lib

STEPS = 50  # of PGD


def share(model, images, labels):
  """The share of images that a model classifies correctly."""
  return float((np.asarray(model(images)).argmax(-1) == labels).mean())


def pgd(model, images, labels, epsilon, loss="cross_entropy"):
  """Adversarial images of PGD."""
  attack = jax.jit(
    lambda model, images: attacks.pgd(
      jax.random.key(0),
      model,
      images,
      labels,
      epsilon=epsilon,
      step_size=epsilon / 4,
      num_steps=STEPS,
      loss=loss,
    )
  )
  return attack(model, images)


def auto_attack(model, images, labels, epsilon):
  """Adversarial images of AutoAttack."""
  return attacks.auto_attack(
    jax.random.key(0), model, images, labels, epsilon=epsilon, batch_size=len(labels)
  ).images


def measure(defence, images, labels):
  """The accuracies of a defence, as the fresh draws of its judge have them."""
  judge, given = defence.judge, (images, labels, defence.epsilon)
  found = {
    "pgd": (judge, pgd(defence.seen, *given, defence.loss)),
    "auto_attack": (judge, auto_attack(defence.seen, *given)),
    "pgd_with_hook": (judge, pgd(defence.hook, *given)),
    "auto_attack_with_hook": (judge, auto_attack(defence.hook, *given)),
    "undefended": (defence.undefended, auto_attack(defence.undefended, *given)),
  }
  shares = {name: share(model, found, labels) for name, (model, found) in found.items()}
  return {"clean": share(judge, images, labels), **shares}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", required=True)
  parser.add_argument("--images", type=int, default=100)
  args = parser.parse_args()
  path = pathlib.Path(args.output)
  rows = json.loads(path.read_text()) if path.exists() else []
  _, _, images, labels = lib.digits()
  for name, defence in lib.defences().items():
    if any(row["defence"] == name for row in rows):
      continue
    start = time.perf_counter()
    found = measure(defence, images[: args.images], labels[: args.images])
    rows.append(
      {
        "defence": name,
        "epsilon": defence.epsilon,
        "images": args.images,
        "pgd_steps": STEPS,
        **found,
        "seconds": time.perf_counter() - start,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
      }
    )
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(name, found, flush=True)


if __name__ == "__main__":
  main()
