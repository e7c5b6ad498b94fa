"""Robust-training methods as data for `training.step`, which knows no method by name."""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import Protocol
from typing import TypeAlias

import jax
import optax

from sprout_jax import losses

# Batch norm in passes other than that of the loss: "train" normalises with the statistics of the
# images of the pass, "eval" with the running ones. Only the passes of `Method.loss` update the
# running statistics.
BATCH_NORM = ("train", "eval")

# An adversary's learned parameters, name -> array; {} where nothing is learned.
Parameters: TypeAlias = dict[str, jax.Array]
# Losses [batch], and a pair of logits [batch, classes] and running statistics after the pass.
Losses: TypeAlias = tuple[jax.Array, tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Network:
  """The model with its weights at the current step, as methods and penalties see it.

  Attributes:
    apply: (images [batch, height, width, channels], train) -> (logits [batch, classes], running
      statistics after this pass).
  """

  apply: Callable[[jax.Array, bool], tuple[jax.Array, Any]]

  def predict(self, batch_norm: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function images -> logits, with batch norm as a key of `BATCH_NORM` says."""
    return lambda images: self.apply(images, batch_norm == "train")[0]


class Vicinity(Protocol):
  """Random images and labels around each example, drawn from data alone."""

  def __call__(
    self, key: jax.Array, images: jax.Array, labels: jax.Array, adversary: Parameters, /
  ) -> tuple[jax.Array, jax.Array]:
    """Draws x~ and y~ for the whole minibatch; differentiable in the adversary's parameters.

    Args:
      key: a PRNG key.
      images: float [batch, height, width, channels] in [0, 1].
      labels: float [batch, classes], rows sum to 1.
      adversary: the adversary's parameters.
    """


class Probe(Protocol):
  """Passes through the network before the loss, such as an attack. No gradient flows through it."""

  def __call__(
    self, key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array, /
  ) -> Any:
    """Returns what the loss needs, such as adversarial images or predictions.

    Args:
      key: a PRNG key.
      indices: int [part], the examples' positions in the minibatch. With several devices, x and y
        are a part of the minibatch.
      network: the network as it stands.
      x: images [part, height, width, channels], drawn from the vicinity.
      y: labels [part, classes], drawn from the vicinity.
    """


class MethodLoss(Protocol):
  """Loss of a method."""

  def __call__(self, network: Network, x: jax.Array, y: jax.Array, found: Any, /) -> Losses:
    """Returns losses [batch], and the logits and running statistics of the pass.

    Args:
      network: the network; gradients flow through its weights.
      x: images [batch, height, width, channels], drawn from the vicinity.
      y: labels [batch, classes], drawn from the vicinity.
      found: the result of the probe; None without one.
    """


class Penalty(Protocol):
  """Term that is added to the loss of any method."""

  def __call__(self, network: Network, x: jax.Array, y: jax.Array, /) -> jax.Array:
    """Returns penalties [batch] at images and labels drawn from the vicinity."""


class InitAdversary(Protocol):
  """Initial parameters of an adversary."""

  def __call__(
    self, key: jax.Array, num_classes: int, batch_shape: tuple[int, ...], /
  ) -> Parameters:
    """Returns the parameters; `batch_shape` is that of the whole minibatch of images."""


def cross_entropy(network: Network, images: jax.Array, labels: jax.Array) -> Losses:
  """Cross-entropy of one training pass, in the form that `Method.loss` returns.

  Args:
    network: the network.
    images: float [batch, height, width, channels].
    labels: float [batch, classes], rows sum to 1.
  """
  logits, batch_stats = network.apply(images, True)
  return losses.soft_cross_entropy(logits, labels), (logits, batch_stats)


@dataclasses.dataclass(frozen=True)
class Adversary:
  """Parameters that a method learns by gradient *ascent* on the loss that the model descends.

  Attributes:
    init: (key, num_classes, batch_shape) -> initial parameters; {} where nothing is learned.
      `batch_shape` is [batch, height, width, channels] of the whole minibatch.
    project: parameters -> nearest admissible parameters, applied after every update.
    vicinity: None: the adversary ascends with each step of the model, on the same loss and pass.
      Otherwise it ascends once per minibatch after the model's steps, on the loss of this vicinity,
      with a pass of its own, without penalty and weight perturbation.
    optimizer: (schedule) -> Optax transformation, which receives *negated* gradients. The schedule
      gives the share of the model's peak learning rate at each update.
    summary: parameters -> values for the metrics.
  """

  init: InitAdversary = lambda key, num_classes, batch_shape: {}
  project: Callable[[Parameters], Parameters] = lambda parameters: parameters
  vicinity: Vicinity | None = None
  optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = lambda schedule: (
    optax.identity()
  )
  summary: Callable[[Parameters], Parameters] = lambda parameters: parameters


@dataclasses.dataclass(frozen=True)
class Method:
  """A robust-training method: a vicinity, a probe, a loss and an adversary.

  Attributes:
    vicinity: (key, images, labels, adversary's parameters) -> (x~, y~), drawn around each example
      from data alone, for the whole minibatch.
    probe: None, or (key, indices, network, x~, y~) -> the values that the loss needs from the
      network as it stands: adversarial images, predictions. No gradient flows through it.
    loss: (network, x~, y~, the probe's result) -> losses [batch], (logits [batch, classes], running
      statistics).
    steps_per_batch: model updates per minibatch, each with fresh draws and a fresh probe.
    adversary: parameters that are learned against the model.
  """

  vicinity: Vicinity
  probe: Probe | None = None
  loss: MethodLoss = lambda network, x, y, found: cross_entropy(network, x, y)
  steps_per_batch: int = 1
  adversary: Adversary = Adversary()
