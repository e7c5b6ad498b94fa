"""Imagenette: ten classes of ImageNet, about 9,500 training and 3,900 test images.

    python launch.py --config configs/imagenette.py:method=natural --workdir DIR/natural
    python launch.py --config configs/imagenette.py:dir=IMAGENETTE --workdir DIR/folder

It trains and streams as configs/imagenet.py does, at 160x160 pixels, and tries a set-up before days
of ImageNet. It was not measured.

The arguments are dir (a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it, the
prepared TFDS set imagenette/320px-v2), model, method, penalty and variant as in configs/cifar10.py,
and epochs.
"""

import ml_collections

from sprout_jax.configs import imagenet
from sprout_jax.launcher.configuration import parse_arguments


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
  """Returns the config of Imagenette; the text at the top of this file lists the arguments."""
  given = parse_arguments(
    arguments,
    dir="",
    model="resnet18",
    method="sprout",
    variant="paper",
    penalty="none",
    epochs="",
  )
  config = imagenet.build(given, epochs=60, learning_rate=0.1)
  config.batch_size = 64
  config.optimizer.learning_rate = 0.025  # as 0.1 for minibatches of 256
  config.dataset.name = "folder" if given["dir"] else "imagenette/320px-v2"
  config.dataset.data_dir = given["dir"]
  config.dataset.test_split = "val" if given["dir"] else "validation"
  config.dataset.image_size = (160, 160)
  config.dataset.random_resized_crop = 0.25
  config.dataset.validation_fraction = 0.1
  return config
