"""Golden numbers: what every evaluation finds on one small network, kept in golden.json.

    python tests/evaluation/make_golden.py

measures them on one device and on eight, in batches of different sizes, and writes those whose row
in `EVALUATIONS` is new or has another version. Numbers that moved under the same version are an
error: whoever stored them would never measure them again.
"""

import base64
import io
import json
import pathlib
import sys

if __name__ == "__main__":  # with the settings of the tests
  sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
  import tests.conftest  # noqa: F401

import numpy as np
import PIL.Image

from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.subject import Source
from tests.evaluation import subjects

PATH = pathlib.Path(__file__).with_name("golden.json")
# Processors round differently. The subject was chosen so that no outcome is that near.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
PASSING = ("seconds", "jax", "device")  # of AutoAttack's details: not what it found
ADVICE = (
  "If they are meant to move, raise the version of {name!r} in sprout_jax/evaluation/table.py: "
  "what was stored with the earlier one is then measured again. After that run: "
  "python tests/evaluation/make_golden.py"
)


def subject(weights=None, **changes):
  """The subject of the golden numbers: every eighth label is wrong."""
  own, other = subjects.draw_network(0), subjects.draw_network(1)
  shape = subjects.COUNT, 8, 8, 1
  images = np.random.RandomState(0).uniform(0.2, 0.8, shape).astype(np.float32)
  labels = np.asarray(subjects.network(own, images)).argmax(-1).astype(np.int32)
  labels[::8] = (labels[::8] + 1) % subjects.CLASSES
  near = own | {"kernel1": own["kernel1"] + np.float32(0.3) * other["kernel1"]}
  return subjects.of_network(
    own if weights is None else weights,
    images,
    labels,
    beta=np.float32([1.0, 2.0, 3.0, 4.0]),
    find_source=lambda name: Source(name, "0" * 64, subject_lib.place(subjects.model(near))),
    **changes,
  )


SETTINGS = subjects.settings(
  epsilon=0.02,
  epsilons=(0.0, 0.01, 0.02),
  auto_attack=dict(version="standard", epsilons=()),
  transfer=dict(sources=("near",)),
  examples=dict(num_examples=2),
)


def measure(name, measured=None):
  """What an evaluation finds, as golden.json has it."""
  found = table.EVALUATIONS[name].function(measured or subject(), **table.choose(name, SETTINGS))
  return {
    "numbers": [_readable(number) for number in found.numbers],
    "details": _plain(found.details),
    "notes": list(found.notes),
  }


def _readable(number):
  """A number with its outcomes as ones and zeros."""
  record = {"metric": number.metric, **number.keys, "value": number.value, "unit": number.unit}
  record["count"] = number.count
  if number.outcomes is not None:
    record["right"] = "".join(str(int(one)) for one in number.outcomes)
    record["first"] = [int(index) for index in number.indices[:3]]
  return record


def _plain(value):
  """Details as JSON; pictures as their pixels: files differ with the library that packs them."""
  if isinstance(value, dict):
    return {
      key: _pixels(entry) if key in ("image", "adversarial", "perturbation") else _plain(entry)
      for key, entry in value.items()
      if key not in PASSING
    }
  return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _pixels(png):
  return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(png))), int).ravel().tolist()


def differences(found, golden, where=""):
  """Where two JSON values differ by more than rounding: a list of sentences."""
  if isinstance(golden, dict) and isinstance(found, dict) and golden.keys() == found.keys():
    pairs = [(f"{where}.{key}", found[key], golden[key]) for key in golden]
  elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
    pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(found, golden, strict=True))]
  else:
    is_float = isinstance(golden, float) and isinstance(found, (int, float))
    near = is_float and abs(found - golden) <= ABSOLUTE + RELATIVE * abs(golden)
    return [] if near or found == golden else [f"{where} is {found!r}, was {golden!r}"]
  return [text for at, one, other in pairs for text in differences(one, other, at)]


def moved(name, found, golden):
  """Why an evaluation must not keep its version: a sentence; None where nothing moved."""
  listed = differences(found, golden, name)
  if not listed:
    return None
  more = f", and {len(listed) - 3} more" if len(listed) > 3 else ""
  return f"The numbers of {name!r} moved: {'; '.join(listed[:3])}{more}. " + ADVICE.format(
    name=name
  )


def read():
  """golden.json: {evaluation: {"version", "numbers", "details", "notes"}}."""
  return json.loads(PATH.read_text()) if PATH.exists() else {}


def make():
  """Measures all and writes what is new."""
  golden, refused = read(), []
  written = {}
  for name, row in table.EVALUATIONS.items():
    with subjects.devices(1):
      alone = measure(name, subject(batch_size=16))
    found = json.loads(json.dumps(measure(name), allow_nan=False))
    other = differences(alone, found, name)
    if other:
      refused.append(f"{name!r} depends on devices or batches: {'; '.join(other[:3])}")
    before = golden.get(name, {})
    known = {key: value for key, value in before.items() if key != "version"}
    if before.get("version") == row.version:
      text = moved(name, found, known)
      if text:
        refused.append(text)
      found = known  # and not its rounding on this processor
    written[name] = {"version": row.version, **found}
    print(f"{name}: {len(found['numbers'])} numbers")
  if refused:
    sys.exit("\n".join(["Nothing was written.", *refused]))
  text = json.dumps(written, indent=1)
  PATH.write_text(text + "\n")
  print(f"wrote {PATH}")


if __name__ == "__main__":
  make()
