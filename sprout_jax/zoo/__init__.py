"""Small trained models that come with the package.

Usage::

    model = sprout_jax.load("zoo/wrn_16_1_natural")
    logits = model(images)

A model is a file NAME.npz of `models.save_weights` beside NAME.json, its card. The card has the
command and the config of the training, the facts of its data, and the SHA-256 of the variables.
`--weights zoo/NAME` evaluates a model, and `--config.init_from=zoo/NAME` trains from it. A folder
or file zoo/NAME of the user comes first.
"""

import json
import pathlib
from typing import Any

from sprout_jax.errors import check_choice

FOLDER = pathlib.Path(__file__).parent
PREFIX = "zoo/"


def names() -> list[str]:
  """Returns the names of the models, without "zoo/"."""
  return sorted(path.stem for path in FOLDER.glob("*.npz"))


def find(text: str | pathlib.Path) -> pathlib.Path | None:
  """Finds the file of weights of "zoo/NAME".

  Returns:
    The file; None if the text has another form, or if there is a file or folder of this name.

  Raises:
    UserError: the zoo has no model of this name.
  """
  text = pathlib.Path(text).as_posix()
  if not text.startswith(PREFIX) or pathlib.Path(text).exists():
    return None
  name = text.removeprefix(PREFIX)
  check_choice("the zoo's model", name, names())
  return FOLDER / f"{name}.npz"


def read_card(path: pathlib.Path) -> dict[str, Any]:
  """Reads the card that belongs to a file of weights of the zoo."""
  card: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
  return card
