"""FAB: the nearest misclassified image, by projections on linearised decision boundaries.

(Croce, Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML
2020.) The attack minimises the distance. Epsilon only decides which distances count as a success.
"""

from typing import Any

import jax
import jax.numpy as jnp
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
from sprout_jax.attacks.attack import ranked_targets
from sprout_jax.attacks.attack import run_keys
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

ALPHA_MAX = 0.1  # largest weight of the original image's projection
OVERSHOOT = 1.05  # eta: how far beyond the boundary to go
BACKWARD = 0.9  # beta: share of the way kept after a success


def project_on_hyperplane(
  points: jax.Array, normal: jax.Array, offset: jax.Array, norm: str
) -> jax.Array:
  """Smallest d such that normal . (points + d) = offset and points + d lies in [0, 1].

  d_i = s * sign(w_i) * r_i, where w is the normal, s the sign of offset - normal . points, and r_i
  lies between 0 and room_i, the distance to the box's face in that direction.

  - Linf and L2: r_i = min(t g_i, room_i), where g_i is 1 in Linf and abs(w_i) in L2. t is the root
    of an increasing, concave, piecewise linear function, which Newton's method from 0 finds in
    finitely many steps.
  - L1: the entries of the largest abs(w_i) move first, each as far as the box allows, the last ones
    in part.

  Where the hyperplane does not meet the box, d goes as far as the box allows.

  Args:
    points: float array [batch, height, width, channels] in [0, 1].
    normal: like `points`.
    offset: float array [batch].
    norm: a key of `NORMS`.

  Returns:
    An array like `points`.
  """
  total = lambda values: jnp.sum(values, axis=(1, 2, 3))
  gap = offset - total(normal * points)
  direction = jnp.sign(normal) * jnp.where(gap < 0, -1.0, 1.0)[:, None, None, None]
  room = jnp.where(direction > 0, 1 - points, points)
  weight, gap = jnp.abs(normal), jnp.abs(gap)
  if norm == "l1":
    return direction * _largest_first(weight, room, gap)
  slope = jnp.where(weight > 0, 1.0, 0.0) if norm == "linf" else weight

  def improve(carry: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
    step, t, _ = carry
    reach = norms.per_example(t, points) * slope
    value = total(weight * jnp.minimum(reach, room))
    rate = total(jnp.where(reach < room, weight * slope, 0))
    # t never falls: the function is concave, so that from the left only rounding overshoots.
    further = t + jnp.where(rate > 0, jnp.maximum(gap - value, 0) / jnp.where(rate > 0, rate, 1), 0)
    return step + 1, further, jnp.any(further > t)

  # Each step is exact up to the next pixel that saturates; networks need about 4.
  start: tuple[Any, jax.Array, jax.Array] = 0, jnp.zeros_like(gap), jnp.array(True)
  _, t, _ = jax.lax.while_loop(lambda carry: (carry[0] < 30) & carry[2], improve, start)
  reach = norms.per_example(t, points) * slope
  # Where the box ends before the hyperplane is met, everything saturates.
  unreachable = total(weight * room) <= gap
  return direction * select(unreachable, jnp.where(weight > 0, room, 0), jnp.minimum(reach, room))


def _largest_first(weight: jax.Array, room: jax.Array, gap: jax.Array) -> jax.Array:
  """Distance that each entry moves in L1: the largest weights first, until weight . moved = gap."""
  gap = gap[:, None, None, None]
  gain = weight * room
  total = lambda mask: jnp.sum(jnp.where(mask, gain, 0), axis=(1, 2, 3), keepdims=True)
  last = norms.largest_number(lambda t: total(weight >= t) >= gap, weight)
  # Entries of the last weight share what is left. Where the box ends first, all entries saturate.
  is_last = weight == last
  left = gap - total(weight > last)
  part = jnp.clip(left / jnp.maximum(total(is_last), jnp.finfo(weight.dtype).tiny), 0, 1)
  return jnp.where(weight > 0, jnp.where(weight > last, room, is_last * part * room), 0)


def fab_attack(*, norm: str, targeted: bool, num_steps: int, num_runs: int) -> Attack:
  """Builds the `Attack` behind `fab`, from arguments of the same names.

  Raises:
    ValueError: a wrong argument.
  """
  arguments.check_choice("fab", "norm", norm, norms.NORMS)
  arguments.check_count("fab", "num_steps", num_steps, 0)
  arguments.check_count("fab", "num_runs", num_runs, 1)
  geometry = norms.NORMS[norm]

  def boundary(
    predict: Predict, batch: Batch, x: jax.Array, targets: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Value and gradient of z_k - z_y at x, for the target k, or for the class k nearest to x."""
    if targeted:

      def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = losses.targeted_margin(predict(x), batch.labels, targets)
        return jnp.sum(f), f

      w, f = jax.grad(total, has_aux=True)(x)
      return f, finite(w)
    logits, pullback = jax.vjp(predict, x)
    is_label = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=logits.dtype)

    def nearest(
      k: jax.Array, best: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
      f_best, w_best, distance_best = best
      one = jax.nn.one_hot(k, logits.shape[-1], dtype=logits.dtype)[None] - is_label
      w = finite(pullback(one)[0])
      f = jnp.sum(one * logits, -1)
      distance = jnp.where(batch.labels == k, jnp.inf, jnp.abs(f) / (geometry.dual(w) + 1e-12))
      nearer = distance < distance_best
      return select(nearer, (f, w, distance), best)

    start = jnp.zeros_like(logits[:, 0]), jnp.zeros_like(x), jnp.full(len(x), jnp.inf)
    f, w, _ = jax.lax.fori_loop(0, logits.shape[-1], nearest, start)
    return f, w

  def start(batch: Batch) -> State:
    x = batch.images
    targets = ranked_targets(batch) if targeted else jnp.zeros_like(batch.labels)
    if not targeted:
      away = geometry.surface(run_keys(batch, 0), batch.images, batch.epsilon / 2)
      x = select(batch.run > 0, jnp.clip(batch.images + away, 0, 1), x)
    infinite = jnp.full(batch.labels.shape, jnp.inf)
    return {
      "x": x,
      "targets": targets,
      "adversarial": batch.images,
      "distance": infinite,
      "broken": jnp.zeros(batch.labels.shape, bool),
    }

  def step(predict: Predict, batch: Batch, state: State, number: jax.Array) -> State:
    del number
    x, origin = state["x"], batch.images
    f, w = boundary(predict, batch, x, state["targets"])
    offset = jnp.sum(w * x, axis=(1, 2, 3)) - f
    from_x, from_origin = (project_on_hyperplane(p, w, offset, norm) for p in (x, origin))
    size_x, size_origin = (jnp.maximum(geometry.size(d), 1e-8) for d in (from_x, from_origin))
    alpha = norms.per_example(jnp.minimum(size_x / (size_x + size_origin), ALPHA_MAX), x)
    x_new = jnp.clip(
      (x + OVERSHOOT * from_x) * (1 - alpha) + (origin + OVERSHOOT * from_origin) * alpha, 0, 1
    )
    x = jnp.where(jnp.isfinite(x_new), x_new, x)
    wrong = is_wrong(predict(x), batch.labels)
    distance = geometry.size(x - origin)
    nearer = wrong & (distance < state["distance"])
    return {
      "x": select(wrong, origin + BACKWARD * (x - origin), x),
      "targets": state["targets"],
      # An image beyond epsilon is no result: the images that are returned lie in the ball.
      "adversarial": select(nearer & (distance <= batch.epsilon), x, state["adversarial"]),
      "distance": jnp.where(nearer, distance, state["distance"]),
      "broken": state["broken"] | (nearer & (distance <= batch.epsilon)),
    }

  spec = {
    "targeted": targeted,
    "steps": num_steps,
    "runs": num_runs,
    "alpha_max": ALPHA_MAX,
    "eta": OVERSHOOT,
    "beta": BACKWARD,
  }
  return Attack("fab", norm, start, step, num_steps, num_runs, spec, targeted=targeted)


def fab(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  norm: str = "linf",
  targeted: bool = True,
  num_steps: int = 100,
  num_runs: int = 9,
  indices: Array | None = None,
) -> jax.Array:
  """Fast adaptive boundary attack (FAB): minimises the distance to the image; jittable.

  Each step projects the current and the original image on the linearised boundary. The next point
  is a weighted mean of the two projections, each extended beyond the boundary (eta = 1.05). After a
  success the point moves back towards the original (beta = 0.9). (Croce, Hein, ICML 2020.)

  Args:
    key: a PRNG key (only restarts of the untargeted attack draw).
    predict: function images -> logits, deterministic.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius within which a misclassified image is a success, in pixel units.
    norm: a key of `NORMS`.
    targeted: True: each run uses the boundary between the label and one target, see
      `ranked_targets`. False: every step uses the nearest boundary of all classes, from the
      gradients of all; runs after the first start at random.
    num_steps: steps of a run.
    num_runs: if targeted, number of targets, at most classes - 1; else number of restarts.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Images like `images`: within epsilon and misclassified where the attack succeeded, else
    unchanged.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  return attack_batch(
    fab_attack(norm=norm, targeted=targeted, num_steps=num_steps, num_runs=num_runs),
    key,
    predict,
    images,
    labels,
    epsilon,
    indices,
  )
