"""Compares models at their published sizes with PyTorch's outputs. It needs no PyTorch.

    python -m tests.models.compare_published               # all networks, about 10 minutes
    python -m tests.models.compare_published wrn_28_10     # one of them

Weights and images are drawn as in `make_weights_golden`, whose command wrote PyTorch's logits and
the outcomes of its PGD to weights_published.json. The results are in weights_compared.json. They
are the table in docs/weights.md, which this script writes.
"""

import json
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax import models
from sprout_jax.models.weights import names
from tests.models import make_weights_golden as reference

COMPARED = pathlib.Path(__file__).with_name("weights_compared.json")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"
MARKS = "<!-- compared -->\n", "<!-- end -->\n"
run = jax.jit(lambda weights, images: weights(images))


def state_dict(name):
  """The arrays of a file with PyTorch's names; test_weights.py compares names and shapes."""
  classes = reference.SIZES[name][1].get("classes", 10)
  model = models.create(name, num_classes=classes, image_shape=(224, 224, 3))
  form, places = names.forms(model)[0], names.places(model, 3)
  shapes = {form.name(place): form.shape(place, shape) for place, shape in places.items()}
  if name.endswith("_same"):
    shapes |= {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
  return {name: reference.draw(name, shape) for name, shape in shapes.items()}


def load(name):
  """The model of a file with these arrays."""
  state = {key: np.ascontiguousarray(array) for key, array in state_dict(name).items()}
  stated = {} if "mean" in state else {"mean": (0,), "std": (1,)}
  activation = "silu" if name.endswith("_same") else None
  with tempfile.TemporaryDirectory() as folder:
    save_file(state, f"{folder}/net.safetensors")
    return models.load_weights(
      f"{folder}/net.safetensors", model=name, activation=activation, **stated
    )


def with_bias(weights, pgd):
  """The model with the last bias of PyTorch's network under attack."""
  return jax.tree.map_with_path(
    lambda path, leaf: (
      jnp.asarray(pgd["bias"][1], jnp.float32)
      if [getattr(key, "key", None) for key in path][-2:] == ["dense", "bias"]
      else leaf
    ),
    weights,
  )


def outcomes(weights, images, pgd):
  """Which images our PGD leaves correctly classified, as `reference.attacked` does in PyTorch."""
  labels, epsilon = np.array(pgd["labels"]), pgd["epsilon"]

  def attack(weights, images):
    adversarial = attacks.pgd(
      jax.random.key(0),
      weights.predict,
      images,
      labels,
      epsilon=epsilon,
      step_size=epsilon / 4,
      num_steps=pgd["num_steps"],
      start="clean",
      loss=losses.margin,
    )
    return weights(adversarial)

  return (np.array(jax.jit(attack)(with_bias(weights, pgd), images)).argmax(1) == labels).tolist()


def compare(name, golden):
  """The largest relative difference of the logits, and on how many images PGD agrees."""
  weights, images = load(name), reference.images_of(4, reference.SIZES[name][2])
  logits = np.array(run(weights, images))[:, : len(golden["logits"][0])]
  found = {
    "form": weights.form,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"])),
    "size": reference.SIZES[name][2],
    "difference": float(np.abs(logits - golden["logits"]).max() / golden["largest"]),
  }
  pgd = golden["pgd"]
  if pgd is None:
    return found
  print(name, found, flush=True)
  equal = np.array(outcomes(weights, images, pgd)) == pgd["robust"]
  return found | {"robust": sum(pgd["robust"]), "equal": int(equal.sum()), "count": len(equal)}


def table(compared):
  """The table of docs/weights.md."""
  lines = [
    "| `model` | file | parameters | images | largest difference | same outcome under PGD |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for name in (name for name in reference.SIZES if name in compared):
    row = compared[name]
    outcome = "-"
    if "equal" in row:
      outcome = f"{row['equal']} of {row['count']} ({row['robust']} robust)"
    lines.append(
      f"| `{name}` | {row['form']} | {row['parameters'] / 1e6:.1f} million | "
      f"{row['size']}x{row['size']} | {row['difference']:.1e} | {outcome} |"
    )
  return "\n".join(lines) + "\n"


def write_table(compared):
  """Writes the table into docs/weights.md."""
  before, _, rest = PAGE.read_text().partition(MARKS[0])
  after = rest.partition(MARKS[1])[2]
  PAGE.write_text(f"{before}{MARKS[0]}\n{table(compared)}\n{MARKS[1]}{after}")


def main(chosen):
  jax.config.update("jax_disable_most_optimizations", True)  # compilation takes most of the time
  golden = json.loads(reference.PUBLISHED.read_text())
  compared = json.loads(COMPARED.read_text()) if COMPARED.exists() else {}
  for name in chosen or sorted(golden, key=lambda name: bool(golden[name]["pgd"])):
    start = time.monotonic()
    compared[name] = compare(name, golden[name])
    print(name, compared[name], f"{time.monotonic() - start:.0f} s", flush=True)
    COMPARED.write_text(json.dumps(compared, indent=1) + "\n")
    jax.clear_caches()
    write_table(compared)


if __name__ == "__main__":
  main(sys.argv[1:])
