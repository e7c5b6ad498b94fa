"""Projected gradient descent, the standard first-order attack, in Linf and L2."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.attack import under_any_mesh

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


class PgdTrace(NamedTuple):
  """How a run of PGD went: what was found after 0, 1, ..., num_steps steps.

  Attributes:
    images: the adversarial images, as `pgd` returns them with keep="best".
    best_loss: float [batch, num_steps + 1], the highest loss of all points so far, the random start
      among them, the image itself not.
    broken: bool [batch, num_steps + 1], whether some point so far was misclassified. So an image is
      robust against k steps where column k is False.
    size: float [batch, num_steps + 1], the norm of the perturbation at each point.
  """

  images: jax.Array
  best_loss: jax.Array
  broken: jax.Array
  size: jax.Array


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
    ValueError: a wrong argument, see `inputs`; or more than one restart where they would coincide.
  """
  inputs.check_choice("pgd", "keep", keep, KEEP)
  inputs.check_count("pgd", "num_restarts", num_restarts, 1)
  if num_restarts > 1 and (start == "clean" or keep == "last"):
    raise ValueError(
      f"pgd: num_restarts is {num_restarts}; more than 1 needs a random start and keep='best': the "
      "restarts would coincide, or all but the last be lost"
    )

  def run(ascent):
    if keep == "last":
      return ascent.last()
    visit = lambda number, carry: ascent.visit(carry, number)[0]
    return jax.lax.fori_loop(0, num_restarts * (num_steps + 1), visit, ascent.clean())[2].points

  return _ascend(
    run,
    "pgd",
    key,
    predict,
    images,
    labels,
    epsilon=epsilon,
    step_size=step_size,
    num_steps=num_steps,
    norm=norm,
    loss=loss,
    start=start,
    momentum=momentum,
    indices=indices,
    any_labels=callable(loss) and keep == "last",
  )


def pgd_trace(
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
  indices=None,
):
  """`pgd` with one random start, and how it went: one run of many steps tells what fewer find.

  Args and Raises: as in `pgd`.

  Returns:
    A `PgdTrace`.
  """

  def run(ascent):
    def visit(carry, number):
      carry, (points, values, wrong) = ascent.visit(carry, number)
      return carry, (values, wrong, norms.NORMS[norm].size(points - ascent.images))

    carry, found = jax.lax.scan(visit, ascent.clean(), jnp.arange(num_steps + 1))
    values, wrong, size = (column.T for column in found)
    return PgdTrace(
      carry[2].points, jax.lax.cummax(values, axis=1), jnp.cumsum(wrong, axis=1) > 0, size
    )

  return _ascend(
    run,
    "pgd_trace",
    key,
    predict,
    images,
    labels,
    epsilon=epsilon,
    step_size=step_size,
    num_steps=num_steps,
    norm=norm,
    loss=loss,
    start="uniform",
    momentum=0.0,
    indices=indices,
  )


def _ascend(
  run,
  who,
  key,
  predict,
  images,
  labels,
  *,
  epsilon,
  step_size,
  num_steps,
  norm,
  loss,
  start,
  momentum,
  indices,
  any_labels=False,
):
  """run(`_Ascent`) on checked arguments, those of `pgd`; `who` is for errors."""
  inputs.check_choice(who, "start", start, STARTS)
  if not callable(loss):
    inputs.check_choice(who, "loss", loss, LOSSES)
  inputs.check_count(who, "num_steps", num_steps, 0)
  inputs.check_number(who, "momentum", momentum)
  predict, images, labels, indices = inputs.prepare(
    who,
    predict,
    images,
    labels,
    indices,
    any_labels=any_labels,
    num_classes=1 if callable(loss) else 2,
  )
  inputs.check_radius(who, epsilon, norm, len(images))
  inputs.check_number(who, "step_size", step_size, len(images))
  constants = dict(
    num_steps=num_steps,
    norm=norm,
    loss=loss if callable(loss) else LOSSES[loss],
    start=STARTS[start],
    momentum=momentum,
  )
  return under_any_mesh(
    lambda *arrays: run(_Ascent(*arrays, **constants)),
    predict,
    images,
    labels,
    indices,
    key,
    epsilon,
    step_size,
  )


class _Visited(NamedTuple):
  """Points, the loss there [batch], and whether they are misclassified [batch]."""

  points: jax.Array
  values: jax.Array
  wrong: jax.Array


@dataclasses.dataclass(frozen=True)
class _Ascent:
  """Projected gradient ascent on given examples; the arguments are those of `pgd`.

  A carry of `visit` is (points, velocity, the best `_Visited` so far).
  """

  predict: Callable
  images: jax.Array
  labels: jax.Array
  indices: jax.Array
  key: jax.Array
  epsilon: jax.Array | float
  step_size: jax.Array | float
  num_steps: int
  norm: str
  loss: Callable
  start: Callable
  momentum: float

  def last(self):
    """The last iterate of one run."""
    step = lambda _, carry: self._step(*carry, self._look(carry[0])[0])
    return jax.lax.fori_loop(0, self.num_steps, step, (self._begin(0), self._rest()))[0]

  def clean(self):
    """The carry before the first visit: the best so far are the images."""
    _, (values, logits) = self._total_loss(self.images)
    return self.images, self._rest(), self._visited(self.images, values, logits)

  def visit(self, carry, number):
    """Looks at the current points and goes a step on; every num_steps + 1 visits a new run starts.

    Returns:
      The next carry, and the `_Visited`.
    """
    points, velocity, best = carry
    run, step = number // (self.num_steps + 1), number % (self.num_steps + 1)
    points, velocity = jax.lax.cond(
      step == 0, lambda: (self._begin(run), self._rest()), lambda: (points, velocity)
    )
    gradient, (values, logits) = self._look(points)
    here = self._visited(points, values, logits)
    # Of two equals the earlier one is kept.
    better = (here.wrong & ~best.wrong) | ((here.wrong == best.wrong) & (here.values > best.values))
    return (*self._step(points, velocity, gradient), select(better, here, best)), here

  def _begin(self, run):
    keys = example_keys(jax.random.fold_in(self.key, run), self.indices)
    away = self.start(keys, self.images, self.epsilon, norms.NORMS[self.norm])
    return norms.project(self.images + away, self.images, self.epsilon, self.norm)

  def _rest(self):
    """The velocity at the start of a run."""
    return jnp.zeros_like(self.images) if self.momentum else jnp.zeros(())

  def _total_loss(self, points):
    logits = self.predict(points)
    values = self.loss(logits, self.labels)
    return jnp.sum(values), (values, logits)

  def _look(self, points):
    """The gradient, and (loss [batch], logits)."""
    return jax.grad(self._total_loss, has_aux=True)(points)

  def _visited(self, points, values, logits):
    # A loss that is NaN is below every other.
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return _Visited(points, values, is_wrong(logits, self.labels))

  def _step(self, points, velocity, gradient):
    gradient = finite(gradient)
    if self.momentum:
      size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
      gradient = velocity = self.momentum * velocity + gradient / jnp.maximum(size, 1e-30)
    direction = norms.NORMS[self.norm].direction(gradient)
    step = norms.per_example(self.step_size, self.images) * direction
    return norms.project(points + step, self.images, self.epsilon, self.norm), velocity


def fgsm(predict, images, labels, *, epsilon, norm="linf", loss="cross_entropy"):
  """Fast gradient sign method: x + epsilon * d(grad L(x)), clipped to [0, 1].

  One step of `pgd` of full length from the clean image. (Goodfellow, Shlens, Szegedy, "Explaining
  and Harnessing Adversarial Examples", ICLR 2015.)

  Args and Raises: as in `pgd`.

  Returns:
    The image after the step, like `images`.
  """
  return _ascend(
    _Ascent.last,
    "fgsm",
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
    momentum=0.0,
    indices=None,
    any_labels=callable(loss),
  )
