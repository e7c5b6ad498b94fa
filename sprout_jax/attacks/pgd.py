"""Projected gradient descent, the standard first-order attack, in Linf and L2."""

import chex
import jax
import jax.numpy as jnp

from sprout_jax import losses
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import check_name
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import finite

# The log odds are a monotone function of the cross-entropy: the same steps and the same best
# iterate, but a gradient that does not vanish on confident models.
LOSSES = {
  "cross_entropy": losses.log_odds,
  "margin": losses.margin,
  "dlr": losses.difference_of_logits_ratio,
}  # at least 3 classes


# Where a run starts within the ball: (keys [batch], images, epsilon, geometry) -> perturbation.
STARTS = {
  "uniform": lambda keys, images, epsilon, geometry: geometry.start(keys, images, epsilon),
  # TRADES: next to the image, where the gradient of a divergence from it is no longer zero.
  "gaussian": lambda keys, images, epsilon, geometry: (
    1e-3 * norms.draw(keys, jax.random.normal, images)
  ),
  "clean": lambda keys, images, epsilon, geometry: jnp.zeros_like(images),
}

KEEP = ("best", "last")


def pgd(
  key,
  predict,
  images,
  labels,
  *,
  epsilon,
  step_size,
  num_steps,
  norm="linf",
  loss="cross_entropy",
  start="uniform",
  keep="best",
  momentum=0.0,
  num_restarts=1,
  indices=None,
):
  """Maximises a loss over the ball around each image by projected gradient ascent.

  x_0 = P(x + start);  x_{t+1} = P(x_t + step_size * d(grad L(x_t))), where d is the sign (Linf) or
  the gradient divided by its L2 norm (L2), and P projects on the ball of radius epsilon around x
  and then on [0, 1]. (Madry et al., "Towards Deep Learning Models Resistant to Adversarial
  Attacks", ICLR 2018.)

  The whole attack is one compiled loop of `num_restarts * (num_steps + 1)` evaluations of `predict`
  and its gradient, or of `num_steps` to keep the last iterate. An example's outcome depends on its
  own key only, `fold_in(key, index)`, not on the rest of the batch, its size or its order.

  Args:
    key: a PRNG key.
    predict: function images -> logits [batch, classes], deterministic, with normalisation inside.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch], the true classes; with a `loss` of your own and keep="last", whatever
      that takes, [batch, ...].
    epsilon: radius of the ball in pixel units, scalar or [batch]; may be traced.
    step_size: size of a step in pixel units, scalar or [batch]; may be traced.
    num_steps: number of gradient steps, a Python integer >= 0.
    norm: a key of `NORMS`.
    loss: a key of `LOSSES`, or a function (logits, labels) -> [batch].
    start: a key of `STARTS`: "uniform" in the ball, "gaussian" with standard deviation 0.001 around
      the image, "clean" is the image itself.
    keep: "best": of all iterates of all restarts, the clean image included, the one that is
      misclassified if any is, and of these has the highest loss: to evaluate. "last": the last
      iterate: to train.
    momentum: mu >= 0: the direction is that of g_t = mu g_{t-1} + grad / |grad|_1 (Dong et al.,
      "Boosting Adversarial Attacks with Momentum", CVPR 2018); 0: that of the gradient itself.
    num_restarts: number of runs, >= 1.
    indices: int array [batch], the examples' positions in the whole data set, which make their
      random starts; default 0, 1, ..., batch - 1.

  Returns:
    The adversarial images, like `images`.

  Raises:
    ValueError: unknown norm, loss, start or keep (the choices are listed), or senseless counts.
    AssertionError: wrong ranks or dtypes.
  """
  for what, name, table in (
    ("norm", norm, norms.NORMS),
    ("start", start, STARTS),
    ("keep", keep, KEEP),
    *([] if callable(loss) else [("loss", loss, LOSSES)]),
  ):
    check_name("pgd", what, name, table)
  if num_steps < 0 or num_restarts < 1:
    raise ValueError(
      f"pgd: num_steps is {num_steps} and num_restarts {num_restarts}; they must "
      "be at least 0 and 1"
    )
  if not momentum >= 0:
    raise ValueError(f"pgd: momentum is {momentum!r}; it must be a number of at least 0")
  if num_restarts > 1 and (start == "clean" or keep == "last"):
    raise ValueError(
      "pgd: num_restarts > 1 needs a random start and keep='best': the restarts would "
      "coincide, or all but the last be lost"
    )
  chex.assert_rank(images, 4)
  chex.assert_type(images, float)
  chex.assert_equal_shape_prefix([images, labels], 1)
  geometry, loss_fn = norms.NORMS[norm], loss if callable(loss) else LOSSES[loss]
  indices = jnp.arange(images.shape[0]) if indices is None else jnp.asarray(indices)

  def project(candidates):
    return norms.project(candidates, images, epsilon, norm)

  def begin(restart):
    keys = example_keys(jax.random.fold_in(key, restart), indices)
    return project(images + STARTS[start](keys, images, epsilon, geometry))

  def ascend(candidates, velocity, gradient):
    gradient = finite(gradient)
    if momentum:
      size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
      gradient = velocity = momentum * velocity + gradient / jnp.maximum(size, 1e-30)
    step = norms.per_example(step_size, images) * geometry.direction(gradient)
    return project(candidates + step), velocity

  def total_loss(candidates):
    logits = predict(candidates)
    values = loss_fn(logits, labels)
    return jnp.sum(values), (values, logits)

  rest = jnp.zeros_like(images) if momentum else jnp.zeros(())  # of the velocity

  if keep == "last":
    return jax.lax.fori_loop(
      0,
      num_steps,
      lambda _, carry: ascend(*carry, jax.grad(total_loss, has_aux=True)(carry[0])[0]),
      (begin(0), rest),
    )[0]

  chex.assert_rank(labels, 1)
  chex.assert_type(labels, int)

  def keep_better(best, candidates, values, logits):
    best_images, best_values, best_wrong = best
    wrong = jnp.argmax(logits, axis=-1) != labels
    # Comparing with ">" keeps the earlier of two equals and never takes a NaN.
    better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (values > best_values))
    return (
      jnp.where(better[:, None, None, None], candidates, best_images),
      jnp.where(better, values, best_values),
      best_wrong | (better & wrong),
    )

  def body(iteration, carry):
    candidates, velocity, best = carry
    restart, step = iteration // (num_steps + 1), iteration % (num_steps + 1)
    candidates, velocity = jax.lax.cond(
      step == 0, lambda: (begin(restart), rest), lambda: (candidates, velocity)
    )
    gradient, (values, logits) = jax.grad(total_loss, has_aux=True)(candidates)
    best = keep_better(best, candidates, values, logits)
    return *ascend(candidates, velocity, gradient), best

  _, (values, logits) = total_loss(images)
  clean = images, values, jnp.argmax(logits, axis=-1) != labels
  _, _, (adversarial, _, _) = jax.lax.fori_loop(
    0, num_restarts * (num_steps + 1), body, (images, rest, clean)
  )
  return adversarial


def fgsm(predict, images, labels, *, epsilon, norm="linf", loss="cross_entropy"):
  """Fast gradient sign method: x + epsilon * d(grad L(x)), clipped to [0, 1].

  One step of `pgd` of full length from the clean image. (Goodfellow, Shlens, Szegedy, "Explaining and
  Harnessing Adversarial Examples", ICLR 2015.)

  Args and Raises: as in `pgd`.

  Returns:
    The image after the step, like `images`.
  """
  return pgd(
    jax.random.key(0),
    predict,
    images,
    labels,
    epsilon=epsilon,
    step_size=epsilon,
    num_steps=1,
    norm=norm,
    loss=loss,
    start="clean",
    keep="last",
  )
