"""Accuracy under random noise: perturbations as large as an attack's that use no gradient."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import select
from sprout_jax.evaluation.options import Epsilon
from sprout_jax.evaluation.options import Epsilons
from sprout_jax.evaluation.options import Norm
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.options import with_epsilon
from sprout_jax.evaluation.pgd import attack_fn
from sprout_jax.evaluation.pgd import outcomes
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

DRAWS = 100


def inside_box(images: jax.Array, perturbation: jax.Array) -> jax.Array:
  """Adds a perturbation within [0, 1]: where a pixel would leave the box, its change turns round.

  The perturbation keeps its norm wherever its entries are at most 1/2.
  """
  moved = images + perturbation
  turned = jnp.where((moved < 0) | (moved > 1), images - perturbation, moved)
  return jnp.clip(turned, 0, 1)


def noise(
  key: jax.Array,
  predict: Callable,
  images: jax.Array,
  labels: jax.Array,
  *,
  epsilon: float,
  norm: str = "linf",
  indices: jax.Array | None = None,
  num_draws: int = DRAWS,
) -> jax.Array:
  """Draws random perturbations of size epsilon: the first that is misclassified, else the last.

  They are uniform in the box or on the sphere, stretched to epsilon, and kept in [0, 1] by
  `inside_box`. An attack that does worse is broken, or has no gradients to follow. Jittable; the
  arguments are those of `attacks.pgd`.
  """
  indices = jnp.arange(len(images)) if indices is None else indices
  epsilons = jnp.full(labels.shape, epsilon, images.dtype)

  def body(draw, carry):
    adversarial, broken = carry
    keys = example_keys(jax.random.fold_in(key, draw), indices)
    candidates = inside_box(images, attacks.NORMS[norm].surface(keys, images, epsilons))
    adversarial = select(broken, adversarial, candidates)
    return adversarial, broken | attacks.is_wrong(predict(candidates), labels)

  start = images, jnp.zeros(labels.shape, bool)
  return jax.lax.fori_loop(0, num_draws, body, start)[0]


def evaluate_noise(
  subject: Subject,
  *,
  num_examples: NumExamples,
  norm: Norm,
  epsilon: Epsilon,
  epsilons: Epsilons,
  num_draws: Annotated[
    int, Option("random perturbations per image; the worst counts", 1, 2**31)
  ] = DRAWS,
  seed: Seed,
) -> Measurement:
  """Measures accuracy under the worst of several random perturbations as large as an attack's."""
  images, found = subject.select(num_examples), []
  epsilons = with_epsilon(epsilons, epsilon)

  def attack(*args, **kwargs):
    return noise(*args, num_draws=num_draws, **kwargs)

  fn = attack_fn(attack, norm, seed)
  with subject.progress("noise", len(epsilons), "radii") as bar:
    for number, epsilon in enumerate(epsilons, 1):
      robust = subject.memo(
        f"epsilon {epsilon!r}",
        lambda epsilon=epsilon: outcomes(subject, images, fn, epsilon, name="noise"),
      )
      keys = dict(attack="noise", norm=norm, epsilon=epsilon, draws=num_draws, seed=seed)
      found.append(accuracy(np.asarray(robust), images.indices, **keys))
      bar(number, f"epsilon {epsilon:g}")
  return Measurement(Numbers(found))
