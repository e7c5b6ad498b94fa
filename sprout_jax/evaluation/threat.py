"""The threat model: adversarial images must be within the epsilon ball and the box [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks

TOLERANCE = 1e-6  # largest excess from rounding; times epsilon where epsilon is above 1


def excess(
  images: jax.Array, adversarial: jax.Array, epsilon: float | jax.Array, norm: str
) -> jax.Array:
  """Computes by how much a perturbation exceeds epsilon or a pixel leaves [0, 1].

  Args:
    images: float array [batch, height, width, channels] in [0, 1].
    adversarial: like `images`.
    epsilon: perturbation budget, in pixel units.
    norm: a key of `attacks.NORMS`.

  Returns:
    Float array [batch], at most 0 within the threat model.
  """
  outside = jnp.max(jnp.maximum(adversarial - 1, -adversarial), axis=(1, 2, 3))
  return jnp.maximum(attacks.NORMS[norm].size(adversarial - images) - epsilon, outside)


def refuse(attack: str, excess_found: np.ndarray, epsilon: float) -> None:
  """Raises RuntimeError if an attack left its threat model, because its numbers are invalid.

  Args:
    attack: the attack's name, for the message.
    excess_found: from `excess`, for all images.
    epsilon: the perturbation budget, in pixel units. Rounding errors grow with it.
  """
  worst = np.max(excess_found, initial=-np.inf)
  if not worst <= TOLERANCE * max(1, epsilon):
    raise RuntimeError(
      f"{attack} left its threat model by {worst:.2g} (perturbation over epsilon, or pixels "
      "outside [0, 1]). This is a defect of the attack, so its numbers are not stored"
    )
