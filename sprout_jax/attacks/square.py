"""Square Attack: random search with squares of shrinking size; needs no gradient.

(Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a Query-efficient Black-box Adversarial
Attack via Random Search", ECCV 2020.) Three things differ from the authors' code: positions and
signs are drawn per example, as in the paper; a square may lie at the last row and column (theirs
never does); in L2 and L1 the start's tiles are not transposed. L1: Croce, Hein, "Mind the box",
ICML 2021.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import run_alone
from sprout_jax.attacks.attack import run_keys
from sprout_jax.attacks.attack import select

FIRST_SHARE = 0.8  # p_init: share of the pixels in a square of the first steps
HALVE_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # steps, for 10,000 queries or fewer
PURPOSES = 6  # independent draws of one step


def share(step):
  """Share of the pixels in the square of a step: 0.8, halved beyond each of HALVE_AFTER."""
  return FIRST_SHARE / 2 ** sum(step > bound for bound in HALVE_AFTER)


def side(step, height, width, norm="linf"):
  """Side of the square of a step: round(sqrt(share * height * width)); L2, L1: odd, at least 3."""
  value = max(round((share(step) * height * width) ** 0.5), 1)
  if norm != "linf":
    value = max(value, 3)
    value += value % 2 == 0
  return min(value, height, width)


def square_attack(*, norm, image_shape, num_steps, num_runs):
  """The `Attack` behind `square`, whose arguments it has, on images [height, width, channels]."""
  inputs.check_choice("square", "norm", norm, norms.NORMS)
  inputs.check_count("square", "num_steps", num_steps, 0)
  inputs.check_count("square", "num_runs", num_runs, 1)
  height, width, channels = image_shape
  # The side as a function of the step has few values: a table for the bounds, then a lookup.
  bounds = [0] + [bound + 1 for bound in HALVE_AFTER if bound + 1 < num_steps]
  sides = np.array([side(step, height, width, norm) for step in bounds], np.int32)

  def phase(number):
    return jnp.sum(number[:, None] >= jnp.asarray(bounds)[None], axis=-1) - 1

  def draws(batch, number):
    """Keys of the purposes of one step; number 0 is the start, step i is i + 1."""
    return [run_keys(batch, PURPOSES * number + purpose) for purpose in range(PURPOSES)]

  parts = (height, width, channels, sides, phase, draws)
  propose_first, propose = _linf(*parts) if norm == "linf" else _mass(*parts, norm)

  def evaluate(predict, batch, x):
    logits = predict(x)
    return losses.margin(logits, batch.labels), is_wrong(logits, batch.labels)

  def start(predict, batch):
    x = propose_first(batch).astype(batch.images.dtype)
    value, wrong = evaluate(predict, batch, x)
    return {"adversarial": x, "margin": value, "broken": wrong}

  def step(predict, batch, state, number):
    x = propose(batch, state["adversarial"], number).astype(batch.images.dtype)
    value, wrong = evaluate(predict, batch, x)
    better = (value > state["margin"]) | wrong
    return select(better, {"adversarial": x, "margin": value, "broken": wrong}, state)

  spec = {
    "steps": num_steps,
    "runs": num_runs,
    "p_init": FIRST_SHARE,
    "halve_after": HALVE_AFTER,
    "loss": "margin",
  }
  return Attack("square", norm, start, step, num_steps, num_runs, spec)


def _signs(keys, shape):
  return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(keys)


def _corner(keys, size, extent):
  """Uniform in 0 ... extent - size, per example."""
  draw = jax.vmap(lambda key, last: jax.random.randint(key, (), 0, last + 1))
  return draw(keys, extent - size)


def _window(top, left, size, height, width):
  """[batch, height, width, 1] bool: inside the square."""
  rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
  top, left, size = (v[:, None, None, None] for v in (top, left, size))
  return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)


def _linf(height, width, channels, sides, phase, draws):
  """Vertical stripes of +-epsilon; then squares of one sign per channel."""

  def start(batch):
    stripes = _signs(draws(batch, 0)[0], (1, width, channels))
    return norms.clip_to_box(batch.images + batch.epsilon * stripes, batch.images)

  def step(batch, x, number):
    keys = draws(batch, number + 1)
    size = jnp.asarray(sides)[phase(number)]
    window = _window(
      _corner(keys[0], size, height), _corner(keys[1], size, width), size, height, width
    )
    signs = _signs(keys[2], (1, 1, channels))
    moved = norms.clip_to_box(batch.images + batch.epsilon * signs, batch.images)
    return jnp.where(window, moved, x)

  return start, step


def _mass(height, width, channels, sides, phase, draws, norm):
  """L2 and L1: a window's mass moves into another window, with a pyramid of both signs in it.

  Mass is the sum of squares in L2, of sizes in L1; `scale` makes it a norm again. In L1 a window
  gets more mass than there is, `gain` times, and the projection takes it from all entries.
  """
  gain = 1 if norm == "l2" else channels
  power, scale = (jnp.square, jnp.sqrt) if norm == "l2" else (jnp.abs, lambda values: values)
  mass = lambda values, axes: jnp.sum(power(values), axis=axes, keepdims=True)
  unit = lambda values: values / (1e-12 + scale(mass(values, (1, 2))))  # per channel
  tiles = max(min(height, width) // 5, 1)
  patterns = np.stack([_padded(pyramid(size, norm), height, width) for size in sides])

  def within(perturbation, batch):
    """Of the size epsilon, then in the box; L1: projected on both."""
    if norm == "l1":
      return norms.project(batch.images + perturbation, batch.images, batch.epsilon, "l1")
    size = norms.per_example(norms.NORMS["l2"].size(perturbation), perturbation)
    return norms.clip_to_box(
      batch.images + batch.epsilon * perturbation / (size + 1e-12), batch.images
    )

  def start(batch):
    rows, columns = height // tiles, width // tiles
    signs = _signs(draws(batch, 0)[0], (rows, columns, channels))
    tile = jnp.asarray(pyramid(tiles, norm))
    board = jnp.einsum("brqc,ij->briqjc", signs, tile).reshape(
      -1, rows * tiles, columns * tiles, channels
    )
    top, left = (height - rows * tiles) // 2, (width - columns * tiles) // 2
    pads = (
      (0, 0),
      (top, height - rows * tiles - top),
      (left, width - columns * tiles - left),
      (0, 0),
    )
    return within(jnp.pad(board, pads), batch)

  def step(batch, x, number):
    keys = draws(batch, number + 1)
    index = phase(number)
    size, patterns_now = jnp.asarray(sides)[index], jnp.asarray(patterns)[index]
    top, left = _corner(keys[0], size, height), _corner(keys[1], size, width)
    here = _window(top, left, size, height, width)
    there = _window(
      _corner(keys[2], size, height), _corner(keys[3], size, width), size, height, width
    )

    delta = x - batch.images
    free = jnp.maximum(power(batch.epsilon) - mass(delta, (1, 2, 3)), 0) / channels
    held = mass(jnp.where(here | there, delta, 0), (1, 2))  # per channel
    old = unit(jnp.where(here, delta, 0))

    pattern = jax.vmap(lambda p, r, c: jnp.roll(p, (r, c), (0, 1)))(patterns_now, top, left)
    flip = _signs(keys[4], ())[:, None, None] > 0
    # Transposed within its own square: the padded pattern is transposed before it is moved.
    turned = (
      jax.vmap(lambda p, r, c: jnp.roll(p.T, (r, c), (0, 1)))(patterns_now, top, left)
      if height == width
      else pattern
    )
    pattern = jnp.where(flip, pattern, turned)[..., None] * _signs(keys[5], (1, 1, channels))
    new = unit(jnp.where(here, pattern + old, 0)) * scale(free + held) * gain
    return within(jnp.where(here, new, jnp.where(there, 0, delta)), batch)

  return start, step


def pyramid(size, norm="l2"):
  """Two pyramids of opposite sign, one above the other, [size, size], of norm 1 in L2 or L1."""
  order, power = (2, 2) if norm == "l2" else (1, 4)  # in L1 nearly all of it is in the middle

  def half(rows, columns):
    values = np.zeros((rows, columns))
    r, c = rows // 2, columns // 2
    for ring in range(max(rows // 2 + 1, columns // 2 + 1)):
      top, left = max(r - ring, 0), max(c - ring, 0)
      values[
        top : max(min(r - ring + 2 * ring + 1, rows), 0),
        left : max(min(c - ring + 2 * ring + 1, columns), 0),
      ] += 1 / (ring + 1) ** power
    return values / np.linalg.norm(values.ravel(), order)

  values = np.zeros((size, size))
  if size == 1:
    return np.ones((1, 1), np.float32)
  values[: size // 2] = half(size // 2, size)
  values[size // 2 :] = -half(size - size // 2, size)
  return (values / np.linalg.norm(values.ravel(), order)).astype(np.float32)


def _padded(values, height, width):
  return np.pad(values, ((0, height - values.shape[0]), (0, width - values.shape[1])))


def square(
  key, predict, images, labels, *, epsilon, norm="linf", num_steps=5000, num_runs=1, indices=None
):
  """The Square Attack by itself, as one compiled loop; jittable.

  Keeps a change where it raises the margin of the best wrong class, or is misclassified.
  (Andriushchenko et al., ECCV 2020.)

  Args:
    key: a PRNG key.
    predict: function images -> logits; no gradient is taken.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    num_steps: queries after the start's.
    num_runs: restarts.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Adversarial images like `images`: misclassified where the attack succeeded.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  images, labels, indices = inputs.check_examples("square", images, labels, indices)
  return run_alone(
    square_attack(norm=norm, image_shape=images.shape[1:], num_steps=num_steps, num_runs=num_runs),
    key,
    predict,
    images,
    labels,
    epsilon,
    indices,
  )
