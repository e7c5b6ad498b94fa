"""The binarisation test: an attack has to find adversarial examples that are known to exist.

(Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness
Evaluations", NeurIPS 2022.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import sharding
from sprout_jax import statistics
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import checks
from sprout_jax.evaluation import probes
from sprout_jax.evaluation import robustness
from sprout_jax.models import layers

INNER_RADIUS = 0.95  # of epsilon: where inner points end
NUM_INNER = 999  # the image itself included; one point at the edge stands against them
NUM_RANDOM = 200  # draws of the random baseline
# Of the read-out, per point, with features of mean square 1. At 1e-6 the Cholesky decomposition in float32
# failed on some processors and not on others.
RIDGE = 1e-5
NEWTON_STEPS = 20
INNER, EDGE, BASELINE, ATTACK = range(4)  # purposes of draws


def features(model, variables, images):
  """The input of a classifier's last layer, in evaluation mode; other models give their logits."""
  with jax.default_matmul_precision("highest"):
    if not isinstance(model, layers.Classifier):
      return model.apply(variables, images, train=False).astype(jnp.float32)
    _, found = model.apply(
      variables,
      images,
      train=False,
      mutable=["intermediates"],
      capture_intermediates=lambda module, name: module.name is None and name == "features",
    )
  return found["intermediates"]["features"][0].astype(jnp.float32)


def read_out(points):
  """A linear function of features, positive on the last point and negative on all others.

  Minimises sum_i c_i max(0, 1 - y_i w . x_i)^2 + ridge |w|^2, nearly the widest margin, by Newton's
  method (Chapelle, "Training a Support Vector Machine in the Primal", 2007), c = 1 for the last
  point and 1 / n for each other. Then the threshold goes halfway between the last point and the
  highest of the others, and the scale makes the logits -s and s of all points span 1.

  Args:
    points: float array [points, features]; the last one is to be told from the others.

  Returns:
    center [features], weights [features] and threshold, s = (x - center) . weights - threshold; and
    whether that separates the points.
  """
  count = len(points)
  center = points.mean(0)
  x = points - center[None]
  size = jnp.sqrt(jnp.mean(jnp.sum(x**2, -1)))
  x = x / jnp.maximum(size, jnp.finfo(x.dtype).tiny)
  x = jnp.concatenate([x, jnp.ones((count, 1))], axis=-1)
  y = jnp.where(jnp.arange(count) == count - 1, 1.0, -1.0)
  share = jnp.where(y > 0, 1.0, 1 / (count - 1))

  def newton(_, w):
    active = share * (y * (x @ w) < 1)
    hessian = (x.T * active[None]) @ x + RIDGE * jnp.eye(x.shape[1])
    return jax.scipy.linalg.solve(hessian, x.T @ (active * y), assume_a="pos")

  with jax.default_matmul_precision("highest"):
    weights = jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.zeros(x.shape[1]))[:-1]
    scores = x[:, :-1] @ weights
  highest = jnp.max(scores[:-1])
  threshold = (highest + scores[-1]) / 2
  span = 2 * jnp.max(jnp.abs(scores - threshold))
  separates = scores[-1] > highest  # False for NaN
  return center, weights / (size * span), threshold / span, separates


def success_fn(model, attack, norm, seed, mesh, num_inner=NUM_INNER):
  """Compiles (variables, epsilon, images, indices) -> [batch, 4] float32, for `success`.

  Columns: whether the test could be built for the image; whether the attack, and whether random
  noise, found an adversarial example; by how much the attack's perturbation is too large. Each
  device holds the features of all points of its images at once: [num_inner + 1, batch, features].
  """
  geometry = attacks.NORMS[norm]

  def search(variables, epsilon, images, indices):
    keys = {
      purpose: jax.random.fold_in(robustness.root_key(seed), purpose)
      for purpose in (INNER, EDGE, BASELINE, ATTACK)
    }
    radius = jnp.full(len(images), epsilon, images.dtype)

    def inner(number):
      draws = example_keys(jax.random.fold_in(keys[INNER], number), indices)
      return features(
        model,
        variables,
        probes.inside_box(images, geometry.start(draws, images, INNER_RADIUS * radius)),
      )

    edge = probes.inside_box(
      images, geometry.surface(example_keys(keys[EDGE], indices), images, radius)
    )
    points = jnp.concatenate(
      [
        features(model, variables, images)[None],
        jax.lax.map(inner, jnp.arange(num_inner - 1)),
        features(model, variables, edge)[None],
      ]
    )
    center, weights, threshold, separates = jax.vmap(read_out, in_axes=1)(points)

    def predict(images):
      x = features(model, variables, images) - center
      score = jnp.einsum("bf,bf->b", x, weights, precision="highest") - threshold
      return jnp.stack([-score, score], axis=-1)

    labels = jnp.zeros(len(images), jnp.int32)
    built = separates & ~is_wrong(predict(images), labels) & (jnp.argmax(predict(edge), -1) == 1)
    adversarial = attack(
      keys[ATTACK], predict, images, labels, epsilon=epsilon, norm=norm, indices=indices
    )
    random = probes.noise(
      keys[BASELINE],
      predict,
      images,
      labels,
      epsilon=epsilon,
      norm=norm,
      indices=indices,
      num_draws=NUM_RANDOM,
    )
    return jnp.stack(
      [
        built,
        jnp.argmax(predict(adversarial), -1) == 1,
        jnp.argmax(predict(random), -1) == 1,
        robustness.excess(images, adversarial, epsilon, norm),
      ],
      axis=-1,
    )

  return jax.jit(search, out_shardings=sharding.replicated(mesh))


def success(
  compiled,
  variables,
  images,
  indices,
  epsilon,
  batch_size,
  mesh,
  memo=lambda name, compute: compute(),
):
  """How often an attack finds the adversarial example that was planted for each image.

  Random points within 0.95 epsilon of an image, it included, become class 0 and one random point at
  distance epsilon class 1, by a linear read-out of the model's own features (its last layer is
  replaced). So an adversarial example exists within the ball. The attack gets this binary model,
  with a read-out for each image; one that misses it would miss others too. Random noise of size
  epsilon (200 draws) shows how easy the test is. Images for whose points no read-out was found are
  left out.

  Args:
    compiled: from `success_fn`, which takes the attack: a function (key, predict, images, labels,
      *, epsilon, norm, indices) -> images, as `attacks.apgd` or a `functools.partial` of
      `attacks.pgd` with its step size and number of steps. There are two classes: no DLR.
    variables: of its model.
    images: host array [n, height, width, channels], floats in [0, 1] or bytes.
    indices: int array [n], the images' positions in the whole data set.
    epsilon: radius in pixel units.
    batch_size: images per compiled call.
    mesh: the mesh of devices.
    memo: as in `store.Memo`: keeps what each call found.

  Returns:
    {"epsilon", "images", "count": those that the test could be built for, "success",
    "random_success": shares of them, "interval": of the success}; None where there are none.

  Raises:
    RuntimeError: the attack left the ball or the box.
  """
  indices = np.asarray(indices, np.int32)

  def part(rows):
    return accuracy.map_batches(
      lambda images, indices: compiled(variables, np.float32(epsilon), to_float(images), indices),
      (images[rows], indices[rows]),
      batch_size,
      mesh,
    ).tolist()

  found = np.concatenate(
    [
      np.array(
        memo(
          f"images from {start}, {batch_size}",
          lambda start=start: part(slice(start, start + batch_size)),
        )
      )
      for start in range(0, len(images), batch_size)
    ]
  )
  result = {"epsilon": float(epsilon), "images": len(found)}
  found = found[found[:, 0] > 0.5]
  if not len(found):
    return result | {"count": 0, "success": None, "random_success": None, "interval": None}
  robustness.refuse_excess(
    f"the attack of the binarisation test at epsilon {epsilon:g}", found[:, 3]
  )
  rate = statistics.proportion(found[:, 1].sum(), len(found))
  return result | {
    "count": len(found),
    "success": rate["accuracy"],
    "random_success": float(found[:, 2].mean(dtype=np.float64)),
    "interval": rate["interval"],
  }


def evaluate(subject, *, num_examples, norm, epsilon, num_steps, step_size, loss, num_inner, seed):
  """Row "binarization" of `EVALUATIONS`: PGD as it is reported, one start, against planted examples."""
  name, loss = (
    f"PGD-{num_steps}",
    "margin" if loss == "dlr" else loss,
  )  # of two classes there is no DLR
  attack = functools.partial(attacks.pgd, step_size=step_size, num_steps=num_steps, loss=loss)
  images = subject.select(num_examples)
  # All points of a slice's images are in memory at once.
  per_slice = min(16 * subject.mesh.size, subject.batch_size)
  found = success(
    success_fn(subject.model, attack, norm, seed, subject.mesh, num_inner),
    subject.variables,
    images.split.images,
    images.rows,
    epsilon,
    per_slice,
    subject.mesh,
    subject.memo,
  )
  return {
    **found,
    "attack": f"{name}, {norm}, {loss}, steps of {step_size:g}, one random start",
    "findings": [checks.at(checks.binarization(found, name), epsilon, "pgd")],
  }
