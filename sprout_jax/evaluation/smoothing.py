"""Randomised smoothing: a certified L2 radius for every image.

The smoothed classifier returns the class that the model returns most often on draws from N(x,
sigma^2). (Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
ICML 2019.)
"""

import functools
import statistics
from typing import Annotated
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import vicinity
from sprout_jax.attacks.attack import example_keys
from sprout_jax.evaluation.options import NumExamples
from sprout_jax.evaluation.options import Option
from sprout_jax.evaluation.options import Seed
from sprout_jax.evaluation.randomness import root_key
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import rows_per_call
from sprout_jax.intervals import lower_bound
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

# Purposes of draws. The bound is valid only for draws that did not select the class.
SELECTION, ESTIMATION = 0, 1
IMAGES_PER_DEVICE = 8  # images whose draws share a call
RADII = tuple(round(0.02 * k, 2) for k in range(21))


class Smoothing(NamedTuple):
  """The parameters of a certificate. Cohen et al. use n0 = 100, n = 100,000, alpha = 0.001.

  Attributes:
    sigma: standard deviation of the noise, in pixel units.
    n0: draws that select the class.
    n: further draws that bound the probability of the class from below.
    alpha: probability, per image, that a certificate is wrong.
    seed: the seed of the draws.
  """

  sigma: float
  n0: int
  n: int
  alpha: float
  seed: int

  @property
  def largest_radius(self) -> float:
    """The largest certifiable L2 radius, where all n draws agree: sigma Phi^-1(alpha^(1 / n))."""
    bound = self.alpha ** (1 / self.n)
    return max(0.0, self.sigma * statistics.NormalDist().inv_cdf(bound))


def votes_fn(smoothing: Smoothing, draws_per_pass: int) -> BatchFunction:
  """Makes the function, for `Subject.map`, that counts the votes of n draws per class.

  A draw votes for the class of the largest logit on image + sigma * noise, not clipped to [0, 1]. A
  draw with outputs that are not finite has no vote. The key of a draw is derived from the purpose,
  the image's index and the number of the draw, so the votes depend on neither the batch nor
  `draws_per_pass`.

  Args:
    smoothing: the parameters.
    draws_per_pass: draws per image in one forward pass.

  Returns:
    (predict, purpose, n, images, indices) -> int32 [batch, classes].
  """

  def count_votes(
    predict: Predict, purpose: jax.Array, n: jax.Array, images: jax.Array, indices: jax.Array
  ) -> jax.Array:
    classes = jax.eval_shape(predict, images).shape[-1]
    keys = example_keys(jax.random.fold_in(root_key(smoothing.seed), purpose), indices)

    def noisy(key: jax.Array, image: jax.Array, number: jax.Array) -> jax.Array:
      draw = vicinity.gaussian_noise(jax.random.fold_in(key, number), image[None], smoothing.sigma)
      return draw[0]

    def vote(number: jax.Array, total: jax.Array) -> jax.Array:
      numbers = number * draws_per_pass + jnp.arange(draws_per_pass)
      draws = jax.vmap(jax.vmap(noisy, in_axes=(None, None, 0)), in_axes=(0, 0, None))(
        keys, images, numbers
      )
      logits = predict(draws.reshape(-1, *images.shape[1:])).reshape(len(images), -1, classes)
      counted = jnp.all(jnp.isfinite(logits), -1) & (numbers < n)[None]
      found = jax.nn.one_hot(jnp.argmax(logits, -1), classes, dtype=jnp.int32)
      return total + jnp.sum(jnp.where(counted[..., None], found, 0), axis=1)

    zeros = jnp.zeros((len(images), classes), jnp.int32)
    return jax.lax.fori_loop(0, -(-n // draws_per_pass), vote, zeros)

  return count_votes


def certify(
  subject: Subject,
  images: np.ndarray,
  indices: np.ndarray,
  smoothing: Smoothing,
  fn: BatchFunction,
  batch_size: int | None = None,
) -> list[dict[str, Any]]:
  """Certifies images with the L2 radius sigma * Phi^-1(p).

  n0 draws select a class. n other draws give p, a lower bound of its probability (Clopper-Pearson).
  If p > 1/2, no perturbation with an L2 norm below the radius changes the smoothed class. Otherwise
  the smoothed classifier abstains. The outcome of an image depends on its index only, not on the
  other images.

  Args:
    subject: the model.
    images: host array [n, height, width, channels].
    indices: int [n], the images' positions in the test set.
    smoothing: the parameters with which `fn` was made.
    fn: from `votes_fn`.
    batch_size: images per compiled call; default: the subject's.

  Returns:
    [{"index", "selected", "successes", "lower_bound", "prediction", "radius"}], one per image. The
    radius is in pixel units. For an abstention, "prediction" is None and "radius" is 0.
  """

  def votes(purpose: int, n: int) -> np.ndarray:
    return subject.map(
      fn, images, indices.astype(np.int32), shared=(purpose, n), batch_size=batch_size
    )

  selected = votes(SELECTION, smoothing.n0).argmax(-1)
  successes = votes(ESTIMATION, smoothing.n)[np.arange(len(selected)), selected]
  found: list[dict[str, Any]] = []
  for index, chosen, hits in zip(indices, selected, successes, strict=True):
    bound = lower_bound(hits, smoothing.n, smoothing.alpha)
    sure = bound > 0.5
    radius = smoothing.sigma * statistics.NormalDist().inv_cdf(bound) if sure else 0.0
    found.append(
      {
        "index": int(index),
        "selected": int(chosen),
        "successes": int(hits),
        "lower_bound": bound,
        "prediction": int(chosen) if sure else None,
        "radius": radius,
      }
    )
  return found


def summarize(
  smoothing: Smoothing,
  certificates: list[dict[str, Any]],
  labels: np.ndarray,
  radii: tuple[float, ...],
) -> Measurement:
  """Summarises certificates: accuracy, abstentions, and certified accuracy at each radius.

  An image counts at the radius r if its prediction is correct and its certified radius is above r.

  Args:
    smoothing: the parameters of the certificates.
    certificates: from `certify`, one per image.
    labels: int [n], in the same order.
    radii: L2 radii, in pixel units.
  """
  keys = smoothing._asdict()
  indices = np.array([one["index"] for one in certificates])
  predictions = [one["prediction"] for one in certificates]
  radius = np.array([one["radius"] for one in certificates])
  right = np.array([p == label for p, label in zip(predictions, labels, strict=True)])
  count = len(certificates)

  def number(metric: str, value: float, unit: str) -> Number:
    return Number(metric, value, keys, unit, count)

  return Measurement(
    Numbers(
      [
        accuracy(right, indices, "smoothed_accuracy", **keys),
        number("abstained", predictions.count(None), "images"),
        number("mean_certified_radius", float(np.where(right, radius, 0).mean()), "pixels"),
        number("largest_certifiable_radius", smoothing.largest_radius, "pixels"),
        *(
          accuracy(right & (radius > r), indices, "certified_accuracy", radius=r, **keys)
          for r in radii
        ),
      ]
    ),
    {"radii": radius.tolist(), "predictions": predictions},
  )


def evaluate_smoothing(
  subject: Subject,
  *,
  num_examples: NumExamples = 500,
  sigma: Annotated[
    float, Option("standard deviation of the noise, in pixel units", 1e-6, 100)
  ] = 0.1,
  n0: Annotated[int, Option("noise draws that select the class", 1, 2**30)] = 100,
  n: Annotated[
    int, Option("noise draws that bound the probability of the class", 1, 2**30)
  ] = 100_000,
  alpha: Annotated[
    float, Option("probability per image that a certificate is wrong", 1e-12, 0.5)
  ] = 0.001,
  radii: Annotated[
    tuple[float, ...],
    Option(
      "L2 radii of the certified accuracy, in pixel units",
      0,
      ascends=True,
      high=np.inf,
      example="0,0.25",
    ),
  ] = RADII,
  seed: Seed,
) -> Measurement:
  """Measures the certified accuracy against the L2 radius. A kill loses one slice of images."""
  smoothing = Smoothing(sigma, n0, n, alpha, seed)
  images = subject.select(num_examples)
  per_slice = rows_per_call(IMAGES_PER_DEVICE, subject.batch_size)
  fn = votes_fn(smoothing, max(1, subject.batch_size // per_slice))
  found: list[dict[str, Any]] = []
  with subject.progress("smoothing", len(images.labels)) as bar:
    for start in range(0, len(images.labels), per_slice):
      part = slice(start, start + per_slice)
      found += subject.memo(
        f"images from {start}, {per_slice}",
        functools.partial(
          certify, subject, images.images[part], images.indices[part], smoothing, fn, per_slice
        ),
      )
      bar(len(found), f"{sum(one['prediction'] is None for one in found)} abstained")
  return summarize(smoothing, found, images.labels, radii)
