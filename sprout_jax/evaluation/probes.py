"""What `checks` compares: outcomes per image under any attack, and how the loss of PGD went."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import select
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness


def attack_fn(model, attack, norm, seed, mesh):
  """Compiles an attack as `robustness.pgd_fn` does, for `outcomes`.

  Args:
    model: the Flax module.
    attack: function (key, predict, images, labels, *, epsilon, norm, indices) -> images, as
      `attacks.apgd`, a `functools.partial` of `attacks.pgd`, or `noise` and `fgsm` of this file.
    norm: a key of `attacks.NORMS`.
    seed: of the attack's random numbers.
    mesh: the mesh of devices.

  Returns:
    (variables, epsilon, restart, images, labels, indices) -> [batch, 2] float32: whether the model
    is still right, and by how much the perturbation is too large.
  """
  def run(variables, epsilon, restart, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    adversarial = attack(jax.random.fold_in(robustness.root_key(seed), restart), predict, images,
                         labels, epsilon=epsilon, norm=norm, indices=indices)
    right = ~is_wrong(predict(adversarial), labels)
    return jnp.stack([right, robustness.excess(images, adversarial, epsilon, norm)],
                     axis=-1)
  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def outcomes(compiled, variables, split, clean_correct, epsilon, batch_size, mesh, name,
             restarts=1):
  """Which images are still classified correctly after an attack.

  Args:
    compiled: from `attack_fn` or `robustness.pgd_fn`.
    variables: of its model.
    split: the images.
    clean_correct: bool array [n], which of them are classified correctly; the others count as
      broken and are not attacked.
    epsilon: radius in pixel units.
    batch_size: images per compiled call.
    mesh: the mesh of devices.
    name: of the attack, for errors.
    restarts: runs, each on what those before it left.

  Returns:
    Host array [n] bool.

  Raises:
    RuntimeError: a perturbation left the ball or the box.
  """
  robust = np.array(clean_correct, bool)
  for restart in range(restarts):
    rows = np.flatnonzero(robust)
    if len(rows):
      found = accuracy.map_batches(
          lambda images, labels, indices, restart=restart: compiled(
              variables, np.float32(epsilon), restart, to_float(images), labels, indices),
          (split.images[rows], split.labels[rows], rows.astype(np.int32)), batch_size, mesh)
      robustness.refuse_excess(f"{name} at epsilon {epsilon:g}", found[:, 1])
      robust[rows] = found[:, 0] > 0.5
  return robust


def inside_box(images, perturbation):
  """images + perturbation in [0, 1]: where a pixel would leave the box, its change turns round.

  So the perturbation keeps its norm wherever its entries are at most 1/2.
  """
  moved = images + perturbation
  return jnp.clip(jnp.where((moved < 0) | (moved > 1), images - perturbation, moved), 0, 1)


def noise(key, predict, images, labels, *, epsilon, norm="linf", indices=None, num_draws=100):
  """Random perturbations of size epsilon: the first that is misclassified, else the last; jittable.

  Uniform in the box or on the sphere, stretched to epsilon; kept in [0, 1] by `inside_box`. No
  gradient is taken: an attack that does worse than this one is broken, or has no gradients.
  """
  indices = jnp.arange(len(images)) if indices is None else indices

  def body(draw, carry):
    adversarial, broken = carry
    keys = example_keys(jax.random.fold_in(key, draw), indices)
    epsilons = jnp.full(labels.shape, epsilon, images.dtype)
    candidates = inside_box(images, attacks.NORMS[norm].surface(keys, images, epsilons))
    adversarial = select(broken, adversarial, candidates)
    return adversarial, broken | is_wrong(predict(candidates), labels)

  return jax.lax.fori_loop(0, num_draws, body, (images, jnp.zeros(labels.shape, bool)))[0]


def fgsm(key, predict, images, labels, *, epsilon, norm="linf", indices=None):
  """`attacks.fgsm` with the arguments of `attack_fn`; it draws nothing."""
  del key, indices
  return attacks.fgsm(predict, images, labels, epsilon=epsilon, norm=norm)


def best_losses_fn(model, spec, mesh):
  """Compiles (variables, epsilon, images, labels, indices) -> [batch, steps + 1] float32.

  The highest loss so far after 0, 1, ... steps of PGD as `spec`, a `robustness.PgdSpec`, has it in
  its first run (the random start included, the image itself not): what `checks.converged` looks at.
  """
  geometry, loss = attacks.NORMS[spec.norm], attacks.LOSSES[spec.loss]

  def losses(variables, epsilon, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    # The keys of `attacks.pgd` within `robustness.pgd_fn`: restart 0 of restart 0.
    key = jax.random.fold_in(jax.random.fold_in(robustness.root_key(spec.seed), 0), 0)
    begin = geometry.start(example_keys(key, indices), images, epsilon)

    def project(candidates):
      return norms.project(candidates, images, epsilon, spec.norm)

    def step(carry, _):
      x, best = carry
      values, pullback = jax.vjp(lambda x: loss(predict(x), labels), x)
      best = jnp.maximum(best, values)
      gradient, = pullback(jnp.ones_like(values))
      return (project(x + spec.step_size * geometry.direction(gradient)), best), best

    first = project(images + begin), jnp.full(labels.shape, -jnp.inf)
    return jax.lax.scan(step, first, length=spec.num_steps + 1)[1].T
  return jax.jit(losses, out_shardings=sharding.replicated(mesh))
