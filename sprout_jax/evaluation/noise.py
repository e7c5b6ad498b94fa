"""Accuracy under random noise: perturbations of the same size as an attack's, without gradients."""

import functools
from typing import Annotated
from typing import Any

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
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

DRAWS = 100


def inside_box(images: jax.Array, perturbation: jax.Array) -> jax.Array:
  """Adds a perturbation, with its sign reversed at pixels that would leave [0, 1].

  The perturbation keeps its norm as long as its entries are at most 1/2.
  """
  moved = images + perturbation
  turned = jnp.where((moved < 0) | (moved > 1), images - perturbation, moved)
  return jnp.clip(turned, 0, 1)


def random_noise(
  key: jax.Array,
  predict: Predict,
  images: jax.Array,
  labels: jax.Array,
  *,
  epsilon: float,
  norm: str = "linf",
  indices: jax.Array | None = None,
  num_draws: int = DRAWS,
) -> jax.Array:
  """Perturbs images by random noise of size epsilon, without gradients.

  Each draw is uniform on the surface of the ball and kept in [0, 1] by `inside_box`. An attack that
  breaks fewer images than random noise is defective, or its gradients are masked. Can be jitted.

  Args:
    key: a PRNG key.
    predict: the model.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: perturbation budget, in pixel units.
    norm: a key of `attacks.NORMS`.
    indices: int array [batch], the images' positions in the whole data set, on which their draws
      depend; default 0, 1, ..., batch - 1.
    num_draws: draws per image.

  Returns:
    For each image the first draw that is misclassified, else the last draw; like `images`.
  """
  indices = jnp.arange(len(images)) if indices is None else indices
  epsilons = jnp.full(labels.shape, epsilon, images.dtype)

  def body(draw: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
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
  """Measures the accuracy under the worst of several random perturbations of size epsilon."""
  images = subject.select(num_examples)
  found: list[Number] = []
  epsilons = with_epsilon(epsilons, epsilon)
  fn = attack_fn(functools.partial(random_noise, num_draws=num_draws), norm, seed)
  with subject.progress("noise", len(epsilons), "radii") as bar:
    for number, epsilon in enumerate(epsilons, 1):
      robust = subject.memo(
        f"epsilon {epsilon!r}",
        functools.partial(outcomes, subject, images, fn, epsilon, name="noise"),
      )
      keys: dict[str, Any] = dict(attack="noise", norm=norm, epsilon=epsilon)
      keys |= dict(draws=num_draws, seed=seed)
      found.append(accuracy(np.asarray(robust), images.indices, **keys))
      bar(number, f"epsilon {epsilon:g}")
  return Measurement(Numbers(found))
