"""Defences that are known to be broken, on small networks for the digits.

Each hides the gradients of a network, and none makes it robust. `defences` has the models, and the
hook that undoes each. benchmarks/defences.py measures them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sprout_jax import attacks
from sprout_jax import data

EPSILON = 0.2  # Linf; the undefended network has nearly no robust image
SMALLER = 0.15  # for winners, which do not hide much at a larger radius
LEVELS = 4  # steps of grey of the quantised input, and bits of the thermometer code
STEP = 0.4  # of the rounded coefficients of the cosine transform
UNITS, WINNERS = 128, 10  # hidden units, and those of them that stay on
MEMBERS, SEEN = 5, 0.4  # networks of the ensemble, and the share of the pixels that each sees
TRAINING_IMAGES, TRAINING_STEPS = 500, 150
DRAWS = 20  # of the averages under attack
JUDGED = 50  # fresh draws that decide what is broken


def digits():
  """Training images and labels, test images and labels."""
  found = data.load("digits")
  return found.train.images, found.train.labels, found.test.images, found.test.labels


def flat(images):
  return (images - 0.5).reshape(len(images), -1)


def relu(weights, inputs):
  """Logits of two layers."""
  hidden = jax.nn.relu(inputs @ weights["first"] + weights["bias"][None])
  return hidden @ weights["second"]


def plain(weights, images):
  """The undefended network."""
  return relu(weights, flat(images))


def quantised(images):
  """Few levels of grey."""
  return jnp.round(images * LEVELS) / LEVELS


def jpeg(images):
  """Rounds the coefficients of the cosine transform of 8x8 pixels, as JPEG does."""
  k, n = np.mgrid[:8, :8]
  scale = np.where(k == 0, np.sqrt(1 / 8), np.sqrt(2 / 8))
  matrix = jnp.asarray(scale * np.cos(np.pi * (2 * n + 1) * k / 16), jnp.float32)
  turn = lambda matrix, x: jnp.einsum("ij,bjkc,lk->bilc", matrix, x, matrix)
  return jnp.clip(turn(matrix.T, jnp.round(turn(matrix, images) / STEP) * STEP), 0, 1)


def codes(images):
  """Thermometer code: a bit for each level that a pixel reaches."""
  levels = (jnp.arange(LEVELS, dtype=images.dtype) + 0.5) / LEVELS
  return (
    (images[..., None] > levels.reshape(1, 1, 1, 1, -1))
    .astype(images.dtype)
    .reshape(len(images), -1)
  )


def soft_codes(images):
  """The same code with a slope at each level."""
  levels = (jnp.arange(LEVELS, dtype=images.dtype) / LEVELS).reshape(1, 1, 1, 1, -1)
  return jnp.clip(LEVELS * (images[..., None] - levels), 0, 1).reshape(len(images), -1)


def winners(weights, inputs, softness=0.0):
  """k winners take all: the largest units of each image stay, the others are 0.

  With a softness, the gradient is that of a smooth gate around the smallest winner.
  """
  units = inputs @ weights["first"] + weights["bias"][None]
  smallest = jax.lax.top_k(units, WINNERS)[0][:, -1:]
  hidden = jnp.where(units >= smallest, units, 0)
  if softness:
    gate = jax.nn.sigmoid((units - jax.lax.stop_gradient(smallest)) / softness)
    hidden = units * gate + jax.lax.stop_gradient(hidden - units * gate)
  return hidden @ weights["second"]


def resized(images, keys):
  """Each image at a random size and place, from the nearest pixels."""

  def one(image, key):
    size, down, right = jax.random.uniform(key, (3,))
    place = lambda shift: (jnp.arange(8) - 3.5 + 1.2 * (shift - 0.5)) / (0.85 + 0.3 * size) + 3.5
    rows, columns = (jnp.clip(jnp.round(place(s)), 0, 7).astype(int) for s in (down, right))
    return image[rows][:, columns]

  return jax.vmap(one)(images, keys)


def masks():
  """The pixels that each member of the ensemble sees, [members, 64]."""
  return (np.random.RandomState(1).uniform(size=(MEMBERS, 64)) < SEEN).astype(np.float32)


def one_of_many(members, images, keys):
  """Logits of a random member of an ensemble, drawn for each image."""
  logits = jax.vmap(lambda w, mask: relu(w, flat(images) * mask[None]))(
    members, jnp.asarray(masks())
  )
  chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, MEMBERS))(keys)
  return logits[chosen, jnp.arange(len(images))]


def first_weights(size, seed):
  """Random weights of a network of two layers."""
  draw = np.random.RandomState(seed).randn
  return {
    "first": (draw(size, UNITS) / size**0.5).astype(np.float32),
    "bias": np.zeros(UNITS, np.float32),
    "second": (draw(UNITS, 10) / UNITS**0.5).astype(np.float32),
  }


def trained(function, encode, weights):
  """Weights of a network after some steps of Adam on some training images.

  Args:
    function: (weights, inputs) -> logits.
    encode: (images, PRNG key) -> inputs.
    weights: the first weights.
  """
  images, labels = (array[:TRAINING_IMAGES] for array in digits()[:2])
  optimizer = optax.adam(3e-3)

  def step(carry, number):
    weights, state = carry
    inputs = encode(images, jax.random.fold_in(jax.random.key(0), number))

    def loss(weights):
      logits = function(weights, inputs)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(weights), state)
    return (optax.apply_updates(weights, updates), state), None

  start = weights, optimizer.init(weights)
  return jax.lax.scan(step, start, jnp.arange(TRAINING_STEPS))[0][0]


def trained_alone(function, encode):
  """Weights of one network."""
  size = encode(digits()[0][:1], jax.random.key(0)).shape[-1]
  return jax.jit(lambda weights: trained(function, encode, weights))(first_weights(size, 0))


def trained_together():
  """Weights of all members of the ensemble, [members, ...]."""
  every = [first_weights(64, seed) for seed in range(MEMBERS)]
  train = lambda w, mask: trained(relu, lambda x, key: flat(x) * mask[None], w)
  return jax.jit(jax.vmap(train))(jax.tree.map(lambda *leaves: np.stack(leaves), *every), masks())


@dataclasses.dataclass(frozen=True)
class Defence:
  """A network behind a defence.

  Attributes:
    judge: images -> logits, which decide what is broken; of random models the mean of fresh draws.
    seen: what an attack without the hook follows.
    hook: what an attack with the hook follows.
    undefended: the network without the defence.
    loss: the loss of the attack without the hook; that with it has the package's own.
    epsilon: radius in Linf.
  """

  judge: Any
  seen: Any
  hook: Any
  undefended: Any
  loss: Any = "cross_entropy"
  epsilon: float = EPSILON


def usual_cross_entropy(logits, labels):
  """-log softmax(z)_y, as other libraries follow it: its gradient vanishes on confident models."""
  shares = jax.nn.softmax(logits)
  return -jnp.log(jnp.take_along_axis(shares, labels[:, None], 1)[:, 0] + 1e-30)


@functools.cache
def defences():
  """{name: `Defence`}; trains the networks."""
  part = jax.tree_util.Partial
  network = trained_alone(relu, lambda x, key: flat(x))
  undefended = part(plain, network)

  def straight_through(g):
    """A preprocessing step, and its hook: the gradient passes it unchanged."""
    seen = part(lambda w, x: plain(w, g(x)), network)
    passed = part(lambda w, x: plain(w, x + jax.lax.stop_gradient(g(x) - x)), network)
    return Defence(seen, seen, attacks.with_surrogate(seen, passed), undefended)

  def drawn(random, undefended):
    """A random model. Without the hook, an attack follows one draw."""
    judge = attacks.averaged(random, JUDGED, key=jax.random.key(1))
    return Defence(judge, attacks.averaged(random, 1), attacks.averaged(random, DRAWS), undefended)

  coded = trained_alone(relu, lambda x, key: codes(x))
  thermometer = part(lambda w, x: relu(w, codes(x)), coded)
  smooth = part(lambda w, x: relu(w, soft_codes(x)), coded)
  gated = trained_alone(winners, lambda x, key: flat(x))
  sparse, gates = (
    part(lambda w, x, s=softness: winners(w, flat(x), s), gated) for softness in (0.0, 0.3)
  )
  moved = trained_alone(relu, lambda x, key: flat(resized(x, jax.random.split(key, len(x)))))
  members = trained_together()
  loud = part(lambda w, x: 1e4 * plain(w, x), network)
  return {
    "quantised input": straight_through(quantised),
    "JPEG-like rounding": straight_through(jpeg),
    "thermometer code": Defence(
      thermometer, thermometer, attacks.with_surrogate(thermometer, smooth), undefended
    ),
    "random resizing": drawn(
      part(lambda w, x, keys: plain(w, resized(x, keys)), moved), part(plain, moved)
    ),
    "logits times 10,000": Defence(loud, loud, loud, undefended, usual_cross_entropy),
    "k winners take all": Defence(
      sparse, sparse, attacks.with_surrogate(sparse, gates), undefended, epsilon=SMALLER
    ),
    "stochastic ensemble": drawn(part(one_of_many, members), undefended),
  }
