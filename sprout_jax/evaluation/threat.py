"""Whether adversarial images lie in the threat model: within the ball and the box [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks

TOLERANCE = 1e-6  # by which rounding may take a perturbation over epsilon, per unit above 1


def excess(images: jax.Array, adversarial: jax.Array, epsilon: float, norm: str) -> jax.Array:
  """By how much perturbations exceed epsilon, or pixels leave [0, 1]: [batch], <= 0 if not."""
  outside = jnp.max(jnp.maximum(adversarial - 1, -adversarial), axis=(1, 2, 3))
  return jnp.maximum(attacks.NORMS[norm].size(adversarial - images) - epsilon, outside)


def refuse(attack: str, excess_found: np.ndarray, epsilon: float) -> None:
  """Raises RuntimeError if an attack has left its threat model: its numbers would be worth nothing.

  Args:
    attack: its name, for the message.
    excess_found: from `excess`, of all images.
    epsilon: the perturbation budget: rounding grows with it.
  """
  worst = np.max(excess_found, initial=-np.inf)
  if not worst <= TOLERANCE * max(1, epsilon):
    raise RuntimeError(
      f"{attack} left its threat model by {worst:.2g} (perturbation over epsilon, or pixels "
      "outside "
      "[0, 1]). This is a defect of the attack: its numbers are not kept"
    )
