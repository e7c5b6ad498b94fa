"""SPROUT: noise, mixup, and Dirichlet labels whose concentration is learned against the model."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sprout_jax import vicinity
from sprout_jax.errors import UserError
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import Adversary
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import Parameters

# alpha -> (label_weight, beta_weight) of `vicinity.dirichlet_concentration`.
CONCENTRATIONS: dict[str, Callable[[float], tuple[float, float]]] = {
  "paper": lambda alpha: (1 - alpha, alpha),  # the patent's claim 4, the paper's text
  "algorithm1": lambda alpha: (alpha, 1 - alpha),  # the paper's Algorithm 1 as printed
  "released": lambda alpha: (10.0, 1.0),  # the released code; has no alpha
}

# (key, concentration [batch, classes]) -> labels [batch, classes].
DRAWS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "sample": vicinity.sample_dirichlet_labels,  # the paper
  "mean": lambda key, concentration: vicinity.mean_dirichlet_labels(concentration),
}

# (key, number of classes) -> beta [classes].
BETA_INITS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
  "uniform": lambda key, num_classes: jax.random.uniform(key, (num_classes,)),  # Algorithm 1
  "ones": lambda key, num_classes: jnp.ones((num_classes,)),  # the released code
}

BETA_BATCHES = ("same", "clean")


def sprout(
  *,
  noise_stddev: float,
  mixup_alpha: float,
  concentration: str,
  alpha: float | None,
  draw: str,
  label_draws: int,
  steps_per_batch: int,
  beta_batch: str,
  beta: Mapping[str, Any],
) -> Method:
  """Self-progressing robust training (Cheng et al., AAAI 2021), in all its known variants.

  x~ is a mixup of draws from N(x, noise_stddev^2), and y~ ~ Dirichlet(label_weight * y_mix +
  beta_weight * beta). The model descends and beta ascends the cross-entropy with y~ (Algorithm 1).

  Args:
    noise_stddev: standard deviation of the Gaussian noise in pixel units, at least 0.
    mixup_alpha: parameter of mixup's Beta distribution; 0 mixes nothing.
    concentration: a key of `CONCENTRATIONS`.
    alpha: in [0, 1]. None is the paper's 0.01. With "released", which has no alpha, it must be
      None.
    draw: "sample" draws labels from the Dirichlet, "mean" takes its expectation.
    label_draws: 1 draws one label from the Dirichlet of the mixed label (Algorithm 1). 2 draws the
      labels of both partners and mixes them (released code). In expectation the two coincide where
      the sum of the concentration is the same for all classes, as it is here.
    steps_per_batch: model steps per minibatch, each with fresh noise, pairs and labels (Algorithm
      1: 1, released code: 3).
    beta_batch: "same": beta ascends with each step of the model, on its batch and draws (Algorithm
      1). "clean": beta ascends once per minibatch, on the noiseless, unmixed batch, with a forward
      pass of its own (released code).
    beta: dictionary with `init` (a key of `BETA_INITS`), `minimum` (greater than 0; beta is
      projected on [minimum, inf) after every update), `learning_rate`, `momentum` and
      `weight_decay`. The released code leaves beta as it is and cuts the concentration 10 y + beta
      at 0, which no Dirichlet distribution has. The two differ only where beta falls below
      `minimum`; ascent raises it from 1, see tests/methods/test_sprout.py.

  Returns:
    A `Method`.

  Raises:
    UserError: a value out of range or unknown, naming the option.
  """
  check_range("config.method.noise_stddev", noise_stddev, 0, 10, unit="(pixels are in [0, 1])")
  check_range("config.method.mixup_alpha", mixup_alpha, 0, 100)
  check_choice("config.method.concentration", concentration, CONCENTRATIONS)
  check_choice("config.method.draw", draw, DRAWS)
  check_choice("config.method.label_draws", label_draws, (1, 2))
  check_choice("config.method.beta_batch", beta_batch, BETA_BATCHES)
  check_choice("config.method.beta.init", beta["init"], BETA_INITS)
  check_range("config.method.steps_per_batch", steps_per_batch, 1, 100)
  check_range("config.method.beta.minimum", beta["minimum"], 1e-6, 1)
  check_range("config.method.beta.learning_rate", beta["learning_rate"], 0, 100)
  check_range("config.method.beta.momentum", beta["momentum"], 0, 0.9999)
  check_range("config.method.beta.weight_decay", beta["weight_decay"], 0, 1)
  if alpha is not None:
    check_range("config.method.alpha", alpha, 0, 1)
    if concentration == "released":
      raise UserError(
        f"config.method.alpha is {alpha!r}, but concentration 'released' (10 y + "
        "beta) has no alpha; drop the option, or choose 'paper' or 'algorithm1'"
      )
  label_weight, beta_weight = CONCENTRATIONS[concentration](0.01 if alpha is None else alpha)

  def smooth(key: jax.Array, labels: jax.Array, adversary: Parameters) -> jax.Array:
    return DRAWS[draw](
      key, vicinity.dirichlet_concentration(labels, adversary["beta"], label_weight, beta_weight)
    )

  def mixed_vicinity(
    key: jax.Array, images: jax.Array, labels: jax.Array, adversary: Parameters
  ) -> tuple[jax.Array, jax.Array]:
    key_noise, key_mixup, key_labels, key_partners = jax.random.split(key, 4)
    weight, partners = vicinity.mixup_pairs(key_mixup, images.shape[0], mixup_alpha)
    images = vicinity.gaussian_noise(key_noise, images, noise_stddev)
    images = vicinity.mix(images, weight, partners)
    if label_draws == 1:
      return images, smooth(key_labels, vicinity.mix(labels, weight, partners), adversary)
    own = smooth(key_labels, labels, adversary)
    other = smooth(key_partners, labels[partners], adversary)
    return images, weight * own + (1 - weight) * other

  def clean_vicinity(
    key: jax.Array, images: jax.Array, labels: jax.Array, adversary: Parameters
  ) -> tuple[jax.Array, jax.Array]:
    return images, smooth(key, labels, adversary)

  def project(adversary: Parameters) -> Parameters:
    # A Dirichlet needs a positive concentration.
    return {"beta": optax.projections.projection_box(adversary["beta"], beta["minimum"], jnp.inf)}

  return Method(
    vicinity=mixed_vicinity,
    steps_per_batch=steps_per_batch,
    adversary=Adversary(
      init=lambda key, num_classes, batch_shape: project(
        {"beta": BETA_INITS[beta["init"]](key, num_classes)}
      ),
      project=project,
      vicinity=clean_vicinity if beta_batch == "clean" else None,
      # The decay is part of the gradient, as in PyTorch's SGD and the released code.
      optimizer=lambda schedule: optax.chain(
        optax.add_decayed_weights(beta["weight_decay"]),
        optax.sgd(lambda count: beta["learning_rate"] * schedule(count), beta["momentum"] or None),
      ),
    ),
  )
