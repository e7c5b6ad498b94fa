"""Randomised smoothing: a certified L2 radius for every image.

The smoothed classifier g(x) is the class that the model returns most often on N(x, sigma^2).
(Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax import vicinity
from sprout_jax.attacks.attack import example_keys
from sprout_jax.data import to_float
from sprout_jax.errors import UserError
from sprout_jax.errors import check_range
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness

SELECTION, ESTIMATION = 0, 1  # purposes of draws: the bound holds for draws that chose nothing


@dataclasses.dataclass(frozen=True)
class SmoothingSpec:
  """Everything that defines a certificate; goes beside every number.

  Attributes:
    sigma: standard deviation of the noise in pixel units, > 0.
    n0: draws that select the class (Cohen et al.: 100).
    n: further draws that bound its probability from below (100,000).
    alpha: probability, per image, that the bound or the class is wrong (0.001), in (0, 1).
    seed: of the draws.
  """

  sigma: float
  n0: int
  n: int
  alpha: float
  seed: int

  def __post_init__(self):
    check_range("smoothing: sigma", self.sigma, 1e-6, 100, unit="(pixels are in [0, 1])")
    check_range("smoothing: n0", self.n0, 1, 2**30)
    check_range("smoothing: n", self.n, 1, 2**30)
    if not 0 < self.alpha < 1:
      raise UserError(f"smoothing: alpha is {self.alpha!r}; it must be between 0 and 1, as 0.001")


def counts_fn(model, spec, draws_per_pass, mesh):
  """Compiles (variables, purpose, n, images, indices) -> [batch, classes] int32 votes of n draws.

  A vote is the largest logit of the model on image + sigma * noise, not clipped to [0, 1]; outputs
  that are not finite vote for no class. Draw d of an image has the key of (purpose, the image's
  index, d): votes depend on neither the batch nor `draws_per_pass`. Only the counts are kept; n is
  an argument, so that one compilation per batch size serves both purposes.
  """

  def counts(variables, purpose, n, images, indices):
    predict = accuracy.predict_fn(model, variables)
    classes = jax.eval_shape(predict, images).shape[-1]
    keys = example_keys(jax.random.fold_in(robustness.root_key(spec.seed), purpose), indices)

    def vote(number, total):
      numbers = number * draws_per_pass + jnp.arange(draws_per_pass)
      noisy = jax.vmap(
        lambda key, image: jax.vmap(
          lambda draw: vicinity.gaussian_noise(
            jax.random.fold_in(key, draw), image[None], spec.sigma
          )[0]
        )(numbers)
      )(keys, images)
      logits = predict(noisy.reshape(-1, *images.shape[1:])).reshape(len(images), -1, classes)
      counted = jnp.all(jnp.isfinite(logits), -1) & (numbers < n)[None]
      votes = jax.nn.one_hot(jnp.argmax(logits, -1), classes, dtype=jnp.int32)
      return total + jnp.sum(jnp.where(counted[..., None], votes, 0), axis=1)

    zeros = jnp.zeros((len(images), classes), jnp.int32)
    return jax.lax.fori_loop(0, -(-n // draws_per_pass), vote, zeros)

  return jax.jit(counts, out_shardings=sharding.replicated(mesh))


def lower_bound(successes, n, alpha):
  """One-sided Clopper-Pearson bound: at least 1 - alpha sure that the probability is above it.

  The alpha-quantile of Beta(successes, n - successes + 1); 0 without any success.
  """
  import scipy.stats  # slow to import

  test = scipy.stats.binomtest(int(successes), int(n), alternative="greater")
  return float(test.proportion_ci(1 - alpha, method="exact").low)


def certify(counts, variables, images, indices, spec, batch_size, mesh, on_batch=lambda done: None):
  """Certifies a slice of the images: sigma * Phi^-1(p) for the bound p of the selected class.

  The n0 draws select a class; of n others, those that fall on it bound its probability by p. If
  p > 1/2, no perturbation of an L2 norm below the radius changes the smoothed class; otherwise the
  image is abstained from. An image's outcome depends on its index, not on the slice it is in, so
  that a caller can store slices one by one and put them together.

  Args:
    counts: from `counts_fn`.
    variables: of its model.
    images: host array [n, height, width, channels], floats in [0, 1] or bytes.
    indices: int array [n], the images' positions in the whole data set.
    spec: the `SmoothingSpec` of `counts`.
    batch_size: images per compiled call.
    mesh: the mesh of devices.
    on_batch: called with the number of images done, after each batch of the estimation.

  Returns:
    A list of {"index", "selected", "successes", "lower_bound", "prediction", "radius"}, one per
    image; where abstained, "prediction" is None and "radius" (L2, pixel units) is 0.
  """
  import scipy.stats

  def votes(purpose, n, progress):
    def fn(images, indices):
      return counts(variables, purpose, np.int32(n), to_float(images), indices)

    return accuracy.map_batches(
      fn, (images, np.asarray(indices, np.int32)), batch_size, mesh, progress
    )

  selected = votes(SELECTION, spec.n0, lambda done: None).argmax(-1)
  successes = votes(ESTIMATION, spec.n, on_batch)[np.arange(len(selected)), selected]
  outcomes = []
  for index, chosen, hits in zip(indices, selected, successes, strict=True):
    bound = lower_bound(hits, spec.n, spec.alpha)
    sure = bound > 0.5
    outcomes.append(
      {
        "index": int(index),
        "selected": int(chosen),
        "successes": int(hits),
        "lower_bound": bound,
        "prediction": int(chosen) if sure else None,
        "radius": float(spec.sigma * scipy.stats.norm.ppf(bound)) if sure else 0.0,
      }
    )
  return outcomes


def result(spec, outcomes, labels, grid):
  """What the certificates of all images say.

  Args:
    spec: the `SmoothingSpec`.
    outcomes: from `certify`, of all images.
    labels: int array [n], in their order.
    grid: L2 radii in pixel units at which the certified accuracy is counted.

  Returns:
    A dictionary: the spec; "count"; "abstained", how many; "smoothed", the accuracy of the smoothed
    model on the images themselves; "radii" and "predictions" per image; "mean_radius", where an
    image that is not predicted correctly counts 0; "curve", [{"radius", "accuracy", "count",
    "interval"}]: images predicted correctly, with a certificate for every perturbation of that size
    (of a radius above it: the certificate's ball is open).

  Raises:
    ValueError: not one outcome per label.
  """
  predictions = [outcome["prediction"] for outcome in outcomes]
  radii = np.array([outcome["radius"] for outcome in outcomes])
  right = np.array(
    [prediction == label for prediction, label in zip(predictions, labels, strict=True)]
  )
  return {
    **dataclasses.asdict(spec),
    "norm": "l2",
    "count": len(outcomes),
    "abstained": predictions.count(None),
    "smoothed": statistics.proportion(right.sum(), len(right)),
    "radii": radii.tolist(),
    "predictions": predictions,
    "mean_radius": float(np.where(right, radii, 0).mean()),
    "curve": [
      {
        "radius": float(radius),
        **statistics.proportion((right & (radii > radius)).sum(), len(right)),
      }
      for radius in grid
    ],
  }


def evaluate(subject, *, num_examples, sigma, n0, n, alpha, radii, seed):
  """Row "smoothing" of `EVALUATIONS`: certified accuracy; images in slices, which a kill leaves."""
  spec = SmoothingSpec(sigma, n0, n, alpha, seed)
  images = subject.select(num_examples)
  per_slice = min(8 * subject.mesh.size, subject.batch_size)
  compiled = counts_fn(subject.model, spec, max(1, subject.batch_size // per_slice), subject.mesh)
  outcomes = []
  with subject.progress("smoothing", len(images.rows)) as bar:
    for start in range(0, len(images.rows), per_slice):
      part = slice(start, start + per_slice)
      outcomes += subject.memo(
        f"images from {start}, {per_slice}",
        lambda part=part: certify(
          compiled,
          subject.variables,
          images.split.images[part],
          images.rows[part],
          spec,
          per_slice,
          subject.mesh,
        ),
      )
      bar(len(outcomes), f"{sum(o['prediction'] is None for o in outcomes)} abstained")
  return result(spec, outcomes, images.split.labels, radii)
