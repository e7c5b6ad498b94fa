"""Projected gradient descent, the standard first-order attack, in Linf and L2."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple
from typing import Protocol
from typing import TypeAlias
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sprout_jax import arguments
from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.attack import under_any_mesh
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

# Logits [batch, classes] and labels -> losses [batch].
Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
Result = TypeVar("Result")


class Start(Protocol):
  """Random start of a run within the ball."""

  def __call__(
    self, keys: jax.Array, images: jax.Array, epsilon: ArrayLike, geometry: norms.Norm, /
  ) -> jax.Array:
    """Draws perturbations like `images`, with PRNG keys [batch]."""


# The log odds are a monotone function of the cross-entropy: the same steps and the same best
# iterate, but a gradient that does not vanish on confident models. DLR needs at least 3 classes.
LOSSES: dict[str, Loss] = {
  "cross_entropy": losses.log_odds,
  "margin": losses.margin,
  "dlr": losses.difference_of_logits_ratio,
}

STARTS: dict[str, Start] = {
  "uniform": lambda keys, images, epsilon, geometry: geometry.start(keys, images, epsilon),
  # TRADES: next to the image, where the gradient of a divergence from it is no longer zero.
  "gaussian": lambda keys, images, epsilon, geometry: (
    1e-3 * norms.draw(keys, jax.random.normal, images)
  ),
  "clean": lambda keys, images, epsilon, geometry: jnp.zeros_like(images),
}

KEEP = ("best", "last")


class PgdTrace(NamedTuple):
  """Course of a run of PGD: its results after 0, 1, ..., num_steps steps.

  Attributes:
    images: adversarial images, as `pgd` returns them with keep="best".
    best_loss: float [batch, num_steps + 1], the highest loss of all points so far. The random start
      counts, the image itself does not.
    broken: bool [batch, num_steps + 1], True where a point so far was misclassified. So an image is
      robust against k steps where column k is False.
    size: float [batch, num_steps + 1], the norm of the perturbation at each point.
  """

  images: jax.Array
  best_loss: jax.Array
  broken: jax.Array
  size: jax.Array

  def __repr__(self) -> str:
    """Returns one line: the shapes, and the share that is robust after the last step."""
    count, columns = self.broken.shape
    robust = (
      ""
      if isinstance(self.broken, jax.core.Tracer)
      else (f", {int((~self.broken[:, -1]).sum())} robust after the last")
    )
    return f"<PgdTrace of {count} images, {columns - 1} steps{robust}>"


def pgd(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  step_size: ArrayLike,
  num_steps: int,
  norm: str = "linf",
  loss: str | Loss = "cross_entropy",
  start: str = "uniform",
  keep: str = "best",
  momentum: float = 0.0,
  num_restarts: int = 1,
  indices: Array | None = None,
) -> jax.Array:
  """Maximises a loss over the ball around each image by projected gradient ascent; jittable.

  x_0 = P(x + start) and x_{t+1} = P(x_t + step_size * d(grad L(x_t))), where d is the sign (Linf)
  or the gradient divided by its L2 norm (L2), and P projects on the ball of radius epsilon around x
  and then on [0, 1]. (Madry et al., "Towards Deep Learning Models Resistant to Adversarial
  Attacks", ICLR 2018.)

  The whole attack is one compiled loop of num_restarts * (num_steps + 1) passes through `predict`
  and its gradient, or of num_steps passes with keep="last". An example's outcome depends on its own
  key fold_in(key, index), not on the rest of the batch, its size or its order.

  Args:
    key: a PRNG key.
    predict: function images -> logits [batch, classes], deterministic, with normalisation inside.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch], the true classes. With a function as `loss` and keep="last", an
      array [batch, ...] of any form that the function takes.
    epsilon: radius of the ball in pixel units, scalar or [batch]; may be traced.
    step_size: size of a step in pixel units, scalar or [batch]; may be traced.
    num_steps: number of gradient steps, a Python integer >= 0.
    norm: a key of `NORMS`.
    loss: a key of `LOSSES`, or a function (logits, labels) -> [batch].
    start: a key of `STARTS`: "uniform" in the ball, "gaussian" with standard deviation 0.001 around
      the image, "clean" is the image itself.
    keep: "best", for evaluation, returns the iterate with the highest loss of all restarts, among
      the misclassified ones if there are any; the clean image counts as an iterate. "last", for
      training, returns the last iterate.
    momentum: mu of at least 0. If positive, the steps follow g_t = mu g_{t-1} + grad / L1 norm of
      grad (Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018). 0 follows the
      gradient itself.
    num_restarts: number of runs, at least 1.
    indices: int array [batch], the examples' positions in the whole data set, which determine
      their random starts; default 0, 1, ..., batch - 1.

  Returns:
    Adversarial images like `images`.

  Raises:
    ValueError: a wrong argument, see `inputs`; or more than one restart without a random start or
      with keep="last".
  """
  arguments.check_choice("pgd", "keep", keep, KEEP)
  arguments.check_count("pgd", "num_restarts", num_restarts, 1)
  if num_restarts > 1 and start == "clean":
    raise ValueError(
      f"pgd: num_restarts is {num_restarts}, but from start='clean' all restarts coincide; choose "
      "a random start, or num_restarts=1"
    )
  if num_restarts > 1 and keep == "last":
    raise ValueError(
      f"pgd: num_restarts is {num_restarts}, but with keep='last' all but the last restart are "
      "lost; use keep='best', or num_restarts=1"
    )

  def search(ascent: _Ascent) -> jax.Array:
    if keep == "last":
      return ascent.last()
    visit = lambda number, carry: ascent.visit(carry, number)[0]
    return jax.lax.fori_loop(0, num_restarts * (num_steps + 1), visit, ascent.clean())[2].points

  return _ascend(
    search,
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
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  step_size: ArrayLike,
  num_steps: int,
  norm: str = "linf",
  loss: str | Loss = "cross_entropy",
  indices: Array | None = None,
) -> PgdTrace:
  """`pgd` with one random start, and its results after every number of steps; jittable.

  One run of many steps shows what every smaller number of steps finds. The arguments and the errors
  are those of `pgd`.

  Returns:
    The images found, and per number of steps the best loss, the success and the distance.
  """

  def search(ascent: _Ascent) -> PgdTrace:
    def visit(
      carry: _Carry, number: jax.Array
    ) -> tuple[_Carry, tuple[jax.Array, jax.Array, jax.Array]]:
      carry, (points, values, wrong) = ascent.visit(carry, number)
      return carry, (values, wrong, norms.NORMS[norm].size(points - ascent.images))

    carry, found = jax.lax.scan(visit, ascent.clean(), jnp.arange(num_steps + 1))
    values, wrong, size = (column.T for column in found)
    return PgdTrace(
      carry[2].points, jax.lax.cummax(values, axis=1), jnp.cumsum(wrong, axis=1) > 0, size
    )

  return _ascend(
    search,
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
  search: "Callable[[_Ascent], Result]",
  who: str,
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  step_size: ArrayLike,
  num_steps: int,
  norm: str,
  loss: str | Loss,
  start: str,
  momentum: float,
  indices: Array | None,
  any_labels: bool = False,
) -> Result:
  """Checks the arguments of `pgd` and calls `search` with the ascent; `who` begins messages."""
  arguments.check_key(who, key)
  arguments.check_choice(who, "start", start, STARTS)
  if not callable(loss):
    arguments.check_choice(who, "loss", loss, LOSSES)
  arguments.check_count(who, "num_steps", num_steps, 0)
  if isinstance(momentum, jax.core.Tracer):
    raise ValueError(f"{who}: momentum is traced; expected a Python number of at least 0")
  inputs.check_number(who, "momentum", momentum)
  checked, *arrays = inputs.prepare(
    who,
    predict,
    images,
    labels,
    indices,
    any_labels=any_labels,
    num_classes=1 if callable(loss) else 2,
  )
  inputs.check_radius(who, epsilon, norm, len(arrays[0]))
  inputs.check_number(who, "step_size", step_size, len(arrays[0]))
  if not callable(loss):  # another loss may be one of probabilities
    inputs.check_clean(who, checked, arrays[0])
  epsilon, step_size, momentum = map(inputs.as_float, (epsilon, step_size, momentum))
  ascent = functools.partial(
    _Ascent,
    who=who,
    num_steps=num_steps,
    norm=norm,
    loss=loss if callable(loss) else LOSSES[loss],
    start=STARTS[start],
    momentum=momentum,
  )
  found = under_any_mesh(
    lambda *arguments: search(ascent(*arguments)), checked, *arrays, key, epsilon, step_size
  )
  finish = lambda leaf: inputs.as_given(leaf, images) if leaf.ndim == 4 else leaf
  return jax.tree.map(finish, found)


class _Visited(NamedTuple):
  """Points, their losses [batch], and whether they are misclassified [batch]."""

  points: jax.Array
  values: jax.Array
  wrong: jax.Array


# Points, velocity, and the best points so far.
_Carry: TypeAlias = tuple[jax.Array, jax.Array, _Visited]


@dataclasses.dataclass(frozen=True)
class _Ascent:
  """Projected gradient ascent on given examples; the attributes are the arguments of `pgd`."""

  predict: Predict
  images: jax.Array
  labels: jax.Array
  indices: jax.Array
  key: jax.Array
  epsilon: ArrayLike
  step_size: ArrayLike
  num_steps: int
  norm: str
  loss: Loss
  start: Start
  momentum: float
  who: str  # the public function, which begins messages

  def last(self) -> jax.Array:
    """The last iterate of one run."""
    step = lambda _, carry: self._step(carry[0], carry[1], self._look(carry[0])[0])
    return jax.lax.fori_loop(0, self.num_steps, step, (self._begin(0), self._rest()))[0]

  def clean(self) -> _Carry:
    """The carry before the first visit: the images are the best points so far."""
    _, (values, logits) = self._total_loss(self.images)
    return self.images, self._rest(), self._visited(self.images, values, logits)

  def visit(self, carry: _Carry, number: jax.Array) -> tuple[_Carry, _Visited]:
    """Looks at the current points and makes a step.

    Every num_steps + 1 visits a new run starts.

    Returns:
      The next carry, and the points looked at.
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
    points, velocity = self._step(points, velocity, gradient)
    return (points, velocity, select(better, here, best)), here

  def _begin(self, run: ArrayLike) -> jax.Array:
    """The first points of a run."""
    keys = example_keys(jax.random.fold_in(self.key, run), self.indices)
    away = self.start(keys, self.images, self.epsilon, norms.NORMS[self.norm])
    return norms.project(self.images + away, self.images, self.epsilon, self.norm)

  def _rest(self) -> jax.Array:
    """The velocity at the start of a run."""
    return jnp.zeros_like(self.images) if self.momentum else jnp.zeros(())

  def _total_loss(self, points: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    logits = self.predict(points)
    values = arguments.per_example(self.who, "loss", self.loss, len(points), logits, self.labels)
    return jnp.sum(values), (values, logits)

  def _look(self, points: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The gradient, and (loss [batch], logits)."""
    return jax.grad(self._total_loss, has_aux=True)(points)

  def _visited(self, points: jax.Array, values: jax.Array, logits: jax.Array) -> _Visited:
    # NaN ranks below every other loss.
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return _Visited(points, values, is_wrong(logits, self.labels))

  def _step(
    self, points: jax.Array, velocity: jax.Array, gradient: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The next points and the next velocity."""
    gradient = finite(gradient)
    if self.momentum:
      size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
      gradient = velocity = self.momentum * velocity + gradient / jnp.maximum(size, 1e-30)
    step = norms.ascent_step(gradient, self.step_size, self.norm)
    return norms.project(points + step, self.images, self.epsilon, self.norm), velocity


def fgsm(
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  norm: str = "linf",
  loss: str | Loss = "cross_entropy",
) -> jax.Array:
  """Fast gradient sign method: x + epsilon * d(grad L(x)), clipped to [0, 1]; jittable.

  One step of `pgd` of full length from the clean image. (Goodfellow, Shlens, Szegedy, "Explaining
  and Harnessing Adversarial Examples", ICLR 2015.) The arguments and the errors are those of `pgd`.

  Returns:
    The images after the step, like `images`.
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
