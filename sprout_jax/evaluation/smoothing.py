"""Randomised smoothing: a certified L2 radius for every image.

The smoothed classifier g(x) is the class that the model returns most often on N(x, sigma^2).
(Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.)
"""

import statistics
from collections.abc import Callable
from typing import Annotated
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
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.subject import rows_per_call
from sprout_jax.intervals import lower_bound
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Measurement

SELECTION, ESTIMATION = 0, 1  # purposes of draws: the bound holds for draws that chose nothing
IMAGES_PER_DEVICE = 8  # whose draws fill a call together


class Smoothing(NamedTuple):
  """All that defines a certificate.

  Attributes:
    sigma: standard deviation of the noise in pixel units.
    n0: draws that select the class (Cohen et al.: 100).
    n: further draws that bound its probability from below (100,000).
    alpha: probability, per image, that the bound or the class is wrong (0.001).
    seed: of the draws.
  """

  sigma: float
  n0: int
  n: int
  alpha: float
  seed: int

  @property
  def largest_radius(self) -> float:
    """The L2 radius that is certified where all n draws agree: sigma Phi^-1(alpha^(1 / n))."""
    bound = self.alpha ** (1 / self.n)
    return max(0.0, self.sigma * statistics.NormalDist().inv_cdf(bound))


def votes_fn(smoothing: Smoothing, draws_per_pass: int) -> Callable:
  """Votes of n draws, for `Subject.map`.

  A vote is the largest logit of the model on image + sigma * noise, not clipped to [0, 1]; outputs
  that are not finite vote for no class. Draw d of an image has the key of (purpose, the image's
  index, d): votes depend on neither the batch nor `draws_per_pass`. Only the counts are kept.

  Returns:
    (predict, purpose, n, images, indices) -> int32 [batch, classes].
  """

  def run(predict, purpose, n, images, indices):
    classes = jax.eval_shape(predict, images).shape[-1]
    keys = example_keys(jax.random.fold_in(root_key(smoothing.seed), purpose), indices)

    def noisy(key, image, number):
      draw = vicinity.gaussian_noise(jax.random.fold_in(key, number), image[None], smoothing.sigma)
      return draw[0]

    def vote(number, total):
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

  return run


def certify(
  subject: Subject,
  images: np.ndarray,
  indices: np.ndarray,
  smoothing: Smoothing,
  fn: Callable,
  batch_size: int | None = None,
) -> list[dict]:
  """Certifies images: the radius sigma * Phi^-1(p) for the bound p of the selected class.

  The n0 draws select a class; of n others, those that fall on it bound its probability by p. If
  p > 1/2, no perturbation of an L2 norm below the radius changes the smoothed class; otherwise the
  image is abstained from. An image's outcome depends on its index, not on the slice that it is in.

  Args:
    subject: the model.
    images: host array [n, height, width, channels].
    indices: int [n], the images' positions in the test set.
    smoothing: what `fn` was made with.
    fn: from `votes_fn`.
    batch_size: images of one compiled call; default the subject's.

  Returns:
    [{"index", "selected", "successes", "lower_bound", "prediction", "radius"}], one per image;
    where abstained, "prediction" is None and "radius" (L2, pixel units) is 0.
  """

  def votes(purpose, n):
    return subject.map(
      fn, images, indices.astype(np.int32), shared=(purpose, n), batch_size=batch_size
    )

  selected = votes(SELECTION, smoothing.n0).argmax(-1)
  successes = votes(ESTIMATION, smoothing.n)[np.arange(len(selected)), selected]
  found = []
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
  smoothing: Smoothing, certificates: list[dict], labels: np.ndarray, radii: tuple[float, ...]
) -> Measurement:
  """The numbers of certificates: accuracy, abstentions, certified accuracy along the radii.

  An image counts at a radius r if it is predicted correctly, with a certificate of more than r: the
  certificate's ball is open.

  Args:
    smoothing: what the certificates were made with.
    certificates: from `certify`, of all images.
    labels: int [n], in their order.
    radii: L2, in pixel units.
  """
  keys = smoothing._asdict()
  indices = np.array([one["index"] for one in certificates])
  predictions = [one["prediction"] for one in certificates]
  radius = np.array([one["radius"] for one in certificates])
  right = np.array([p == label for p, label in zip(predictions, labels, strict=True)])
  count = len(certificates)

  def number(metric, value, unit):
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
  n0: Annotated[int, Option("draws that select the class", 1, 2**30)] = 100,
  n: Annotated[int, Option("draws that bound its probability", 1, 2**30)] = 100_000,
  alpha: Annotated[
    float, Option("probability per image that the certificate is wrong", 1e-12, 0.5)
  ] = 0.001,
  radii: Annotated[
    tuple[float, ...],
    Option(
      "L2 radii in pixel units at which certified accuracy is counted",
      0,
      ascends=True,
      high=np.inf,
      example="0,0.25",
    ),
  ] = tuple(round(0.02 * k, 2) for k in range(21)),
  seed: Seed,
) -> Measurement:
  """Measures certified accuracy against the L2 radius; images in slices, which a kill leaves."""
  smoothing = Smoothing(sigma, n0, n, alpha, seed)
  images = subject.select(num_examples)
  per_slice = rows_per_call(IMAGES_PER_DEVICE, subject.batch_size)
  fn, found = votes_fn(smoothing, max(1, subject.batch_size // per_slice)), []
  with subject.progress("smoothing", len(images.labels)) as bar:
    for start in range(0, len(images.labels), per_slice):
      part = slice(start, start + per_slice)
      found += subject.memo(
        f"images from {start}, {per_slice}",
        lambda part=part: certify(
          subject, images.images[part], images.indices[part], smoothing, fn, per_slice
        ),
      )
      bar(len(found), f"{sum(one['prediction'] is None for one in found)} abstained")
  return summarize(smoothing, found, images.labels, radii)
