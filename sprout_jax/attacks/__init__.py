"""Adversarial attacks on any function from images to logits, in JAX.

    from sprout_jax import attacks
    adversarial = attacks.pgd(key, predict, images, labels, epsilon=8/255, step_size=2/255,
                              num_steps=20)

An attack is an initialisation, a step, a projection and a loss: `norms` has the first three for
Linf and L2, `sprout_jax.losses` the fourth. Nothing else of the package is imported.
"""

from sprout_jax.attacks.norms import NORMS
from sprout_jax.attacks.pgd import LOSSES
from sprout_jax.attacks.pgd import STARTS
from sprout_jax.attacks.pgd import pgd

__all__ = ["LOSSES", "NORMS", "STARTS", "pgd"]
