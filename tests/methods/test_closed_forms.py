"""One training step of every method on a linear model, against NumPy in float64.

The reference computes each method's images and labels from its definition, the loss from them, and
the loss's gradient by central differences. With plain SGD at rate 1 the gradient is the change of
the parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from configs import methods as options
from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax import methods
from sprout_jax import vicinity
from sprout_jax.methods import adversarial
from tests.stepping import Linear
from tests.stepping import make_config
from tests.stepping import minibatch
from tests.stepping import model_step_keys
from tests.stepping import run_steps

PLAIN = {"optimizer.learning_rate": 1.0, "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
log_softmax = lambda z: scipy.special.log_softmax(z, axis=-1)
softmax = lambda z: scipy.special.softmax(z, axis=-1)


class Reference:
  """The digits' first minibatch and a linear model, flat and in float64."""

  def __init__(self, before):
    images, labels = minibatch()
    self.images = images
    self.x, self.labels = images.reshape(16, 64).astype(np.float64), labels
    self.y = np.eye(10)[labels]
    self.kernel, self.bias = (
      before.params["Dense_0"][name].astype(np.float64) for name in ("kernel", "bias")
    )
    self.key_vicinity, self.key_attack = model_step_keys()[0]

  def logits(self, x, kernel=None):
    return x @ (self.kernel if kernel is None else kernel) + self.bias

  def cross_entropy(self, x, y, kernel=None):
    return -(y * log_softmax(self.logits(x, kernel))).sum(-1)

  def input_gradient(self, x, y, kernel=None):
    kernel = self.kernel if kernel is None else kernel
    return (softmax(self.logits(x, kernel)) - y) @ kernel.T

  def uniform_start(self, epsilon):
    restart_key = jax.random.fold_in(self.key_attack, 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(restart_key, i))(jnp.arange(16))
    start = attacks.NORMS["linf"].start(keys, jnp.asarray(self.images), epsilon)
    return np.clip(self.x + np.asarray(start).reshape(16, 64), 0, 1)

  def climb(self, start, gradient, epsilon, step_size, num_steps):
    x = start
    for _ in range(num_steps):
      x = x + step_size * np.sign(gradient(x))
      x = np.clip(self.x + np.clip(x - self.x, -epsilon, epsilon), 0, 1)
    return x


def natural(ref):
  return lambda kernel: ref.cross_entropy(ref.x, ref.y, kernel)


def gaussian(ref):
  noise = jax.random.normal(ref.key_vicinity, (16, 8, 8, 1))
  x = ref.x + 0.1 * np.asarray(noise).reshape(16, 64)
  return lambda kernel: ref.cross_entropy(x, ref.y, kernel)


def label_smoothing(ref):
  return lambda kernel: ref.cross_entropy(ref.x, 0.9 * ref.y + 0.01, kernel)


def label_smoothing_gaussian(ref):
  noise = jax.random.normal(ref.key_vicinity, (16, 8, 8, 1))
  x = ref.x + 0.1 * np.asarray(noise).reshape(16, 64)
  return lambda kernel: ref.cross_entropy(x, 0.9 * ref.y + 0.01, kernel)


def mixup(ref):
  weight, partners = (np.asarray(a) for a in vicinity.mixup_pairs(ref.key_vicinity, 16, 1.0))
  assert 0.05 < weight < 0.95
  x, y = (weight * a + (1 - weight) * a[partners] for a in (ref.x, ref.y))
  return lambda kernel: ref.cross_entropy(x, y, kernel)


def stable(ref):
  keys = jax.vmap(lambda i: jax.random.fold_in(ref.key_attack, i))(jnp.arange(16))
  noise = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)
  x = ref.x + 0.1 * np.asarray(noise).reshape(16, 64)
  y = 0.6 * ref.y + 0.4 * softmax(
    ref.logits(ref.x)
  )  # at the step's weights, which are constant here
  return lambda kernel: ref.cross_entropy(x, y, kernel)


def pgd(ref):
  x = ref.climb(ref.x, lambda x: ref.input_gradient(x, ref.y), 0.1, 0.03, 5)
  return lambda kernel: ref.cross_entropy(x, ref.y, kernel)


def fast(ref):
  x = ref.climb(ref.uniform_start(0.1), lambda x: ref.input_gradient(x, ref.y), 0.1, 0.125, 1)
  return lambda kernel: ref.cross_entropy(x, ref.y, kernel)


def n_fgsm(ref):
  keys = jax.vmap(lambda i: jax.random.fold_in(ref.key_attack, i))(jnp.arange(16))
  noise = attacks.NORMS["linf"].start(keys, jnp.asarray(ref.images), 0.2)
  start = np.clip(ref.x + np.asarray(noise).reshape(16, 64), 0, 1)
  x = np.clip(start + 0.1 * np.sign(ref.input_gradient(start, ref.y)), 0, 1)
  assert np.abs(x - ref.x).max() > 0.2  # it is not projected on the ball
  return lambda kernel: ref.cross_entropy(x, ref.y, kernel)


def trades(ref):
  clean = ref.logits(ref.x)

  def gradient(x):  # gradient of KL(p || softmax(z)) with respect to z: softmax(z) - p
    return (softmax(ref.logits(x)) - softmax(clean)) @ ref.kernel.T

  x = ref.climb(ref.uniform_start(0.1), gradient, 0.1, 0.03, 5)

  def loss(kernel):
    p, q = softmax(ref.logits(ref.x, kernel)), softmax(ref.logits(x, kernel))
    return ref.cross_entropy(ref.x, ref.y, kernel) + 6 * scipy.stats.entropy(p, q, axis=-1)

  return loss


def bilateral(ref):
  logits = ref.logits(ref.x)
  wrong = np.where(ref.y == 1, -np.inf, logits)
  target = np.eye(10)[wrong.argmax(-1)]
  x = ref.climb(ref.uniform_start(0.1), lambda x: -ref.input_gradient(x, target), 0.1, 0.1, 1)
  labels = np.zeros((16, 10))
  for row, true, values in zip(labels, ref.labels, -np.log(softmax(logits) + 1e-8)):
    others = [k for k in range(10) if k != true]
    share = values[others] - values[others].min() + 0.01
    share = share / share.sum()
    delta = 1 / (1 + 9 * share.max())
    row[others], row[true] = delta * share, 1 - delta
  return lambda kernel: ref.cross_entropy(x, labels, kernel)


def gradient_norm(ref):
  return lambda kernel: (
    ref.cross_entropy(ref.x, ref.y, kernel)
    + 0.1 * np.abs(ref.input_gradient(ref.x, ref.y, kernel)).sum(-1)
  )


def gradient_norm_l2(ref):
  return lambda kernel: (
    ref.cross_entropy(ref.x, ref.y, kernel)
    + 0.1 * np.linalg.norm(ref.input_gradient(ref.x, ref.y, kernel), axis=-1)
  )


def _cure(ref, squared):
  sign = np.sign(ref.input_gradient(ref.x, ref.y))
  moved = ref.x + 0.8 * sign / np.linalg.norm(sign, axis=-1, keepdims=True)

  def loss(kernel):
    change = ref.input_gradient(moved, ref.y, kernel) - ref.input_gradient(ref.x, ref.y, kernel)
    size = np.linalg.norm(change, axis=-1)
    return ref.cross_entropy(ref.x, ref.y, kernel) + 4 * (size**2 if squared else size)

  return loss


def cure(ref):
  return _cure(ref, True)


def cure_not_squared(ref):
  return _cure(ref, False)


def pgd_with_penalty(ref):
  """The loss at the attacked images, the penalty at the clean ones."""
  attacked = pgd(ref)
  return lambda kernel: (
    attacked(kernel) + 0.1 * np.abs(ref.input_gradient(ref.x, ref.y, kernel)).sum(-1)
  )


# Reference -> (method, penalty, overrides).
ROWS = {
  natural: ("natural", "none", {}),
  gaussian: ("gaussian", "none", {}),
  label_smoothing: ("label_smoothing", "none", {}),
  label_smoothing_gaussian: ("label_smoothing_gaussian", "none", {}),
  mixup: ("mixup", "none", {}),
  stable: ("stable", "none", {"method.alpha": 0.4}),
  pgd: (
    "pgd",
    "none",
    {
      "method.epsilon": 0.1,
      "method.step_size": 0.03,
      "method.num_steps": 5,
      "method.start": "clean",
    },
  ),
  fast: ("fast", "none", {"method.epsilon": 0.1, "method.step_size": 0.125}),
  n_fgsm: ("n_fgsm", "none", {"method.epsilon": 0.1, "method.step_size": 0.1}),
  trades: (
    "trades",
    "none",
    {
      "method.epsilon": 0.1,
      "method.step_size": 0.03,
      "method.num_steps": 5,
      "method.start": "uniform",
    },
  ),
  bilateral: ("bilateral", "none", {"method.epsilon": 0.1, "method.step_size": 0.1}),
  gradient_norm: ("natural", "gradient_norm", {"penalty.epsilon": 0.1}),
  gradient_norm_l2: ("natural", "gradient_norm", {"penalty.epsilon": 0.1, "penalty.norm": "l2"}),
  cure: ("natural", "cure", {"penalty.h": 0.8, "penalty.weight": 4.0, "penalty.squared": True}),
  cure_not_squared: ("natural", "cure", {"penalty.h": 0.8, "penalty.weight": 4.0}),
  pgd_with_penalty: (
    "pgd",
    "gradient_norm",
    {
      "method.epsilon": 0.1,
      "method.step_size": 0.03,
      "method.num_steps": 5,
      "method.start": "clean",
      "penalty.epsilon": 0.1,
    },
  ),
}


def numerical_gradient(loss, kernel, step=1e-6):
  gradient = np.zeros_like(kernel)
  for index in np.ndindex(*kernel.shape):
    shift = np.zeros_like(kernel)
    shift[index] = step
    gradient[index] = (loss(kernel + shift).mean() - loss(kernel - shift).mean()) / (2 * step)
  return gradient


def test_every_method_and_penalty_is_here_or_below():
  names = {name for row in ROWS.values() for name in row[:2]}
  # SPROUT: test_sprout.py and test_step.py.
  assert names | {"free", "sprout"} == set(methods.METHODS) | set(methods.PENALTIES)


@pytest.mark.parametrize("reference", ROWS, ids=lambda reference: reference.__name__)
def test_loss_and_gradient_of_one_step(reference):
  method, penalty, overrides = ROWS[reference]
  config = make_config(PLAIN | overrides, method, penalty=penalty)
  _, before, after, metrics = run_steps(config, Linear(), num_steps=1)
  ref = Reference(before)
  loss = reference(ref)
  values = loss(ref.kernel)
  np.testing.assert_allclose(metrics["loss"], [values.mean()], rtol=1e-5)
  expected = numerical_gradient(loss, ref.kernel)
  actual = before.params["Dense_0"]["kernel"] - after.params["Dense_0"]["kernel"]
  assert np.abs(expected).max() > 1e-2
  np.testing.assert_allclose(actual, expected, atol=2e-6 * max(1, np.abs(expected).max()))
  bias = ref.bias.copy()
  for k in range(10):
    shifted = []
    for sign in (1, -1):
      ref.bias = bias + sign * 1e-6 * np.eye(10)[k]
      shifted.append(loss(ref.kernel).mean())
    np.testing.assert_allclose(
      before.params["Dense_0"]["bias"][k] - after.params["Dense_0"]["bias"][k],
      (shifted[0] - shifted[1]) / 2e-6,
      atol=2e-6 * max(1, np.abs(expected).max()),
    )
  if method == "natural" and penalty != "none":
    own = values - ref.cross_entropy(ref.x, ref.y)
    np.testing.assert_allclose(metrics["penalty"], [own.mean()], rtol=1e-5)


def test_free_replays_by_hand():
  """Each of three replays moves the weights and the perturbation by the gradients of one pass."""
  config = make_config(
    PLAIN | {"method.epsilon": 0.1, "method.replays": 3, "optimizer.learning_rate": 0.5}, "free"
  )
  _, before, after, metrics = run_steps(config, Linear(), num_steps=2)
  ref = Reference(before)
  kernel, bias, delta = ref.kernel, ref.bias, np.zeros((16, 64))
  losses_seen = []
  for step in range(2):
    images, labels = minibatch(step)
    x, y = images.reshape(16, 64).astype(np.float64), np.eye(10)[labels]
    for _ in range(3):
      moved = np.clip(x + delta, 0, 1)
      z = moved @ kernel + bias
      d_logits = (softmax(z) - y) / 16
      d_x = (d_logits @ kernel.T) * ((x + delta > 0) & (x + delta < 1))
      # Exactly at a bound, jnp.clip passes half of the gradient: the sign is the same.
      d_x = np.where((x + delta == 0) | (x + delta == 1), d_logits @ kernel.T, d_x)
      loss = -(y * log_softmax(z)).sum(-1).mean()
      kernel, bias = kernel - 0.5 * moved.T @ d_logits, bias - 0.5 * d_logits.sum(0)
      delta = np.clip(delta + 0.1 * np.sign(d_x), -0.1, 0.1)
    losses_seen.append(loss)
  np.testing.assert_allclose(metrics["loss"], losses_seen, rtol=1e-5)
  np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-5)
  agree = np.isclose(after.adversary["perturbation"].reshape(16, 64), delta, atol=1e-6)
  assert agree.mean() > 0.99  # where the gradient is zero up to rounding, its sign may differ
  np.testing.assert_allclose(metrics["perturbation"][-1], np.abs(delta).mean(), rtol=1e-2)


@pytest.mark.parametrize("parallelism, devices", [("jit", 1), ("jit", 8), ("pmap", 8)])
@pytest.mark.parametrize("method", ["natural", "pgd"])
def test_awp_takes_the_gradient_at_perturbed_weights(method, parallelism, devices):
  """The attack sees the weights as they are; the perturbation follows the whole minibatch."""
  attack = (
    {
      "method.epsilon": 0.1,
      "method.step_size": 0.03,
      "method.num_steps": 5,
      "method.start": "clean",
    }
    if method == "pgd"
    else {}
  )
  config = make_config(PLAIN | attack | {"awp_gamma": 0.2, "parallelism": parallelism}, method)
  _, before, after, metrics = run_steps(config, Linear(), 1, devices)
  ref = Reference(before)
  if method == "pgd":
    ref.x = ref.climb(ref.x, lambda x: ref.input_gradient(x, ref.y), 0.1, 0.03, 5)

  def gradients(kernel):
    d_logits = (softmax(ref.logits(ref.x, kernel)) - ref.y) / 16
    return ref.x.T @ d_logits, d_logits.sum(0)

  ascent, _ = gradients(ref.kernel)
  perturbed = ref.kernel + 0.2 * np.linalg.norm(ref.kernel) * ascent / np.linalg.norm(ascent)
  d_kernel, d_bias = gradients(perturbed)  # the bias itself is not perturbed
  np.testing.assert_allclose(
    metrics["loss"], [ref.cross_entropy(ref.x, ref.y, perturbed).mean()], rtol=1e-5
  )
  np.testing.assert_allclose(after.params["Dense_0"]["kernel"], ref.kernel - d_kernel, atol=1e-6)
  np.testing.assert_allclose(after.params["Dense_0"]["bias"], ref.bias - d_bias, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_in_attacks(mode):
  """Probes and penalties use the batch norm that the option names."""
  seen = []

  def apply(x, train):
    seen.append(train)
    return jnp.sum(x, axis=(1, 2, 3))[:, None] * jnp.arange(10.0)[None], {}

  network = methods.Network(apply)
  images, labels = minibatch()
  labels = jax.nn.one_hot(labels, 10)
  for name in ("pgd", "fast", "n_fgsm", "trades", "bilateral", "stable"):
    settings = options.METHOD_OPTIONS[name]("paper").to_dict() | {"batch_norm": mode}
    del seen[:]
    methods.create(name, settings).probe(jax.random.key(0), jnp.arange(16), network, images, labels)
    assert seen and set(seen) == {mode == "train"}
  for name in ("gradient_norm", "cure"):
    settings = options.PENALTY_OPTIONS[name]("paper").to_dict() | {"batch_norm": mode}
    del seen[:]
    methods.create_penalty(name, settings)(network, images, labels)
    assert seen and set(seen) == {mode == "train"}


def test_running_statistics_follow_the_loss_alone():
  """PGD: one update by the adversarial images; TRADES: by clean and adversarial in equal parts."""
  radius = {
    "method.epsilon": 0.2,
    "method.step_size": 0.2,
    "method.num_steps": 2,
    "optimizer.learning_rate": 1e-9,
  }
  images, _ = minibatch()
  clean = images.reshape(16, 64).mean(0)
  for name in ("pgd", "trades"):
    config = make_config(radius | {"method.start": "uniform"}, name)
    recipe, before, after, _ = run_steps(config, Linear(True), num_steps=1)
    variables = {"params": before.params, "batch_stats": before.batch_stats}
    network = methods.Network(
      lambda x, train, variables=variables: recipe_apply(variables, x, train)
    )
    labels = jax.nn.one_hot(minibatch()[1], 10)
    attacked = np.asarray(
      recipe.method.probe(
        model_step_keys()[0][1], jnp.arange(16), network, jnp.asarray(images), labels
      )
    )
    assert np.abs(attacked - images).max() > 0.19
    mean = attacked.reshape(16, 64).mean(0)
    expected = mean if name == "pgd" else (mean + clean) / 2
    np.testing.assert_allclose(after.batch_stats["BatchNorm_0"]["mean"], 0.1 * expected, atol=1e-5)


def recipe_apply(variables, x, train):
  logits, updates = Linear(True).apply(variables, x, train=train, mutable=["batch_stats"])
  return logits, updates.get("batch_stats", {})


def test_adversarial_labels_of_a_confident_model_are_bounded():
  """p = (1, e-10, e-30, e-90): v of the wrong classes is 10.0, 18.4 and 18.4, as -log(p + 1e-8).

  Without the authors' 1e-8, the last class would have all but 2 % of the wrong weight.
  """
  logits = jnp.array([[0.0, -10.0, -30.0, -90.0]])
  is_label = jnp.array([[True, False, False, False]])
  labels = np.asarray(adversarial._adversarial_labels(logits, is_label, 9.0), np.float64)[0]
  v = -np.log(np.exp([-10.0, -30.0, -90.0]) + 1e-8)
  share = (v - v.min() + 0.01) / (v - v.min() + 0.01).sum()
  delta = 1 / (1 + 9 * share.max())
  np.testing.assert_allclose(labels, [1 - delta, *(delta * share)], rtol=1e-4)
  np.testing.assert_allclose(labels[2], labels[3], rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_awp_leaves_weight_decay_alone(name):
  """The decay acts on w. The authors' acts on the perturbed weights, a different number here."""
  values = {"optimizer.learning_rate": 0.5, "optimizer.momentum": 0.0, "awp_gamma": 0.3}
  values["optimizer.name"] = name
  change = []
  for decay in (0.0, 0.1):
    config = make_config(values | {"optimizer.weight_decay": decay}, "natural")
    _, before, after, _ = run_steps(config, Linear(), num_steps=1)
    change.append(after.params["Dense_0"]["kernel"] - before.params["Dense_0"]["kernel"])
  kernel = before.params["Dense_0"]["kernel"]
  np.testing.assert_allclose(change[1] - change[0], -0.5 * 0.1 * kernel, atol=1e-6)
  assert np.abs(0.5 * 0.1 * 0.3 * kernel).max() > 1e-4  # what the authors' decay would add


def test_adversarial_labels_of_known_probabilities():
  """p = (0.7, 0.2, 0.1), label 0: v = (-log 0.2, -log 0.1); shares 0.01 and log 2 + 0.01."""
  logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
  labels = adversarial._adversarial_labels(logits, jnp.array([[True, False, False]]), 9.0)
  np.testing.assert_allclose(labels[0, 0], 9 * labels[0, 2], rtol=1e-5)  # 9 times the largest
  np.testing.assert_allclose(labels[0, 2] / labels[0, 1], (np.log(2) + 0.01) / 0.01, rtol=1e-4)
  np.testing.assert_allclose(labels.sum(), 1, rtol=1e-6)


def test_curvature_of_a_quadratic():
  """loss = x^T H x / 2: the gradient changes by h H z, z the unit vector of gradient signs."""
  rng = np.random.default_rng(0)
  hessian = rng.normal(size=(6, 6))
  hessian = (hessian + hessian.T).astype(np.float32)
  images = rng.normal(size=(4, 2, 3, 1)).astype(np.float32)

  def loss(images):
    x = images.reshape(4, 6)
    return jnp.sum((x @ hessian) * x, axis=-1) / 2

  z = np.sign(images.reshape(4, 6) @ hessian) / np.sqrt(6)
  size = 0.3 * np.linalg.norm(z @ hessian, axis=-1)
  np.testing.assert_allclose(losses.curvature(loss, images, 0.3), size**2, rtol=1e-4)
  np.testing.assert_allclose(losses.curvature(loss, images, 0.3, squared=False), size, rtol=1e-4)


@pytest.mark.parametrize("norm, order", [("linf", 1), ("l2", 2)])
def test_input_gradient_norm_of_a_quadratic(norm, order):
  rng = np.random.default_rng(1)
  images = rng.normal(size=(4, 2, 3, 1)).astype(np.float32)
  scale = rng.normal(size=(1, 2, 3, 1)).astype(np.float32)
  norms = losses.input_gradient_norm(lambda x: jnp.sum(scale * x**2, axis=(1, 2, 3)), images, norm)
  np.testing.assert_allclose(
    norms, np.linalg.norm((2 * scale * images).reshape(4, 6), order, axis=-1), rtol=1e-5
  )


def test_penalties_of_a_flat_loss_have_a_finite_gradient():
  images = jnp.ones((2, 2, 3, 1))
  for penalty in (
    lambda f: losses.input_gradient_norm(f, images, "l2"),
    lambda f: losses.curvature(f, images, 0.1, squared=False),
  ):
    gradient = jax.grad(
      lambda w, penalty=penalty: penalty(lambda x: w * jnp.sum(x, axis=(1, 2, 3))).sum()
    )(0.0)
    assert jnp.isfinite(gradient)
