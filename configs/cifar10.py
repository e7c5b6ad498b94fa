"""The CIFAR-10 runs of the SPROUT paper.

    python launch.py --config configs/cifar10.py:model=vgg16,method=sprout --workdir DIR

Two things were measured, with one seed, on images that were re-encoded as JPEG and are not
pixel-exact. The first is VGG-16 on a GPU, 200 epochs natural and then 200 epochs of SPROUT: 86.5 %
clean accuracy, 31.8 % under PGD-20 at 0.03 (the paper has 62.24 %) and 3.6 % under AutoAttack at
8/255 (`benchmarks/gpu.py`, benchmarks/results/gpu). The second is every method with the small CNN
after 10 epochs with AdamW (`benchmarks/compare_methods.py cifar10`,
benchmarks/results/methods/cifar10_*). Both tables are in docs/results.md.

The arguments are model (a key of sprout_jax.models.MODELS or wrn_DEPTH_WIDTH), method and penalty
(rows of configs/methods.py), variant (of SPROUT: paper | algorithm1 | released), and epochs (the
schedule keeps its proportions). Method "free" replays each minibatch 8 times, and its authors use
an eighth of the epochs. Method "fast" can fail in long training runs, and its authors use 15
epochs.

The values are those of SPROUT's released code: SGD with learning rate 0.01, momentum 0.9 and weight
decay 5e-4, batches of 128, random crops (padding 4) and flips, and no normalisation. Training takes
80 + 60 + 40 + 20 epochs, and the learning rate is divided by 10 between them. The released code
differs in these things, also from variant=released:

- It selects the checkpoint on the test set, by the accuracy under PGD with epsilon 0.03, 5 steps of
  0.007 and one random start. Here the clean accuracy on a held-out tenth of the training images
  selects it. The same attack on the held-out images: `--config.validation.epsilon=0.03
  --config.validation.step_size=0.007 --config.validation.num_steps=5`.
- It trains on all training images, and on the last, smaller batch of an epoch.
- It resets the momentum of both optimizers at the boundaries.
- Its VGG-16 starts from PyTorch's weights: uniform with variance 1 / (3 fan-in), biases too. Here
  kernels are normal with variance 2 / fan-out, and biases are 0. The kernels of its Wide ResNet
  start as here.
- PyTorch's running variance has the divisor n - 1, Flax's n.
- Beta has no smallest value; the concentration 10 y + beta is cut at 0 (configs/methods.py).
"""

import ml_collections

from sprout_jax.configs import default
from sprout_jax.launcher.configuration import parse_arguments
from sprout_jax.launcher.configuration import positive_integer


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
  """Returns the config of CIFAR-10; the text at the top of this file lists the arguments."""
  given = parse_arguments(
    arguments, model="vgg16", method="sprout", variant="paper", penalty="none", epochs="200"
  )
  config = default.get_config(given["method"], given["variant"], given["penalty"])
  config.model.name = given["model"]
  config.num_epochs = positive_integer("epochs", given["epochs"])
  config.batch_size = 128
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = "piecewise"
  config.optimizer.boundaries = tuple(
    share * config.num_epochs for share in (80 / 200, 140 / 200, 180 / 200)
  )
  config.dataset.name = "cifar10"
  config.dataset.crop_padding = 4
  config.dataset.flip = True
  return config
