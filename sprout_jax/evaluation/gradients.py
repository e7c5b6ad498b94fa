"""Input gradients: the similarity of those of SPROUT's modules, and whether they are usable."""

import itertools
from collections.abc import Callable
from typing import Annotated
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax import vicinity
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import outputs
from sprout_jax.evaluation.subject import to_float
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement

MODULES = ("gaussian", "mixup", "dirichlet")
# The fewest classes that a loss needs, and the loss. This package's attacks maximise the log odds
# in place of the cross-entropy: their gradient does not vanish where that of the cross-entropy
# does. The cross-entropy is here because other attacks follow it.
LOSSES: dict[str, tuple[int, Callable[[jax.Array, jax.Array], jax.Array]]] = {
  "cross_entropy": (2, losses.cross_entropy),
  "log_odds": (2, losses.log_odds),
  "margin": (2, losses.margin),
  "dlr": (3, losses.difference_of_logits_ratio),
}
FAULTS = ("zero_gradients", "nan_gradients", "infinite_gradients")


def cosines(predict: Predict, *pairs: jax.Array) -> jax.Array:
  """Computes the cosines between the input gradients of several modules, for `Subject.map`.

  Args:
    predict: the model.
    *pairs: the images and the soft labels of the first module, then of the second, ...

  Returns:
    Float array [batch, modules, modules]; NaN where a gradient is zero or not finite.
  """

  def direction(images: jax.Array, labels: jax.Array) -> jax.Array:
    gradient = jax.grad(lambda x: jnp.sum(losses.soft_cross_entropy(predict(x), labels)))(images)
    return attacks.NORMS["l2"].direction(gradient).reshape(len(images), -1)

  with jax.default_matmul_precision("highest"):
    units = jnp.stack([direction(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)], 1)
    products = jnp.einsum("bmp,bnp->bmn", units, units)
  defined = jnp.all(jnp.abs(units).max(-1) > 0, axis=-1)
  return jnp.where(defined[:, None, None], products, jnp.nan)


def diversity(
  subject: Subject,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  noise_stddev: float,
  mixup_alpha: float,
  label_weight: float,
  beta_weight: float,
  num_draws: int,
  seed: int,
) -> np.ndarray:
  """Computes the pairwise cosine similarity of the input gradients of SPROUT's three modules.

  Each module on its own makes inputs and labels from the same images:

  - Gaussian noise: (x + stddev n, y);
  - mixup: (lambda x_i + (1 - lambda) x_j, lambda y_i + (1 - lambda) y_j);
  - Dirichlet label smoothing: (x, a draw from Dirichlet(label_weight y + beta_weight beta)).

  g_m is the gradient of an image's cross-entropy under module m with respect to the input of the
  model, in evaluation mode. The similarity of the modules m and n is g_m . g_n / (|g_m| |g_n|). The
  gradient with respect to the image before noise or mixup is a positive multiple of g_m, so it has
  the same cosine. Low values mean that the modules act in different directions. (Cheng et al.,
  "Self-Progressing Robust Training", AAAI 2021.)

  Mixup's weight and partners are drawn over all images at once, and again for each draw. The
  result does not depend on the batch size.

  Args:
    subject: the model. Its learned beta is used where there is one, else ones.
    images: host array [n, height, width, channels].
    labels: int [n].
    noise_stddev: standard deviation of the noise, in pixel units.
    mixup_alpha: parameter of mixup's Beta distribution.
    label_weight: weight of the label in the concentration.
    beta_weight: weight of beta in the concentration.
    num_draws: number of draws of noise, partners and labels.
    seed: the seed of the draws.

  Returns:
    float64 [num_draws * n, 3, 3]; NaN where a gradient is zero or not finite.
  """
  clean = jnp.asarray(to_float(np.asarray(images)))
  one_hot = jax.nn.one_hot(labels, subject.num_classes)
  beta = np.ones(subject.num_classes) if subject.beta is None else subject.beta
  concentration = vicinity.dirichlet_concentration(
    one_hot, jnp.asarray(beta, jnp.float32), label_weight, beta_weight
  )
  found = []
  for draw in range(num_draws):
    keys = jax.random.split(jax.random.fold_in(root_key(seed), draw), 3)
    pairs = (
      vicinity.gaussian_noise(keys[0], clean, noise_stddev),
      one_hot,
      *vicinity.mixup(keys[1], clean, one_hot, mixup_alpha),
      clean,
      vicinity.sample_dirichlet_labels(keys[2], concentration),
    )
    found.append(subject.map(cosines, *map(np.asarray, pairs)))
  return np.concatenate(found).astype(np.float64)


def fitting(num_classes: int) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
  """Returns the losses that are defined for a number of classes, by name."""
  return {name: loss for name, (fewest, loss) in LOSSES.items() if num_classes >= fewest}


def faults(predict: Predict, images: jax.Array, labels: jax.Array) -> jax.Array:
  """Finds unusable input gradients, for `Subject.map`.

  Returns:
    Bool array [batch, losses, 3] for the losses of `fitting`: whether the gradient is zero in every
    pixel, NaN in any pixel, infinite in any pixel.
  """
  logits, pullback = jax.vjp(predict, images)
  found = []
  for loss in fitting(logits.shape[-1]).values():
    total = lambda z, loss=loss: jnp.sum(loss(z, labels))
    (gradient,) = pullback(jax.grad(total)(logits))
    gradient = gradient.reshape(len(images), -1)
    kinds = (
      jnp.all(gradient == 0, -1),
      jnp.any(jnp.isnan(gradient), -1),
      jnp.any(jnp.isinf(gradient), -1),
    )
    found.append(jnp.stack(kinds, -1))
  return jnp.stack(found, 1)


def health(subject: Subject, points: np.ndarray, labels: np.ndarray, **keys: Any) -> list[Number]:
  """Measures the shares of points whose input gradient is zero, NaN or infinite, for each loss.

  Attacks follow these gradients. Where they are unusable, high accuracy under attack says nothing
  about robustness. Only points that are classified correctly count, because attacks start there.
  (DLR is constant, with a zero gradient, where the label ranks third.)

  Args:
    subject: the model.
    points: host array [n, height, width, channels]: the images themselves, an attack's start, or
      points along an attack.
    labels: int [n].
    **keys: keys of the numbers that describe the points.

  Returns:
    A number for each loss and fault; none where no point is classified correctly.
  """
  right = ~np.asarray(attacks.is_wrong(subject.map(outputs, points), labels))
  found = subject.map(faults, points, labels)[right]
  if not len(found):
    return []
  return [
    Number(fault, float(found[:, place, kind].mean()), {"loss": loss, **keys}, count=len(found))
    for place, loss in enumerate(fitting(subject.num_classes))
    for kind, fault in enumerate(FAULTS)
  ]


def evaluate_gradients(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  noise_stddev: Annotated[
    float, Option("standard deviation of the noise, in pixel units", 0, 100)
  ] = 0.1,
  mixup_alpha: Annotated[float, Option("parameter of mixup's Beta distribution", 0, np.inf)] = 0.2,
  label_weight: Annotated[
    float, Option("weight of the label in the Dirichlet concentration", 0, np.inf)
  ] = 0.99,
  beta_weight: Annotated[
    float, Option("weight of beta in the Dirichlet concentration", 0, np.inf)
  ] = 0.01,
  num_draws: Annotated[int, Option("draws of noise, mixup partners and labels", 1, 2**31)] = 5,
  seed: Seed,
) -> Measurement:
  """Measures the cosines between the input gradients of SPROUT's modules, for any model."""
  images = subject.select(num_examples)
  found = diversity(
    subject,
    images.images,
    images.labels,
    noise_stddev=noise_stddev,
    mixup_alpha=mixup_alpha,
    label_weight=label_weight,
    beta_weight=beta_weight,
    num_draws=num_draws,
    seed=seed,
  )
  defined = found[np.isfinite(found).all((1, 2))]
  numbers = [
    Number(
      "cosine_similarity",
      float(defined[:, i, j].mean()) if len(defined) else None,
      {"module": MODULES[i], "other_module": MODULES[j], "seed": seed},
      "",
      len(defined),
    )
    for i, j in itertools.combinations(range(len(MODULES)), 2)
  ]
  undefined = len(found) - len(defined)
  numbers.append(Number("undefined_gradients", undefined, {"seed": seed}, "images", len(found)))
  return Measurement(Numbers(numbers))
