"""Adversarial attacks on any function from images to logits, in JAX.

Usage::

    from sprout_jax import attacks
    result = attacks.auto_attack(key, predict, images, labels, epsilon=8/255)   # the ensemble
    adversarial = attacks.pgd(
      key, predict, images, labels, epsilon=8/255, step_size=2/255, num_steps=20
    )

`extended_attack` runs further attacks after `auto_attack`. Through `with_surrogate` and `averaged`,
every attack sees gradients that a defence hides.

An attack is an initialisation, a step, a projection and a loss. `norms` has the geometry of Linf,
L2 and L1, `sprout_jax.losses` the losses, `inputs` the input checks. `auto_attack` drives compiled
programs of its own; all other attacks can be jitted. A wrong argument raises ValueError; values of
arrays are checked only where they are concrete, not inside `jax.jit`. Of the package, only `losses`
and `intervals` are imported.
"""

from sprout_jax.attacks.attack import is_wrong
from sprout_jax.attacks.auto_pgd import apgd
from sprout_jax.attacks.ensemble import ATTACKS
from sprout_jax.attacks.ensemble import RESTARTS
from sprout_jax.attacks.ensemble import VERSIONS
from sprout_jax.attacks.ensemble import AttackResult
from sprout_jax.attacks.ensemble import Progress
from sprout_jax.attacks.ensemble import auto_attack
from sprout_jax.attacks.extended import EXTENSIONS
from sprout_jax.attacks.extended import extended_attack
from sprout_jax.attacks.fast_boundary import fab
from sprout_jax.attacks.hooks import Averaged
from sprout_jax.attacks.hooks import averaged
from sprout_jax.attacks.hooks import with_surrogate
from sprout_jax.attacks.inputs import Predict
from sprout_jax.attacks.least_distortion import carlini_wagner
from sprout_jax.attacks.norms import NORMS
from sprout_jax.attacks.projected_gradient import LOSSES
from sprout_jax.attacks.projected_gradient import STARTS
from sprout_jax.attacks.projected_gradient import PgdTrace
from sprout_jax.attacks.projected_gradient import fgsm
from sprout_jax.attacks.projected_gradient import pgd
from sprout_jax.attacks.projected_gradient import pgd_trace
from sprout_jax.attacks.squares import square

__all__ = [
  "ATTACKS",
  "EXTENSIONS",
  "LOSSES",
  "NORMS",
  "RESTARTS",
  "STARTS",
  "VERSIONS",
  "AttackResult",
  "Averaged",
  "PgdTrace",
  "Predict",
  "Progress",
  "apgd",
  "auto_attack",
  "averaged",
  "carlini_wagner",
  "extended_attack",
  "fab",
  "fgsm",
  "is_wrong",
  "pgd",
  "pgd_trace",
  "square",
  "with_surrogate",
]
