"""Auto-PGD: projected gradient ascent with momentum that finds its own step size.

(Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sprout_jax import losses
from sprout_jax.attacks import inputs
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

# Untargeted: (logits, labels) -> [batch]. Targeted: (logits, labels, targets) -> [batch].
LOSSES: dict[str, Callable[..., jax.Array]] = {
  "cross_entropy": losses.log_odds,  # monotone in it: the same steps, without vanishing gradients
  "dlr": losses.difference_of_logits_ratio,
  "margin": losses.margin,
}
TARGETED_LOSSES: dict[str, Callable[..., jax.Array]] = {
  "dlr": losses.targeted_difference_of_logits_ratio,
  "margin": losses.targeted_margin,
}


def apgd_attack(
  *,
  norm: str,
  loss: str,
  targeted: bool,
  num_steps: int,
  num_runs: int,
  num_samples: int,
) -> Attack:
  """Builds the `Attack` behind `apgd`, from arguments of the same names.

  With more than one sample, no run stops early. At the end of a run the mean logits of
  `num_samples` fresh draws decide. So an image that is wrong in one of a hundred draws is not
  broken.

  Raises:
    ValueError: a wrong argument.
  """
  table = TARGETED_LOSSES if targeted else LOSSES
  inputs.check_choice("apgd", "norm", norm, norms.NORMS)
  inputs.check_choice("apgd", "targeted loss" if targeted else "loss", loss, table)
  for what, value in (
    ("num_steps", num_steps),
    ("num_runs", num_runs),
    ("num_samples", num_samples),
  ):
    inputs.check_count("apgd", what, value, 1)
  geometry, loss_fn, is_random = norms.NORMS[norm], table[loss], num_samples > 1
  if is_random and loss == "cross_entropy":
    loss_fn = losses.cross_entropy  # means of gradients of log odds are not those of the loss
  # NumPy: JAX arrays would belong to the mesh that is set where the attack is built.
  review_at = np.array(checkpoints(num_steps), np.int32)
  windows = np.diff(review_at, prepend=np.int32(0))

  def look(
    predict: Predict, batch: Batch, x: jax.Array, targets: jax.Array, number: ArrayLike
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients and losses, means over samples, and whether the mean logits are wrong."""
    extra = (targets,) if targeted else ()

    def total(
      x: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      logits = predict(x) if num_samples == 1 else predict(x, keys)
      values = loss_fn(logits, batch.labels, *extra)
      return jnp.sum(values), (values, logits)

    def sample(carry: tuple[Any, ...], sample_number: jax.Array) -> tuple[tuple[Any, ...], None]:
      keys = run_keys(batch, num_samples * number + sample_number)
      gradient, (values, logits) = jax.grad(total, has_aux=True)(x, keys)
      return jax.tree.map(jnp.add, carry, (gradient, values, logits)), None

    if num_samples == 1:
      gradient, (values, logits) = jax.grad(total, has_aux=True)(x, None)
    else:
      shapes = jax.eval_shape(lambda: jax.grad(total, has_aux=True)(x, batch.keys))
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], *shapes[1]))
      sums, _ = jax.lax.scan(sample, zeros, jnp.arange(num_samples))
      gradient, values, logits = jax.tree.map(lambda s: s / num_samples, sums)
    return finite(gradient), values, is_wrong(logits, batch.labels)

  def decide(predict: Predict, batch: Batch, x: jax.Array) -> jax.Array:
    """Marks the examples whose mean logits over fresh draws are wrong."""
    draws = jax.lax.map(
      lambda number: predict(x, run_keys(batch, DECISION + number)), jnp.arange(num_samples)
    )
    return is_wrong(draws.mean(0), batch.labels)

  def start(predict: Predict, batch: Batch) -> State:
    x = project(
      batch.images + geometry.surface(run_keys(batch, 0), batch.images, batch.epsilon), batch, norm
    )
    targets = jnp.zeros_like(batch.labels)
    if targeted:
      extra = (run_keys(batch, DECISION),) if is_random else ()
      targets = ranked_targets(predict(batch.images, *extra), batch.labels, batch.run)
    gradient, values, broken = look(predict, batch, x, targets, 1)
    broken &= not is_random
    return {
      "x": x,
      "previous": x,
      "gradient": gradient,
      "targets": targets,
      "adversarial": x,
      "broken": broken,
      "best": x,
      "best_gradient": gradient,
      "best_loss": values,
      "loss": values,
      "step_size": jnp.full(values.shape, 2.0) * batch.epsilon,
      "raised": jnp.zeros(values.shape, jnp.int32),  # steps of this window that raised the loss
      "halved": jnp.ones(values.shape, bool),
      "loss_at_review": values,
    }

  def step(predict: Predict, batch: Batch, state: State, number: jax.Array) -> State:
    x, size = state["x"], norms.per_example(state["step_size"], state["x"])
    share = norms.per_example(jnp.where(number == 0, 1.0, MOMENTUM), x)
    z = project(x + size * geometry.direction(state["gradient"]), batch, norm)
    x_new = project(x + share * (z - x) + (1 - share) * (x - state["previous"]), batch, norm)
    gradient, values, wrong = look(predict, batch, x_new, state["targets"], number + 2)
    better = values > state["best_loss"]
    best = select(
      better, (x_new, gradient, values), (state["best"], state["best_gradient"], state["best_loss"])
    )
    raised = state["raised"] + (values > state["loss"]).astype(jnp.int32)

    window = jnp.sum(jnp.where(number[:, None] + 1 == review_at[None], windows[None], 0), -1)
    is_review = window > 0
    adversarial = select(wrong, x_new, state["adversarial"])
    if is_random:
      is_last = number == num_steps - 1
      wrong = jax.lax.cond(
        jnp.any(is_last),
        lambda: is_last & decide(predict, batch, adversarial),
        lambda: jnp.zeros_like(is_last),
      )
    too_few = raised.astype(x.dtype) <= RAISED_SHARE * window.astype(x.dtype)
    halve = is_review & (too_few | (~state["halved"] & (state["loss_at_review"] >= best[2])))
    return {
      "x": select(halve, best[0], x_new),
      "previous": x,
      "gradient": select(halve, best[1], gradient),
      "targets": state["targets"],
      "adversarial": adversarial,
      "broken": state["broken"] | wrong,
      "best": best[0],
      "best_gradient": best[1],
      "best_loss": best[2],
      "loss": values,
      "step_size": jnp.where(halve, state["step_size"] / 2, state["step_size"]),
      "raised": jnp.where(is_review, 0, raised),
      "halved": jnp.where(is_review, halve, state["halved"]),
      "loss_at_review": jnp.where(is_review, best[2], state["loss_at_review"]),
    }

  spec = {
    "loss": loss,
    "targeted": targeted,
    "steps": num_steps,
    "runs": num_runs,
    "samples": num_samples,
    "momentum": MOMENTUM,
    "raised_share": RAISED_SHARE,
    "first_step": "2 epsilon",
    "checkpoints": checkpoints(num_steps),
  }
  return Attack(
    "apgd",
    norm,
    start,
    step,
    num_steps,
    num_runs,
    spec,
    targeted=targeted,
    num_samples=num_samples,
  )


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

  Args:
    key: a PRNG key.
    predict: function images -> logits; with num_samples > 1, (images, keys [batch]) -> logits.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    loss: "cross_entropy", "dlr" or "margin"; if targeted, "dlr" or "margin".
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
