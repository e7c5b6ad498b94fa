"""Accuracy under attack."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import checks

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

  def header(self, epsilon):
    """What an entry of results.json says of the attack, without what it found."""
    return {
      "name": f"pgd-{self.num_steps}",
      "norm": self.norm,
      "epsilon": float(epsilon),
      "steps": self.num_steps,
      "step_size": self.step_size,
      "restarts": self.num_restarts,
      "random_start": True,
      "loss": self.loss,
      "seed": self.seed,
    }

  def entry(self, epsilon, robust):
    """An entry of results.json's "attacks" from the outcomes [n] bool."""
    return {**self.header(epsilon), **statistics.proportion(robust.sum(), len(robust))}


def select(count, num_examples):
  """The fixed random choice, of `count` images, that attacks run on: their rows; 0 takes all, in order."""
  if not num_examples or num_examples >= count:
    return np.arange(count)
  # RandomState: NumPy promises that its stream never changes.
  return np.random.RandomState(0).permutation(count)[:num_examples]


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
    raise RuntimeError(
      f"{name} exceeded its threat model by {np.max(excess_of):.2g}; this is a defect of the attack"
    )


def attack_fn(model, attack, norm, seed, mesh, source=None):
  """Compiles an attack on a trained model, for `outcomes`.

  The radius and the number of the restart are arguments: one compilation per batch size serves all.

  Args:
    model: the Flax module.
    attack: function (key, predict, images, labels, *, epsilon, norm, indices) -> images, as
      `attacks.apgd`, a `functools.partial` of `attacks.pgd`, or `probes.noise`.
    norm: a key of `attacks.NORMS`.
    seed: of the attack's random numbers.
    mesh: the mesh of devices.
    source: another Flax module, which is attacked in place of `model`; `variables` is then a pair,
      those of `model` and those of the source.

  Returns:
    (variables, epsilon, restart, images, labels, indices) -> [batch, 2] float32: whether the model
    is still right, and the size of the perturbation beyond epsilon or of the pixels beyond [0, 1],
    which must not exceed `TOLERANCE`.
  """

  def run(variables, epsilon, restart, images, labels, indices):
    own, attacked = variables if source else (variables, variables)
    adversarial = attack(
      jax.random.fold_in(root_key(seed), restart),
      accuracy.predict_fn(source or model, attacked),
      images,
      labels,
      epsilon=epsilon,
      norm=norm,
      indices=indices,
    )
    right = ~is_wrong(accuracy.predict_fn(model, own)(adversarial), labels)
    return jnp.stack([right, excess(images, adversarial, epsilon, norm)], axis=-1)

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def pgd_fn(model, spec, mesh, source=None):
  """`attack_fn` for PGD as `spec`, a `PgdSpec`, has it."""
  attack = functools.partial(
    attacks.pgd, step_size=spec.step_size, num_steps=spec.num_steps, loss=spec.loss
  )
  return attack_fn(model, attack, spec.norm, spec.seed, mesh, source)


def outcomes(
  compiled,
  variables,
  split,
  clean_correct,
  epsilon,
  batch_size,
  mesh,
  name,
  restarts=1,
  on_progress=lambda done, text: None,
):
  """Which images are still classified correctly after an attack.

  Misclassified images count as broken and are not attacked; a restart attacks what the ones before
  it left robust. An image's random numbers depend on its position in `split` only.

  Args:
    compiled: from `attack_fn` or `pgd_fn`.
    variables: of its model.
    split: the images.
    clean_correct: bool array [n], which of them are classified correctly.
    epsilon: radius in pixel units.
    batch_size: images per compiled call.
    mesh: the mesh of devices.
    name: of the attack, for errors.
    restarts: number of runs.
    on_progress: called with (images done, text), of their number times restarts; an image that is
      not attacked counts as done.

  Returns:
    Host array [n] bool.

  Raises:
    RuntimeError: a perturbation left the ball or the box: the numbers would be worth nothing.
  """
  robust = np.array(clean_correct, bool)
  for restart in range(restarts):
    rows = np.flatnonzero(robust)

    def fn(images, labels, indices, restart=restart):
      return compiled(variables, np.float32(epsilon), restart, to_float(images), labels, indices)

    def on_batch(
      done,
      first=(restart + 1) * len(robust) - len(rows),
      text=f"epsilon {epsilon:g}, restart {restart + 1} of {restarts}",
    ):
      on_progress(first + done, text)

    if len(rows):
      found = accuracy.map_batches(
        fn,
        (split.images[rows], split.labels[rows], rows.astype(np.int32)),
        batch_size,
        mesh,
        on_batch,
      )
      refuse_excess(f"{name} at epsilon {epsilon:g}", found[:, 1])
      robust[rows] = found[:, 0] > 0.5
  return robust


def pgd_curve(
  attack,
  variables,
  split,
  clean_correct,
  spec,
  epsilons,
  batch_size,
  mesh,
  on_progress=lambda done, text: None,
  memo=lambda name, compute: compute(),
):
  """Accuracy under PGD for every radius of a grid; see `outcomes`.

  Args:
    attack: from `pgd_fn`.
    variables, split, clean_correct, batch_size, mesh: as in `outcomes`.
    spec: the `PgdSpec` of `attack`.
    epsilons: radii in pixel units.
    on_progress: called with (images done, text), of their number times radii times restarts.
    memo: as in `store.Memo`: keeps each radius's entry.

  Returns:
    List of entries of results.json's "attacks", one per radius.
  """
  work = len(clean_correct) * spec.num_restarts

  def entry(number, epsilon):
    return spec.entry(
      float(epsilon),
      outcomes(
        attack,
        variables,
        split,
        clean_correct,
        epsilon,
        batch_size,
        mesh,
        "PGD",
        spec.num_restarts,
        lambda done, text: on_progress(number * work + done, text),
      ),
    )

  return [
    memo(f"epsilon {epsilon!r}", lambda number=number, epsilon=epsilon: entry(number, epsilon))
    for number, epsilon in enumerate(epsilons)
  ]


def evaluate(
  subject, *, num_examples, norm, epsilons, num_steps, step_size, num_restarts, loss, seed
):
  """Row "pgd" of `EVALUATIONS`: accuracy under PGD over a grid of radii."""
  spec = PgdSpec(norm, num_steps, step_size, num_restarts, loss, seed)
  images = subject.select(num_examples)
  with subject.progress(
    f"pgd-{num_steps}", len(images.clean_correct) * len(epsilons) * num_restarts
  ) as bar:
    entries = pgd_curve(
      pgd_fn(subject.model, spec, subject.mesh),
      subject.variables,
      images.split,
      images.clean_correct,
      spec,
      epsilons,
      subject.batch_size,
      subject.mesh,
      bar,
      subject.memo,
    )
  return {
    "entries": entries,
    "findings": [checks.monotone(entries, float(images.clean_correct.mean()))],
  }
