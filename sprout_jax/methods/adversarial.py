"""Adversarial training: methods that attack the model while it trains.

The attacks are those of `sprout_jax.attacks`. All methods start from the clean minibatch. Radii and
step sizes are in pixel units (images in [0, 1]). The functions take options and return a `Method`.
They raise UserError, which names the option, for a value that is out of range or unknown.
"""

import jax
import jax.numpy as jnp
import optax

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax.attacks import norms
from sprout_jax.attacks.attack import example_keys
from sprout_jax.errors import check_choice
from sprout_jax.errors import check_range
from sprout_jax.methods.method import BATCH_NORM
from sprout_jax.methods.method import Adversary
from sprout_jax.methods.method import Losses
from sprout_jax.methods.method import Method
from sprout_jax.methods.method import Network
from sprout_jax.methods.method import Parameters
from sprout_jax.methods.method import Probe
from sprout_jax.methods.method import cross_entropy
from sprout_jax.methods.vicinal import natural


def pgd(
  *, epsilon: float, step_size: float, num_steps: int, norm: str, start: str, batch_norm: str
) -> Method:
  """Adversarial training: x~ = PGD(x), the attack's last iterate, and y~ = y.

  (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.)

  Args:
    epsilon: perturbation budget, in pixel units.
    step_size: size of a step, in pixel units.
    num_steps: number of gradient steps, at least 1.
    norm: norm of the perturbation, a key of `attacks.NORMS`.
    start: start of the attack, a key of `attacks.STARTS`.
    batch_norm: batch norm in the attack's passes, a key of `BATCH_NORM`.
  """
  _check_attack(epsilon, step_size, num_steps, batch_norm, norm)
  check_choice("config.method.start", start, attacks.STARTS)

  def probe(
    key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array
  ) -> jax.Array:
    return attacks.pgd(
      key,
      network.predict(batch_norm),
      x,
      y,
      epsilon=epsilon,
      step_size=step_size,
      num_steps=num_steps,
      norm=norm,
      start=start,
      keep="last",
      indices=indices,
      loss=losses.soft_cross_entropy,
    )

  return _train_on(probe)


def _train_on(probe: Probe) -> Method:
  """Training on the images that the probe finds, with the true labels."""
  return Method(
    natural().vicinity,
    probe,
    lambda network, x, y, adversarial: cross_entropy(network, adversarial, y),
  )


def fast(*, epsilon: float, step_size: float, batch_norm: str) -> Method:
  """Fast adversarial training: one sign step from a uniform random start, in Linf.

  x~ = clip(x + P(u + step_size sign(grad))), u ~ U(-epsilon, epsilon). (Wong, Rice, Kolter, "Fast
  is better than free: Revisiting adversarial training", ICLR 2020.) A step size far above 1.25
  epsilon, or many epochs, can end in catastrophic overfitting: the model is robust against this
  step only.

  Args:
    epsilon: perturbation budget, in pixel units.
    step_size: size of the step.
    batch_norm: batch norm in the attack's pass, a key of `BATCH_NORM`.
  """
  return pgd(
    epsilon=epsilon,
    step_size=step_size,
    num_steps=1,
    norm="linf",
    start="uniform",
    batch_norm=batch_norm,
  )


def n_fgsm(*, epsilon: float, step_size: float, noise: float, batch_norm: str) -> Method:
  """N-FGSM: one sign step from a wide uniform start, without projection on the ball, in Linf.

  x_0 = clip(x + u), u ~ U(-noise * epsilon, noise * epsilon), and x~ = clip(x_0 + step_size
  sign(grad_{x_0})), where clip is to the box [0, 1]. The perturbation can be as large as noise *
  epsilon + step_size. It avoids the catastrophic overfitting of `fast`. (de Jorge et al., "Make
  Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022.)

  Args:
    epsilon: perturbation budget of the attacks that the model must resist, in pixel units.
    step_size: size of the step, in pixel units; the paper uses epsilon.
    noise: range of the random start, divided by epsilon; the paper uses 2.
    batch_norm: batch norm in the attack's pass, a key of `BATCH_NORM`.
  """
  _check_attack(epsilon, step_size, 1, batch_norm)
  check_range("config.method.noise", noise, 0, 10)

  def probe(
    key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array
  ) -> jax.Array:
    predict = network.predict(batch_norm)
    keys = example_keys(key, indices)
    start = norms.NORMS["linf"].start(keys, x, noise * epsilon)
    start = jnp.clip(x + start, 0, 1)
    gradient = jax.grad(lambda x: jnp.sum(losses.soft_cross_entropy(predict(x), y)))(start)
    return jnp.clip(start + step_size * jnp.sign(gradient), 0, 1)

  return _train_on(probe)


def free(*, epsilon: float, replays: int) -> Method:
  """Free adversarial training: the gradient of each step also moves the perturbation, in Linf.

  Every minibatch is trained on `replays` times, at x~ = clip(x + delta). After each step, delta
  becomes P(delta + epsilon sign(grad_delta)). It is kept from one minibatch to the next. (Shafahi
  et al., "Adversarial Training for Free!", NeurIPS 2019, who divide the epochs by `replays`.)

  Args:
    epsilon: perturbation budget, in pixel units.
    replays: number of model updates per minibatch.
  """
  _check_ball(epsilon, "linf")
  check_range("config.method.replays", replays, 1, 100)

  def draw(
    key: jax.Array, images: jax.Array, labels: jax.Array, adversary: Parameters
  ) -> tuple[jax.Array, jax.Array]:
    return jnp.clip(images + adversary["perturbation"], 0, 1), labels

  def project(adversary: Parameters) -> Parameters:
    return jax.tree.map(lambda delta: jnp.clip(delta, -epsilon, epsilon), adversary)

  return Method(
    vicinity=draw,
    steps_per_batch=replays,
    adversary=Adversary(
      init=lambda key, num_classes, batch_shape: {"perturbation": jnp.zeros(batch_shape)},
      project=project,
      # It receives negated gradients, so that it ascends. The schedule is for the model only.
      optimizer=lambda schedule: optax.chain(optax.scale_by_sign(), optax.scale(-epsilon)),
      summary=lambda adversary: {"perturbation": jnp.mean(jnp.abs(adversary["perturbation"]))},
    ),
  )


def trades(
  *, epsilon: float, step_size: float, num_steps: int, beta: float, start: str, batch_norm: str
) -> Method:
  """TRADES: CE(f(x), y) + beta max KL(f(x) || f(x~)), the maximum over x~ in the Linf ball.

  PGD on the divergence itself finds the inner maximum. (Zhang et al., "Theoretically Principled
  Trade-off between Robustness and Accuracy", ICML 2019.) Gradients flow through both arguments of
  the divergence.

  The running statistics of batch norm move once per minibatch, as in every other method, by the
  mean of the clean and the attacked pass. The authors' code has three training passes (clean,
  attacked, clean) and moves them in each. The clean images then have two thirds of the weight, and
  a minibatch counts about 2.7 times as much.

  Args:
    epsilon: perturbation budget, in pixel units.
    step_size: size of a step, in pixel units.
    num_steps: number of gradient steps, at least 1.
    beta: weight of the divergence, at least 0.
    start: start of the attack, a key of `attacks.STARTS` other than "clean". At the clean image,
      the divergence has no gradient.
    batch_norm: batch norm in the attack's passes, a key of `BATCH_NORM`.
  """
  _check_attack(epsilon, step_size, num_steps, batch_norm)
  check_range("config.method.beta", beta, 0, 1000)
  check_choice("config.method.start", start, [name for name in attacks.STARTS if name != "clean"])

  def probe(
    key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array
  ) -> jax.Array:
    predict = network.predict(batch_norm)
    return attacks.pgd(
      key,
      predict,
      x,
      predict(x),
      epsilon=epsilon,
      step_size=step_size,
      num_steps=num_steps,
      start=start,
      keep="last",
      indices=indices,
      loss=losses.kl_divergence,
    )

  def loss(network: Network, x: jax.Array, y: jax.Array, adversarial: jax.Array) -> Losses:
    clean_logits, clean_stats = network.apply(x, True)
    logits, batch_stats = network.apply(adversarial, True)
    batch_stats = jax.tree.map(lambda a, b: (a + b) / 2, clean_stats, batch_stats)
    values = losses.soft_cross_entropy(clean_logits, y)
    return values + beta * losses.kl_divergence(logits, clean_logits), (logits, batch_stats)

  return Method(natural().vicinity, probe, loss)


def bilateral(
  *, epsilon: float, step_size: float, num_steps: int, ratio: float, batch_norm: str
) -> Method:
  """Bilateral adversarial training: images and labels are perturbed, images in Linf.

  x~ is found by PGD towards the most confusing class t = argmax_{k != y} f(x)_k, from a uniform
  random start. The wrong classes share delta of the label in proportion to s_k = v_k - min_{j != y}
  v_j + gamma, so that the least likely class gets most. v_k = -log(softmax(f(x))_k + 1e-8) is the
  loss's gradient with respect to the label, and gamma = 0.01. The authors' 1e-8 bounds it at 18.4:
  else the least likely class of a confident model would get nearly all. The true class gets 1 -
  delta, `ratio` times the largest wrong entry: delta = 1 / (1 + ratio * max s / sum s). (Wang,
  Zhang, "Bilateral Adversarial Training: Towards Fast Training of More Robust Models Against
  Adversarial Attacks", ICCV 2019, and the authors' code.)

  Args:
    epsilon: perturbation budget, in pixel units.
    step_size: size of a step, in pixel units.
    num_steps: number of gradient steps; the paper uses one or two.
    ratio: the paper's beta, greater than 0. A large ratio leaves the label nearly unchanged.
    batch_norm: batch norm in the attack's passes, a key of `BATCH_NORM`.
  """
  _check_attack(epsilon, step_size, num_steps, batch_norm)
  check_range("config.method.ratio", ratio, 1e-6, 1e12)

  def probe(
    key: jax.Array, indices: jax.Array, network: Network, x: jax.Array, y: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    predict = network.predict(batch_norm)
    logits = predict(x)
    is_label = jax.nn.one_hot(jnp.argmax(y, -1), y.shape[-1], dtype=bool)
    targets = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), -1)
    adversarial = attacks.pgd(
      key,
      predict,
      x,
      targets,
      epsilon=epsilon,
      step_size=step_size,
      num_steps=num_steps,
      keep="last",
      indices=indices,
      loss=lambda logits, targets: -losses.cross_entropy(logits, targets),
    )
    return adversarial, _adversarial_labels(logits, is_label, ratio)

  return Method(
    natural().vicinity, probe, lambda network, x, y, found: cross_entropy(network, *found)
  )


def _adversarial_labels(
  logits: jax.Array, is_label: jax.Array, ratio: float, gamma: float = 0.01
) -> jax.Array:
  """The labels of `bilateral`: the true class has `ratio` times the largest wrong entry."""
  gradient = -jnp.log(jax.nn.softmax(logits) + 1e-8)
  least = jnp.min(jnp.where(is_label, jnp.inf, gradient), -1, keepdims=True)
  share = jnp.where(is_label, 0, gradient - least + gamma)
  share = share / jnp.sum(share, -1, keepdims=True)
  delta = 1 / (1 + ratio * jnp.max(share, -1, keepdims=True))
  return jnp.where(is_label, 1 - delta, delta * share)


def _check_ball(epsilon: float, norm: str) -> None:
  check_choice("config.method.norm", norm, attacks.NORMS)
  largest = 1 if norm == "linf" else 1000
  check_range("config.method.epsilon", epsilon, 0, largest, unit="(pixels are in [0, 1])")


def _check_attack(
  epsilon: float, step_size: float, num_steps: int, batch_norm: str, norm: str = "linf"
) -> None:
  _check_ball(epsilon, norm)
  check_range("config.method.step_size", step_size, 0, 10)
  check_range("config.method.num_steps", num_steps, 1, 1000)
  check_choice("config.method.batch_norm", batch_norm, BATCH_NORM)
