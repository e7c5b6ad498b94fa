"""How a trained model is evaluated: the keys of `config.evaluation`, with units and meaning.

The sections are rows of `sprout_jax.evaluation.EVALUATIONS`, their keys the keyword arguments there. Where a
section lacks one, the shared key above it counts. A result is kept with the options that it was made with:
another value here measures what it concerns again, and nothing else.
"""

import ml_collections

from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.transformations import TRANSFORMATIONS

SECTIONS = {
  # "standard" | "plus", or one of its attacks: "apgd-ce" | "apgd-dlr" | "apgd-t" | "fab" | "fab-t" | "square".
  # Radii in pixel units.
  "auto_attack": dict(version="standard", epsilons=(8 / 255,)),
  # PGD with each number of steps, of restarts (both ascend) and each loss.
  "strength": dict(
    num_examples=1000,
    steps=(20, 100, 200),
    restarts=(1, 10),
    losses=("cross_entropy", "margin", "dlr"),
  ),
  "noise": dict(num_draws=100),  # random perturbations per image, of which the worst counts
  "transfer": dict(sources=()),  # workdirs whose models are attacked in place of this one
  "invariance": dict(num_examples=0, transformations=tuple(TRANSFORMATIONS)),
  # source: "computed" from the test images, or "tfds": the prepared set NAME_corrupted of NAME.
  "corruptions": dict(num_examples=0, corruptions=tuple(CORRUPTIONS), source="computed"),
  # Randomised smoothing. sigma: of the noise, in pixel units (what SPROUT trains with); n0 draws select the
  # class, n bound its probability, which is wrong with probability alpha per image (as Cohen et al. have
  # them); L2 radii in pixel units at which the certified accuracy is counted.
  "smoothing": dict(
    num_examples=500,
    sigma=0.1,
    n0=100,
    n=100_000,
    alpha=0.001,
    radii=tuple(round(0.02 * k, 2) for k in range(21)),
  ),
  "calibration": dict(num_bins=15),  # of confidence, of equal width
  "landscape": dict(num_examples=64, num_points=21),  # of the grid along each direction
  # SPROUT's modules alone, whatever the model was trained with: noise (pixel units), mixup, Dirichlet labels.
  "gradients": dict(
    num_examples=500,
    noise_stddev=0.1,
    mixup_alpha=0.2,
    label_weight=0.99,
    beta_weight=0.01,
    num_draws=5,
  ),
  "sanity": dict(num_examples=500),
  # num_inner: points inside the ball that are told from one at its edge (Zimmermann et al.: 999).
  "binarization": dict(num_examples=64, num_inner=999),
  "examples": dict(num_examples=6),  # adversarial images to look at
}


def get_config():
  config = ml_collections.ConfigDict()
  # What is evaluated.
  config.checkpoint = "best"  # "best" on the validation split (without one: last) | "last"
  config.use_ema = False  # the moving average of the weights
  config.batch_size = 256  # images per compiled call, over all devices together
  # Rows of EVALUATIONS: what ends a training run, and what `--mode evaluate` measures. "transfer" needs
  # transfer.sources and is not in the list.
  config.after_training = ("pgd",)
  config.evaluations = (
    "pgd",
    "strength",
    "noise",
    "invariance",
    "corruptions",
    "calibration",
    "gradients",
    "landscape",
    "examples",
    "sanity",
    "binarization",
    "smoothing",
    "auto_attack",
  )
  # Shared by the attacks. Radii and steps are in pixel units.
  config.num_examples = 0  # test images under attack, a fixed random choice; 0 = all
  config.norm = "linf"  # "linf" | "l2"
  config.epsilon = (
    8 / 255
  )  # the radius of what is measured at one: all but "pgd", "noise", "auto_attack"
  # Radii of "pgd" and "noise": the paper's, and the one above, where PGD and AutoAttack are compared.
  config.epsilons = tuple(sorted([*(round(0.005 * k, 3) for k in range(15)), 8 / 255]))
  config.num_steps = 20
  config.step_size = 0.007
  config.num_restarts = 1
  config.loss = "cross_entropy"  # "cross_entropy" | "margin" | "dlr"
  config.seed = 0  # of every random draw of an evaluation
  for name, values in SECTIONS.items():
    config[name] = ml_collections.ConfigDict(values)
  return config
