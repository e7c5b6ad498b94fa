"""Square Attack: random search with squares of shrinking size; needs no gradient.

(Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a Query-efficient Black-box Adversarial
Attack via Random Search", ECCV 2020; in L1: Croce, Hein, "Mind the Box", ICML 2021.) Three things
differ from the authors' code:

- Positions and signs are drawn per example, as in the paper.
- A square may lie at the last row and column, where theirs never does.
- In L2 and L1 the tiles of the start are not transposed.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sprout_jax import arguments
from sprout_jax import losses
from sprout_jax.attacks import inputs
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import State
from sprout_jax.attacks.attack import attack_batch
from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.attack import run_keys
from sprout_jax.attacks.attack import select
from sprout_jax.attacks.inputs import Array
from sprout_jax.attacks.inputs import Predict

FIRST_SHARE = 0.8  # p_init: share of the pixels in a square of the first steps
HALVE_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # steps, for 10,000 queries or fewer
PURPOSES = 6  # independent draws of one step


# Batch -> first candidates; (batch, best images so far, number of the step) -> next candidates.
_First: TypeAlias = Callable[[Batch], jax.Array]
_Next: TypeAlias = Callable[[Batch, jax.Array, jax.Array], jax.Array]


def share(step: int) -> float:
  """Share of the pixels in the square of a step: 0.8, halved beyond each entry of HALVE_AFTER."""
  return FIRST_SHARE / 2 ** sum(step > bound for bound in HALVE_AFTER)


def side(step: int, height: int, width: int, norm: str = "linf") -> int:
  """Side of the square of a step in pixels: round(sqrt(share * height * width)).

  In L2 and L1 it is odd and at least 3. It is never larger than the image.
  """
  value = max(round((share(step) * height * width) ** 0.5), 1)
  if norm != "linf":
    value = max(value, 3)
    value += value % 2 == 0
  return min(value, height, width)


def square_attack(
  *, norm: str, image_shape: tuple[int, ...], num_steps: int, num_runs: int
) -> Attack:
  """Builds the `Attack` behind `square`, from arguments of the same names.

  Args:
    norm: a key of `NORMS`.
    image_shape: (height, width, channels) of one image.
    num_steps: queries after the start's.
    num_runs: number of restarts.

  Raises:
    ValueError: a wrong argument.
  """
  arguments.check_choice("square", "norm", norm, norms.NORMS)
  arguments.check_count("square", "num_steps", num_steps, 0)
  arguments.check_count("square", "num_runs", num_runs, 1)
  height, width, channels = image_shape
  # The side takes few values: they are tabulated once and looked up in every step.
  bounds = [0] + [bound + 1 for bound in HALVE_AFTER if bound + 1 < num_steps]
  sides = np.array([side(step, height, width, norm) for step in bounds], np.int32)

  def phase(number: jax.Array) -> jax.Array:
    """Index of each step's side in the table."""
    return jnp.sum(number[:, None] >= jnp.asarray(bounds)[None], axis=-1) - 1

  def draws(batch: Batch, number: ArrayLike) -> list[jax.Array]:
    """Keys for the draws of one query; number 0 is the start, number k is move k."""
    return [run_keys(batch, PURPOSES * number + purpose) for purpose in range(PURPOSES)]

  parts = (height, width, channels, sides, phase, draws)
  propose_first, propose = _linf(*parts) if norm == "linf" else _mass(*parts, norm)

  def start(batch: Batch) -> State:
    shape = batch.labels.shape
    return {
      "adversarial": propose_first(batch).astype(batch.images.dtype),
      "margin": jnp.full(shape, -jnp.inf, batch.images.dtype),
      "broken": jnp.zeros(shape, bool),
    }

  def step(predict: Predict, batch: Batch, state: State, number: jax.Array) -> State:
    # The first query is the start itself.
    proposal = propose(batch, state["adversarial"], jnp.maximum(number - 1, 0))
    x = select(number == 0, state["adversarial"], proposal.astype(batch.images.dtype))
    logits = predict(x)
    value, wrong = losses.margin(logits, batch.labels), is_wrong(logits, batch.labels)
    value = value.astype(x.dtype)  # the logits can have another type than the images
    better = (value > state["margin"]) | wrong
    return select(better, {"adversarial": x, "margin": value, "broken": wrong}, state)

  spec = {
    "steps": num_steps,
    "runs": num_runs,
    "p_init": FIRST_SHARE,
    "halve_after": HALVE_AFTER,
    "loss": "margin",
  }
  return Attack("square", norm, start, step, num_steps + 1, num_runs, spec, passes=1)


def _signs(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random signs, float32; `shape` is that of one example."""
  return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(keys)


def _corner(keys: jax.Array, size: jax.Array, extent: int) -> jax.Array:
  """Random first rows or columns, uniform in 0 to extent - size, per example."""
  draw = jax.vmap(lambda key, last: jax.random.randint(key, (), 0, last + 1))
  return draw(keys, extent - size)


def _window(top: jax.Array, left: jax.Array, size: jax.Array, height: int, width: int) -> jax.Array:
  """Mask of the square, bool [batch, height, width, 1]."""
  rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
  top, left, size = (v[:, None, None, None] for v in (top, left, size))
  return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)


def _linf(
  height: int,
  width: int,
  channels: int,
  sides: np.ndarray,
  phase: Callable[[jax.Array], jax.Array],
  draws: Callable[[Batch, ArrayLike], list[jax.Array]],
) -> tuple[_First, _Next]:
  """Vertical stripes of +-epsilon, then squares with one sign per channel."""

  def start(batch: Batch) -> jax.Array:
    stripes = _signs(draws(batch, 0)[0], (1, width, channels))
    return norms.clip_to_box(batch.images + batch.epsilon * stripes, batch.images)

  def step(batch: Batch, x: jax.Array, number: jax.Array) -> jax.Array:
    keys = draws(batch, number + 1)
    size = jnp.asarray(sides)[phase(number)]
    window = _window(
      _corner(keys[0], size, height), _corner(keys[1], size, width), size, height, width
    )
    signs = _signs(keys[2], (1, 1, channels))
    moved = norms.clip_to_box(batch.images + batch.epsilon * signs, batch.images)
    return jnp.where(window, moved, x)

  return start, step


def _mass(
  height: int,
  width: int,
  channels: int,
  sides: np.ndarray,
  phase: Callable[[jax.Array], jax.Array],
  draws: Callable[[Batch, ArrayLike], list[jax.Array]],
  norm: str,
) -> tuple[_First, _Next]:
  """Proposals in L2 and L1: pyramids of both signs; each step moves the mass of one window.

  Mass is the sum of squares in L2 and of absolute values in L1; `scale` makes it a norm. In L1 a
  window gets `gain` times the mass that is there. The projection then takes it from all entries.
  """
  gain = 1 if norm == "l2" else channels
  power = jnp.square if norm == "l2" else jnp.abs
  scale = jnp.sqrt if norm == "l2" else lambda values: values
  mass = lambda values, axes: jnp.sum(power(values), axis=axes, keepdims=True)
  unit = lambda values: values / (1e-12 + scale(mass(values, (1, 2))))  # per channel
  tiles = max(min(height, width) // 5, 1)
  patterns = np.stack([_padded(pyramid(size, norm), height, width) for size in sides])

  def within(perturbation: jax.Array, batch: Batch) -> jax.Array:
    """Images of the size epsilon in L2, clipped to the box; in L1 projected on ball and box."""
    if norm == "l1":
      return norms.project(batch.images + perturbation, batch.images, batch.epsilon, "l1")
    size = norms.per_example(norms.NORMS["l2"].size(perturbation), perturbation)
    return norms.clip_to_box(
      batch.images + batch.epsilon * perturbation / (size + 1e-12), batch.images
    )

  def start(batch: Batch) -> jax.Array:
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

  def step(batch: Batch, x: jax.Array, number: jax.Array) -> jax.Array:
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
    # The padded pattern is transposed before it is moved: so it stays within its own square.
    turned = (
      jax.vmap(lambda p, r, c: jnp.roll(p.T, (r, c), (0, 1)))(patterns_now, top, left)
      if height == width
      else pattern
    )
    pattern = jnp.where(flip, pattern, turned)[..., None] * _signs(keys[5], (1, 1, channels))
    new = unit(jnp.where(here, pattern + old, 0)) * scale(free + held) * gain
    return within(jnp.where(here, new, jnp.where(there, 0, delta)), batch)

  return start, step


def pyramid(size: int, norm: str = "l2") -> np.ndarray:
  """Two pyramids of opposite sign, one above the other: float32 [size, size] of norm 1."""
  order, power = (2, 2) if norm == "l2" else (1, 4)  # in L1 the middles have most of the mass

  def half(rows: int, columns: int) -> np.ndarray:
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


def _padded(values: np.ndarray, height: int, width: int) -> np.ndarray:
  return np.pad(values, ((0, height - values.shape[0]), (0, width - values.shape[1])))


def square(
  key: jax.Array,
  predict: Predict,
  images: Array,
  labels: Array,
  *,
  epsilon: ArrayLike,
  norm: str = "linf",
  num_steps: int = 5000,
  num_runs: int = 1,
  indices: Array | None = None,
) -> jax.Array:
  """Square Attack: random search over squares of the image, without gradients; jittable.

  A change is kept where it raises the margin of the best wrong class, or is misclassified.
  (Andriushchenko et al., ECCV 2020.)

  Args:
    key: a PRNG key.
    predict: function images -> logits; no gradient is taken.
    images: float array [batch, height, width, channels] in [0, 1].
    labels: int array [batch].
    epsilon: radius of the ball in pixel units.
    norm: a key of `NORMS`.
    num_steps: queries after the start's.
    num_runs: number of restarts.
    indices: int array [batch], the examples' positions in the whole data set; default 0, 1, ...

  Returns:
    Images like `images`, within epsilon of them; misclassified where the attack succeeded.

  Raises:
    ValueError: a wrong argument, see `inputs`.
  """
  images, labels, indices = inputs.check_examples("square", images, labels, indices)
  return attack_batch(
    square_attack(norm=norm, image_shape=images.shape[1:], num_steps=num_steps, num_runs=num_runs),
    key,
    predict,
    images,
    labels,
    epsilon,
    indices,
  )
