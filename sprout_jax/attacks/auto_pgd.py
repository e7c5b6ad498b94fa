"""Auto-PGD: projected gradient ascent with momentum that finds its own step size.

(Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020. In L1: Croce, Hein, "Mind the Box: l1-APGD for Sparse
Adversarial Attacks on Image Classifiers", ICML 2021.)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sprout_jax import arguments
from sprout_jax import losses
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import State
from sprout_jax.attacks.attack import attack_batch
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import project
from sprout_jax.attacks.attack import ranked_targets
from sprout_jax.attacks.attack import run_keys
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

MOMENTUM = 0.75  # share of the new step; the first step has all of it
RAISED_SHARE = 0.75  # halve where at most this share of a window's steps raised the loss
# L1: radius over epsilon and share of the steps of each stage. The last stage takes the rest.
STAGES = ((3, 0.3), (2, 0.3), (1, 0.4))
# If the best point differs from the image in n entries, a step changes n / SPARSER entries. A
# review divides the step size by SPARSER, too.
SPARSER = 1.5
# A review resets the step size where n is below this share of n at the last review.
SPARSE_ENOUGH = 0.95
SMALLEST_STEP = 10  # the radius over the smallest step


def checkpoints(num_steps: int) -> list[int]:
  """Numbers of steps after which the step size is reviewed.

  Of n steps, the first window has 0.22 n steps. Each window is 0.03 n shorter than the one before,
  down to 0.06 n. Lengths are rounded down, and at least 1: 100 steps give 22, 41, 57, 70, 80, 87,
  93, 99.
  """
  window = max(int(0.22 * num_steps), 1)
  shrink, smallest = max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)
  numbers = [window]
  while numbers[-1] + max(window - shrink, smallest) <= num_steps:
    window = max(window - shrink, smallest)
    numbers.append(numbers[-1] + window)
  return numbers


DECISION = 2**30  # first number of the draws that decide about a random model; no step uses it


def probability_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Margin of probabilities: max_{k != y} p_k - p_y with p = softmax(z), from -1 to 1.

  (Xie et al., "Towards Million-scale Adversarial Robustness Evaluation with Stronger Individual
  Attacks", arXiv 2411.15210.)

  Args:
    logits: float array [batch, classes], at least two classes.
    labels: int array [batch].

  Returns:
    Float array [batch].
  """
  return losses.margin(jax.nn.softmax(logits), labels)


# Untargeted: (logits, labels) -> [batch]. Targeted: (logits, labels, targets) -> [batch].
LOSSES: dict[str, Callable[..., jax.Array]] = {
  "cross_entropy": losses.log_odds,  # monotone in it: the same steps, without vanishing gradients
  "dlr": losses.difference_of_logits_ratio,
  "margin": losses.margin,
  "probability_margin": probability_margin,
}
TARGETED_LOSSES: dict[str, Callable[..., jax.Array]] = {
  "dlr": losses.targeted_difference_of_logits_ratio,
  "margin": losses.targeted_margin,
}

# (targeted, loss): its number is in the state of a run, so that one program serves all losses.
KINDS = [(False, name) for name in LOSSES] + [(True, name) for name in TARGETED_LOSSES]


def fewest_classes(loss: str, targeted: bool) -> int:
  """The smallest number of classes for which a loss is defined: DLR compares 3, targeted 4."""
  if loss == "dlr":
    return 4 if targeted else 3
  return 2


def apgd_attack(
  *,
  norm: str,
  loss: str,
  targeted: bool,
  num_steps: int,
  num_runs: int,
  num_samples: int,
  given: str = "",
) -> Attack:
  """Builds the `Attack` behind `apgd`, from arguments of the same names.

  With `given` "start" a run starts at `Batch.given` in place of a random point. With "target" its
  target is `Batch.given` in place of `ranked_targets`.

  With more than one sample, no run stops early. At the end of a run the mean logits of
  `num_samples` fresh draws decide. So an image that is wrong in one of a hundred draws is not
  broken.

  Raises:
    ValueError: a wrong argument.
  """
  table = TARGETED_LOSSES if targeted else LOSSES
  arguments.check_choice("apgd", "norm", norm, norms.NORMS)
  arguments.check_choice("apgd", "targeted loss" if targeted else "loss", loss, table)
  for what, value in (
    ("num_steps", num_steps),
    ("num_runs", num_runs),
    ("num_samples", num_samples),
  ):
    arguments.check_count("apgd", what, value, 1)
  ascent = (
    _l1_ascent(num_steps, num_samples) if norm == "l1" else _ascent(norm, num_steps, num_samples)
  )

  def start(batch: Batch) -> State:
    first = jnp.asarray(batch.given) if given == "start" else batch.images + ascent.away(batch)
    targets = jnp.zeros_like(batch.labels)
    if targeted:
      targets = jnp.asarray(batch.given) if given == "target" else ranked_targets(batch)
    kind = jnp.full_like(batch.labels, KINDS.index((targeted, loss)))
    return ascent.start(batch, first) | {"targets": targets, "kind": kind}

  spec = {
    "loss": loss,
    "targeted": targeted,
    "steps": num_steps,
    "runs": num_runs,
    "samples": num_samples,
    **({"given": given} if given else {}),
    **ascent.spec,
  }
  return Attack(
    "apgd",
    norm,
    start,
    ascent.step,
    ascent.num_steps,
    num_runs,
    spec,
    targeted=targeted,
    num_samples=num_samples,
    passes=3 * num_samples,
  )


@dataclasses.dataclass(frozen=True)
class _Oracle:
  """Questions of a run to the model.

  Attributes:
    num_samples: number of draws of a random model; 1 for a model that is not random.
  """

  num_samples: int

  @property
  def is_random(self) -> bool:
    """Whether the model draws random numbers."""
    return self.num_samples > 1

  def loss(self, logits: jax.Array, labels: jax.Array, state: State) -> jax.Array:
    """The loss of the run's kind, [batch]. Only one of the branches runs."""

    def branch(targeted: bool, name: str) -> Callable[[jax.Array], jax.Array]:
      if logits.shape[-1] < fewest_classes(name, targeted):
        name = "margin"  # is never chosen
      if targeted:
        return lambda logits: TARGETED_LOSSES[name](logits, labels, state["targets"])
      # Means of gradients of log odds are not those of the cross-entropy.
      is_mean = self.is_random and name == "cross_entropy"
      return lambda logits: (losses.cross_entropy if is_mean else LOSSES[name])(logits, labels)

    return jax.lax.switch(state["kind"][0], [branch(*kind) for kind in KINDS], logits)

  def look(
    self, predict: Predict, batch: Batch, state: State, number: ArrayLike
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients and losses, means over samples, and whether the mean logits are wrong."""
    x = state["x"]

    def total(
      x: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      logits = predict(x, keys) if self.is_random else predict(x)
      values = self.loss(logits, batch.labels, state)
      return jnp.sum(values), (values, logits)

    def sample(carry: tuple[Any, ...], sample_number: jax.Array) -> tuple[tuple[Any, ...], None]:
      keys = run_keys(batch, self.num_samples * number + sample_number)
      gradient, (values, logits) = jax.grad(total, has_aux=True)(x, keys)
      return jax.tree.map(jnp.add, carry, (gradient, values, logits)), None

    if not self.is_random:
      gradient, (values, logits) = jax.grad(total, has_aux=True)(x, None)
    else:
      shapes = jax.eval_shape(lambda: jax.grad(total, has_aux=True)(x, batch.keys))
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], *shapes[1]))
      sums, _ = jax.lax.scan(sample, zeros, jnp.arange(self.num_samples))
      gradient, values, logits = jax.tree.map(lambda s: s / self.num_samples, sums)
    # The logits of a model can have another type than its images, but a state keeps its types.
    return finite(gradient), values.astype(x.dtype), is_wrong(logits, batch.labels)

  def broken(
    self,
    predict: Predict,
    batch: Batch,
    adversarial: jax.Array,
    wrong: jax.Array,
    is_last: jax.Array,
  ) -> jax.Array:
    """Marks the examples that are broken now. For a random model, fresh draws decide at the end."""
    if not self.is_random:
      return wrong

    def decide() -> jax.Array:
      draws = jax.lax.map(
        lambda number: predict(adversarial, run_keys(batch, DECISION + number)),
        jnp.arange(self.num_samples),
      )
      return is_last & is_wrong(draws.mean(0), batch.labels)

    return jax.lax.cond(jnp.any(is_last), decide, lambda: jnp.zeros_like(is_last))


class _Ascent(NamedTuple):
  """The parts of an `Attack` that differ between norms.

  A step looks at a point, and then moves to the next one. So the first step looks at the start, and
  the start needs no pass of its own program. There is one more look than there are moves.

  Attributes:
    away: batch -> the step from the images to a random start, before the projection.
    start: (batch, first point) -> state, without "targets" and "kind".
    step: as in `Attack`.
    num_steps: number of looks.
    spec: constants, for the record.
  """

  away: Callable[[Batch], jax.Array]
  start: Callable[[Batch, jax.Array], State]
  step: Callable[[Predict, Batch, State, jax.Array], State]
  num_steps: int
  spec: dict[str, Any]


# The same step for every loss and target, so that its program is compiled once; see `KINDS`.
@functools.lru_cache(maxsize=64)
def _ascent(norm: str, num_steps: int, num_samples: int) -> _Ascent:
  """Ascent in Linf and L2, see `apgd`."""
  oracle, geometry = _Oracle(num_samples), norms.NORMS[norm]
  # NumPy: JAX arrays would belong to the mesh that is set where the attack is built.
  review_at = np.array(checkpoints(num_steps), np.int32)
  windows = np.diff(review_at, prepend=np.int32(0))

  def away(batch: Batch) -> jax.Array:
    return geometry.surface(run_keys(batch, 0), batch.images, batch.epsilon)

  def start(batch: Batch, first: jax.Array) -> State:
    x = project(first, batch, norm)
    full = lambda value: jnp.full(batch.labels.shape, value, x.dtype)
    return {
      "x": x,
      "previous": x,
      "adversarial": x,
      "broken": jnp.zeros(batch.labels.shape, bool),
      "best": x,
      "best_gradient": jnp.zeros_like(x),
      "best_loss": full(-jnp.inf),
      "loss": full(jnp.inf),  # the look at the start raises nothing
      "step_size": full(2.0) * batch.epsilon,
      # Looks of this window at which the loss was higher than at the look before.
      "raised": jnp.zeros(batch.labels.shape, jnp.int32),
      "halved": jnp.ones(batch.labels.shape, bool),
      "loss_at_review": full(-jnp.inf),
    }

  def step(predict: Predict, batch: Batch, state: State, number: jax.Array) -> State:
    x = state["x"]
    gradient, values, wrong = oracle.look(predict, batch, state, number + 1)
    best, best_gradient, best_loss = _better(state, x, gradient, values)
    raised = state["raised"] + (values > state["loss"]).astype(jnp.int32)

    window = jnp.sum(jnp.where(number[:, None] == review_at[None], windows[None], 0), -1)
    is_first, is_review = number == 0, window > 0
    adversarial = select(wrong, x, state["adversarial"])
    broken = oracle.broken(predict, batch, adversarial, wrong, number == num_steps)
    too_few = raised.astype(x.dtype) <= RAISED_SHARE * window.astype(x.dtype)
    halve = is_review & (too_few | (~state["halved"] & (state["loss_at_review"] >= best_loss)))
    x, gradient = select(halve, (best, best_gradient), (x, gradient))
    step_size = jnp.where(halve, state["step_size"] / 2, state["step_size"])

    share = norms.per_example(jnp.where(is_first, 1.0, MOMENTUM), x)
    z = project(x + norms.per_example(step_size, x) * geometry.direction(gradient), batch, norm)
    return state | {
      "x": project(x + share * (z - x) + (1 - share) * (x - state["previous"]), batch, norm),
      "previous": x,
      "adversarial": adversarial,
      "broken": state["broken"] | broken,
      "best": best,
      "best_gradient": best_gradient,
      "best_loss": best_loss,
      "loss": values,
      "step_size": step_size,
      "raised": jnp.where(is_review, 0, raised),
      "halved": jnp.where(is_review, halve, state["halved"]),
      "loss_at_review": jnp.where(is_first | is_review, best_loss, state["loss_at_review"]),
    }

  spec = {
    "momentum": MOMENTUM,
    "raised_share": RAISED_SHARE,
    "first_step": "2 epsilon",
    "checkpoints": checkpoints(num_steps),
  }
  return _Ascent(away, start, step, num_steps + 1, spec)


def _better(state: State, x: jax.Array, gradient: jax.Array, values: jax.Array) -> Any:
  """The best point of a run so far, with its gradient and loss."""
  old = state["best"], state["best_gradient"], state["best_loss"]
  return select(values > state["best_loss"], (x, gradient, values), old)


@functools.lru_cache(maxsize=64)
def _l1_ascent(num_steps: int, num_samples: int) -> _Ascent:
  """Ascent in L1, see `apgd`: stages on falling radii.

  A stage begins with a look at its start. The plan has a row for each look: the radius over
  epsilon, whether a stage begins, and whether the step size is reviewed.
  """
  oracle = _Oracle(num_samples)
  lengths = [int(share * num_steps) for _, share in STAGES[:-1]]
  lengths.append(num_steps - sum(lengths))
  plan: list[tuple[int, bool, bool]] = []
  for (radius, _), length in zip(STAGES, lengths):
    every = max(int(0.04 * length), 1)
    plan += [(radius, True, False)]
    plan += [(radius, False, (number + 1) % every == 0) for number in range(length)]
  radii, begins_at, review_at = (np.array(column) for column in zip(*plan))

  def changed(x: jax.Array, batch: Batch) -> jax.Array:
    """Number of entries that differ from the image's, [batch]."""
    return jnp.sum(x != batch.images, axis=(1, 2, 3)).astype(x.dtype)

  def radius_at(number: jax.Array, batch: Batch) -> jax.Array:
    return jnp.asarray(radii, batch.images.dtype)[number] * batch.epsilon

  def away(batch: Batch) -> jax.Array:
    return norms.draw(run_keys(batch, 0), jax.random.normal, batch.images)

  def start(batch: Batch, first: jax.Array) -> State:
    radius = STAGES[0][0] * batch.epsilon
    x = norms.project(first, batch.images, radius, "l1")
    full = lambda value: jnp.full(batch.labels.shape, value, x.dtype)
    return {
      "x": x,
      "adversarial": batch.images,
      "broken": jnp.zeros(batch.labels.shape, bool),
      "best": x,
      "best_gradient": jnp.zeros_like(x),
      "best_loss": full(-jnp.inf),
      "step_size": full(1.0) * radius,
      "changed": full(0.0),  # at the last review
    }

  def step(predict: Predict, batch: Batch, state: State, number: jax.Array) -> State:
    begins, is_review = jnp.asarray(begins_at)[number], jnp.asarray(review_at)[number]
    x, radius = state["x"], radius_at(number, batch)
    gradient, values, wrong = oracle.look(predict, batch, state, number + 1)
    best, best_gradient, best_loss = select(
      begins, (x, gradient, values), _better(state, x, gradient, values)
    )
    found = changed(best, batch)
    restart = begins | (is_review & (found < SPARSE_ENOUGH * state["changed"]))
    smaller = jnp.clip(state["step_size"] / SPARSER, radius / SMALLEST_STEP, radius)
    step_size = jnp.where(is_review, smaller, state["step_size"])
    # Earlier stages have larger radii: their successes are not within epsilon.
    is_within = radius <= batch.epsilon
    wrong &= is_within
    adversarial = select(wrong | (is_within & begins), x, state["adversarial"])
    broken = oracle.broken(predict, batch, adversarial, wrong, number == len(plan) - 1)
    x, gradient = select(restart, (best, best_gradient), (x, gradient))
    step_size = jnp.where(restart, radius, step_size)
    at_review = jnp.where(begins | is_review, found, state["changed"])

    following = jnp.minimum(number + 1, len(plan) - 1)
    move = norms.sparse_direction(gradient, at_review / batch.images[0].size / SPARSER)
    moved = x + norms.per_example(step_size, move) * move
    x = select(jnp.asarray(begins_at)[following], best, moved)
    return state | {
      "x": norms.project(x, batch.images, radius_at(following, batch), "l1"),
      "adversarial": adversarial,
      "broken": state["broken"] | broken,
      "best": best,
      "best_gradient": best_gradient,
      "best_loss": best_loss,
      "step_size": step_size,
      "changed": at_review,
    }

  spec = {
    "stages": [list(stage) for stage in STAGES],
    "first_step": "the radius of the stage",
    "sparser": SPARSER,
    "sparse_enough": SPARSE_ENOUGH,
    "smallest_step": f"1/{SMALLEST_STEP} of the radius",
  }
  return _Ascent(away, start, step, len(plan), spec)


def apgd(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  norm: str = "linf",
  loss: str = "cross_entropy",
  targeted: bool = False,
  num_steps: int = 100,
  num_runs: int = 1,
  num_samples: int = 1,
  indices: Array | None = None,
) -> jax.Array:
  """Auto-PGD: gradient ascent with momentum and a step size that adapts; jittable.

  z = P(x + eta d(grad)) and x' = P(x + a (z - x) + (1 - a) (x - x_before)), with a = 0.75, 1 in the
  first step. The step size eta starts at 2 epsilon. At each of the `checkpoints` it is halved where
  the loss did not rise often enough or did not improve; there the run continues from its best
  point. (Croce, Hein, ICML 2020.)

  In L1 a step changes the largest entries of the gradient only. Their number falls with the number
  of entries that the best point changes. The radius is 3 epsilon at first, then 2 epsilon, then
  epsilon. There is no momentum. (Croce, Hein, ICML 2021.)

  Args:
    key: a PRNG key.
    predict: function images -> logits; with num_samples > 1, (images, keys [batch]) -> logits.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    loss: "cross_entropy", "dlr", "margin" or "probability_margin"; if targeted, "dlr" or "margin".
    targeted: True: each run maximises the loss towards a target, see `ranked_targets`.
    num_steps: steps of a run.
    num_runs: number of restarts; if targeted, number of targets, at most classes - 1.
    num_samples: gradients averaged at every step, for models that draw random numbers.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Images like `images`, within epsilon of them; misclassified where the attack succeeded.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  return attack_batch(
    apgd_attack(
      norm=norm,
      loss=loss,
      targeted=targeted,
      num_steps=num_steps,
      num_runs=num_runs,
      num_samples=num_samples,
    ),
    key,
    predict,
    images,
    labels,
    epsilon,
    indices,
  )
