"""Weather: snow, frost, fog."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax.evaluation.corruptions import linear
from sprout_jax.evaluation.corruptions.contract import Severity
from sprout_jax.evaluation.corruptions.contract import at
from sprout_jax.evaluation.corruptions.contract import corruption
from sprout_jax.evaluation.transformations import luma

# Mean and standard deviation of the flakes, their zoom, their threshold, radius and standard
# deviation of their motion blur, and the weight of the unwhitened image.
SNOW = (
  (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
  (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
  (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
  (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
  (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
FROST = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # weights of image and frost
FROST_COLOUR = np.array([0.8, 0.9, 1.0], np.float32)
FOG = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))  # amount, decay of the roughness


def plasma(key: jax.Array, shape: tuple[int, ...], decay: float | jax.Array) -> jax.Array:
  """Draws fractal noise by diamond-square subdivision of a torus, scaled to [0, 1].

  The subdivision starts from one point. Each level sets the middle of every square to the mean of
  its corners, then the middle of every side to the mean of its four neighbours. Uniform noise is
  added to each; its amplitude shrinks by decay^2 from level to level. (Fournier, Fussell and
  Carpenter, "Computer rendering of stochastic models", Communications of the ACM 1982.)

  Args:
    key: a PRNG key.
    shape: (height, width). The side of the torus is the next power of two of the larger one; the
      result is cut from it.
    decay: > 1; the larger, the smoother. It can be traced.

  Returns:
    [height, width]. The minimum and the maximum of the whole torus are 0 and 1.
  """
  step = 2 ** (max(shape) - 1).bit_length()
  noise = jax.random.uniform(key, (step, step), minval=-1, maxval=1)  # one draw per point
  points = jnp.zeros((1, 1))
  while step > 1:
    size, half = points.shape[0], step // 2
    right = jnp.roll(points, -1, 1)
    below, diagonal = jnp.roll(points, -1, 0), jnp.roll(right, -1, 0)
    middle = (points + right + below + diagonal) / 4 + noise[half::step, half::step]
    top = (points + right + middle + jnp.roll(middle, 1, 0)) / 4 + noise[::step, half::step]
    left = (points + below + middle + jnp.roll(middle, 1, 1)) / 4 + noise[half::step, ::step]
    even = jnp.stack([points, top], -1).reshape(size, 2 * size)
    odd = jnp.stack([left, middle], -1).reshape(size, 2 * size)
    points = jnp.stack([even, odd], 1).reshape(2 * size, 2 * size)
    step, noise = half, noise / decay**2
  points = points - points.min()
  return (points / points.max())[: shape[0], : shape[1]]


@corruption
def fog(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds fog: (x + c p) m / (m + c), p a `plasma`, m the image's maximum. Constants in `FOG`."""
  amount, decay = at(severity, FOG)
  largest = image.max()
  mist = plasma(key, image.shape[:2], decay)[..., None]
  return (image + amount * mist) * largest / (largest + amount)


@corruption
def frost(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds frost: a x + b f, with a procedural texture f in place of the authors' photographs.

  f = (0.8, 0.9, 1) (1 - |2 p - 1|), p a `plasma` of decay 2: bright, bluish ridges where p crosses
  1/2. On images of one channel, f is its luma. The weights a and b are in `FROST`.
  """
  weight_image, weight_frost = at(severity, FROST)
  ridges = 1 - jnp.abs(2 * plasma(key, image.shape[:2], 2) - 1)
  texture = ridges[..., None] * jnp.asarray(FROST_COLOUR)[None, None]
  texture = texture if image.shape[-1] == 3 else luma(texture)
  return weight_image * image + weight_frost * texture


@corruption
def snow(key: jax.Array, image: jax.Array, severity: Severity) -> jax.Array:
  """Adds snow: a x + (1 - a) max(x, 1.5 luma(x) + 0.5) + s + rot180(s).

  The flakes s are Gaussian noise, zoomed, set to zero below a threshold, and blurred along a random
  direction within 45 degrees of the vertical. Constants in `SNOW`.
  """
  key_flakes, key_angle = jax.random.split(key)
  mean, stddev, _, threshold, _, _, keep = at(severity, SNOW)
  rows, columns = (
    at(severity, np.stack([linear.clipped_zoom(n, row[2]) for row in SNOW]))
    for n in image.shape[:2]
  )
  flakes = mean + stddev * jax.random.normal(key_flakes, (*image.shape[:2], 1))
  flakes = linear.both_axes(rows, flakes, columns)
  flakes = jnp.where(flakes < threshold, 0, jnp.clip(flakes, 0, 1))
  flakes = linear.motion_blur(
    flakes,
    jax.random.uniform(key_angle, minval=-135, maxval=-45),
    at(severity, linear.motion_weights([row[4:6] for row in SNOW])),
  )
  whitened = keep * image + (1 - keep) * jnp.maximum(image, 1.5 * luma(image) + 0.5)
  return whitened + flakes + flakes[::-1, ::-1]
