"""Accuracy under attack."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy

TOLERANCE = 1e-6  # by which rounding may take a perturbation over epsilon


@dataclasses.dataclass(frozen=True)
class PgdSpec:
  """Everything that defines a PGD attack but its radius; goes beside every number.

  Attributes: see `attacks.pgd`; `step_size` in pixel units.
  """

  norm: str
  num_steps: int
  step_size: float
  num_restarts: int
  loss: str
  seed: int

  def entry(self, epsilon, robust):
    """An entry of results.json's "attacks" from the outcomes [n] bool."""
    return {"name": f"pgd-{self.num_steps}", "norm": self.norm, "epsilon": epsilon,
            "steps": self.num_steps, "step_size": self.step_size, "restarts": self.num_restarts,
            "random_start": True, "loss": self.loss, "seed": self.seed,
            **statistics.proportion(robust.sum(), len(robust))}


def select(split, num_examples):
  """The fixed random choice of images that attacks run on; 0 takes all, in their order."""
  if not num_examples or num_examples >= len(split.labels):
    return split
  rows = np.random.default_rng(0).permutation(len(split.labels))[:num_examples]
  return dataclasses.replace(split, images=split.images[rows], labels=split.labels[rows])


def root_key(seed):
  """The root of an evaluation's randomness; training folds in small numbers, its steps."""
  return jax.random.fold_in(jax.random.key(seed), 2**32 - 1)


def excess(images, adversarial, epsilon, norm):
  """By how much perturbations exceed epsilon or pixels leave [0, 1]: float [batch], <= 0 if not."""
  outside = jnp.max(jnp.maximum(adversarial - 1, -adversarial), axis=(1, 2, 3))
  return jnp.maximum(attacks.NORMS[norm].size(adversarial - images) - epsilon, outside)


def refuse_excess(name, excess_of):
  """Raises RuntimeError if an attack left its threat model: its numbers would be worth nothing."""
  if not np.max(excess_of) <= TOLERANCE:
    raise RuntimeError(f"{name} exceeded its threat model by {np.max(excess_of):.2g}; this is a "
                       "defect of the attack")


def pgd_fn(model, spec, mesh):
  """Compiles (variables, epsilon, restart, images, labels, indices) -> [batch, 2] float32.

  Column 0: whether the model is still right on the adversarial image; column 1: the size of the
  perturbation beyond epsilon or of the pixels beyond [0, 1], which must not exceed `TOLERANCE`.
  The radius and the number of the restart are arguments: one compilation per batch size serves all.
  """
  def attack(variables, epsilon, restart, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    adversarial = attacks.pgd(
        jax.random.fold_in(root_key(spec.seed), restart), predict, images, labels,
        epsilon=epsilon, step_size=spec.step_size, num_steps=spec.num_steps, norm=spec.norm,
        loss=spec.loss, indices=indices)
    right = jnp.argmax(predict(adversarial), axis=-1) == labels
    return jnp.stack([right, excess(images, adversarial, epsilon, spec.norm)], axis=-1)
  return jax.jit(attack, out_shardings=sharding.replicated(mesh))


def pgd_curve(attack, variables, split, clean_correct, spec, epsilons, batch_size, mesh,
              on_progress=lambda done, text: None):
  """Accuracy under PGD for every radius of a grid.

  Misclassified images count as broken and are not attacked; a restart attacks what the ones before
  it left robust. An image's random starts depend on its position in `split` only.

  Args:
    attack: from `pgd_fn`.
    variables: of its model.
    split: the images, from `select`.
    clean_correct: host array [n] bool, which of them are classified correctly.
    spec: a `PgdSpec`.
    epsilons: radii in pixel units.
    batch_size: images per compiled call.
    mesh: the mesh of devices.
    on_progress: called with (images done, text), of their number times radii times restarts; an
      image that is not attacked counts as done.

  Returns:
    List of entries of results.json's "attacks", one per radius.

  Raises:
    RuntimeError: a perturbation left the ball or the box: the numbers would be worth nothing.
  """
  entries, count = [], len(clean_correct)
  for number, (epsilon, restart) in enumerate(itertools.product(epsilons, range(spec.num_restarts))):
    robust = robust if restart else np.array(clean_correct, bool)
    rows = np.flatnonzero(robust)

    def fn(images, labels, indices, epsilon=np.float32(epsilon), restart=restart):
      return attack(variables, epsilon, restart, to_float(images), labels, indices)

    def on_batch(done, first=(number + 1) * count - len(rows),
                 text=f"epsilon {epsilon:g}, restart {restart + 1} of {spec.num_restarts}"):
      on_progress(first + done, text)

    if len(rows):
      outcome = accuracy.map_batches(
          fn, (split.images[rows], split.labels[rows], rows.astype(np.int32)), batch_size, mesh, on_batch)
      refuse_excess(f"PGD at epsilon {epsilon:g}", outcome[:, 1])
      robust[rows] = outcome[:, 0] > 0.5
    if restart == spec.num_restarts - 1:
      entries.append(spec.entry(float(epsilon), robust))
  return entries

