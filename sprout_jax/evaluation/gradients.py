"""Input gradients: how alike those of SPROUT's modules are, and whether they are there at all."""

import jax
import jax.numpy as jnp
import numpy as np

from sprout_jax import attacks
from sprout_jax import losses
from sprout_jax import sharding
from sprout_jax import vicinity
from sprout_jax.data import to_float
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import robustness

MODULES = ("gaussian", "mixup", "dirichlet")
# Fewest classes, loss. The attacks of this package follow the log odds in place of the cross-entropy: they
# keep a gradient where it has none, which other people's attacks on it would miss.
LOSSES = {
  "cross_entropy": (2, losses.cross_entropy),
  "log_odds": (2, losses.log_odds),
  "margin": (2, losses.margin),
  "dlr": (3, losses.difference_of_logits_ratio),
}
FAULTS = ("zero", "nan", "infinite")


def cosine_fn(model, mesh):
  """Compiles (variables, and images and soft labels of each module) -> [batch, 3, 3] cosines.

  NaN where a gradient is zero or not finite.
  """

  def cosines(variables, *pairs):
    predict = accuracy.predict_fn(model, variables)

    def direction(images, labels):
      gradient = jax.grad(lambda x: jnp.sum(losses.soft_cross_entropy(predict(x), labels)))(images)
      return attacks.NORMS["l2"].direction(gradient).reshape(len(images), -1)

    with jax.default_matmul_precision("highest"):
      units = jnp.stack([direction(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)], 1)
      products = jnp.einsum("bmp,bnp->bmn", units, units)
    defined = jnp.all(jnp.abs(units).max(-1) > 0, axis=-1)
    return jnp.where(defined[:, None, None], products, jnp.nan)

  return jax.jit(cosines, out_shardings=sharding.replicated(mesh))


def diversity(
  cosines,
  variables,
  images,
  labels,
  *,
  num_classes,
  stddev,
  mixup_alpha,
  label_weight,
  beta_weight,
  beta=None,
  num_draws,
  seed,
  batch_size,
  mesh,
):
  """Pairwise cosine similarity of the input gradients of SPROUT's three modules.

  Each module alone makes inputs and labels of the same images: noise (x + stddev n, y), mixup
  (lambda x_i + (1 - lambda) x_j, lambda y_i + (1 - lambda) y_j), and Dirichlet label smoothing (x,
  a draw from Dirichlet(label_weight y + beta_weight beta)). With g_m the gradient of an image's own
  cross-entropy under module m with respect to the module's input to the model, in evaluation mode,
  the similarity of two modules is the mean over images and draws of g_m . g_n / (|g_m| |g_n|). (The
  gradient with respect to the image before noise or mixup is g times 1 or lambda: the same cosine.)
  Low values say that the modules push in different directions. (Cheng et al., AAAI 2021.)

  Mixup's weight and partners are drawn over all the images at once, anew for each of `num_draws`
  draws: the batch size does not matter, and one unlucky weight does not decide.

  Args:
    cosines: from `cosine_fn`.
    variables: of its model.
    images: host array [n, height, width, channels], floats in [0, 1] or bytes.
    labels: int array [n].
    num_classes: of the model.
    stddev, mixup_alpha, label_weight, beta_weight: as in `vicinity`; stddev in pixel units.
    beta: [classes], as learned; None takes ones, for models that learned none.
    num_draws: of noise, pairs and labels.
    seed: of the draws.
    batch_size: images per compiled call.
    mesh: the mesh of devices.

  Returns:
    {"modules": names, "cosine": [3][3], "count": how many images times draws the means are over,
    "undefined": how many more had a gradient that is zero or not finite, and the arguments}; the
    cosines are None where nothing is defined.
  """
  images, one_hot = jnp.asarray(to_float(np.asarray(images))), jax.nn.one_hot(labels, num_classes)
  beta = jnp.ones(num_classes) if beta is None else jnp.asarray(beta, jnp.float32)
  concentration = vicinity.dirichlet_concentration(one_hot, beta, label_weight, beta_weight)
  found = []
  for draw in range(num_draws):
    key_noise, key_mixup, key_labels = jax.random.split(
      jax.random.fold_in(robustness.root_key(seed), draw), 3
    )
    pairs = (
      vicinity.gaussian_noise(key_noise, images, stddev),
      one_hot,
      *vicinity.mixup(key_mixup, images, one_hot, mixup_alpha),
      images,
      vicinity.sample_dirichlet_labels(key_labels, concentration),
    )
    found.append(
      accuracy.map_batches(
        lambda *batch: cosines(variables, *batch), [np.asarray(a) for a in pairs], batch_size, mesh
      )
    )
  found = np.concatenate(found).astype(np.float64)
  defined = np.isfinite(found).all((1, 2))
  return {
    "modules": list(MODULES),
    "cosine": found[defined].mean(0).tolist() if defined.any() else [[None] * 3] * 3,
    "count": int(defined.sum()),
    "undefined": int((~defined).sum()),
    "images": len(images),
    "draws": num_draws,
    "seed": seed,
    "stddev": stddev,
    "mixup_alpha": mixup_alpha,
    "label_weight": label_weight,
    "beta_weight": beta_weight,
    "beta": beta.tolist(),
  }


def health_fn(model, mesh):
  """Compiles (variables, images, labels) -> [batch, losses, 4] bool: zero, NaN, infinite, right.

  For each of `LOSSES` that the model has enough classes for. Zero: in every pixel; NaN or infinite:
  in any. Right: whether the image is classified correctly.
  """

  def health(variables, images, labels):
    predict = accuracy.predict_fn(model, variables)
    logits, pullback = jax.vjp(predict, images)
    right, faults = jnp.argmax(logits, -1) == labels, []
    for _, loss in _fitting(logits.shape[-1]).values():
      (gradient,) = pullback(jax.grad(lambda z, loss=loss: jnp.sum(loss(z, labels)))(logits))
      gradient = gradient.reshape(len(images), -1)
      faults.append(
        jnp.stack(
          [
            jnp.all(gradient == 0, -1),
            jnp.any(jnp.isnan(gradient), -1),
            jnp.any(jnp.isinf(gradient), -1),
            right,
          ],
          -1,
        )
      )
    return jnp.stack(faults, 1)

  return jax.jit(health, out_shardings=sharding.replicated(mesh))


def health(compiled, variables, images, labels, num_classes, batch_size, mesh):
  """Share of the images whose input gradient is zero, NaN or infinite, for each loss.

  Attacks follow these gradients: where there are none, a model is not robust but unexamined. Only
  images that are classified correctly count, the others need no attack. (And DLR is constant where
  the label ranks third.) Give the images themselves, an attack's start, or points of its run.

  Args:
    compiled: from `health_fn`.
    variables: of its model.
    images: host array [n, height, width, channels], floats in [0, 1] or bytes.
    labels: int array [n].
    num_classes: of the model; "dlr" needs 3.
    batch_size: images per compiled call.
    mesh: the mesh of devices.

  Returns:
    {"count": images classified correctly, "losses": {name: {"zero", "nan", "infinite"}}}, shares of
    these images for each of `LOSSES`; 0 where there are none.
  """
  found = accuracy.map_batches(
    lambda images, labels: compiled(variables, to_float(images), labels),
    (images, labels),
    batch_size,
    mesh,
  )
  found = found[found[:, 0, -1]]
  shares = found[..., :-1].sum(0) / max(len(found), 1)
  return {
    "count": len(found),
    "losses": {
      name: dict(zip(FAULTS, row.tolist(), strict=True))
      for name, row in zip(_fitting(num_classes), shares, strict=True)
    },
  }


def _fitting(num_classes):
  return {name: row for name, row in LOSSES.items() if num_classes >= row[0]}


def evaluate(
  subject, *, num_examples, noise_stddev, mixup_alpha, label_weight, beta_weight, num_draws, seed
):
  """Row "gradients" of `EVALUATIONS`: the cosines, with the learned beta where there is one."""
  split = subject.select(num_examples).split
  return diversity(
    cosine_fn(subject.model, subject.mesh),
    subject.variables,
    split.images,
    split.labels,
    num_classes=subject.num_classes,
    stddev=noise_stddev,
    mixup_alpha=mixup_alpha,
    label_weight=label_weight,
    beta_weight=beta_weight,
    beta=subject.beta,
    num_draws=num_draws,
    seed=seed,
    batch_size=subject.batch_size,
    mesh=subject.mesh,
  )
