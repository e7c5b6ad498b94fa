"""Your own images: a folder with a folder for each class, or an .npz file.

    python launch.py --config configs/images.py:dir=PHOTOS --workdir DIR
    python launch.py --config configs/images.py:dir=PHOTOS,size=224,model=resnet18 --workdir DIR

docs/own_images.md has the layouts. The arguments are dir (the folder, or the .npz file), size (the
height and width to which the images of a folder are resized: one number, or HEIGHTxWIDTH, or
"stored" for images of one size as they are), test_fraction (the share of each class that becomes
the test split, where there is none), model (a key of sprout_jax.models.MODELS or wrn_DEPTH_WIDTH),
method and penalty (rows of configs/methods.py), variant (of SPROUT: paper | algorithm1 | released),
and epochs. The defaults are meant for some hundred to some thousand images: 64x64 pixels, a small
network without batch norm, AdamW, minibatches of 32, flips, and 30 epochs. A path with a comma
cannot be an argument; type --config.dataset.data_dir=PATH then.
"""

import re

import ml_collections

from sprout_jax.configs import default
from sprout_jax.errors import UserError
from sprout_jax.launcher.configuration import parse_arguments
from sprout_jax.launcher.configuration import positive_integer


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
  """Returns the config of own images; the text at the top of this file lists the arguments."""
  given = parse_arguments(
    arguments,
    dir="",
    size="",
    test_fraction="0.2",
    model="small_cnn",
    method="sprout",
    variant="paper",
    penalty="none",
    epochs="30",
  )
  config = default.get_config(given["method"], given["variant"], given["penalty"])
  is_file = given["dir"].endswith(".npz")
  config.dataset.name = "npz" if is_file else "folder"
  config.dataset.data_dir = given["dir"]
  config.dataset.image_size = _size(given["size"] or ("stored" if is_file else "64"))
  config.dataset.test_fraction = _fraction(given["test_fraction"])
  config.dataset.flip = True
  config.model.name = given["model"]
  config.num_epochs = positive_integer("epochs", given["epochs"])
  config.batch_size = 32
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.01
  config.optimizer.warmup_epochs = config.num_epochs / 30
  return config


def _size(text: str) -> tuple[int, ...]:
  """Reads "64", "48x64" or "stored"."""
  if text == "stored":
    return ()
  match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
  if not match:
    raise UserError(
      f"the config argument size is {text!r}; expected a number of pixels, such as 64, or "
      "HEIGHTxWIDTH, such as 48x64, or stored"
    )
  return int(match[1]), int(match[2] or match[1])


def _fraction(text: str) -> float:
  try:
    return float(text)
  except ValueError as error:
    raise UserError(
      f"the config argument test_fraction is {text!r}; expected a number, such as 0.2"
    ) from error
