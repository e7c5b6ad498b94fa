"""What a robust-training method is: data for `training.step`, which knows no method by name."""

import dataclasses
from collections.abc import Callable

import optax

from sprout_jax import losses

# How a pass through the model that is not the one trained on treats batch norm: "train" normalises
# with the statistics of the very images it sees, "eval" with the running ones. No such pass ever
# updates the running statistics; only the passes of `Method.loss` do.
BATCH_NORM = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Network:
  """The model with its weights at the current step, as methods and penalties see it.

  Attributes:
    apply: (images, train) -> logits, the running statistics after this pass.
  """

  apply: Callable

  def predict(self, batch_norm):
    """The function images -> logits, with batch norm as in `BATCH_NORM`."""
    return lambda images: self.apply(images, batch_norm == "train")[0]


def cross_entropy(network, images, labels):
  """What `Method.loss` returns where it is the cross-entropy of one training pass."""
  logits, batch_stats = network.apply(images, True)
  return losses.soft_cross_entropy(logits, labels), (logits, batch_stats)


@dataclasses.dataclass(frozen=True)
class Adversary:
  """What a method learns by gradient *ascent* on the loss that the model descends.

  Attributes:
    init: (key, num_classes, batch_shape) -> its parameters, a dictionary of arrays; {}: nothing is
      learned. `batch_shape` is [batch, height, width, channels] of the whole minibatch.
    project: parameters -> the nearest admissible parameters, applied after every update.
    vicinity: None: it ascends with each step of the model, on the very loss and pass. Otherwise:
      once per minibatch after the model's steps, on the loss of this vicinity, with a pass of its
      own, without penalty and weight perturbation.
    optimizer: (schedule) -> its Optax transformation, which is fed *negated* gradients; the
      schedule is the share of the model's peak learning rate at each update.
    summary: parameters -> what of them goes into the metrics.
  """

  init: Callable = lambda key, num_classes, batch_shape: {}
  project: Callable = lambda parameters: parameters
  vicinity: Callable | None = None
  optimizer: Callable = lambda schedule: optax.identity()
  summary: Callable = lambda parameters: parameters


@dataclasses.dataclass(frozen=True)
class Method:
  """A vicinity, what the loss needs to find out from the model, the loss, and what is learned.

  Attributes:
    vicinity: (key, images, labels, adversary's parameters) -> x, y: what is drawn around each
      example from data alone, for the whole minibatch; differentiable in the adversary's
      parameters.
    probe: None, or (key, indices, network, x, y) -> anything that `loss` needs to find out from the
      network as it stands: adversarial images, predictions. No gradient flows through it. With
      several devices, x and y are a part of the minibatch and `indices` [part] say which.
    loss: (network, x, y, what `probe` found) -> losses [batch], (logits [batch, classes], the
      running statistics).
    steps_per_batch: model updates per minibatch, each with fresh draws and a fresh probe.
    adversary: what is learned against the model.
  """

  vicinity: Callable
  probe: Callable | None = None
  loss: Callable = lambda network, x, y, found: cross_entropy(network, x, y)
  steps_per_batch: int = 1
  adversary: Adversary = Adversary()
