"""FAB: the nearest misclassified image, by projections on linearised decision boundaries.

(Croce, Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML
2020.) It minimises the distance; epsilon only decides what counts as a success.
"""

import jax
import jax.numpy as jnp

from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import finite
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import ranked_targets
from sprout_jax.attacks.attack import run_alone
from sprout_jax.attacks.attack import run_keys
from sprout_jax.attacks.attack import select

ALPHA_MAX = 0.1  # largest weight of the original image's projection
OVERSHOOT = 1.05  # eta: how far beyond the boundary to go
BACKWARD = 0.9  # beta: share of the way kept after a success


def project_on_hyperplane(points, normal, offset, norm):
  """Smallest d such that normal . (points + d) = offset and points + d lies in [0, 1].

  d_i = sign * sign(w_i) * r_i with 0 <= r_i <= room_i, what the box leaves in that direction. Linf
  and L2: r_i = min(t g_i, room_i), g_i = 1 or |w_i|, and t >= 0 is the root of an increasing,
  concave, piecewise linear function, which Newton's method from 0 finds in finitely many steps. L1:
  the entries of the largest |w_i| move first, each as far as the box allows, the last one in part.
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

  def improve(carry):
    step, t, _ = carry
    reach = norms.per_example(t, points) * slope
    value = total(weight * jnp.minimum(reach, room))
    rate = total(jnp.where(reach < room, weight * slope, 0))
    # Never back: the function is concave, so that from the left only rounding overshoots.
    further = t + jnp.where(rate > 0, jnp.maximum(gap - value, 0) / jnp.where(rate > 0, rate, 1), 0)
    return step + 1, further, jnp.any(further > t)

  # Each step is exact up to the next pixel that saturates; networks need about 4.
  start = 0, jnp.zeros_like(gap), jnp.array(True)
  _, t, _ = jax.lax.while_loop(lambda carry: (carry[0] < 30) & carry[2], improve, start)
  reach = norms.per_example(t, points) * slope
  # Where the box ends before the hyperplane is met, everything saturates.
  unreachable = total(weight * room) <= gap
  return direction * select(unreachable, jnp.where(weight > 0, room, 0), jnp.minimum(reach, room))


def _largest_first(weight, room, gap):
  """How far each entry moves in L1: the largest weights first, until weight . moved = gap."""
  gap = gap[:, None, None, None]
  gain = weight * room
  total = lambda mask: jnp.sum(jnp.where(mask, gain, 0), axis=(1, 2, 3), keepdims=True)
  last = norms.largest_number(lambda t: total(weight >= t) >= gap, weight)
  # Entries of the last weight share what is left; where the box ends first, all entries saturate.
  is_last = weight == last
  left = gap - total(weight > last)
  part = jnp.clip(left / jnp.maximum(total(is_last), jnp.finfo(weight.dtype).tiny), 0, 1)
  return jnp.where(weight > 0, jnp.where(weight > last, room, is_last * part * room), 0)


def fab_attack(*, norm, targeted, num_steps, num_runs):
  """The `Attack` behind `fab`, whose arguments it has."""
  inputs.check_choice("fab", "norm", norm, norms.NORMS)
  inputs.check_count("fab", "num_steps", num_steps, 0)
  inputs.check_count("fab", "num_runs", num_runs, 1)
  geometry = norms.NORMS[norm]

  def boundary(predict, batch, x, targets):
    """(f, w): the linearised z_k - z_y at x, for the target, or for the class nearest to x."""
    if targeted:

      def total(x):
        f = losses.targeted_margin(predict(x), batch.labels, targets)
        return jnp.sum(f), f

      w, f = jax.grad(total, has_aux=True)(x)
      return f, finite(w)
    logits, pullback = jax.vjp(predict, x)
    is_label = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=logits.dtype)

    def nearest(k, best):
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

  def start(predict, batch):
    targets = jnp.zeros_like(batch.labels)
    x = batch.images
    if targeted:
      targets = ranked_targets(predict(batch.images), batch.labels, batch.run)
    else:
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

  def step(predict, batch, state, number):
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
      # Beyond epsilon it is no result: what leaves the attack must lie in the ball.
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
  key,
  predict,
  images,
  labels,
  *,
  epsilon,
  norm="linf",
  targeted=True,
  num_steps=100,
  num_runs=9,
  indices=None,
):
  """FAB by itself, as one compiled loop; jittable.

  Each step projects the current and the original image on the linearised boundary, goes between the
  two, a little beyond (eta = 1.05), and after a success back towards the original (beta = 0.9).
  (Croce, Hein, ICML 2020.)

  Args:
    key: a PRNG key (only restarts of the untargeted attack draw).
    predict: function images -> logits, deterministic.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius within which a misclassified image is a success, in pixel units.
    norm: a key of `NORMS`.
    targeted: True: a run has one boundary, between the label and a target: the wrong class ranked
      by the number of the run, see `ranked_targets`. False: at every step the nearest boundary of
      all classes, from the gradients of all; runs after the first start at random.
    num_steps: steps of a run.
    num_runs: targets, of which there are at most classes - 1; or restarts.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Adversarial images like `images`: within epsilon and misclassified where it succeeded, else the
    images as given.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  return run_alone(
    fab_attack(norm=norm, targeted=targeted, num_steps=num_steps, num_runs=num_runs),
    key,
    predict,
    images,
    labels,
    epsilon,
    indices,
  )
