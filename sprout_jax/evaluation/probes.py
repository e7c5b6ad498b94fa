"""Attacks that `checks` compares others with, and how PGD went, step by step."""

import jax
import jax.numpy as jnp

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import select
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness


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
  """`attacks.fgsm` with the arguments of `robustness.attack_fn`; it draws nothing."""
  del key, indices
  return attacks.fgsm(predict, images, labels, epsilon=epsilon, norm=norm)


def trace_fn(model, spec, mesh):
  """Compiles (variables, epsilon, restart, images, labels, indices) -> [batch, steps + 1, 3] float32.

  After 0, 1, ... steps of PGD as `spec`, a `robustness.PgdSpec`, has it: the highest loss so far
  (the random start included, the image itself not), which `checks.converged` looks at; and whether
  some point so far was misclassified; and the size of the point's perturbation beyond epsilon or of its
  pixels beyond [0, 1], which `robustness.refuse_excess` takes. So one run of many steps tells what
  fewer would have found: an image is robust after k steps if column 1 is 0 at k.
  """
  geometry, loss = attacks.NORMS[spec.norm], attacks.LOSSES[spec.loss]

  def trace(variables, epsilon, restart, images, labels, indices):
    predict = accuracy.predict_fn(model, variables)
    # The keys of `attacks.pgd` within `robustness.attack_fn`: its own restart is the first.
    key = jax.random.fold_in(jax.random.fold_in(robustness.root_key(spec.seed), restart), 0)
    begin = geometry.start(example_keys(key, indices), images, epsilon)

    def project(candidates):
      return norms.project(candidates, images, epsilon, spec.norm)

    def total_loss(x):
      logits = predict(x)
      values = loss(logits, labels)
      return jnp.sum(values), (values, is_wrong(logits, labels))

    def step(carry, _):
      x, best, broken = carry
      gradient, (values, wrong) = jax.grad(total_loss, has_aux=True)(x)
      best, broken = jnp.maximum(best, values), broken | wrong
      beyond = robustness.excess(images, x, epsilon, spec.norm)
      return (project(x + spec.step_size * geometry.direction(finite(gradient))), best, broken), (
        best,
        broken,
        beyond,
      )

    first = project(images + begin), jnp.full(labels.shape, -jnp.inf), jnp.zeros(labels.shape, bool)
    found = jax.lax.scan(step, first, length=spec.num_steps + 1)[1]
    return jnp.stack([values.T for values in found], axis=-1)

  return jax.jit(trace, out_shardings=sharding.replicated(mesh))
