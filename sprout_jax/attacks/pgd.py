"""Projected gradient descent, the standard first-order attack, in Linf and L2."""

import chex
import jax
import jax.numpy as jnp

from sprout_jax import losses
from sprout_jax.attacks import norms

# The log odds are a monotone function of the cross-entropy: the same steps and the same best
# iterate, but a gradient that does not vanish on confident models.
LOSSES = {"cross_entropy": losses.log_odds, "margin": losses.margin}


def pgd(key, predict, images, labels, *, epsilon, step_size, num_steps, norm="linf",
        loss="cross_entropy", random_start=True, num_restarts=1, indices=None):
  """Maximises a loss over the ball around each image by projected gradient ascent.

  x_0 = x + uniform draw from the ball;  x_{t+1} = P(x_t + step_size * d(grad L(x_t))), where d is
  the sign (Linf) or the gradient divided by its L2 norm (L2), and P projects on the ball of radius
  epsilon around x and then on [0, 1]. Of all iterates of all restarts, the clean image included,
  the one kept is misclassified if any is, and of these has the highest loss. (Madry et al.,
  "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.)

  The whole attack is one compiled loop of `num_restarts * (num_steps + 1)` evaluations of
  `predict` and its gradient. An example's outcome depends on its own key only, `fold_in(key,
  index)`, not on the rest of the batch, its size or its order.

  Args:
    key: a PRNG key.
    predict: function images -> logits [batch, classes], deterministic, with normalisation inside.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch], the true classes.
    epsilon: radius of the ball in pixel units, scalar or [batch]; may be traced.
    step_size: size of a step in pixel units, scalar or [batch]; may be traced.
    num_steps: number of gradient steps, a Python integer >= 0.
    norm: a key of `NORMS`.
    loss: a key of `LOSSES`.
    random_start: whether to start from a random point of the ball; without it restarts coincide.
    num_restarts: number of runs, >= 1.
    indices: int array [batch], the examples' positions in the whole data set, which make their
      random starts; default 0, 1, ..., batch - 1.

  Returns:
    The adversarial images, like `images`.

  Raises:
    ValueError: unknown norm or loss (the choices are listed), or senseless counts.
    AssertionError: wrong ranks or dtypes.
  """
  for what, name, table in (("norm", norm, norms.NORMS), ("loss", loss, LOSSES)):
    if name not in table:
      raise ValueError(f"pgd: {what} is {name!r}; choose one of: {', '.join(sorted(table))}")
  if num_steps < 0 or num_restarts < 1:
    raise ValueError(f"pgd: num_steps is {num_steps} and num_restarts {num_restarts}; they must "
                     "be at least 0 and 1")
  if num_restarts > 1 and not random_start:
    raise ValueError("pgd: num_restarts > 1 needs random_start=True: the restarts would coincide")
  chex.assert_rank([images, labels], [4, 1])
  chex.assert_type([images, labels], [float, int])
  geometry, loss_fn = norms.NORMS[norm], LOSSES[loss]
  indices = jnp.arange(images.shape[0]) if indices is None else jnp.asarray(indices)

  def project(candidates):
    perturbation = geometry.project(candidates - images, epsilon)
    return jnp.clip(images + perturbation, 0, 1)

  def start(restart):
    if not random_start:
      return images
    restart_key = jax.random.fold_in(key, restart)
    keys = jax.vmap(lambda index: jax.random.fold_in(restart_key, index))(indices)
    return project(images + geometry.start(keys, images, epsilon))

  def total_loss(candidates):
    logits = predict(candidates)
    values = loss_fn(logits, labels)
    return jnp.sum(values), (values, jnp.argmax(logits, axis=-1) != labels)

  def keep_better(best, candidates, values, wrong):
    best_images, best_values, best_wrong = best
    # Comparing with ">" keeps the earlier of two equals and never takes a NaN.
    better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (values > best_values))
    return (jnp.where(better[:, None, None, None], candidates, best_images),
            jnp.where(better, values, best_values), best_wrong | (better & wrong))

  def body(iteration, carry):
    candidates, best = carry
    restart, step = iteration // (num_steps + 1), iteration % (num_steps + 1)
    candidates = jax.lax.cond(step == 0, lambda: start(restart), lambda: candidates)
    gradient, (values, wrong) = jax.grad(total_loss, has_aux=True)(candidates)
    best = keep_better(best, candidates, values, wrong)
    size = norms.per_example(step_size, images)
    return project(candidates + size * geometry.direction(gradient)), best

  _, (values, wrong) = total_loss(images)
  _, (adversarial, _, _) = jax.lax.fori_loop(
      0, num_restarts * (num_steps + 1), body, (images, (images, values, wrong)))
  return adversarial

