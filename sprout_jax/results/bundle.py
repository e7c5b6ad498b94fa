"""Bundles: the evidence for an accuracy under attack, which others can check. NumPy only.

A bundle is a folder::

    bundle.json        the threat model, the attacks with all constants, counts, digests
    arrays.npz         images, labels, outcomes of every image, adversarial images (float32)
    robustbench.json   the accuracies in the layout of RobustBench's model_info files

`check` reads a bundle and needs neither JAX nor the model: perturbations within epsilon and the
box, outcomes and counts that agree, digests. `sprout_jax.verify` also asks the model. The same
check from a terminal::

    python -m sprout_jax.results.bundle FOLDER

Digests find damage and careless changes. They do not find a forgery: whoever changes an array can
compute its digest again. A forged adversarial image is found by the model, and a forged outcome
"robust" only by another attack.
"""

import dataclasses
import hashlib
import io
import pathlib
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from sprout_jax import intervals
from sprout_jax.errors import UserError
from sprout_jax.results import comparison
from sprout_jax.results import files

FORMAT = 1
KIND = "sprout_jax bundle"
DESCRIPTION, ARRAYS, ROBUSTBENCH = "bundle.json", "arrays.npz", "robustbench.json"
LARGEST = 8 * 2**30  # bytes of all arrays; larger bundles are refused
HEADER = 4096  # bytes; more than the header of an array needs
NORMS = ("linf", "l2", "l1")
TOLERANCE = 1e-6  # excess over epsilon from rounding, times max(1, epsilon)
# The attacks of AutoAttack's versions, as `attacks.VERSIONS`, which needs JAX.
VERSIONS = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
# The entries of bundle.json, and their types.
ENTRIES = {
  "threat": dict,
  "attacks": list,
  "spec": dict,
  "model": dict,
  "test_sha256": str,
  "counts": dict,
  "accuracy": dict,
  "arrays": dict,
}
TYPES = {  # name of an array -> (types, number of axes)
  "images": (("uint8", "float32"), 4),
  "labels": (("int32",), 1),
  "indices": (("int64",), 1),
  "correct": (("bool",), 1),
  "robust": (("bool",), 1),
  "after": (("bool",), 2),
  "adversarial": (("float32",), 4),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Bundle:
  """The content of a bundle.

  Attributes:
    folder: where it was read.
    about: bundle.json without its digest.
    images: [n, height, width, channels], the clean images, uint8 or float32 in [0, 1].
    labels: int32 [n].
    indices: int64 [n], the images' positions in the test set.
    correct: bool [n], which clean images are classified correctly.
    robust: bool [n], the worst case.
    after: bool [attacks, n], which images were robust after each attack and all before it.
    adversarial: float32 [broken, height, width, channels]: of the images that are correct and not
      robust, in their order.
  """

  folder: str
  about: Mapping[str, Any]
  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  correct: np.ndarray
  robust: np.ndarray
  after: np.ndarray
  adversarial: np.ndarray

  @property
  def broken(self) -> np.ndarray:
    """Bool [n], which images the attacks broke."""
    return self.correct & ~self.robust

  def __repr__(self) -> str:
    """Returns one line: the threat model, the accuracy, the number of images."""
    threat = self.about["threat"]
    share = 100 * self.robust.mean()
    return (
      f"<Bundle {self.folder}: {threat['norm']} epsilon {threat['epsilon']:.4g}, {share:.1f} % of "
      f"{len(self.robust)} images robust>"
    )


def write(
  folder: pathlib.Path | str,
  *,
  images: np.ndarray,
  labels: np.ndarray,
  correct: np.ndarray,
  robust: np.ndarray,
  per_attack: Mapping[str, np.ndarray],
  adversarial: np.ndarray,
  spec: Mapping[str, Any],
  indices: np.ndarray | None = None,
  model: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes a bundle. The fields of an `attacks.AttackResult` are its arguments::

      found = attacks.auto_attack(key, predict, images, labels, epsilon=8/255)
      bundle.write(
        "bundle", images=images, labels=labels, correct=found.correct, robust=found.robust,
        per_attack=found.per_attack, adversarial=found.images, spec=found.spec,
      )

  Args:
    folder: the folder, which is made; files of an earlier bundle in it are replaced.
    images: [n, height, width, channels], the clean images, uint8 or floats in [0, 1].
    labels: int [n].
    correct: bool [n], which clean images are classified correctly.
    robust: bool [n], the worst case.
    per_attack: name -> bool [n], in the order in which the attacks ran.
    adversarial: float [n, height, width, channels].
    spec: JSON that describes the attacks, with "norm" and "epsilon".
    indices: int [n], the images' positions in the test set; default 0, 1, ..., n - 1.
    model: JSON that describes the model: {"name", "sha256", "data", ...}.

  Returns:
    The folder.

  Raises:
    UserError: the arrays do not make a bundle that passes `check`, or it cannot be written.
  """
  folder = pathlib.Path(folder)
  correct, robust = np.asarray(correct, bool), np.asarray(robust, bool)
  images = np.asarray(images)
  unpacked = size(images, int((correct & ~robust).sum()))
  if unpacked > LARGEST:
    raise UserError(
      f"the bundle {folder} would have {unpacked / 2**30:.1f} GiB; the largest has "
      f"{LARGEST >> 30} GiB: give fewer images"
    )
  arrays = {
    "images": images if images.dtype == np.uint8 else images.astype(np.float32),
    "labels": np.asarray(labels, np.int32),
    "indices": np.arange(len(robust)) if indices is None else np.asarray(indices, np.int64),
    "correct": correct,
    "robust": robust,
    "after": np.array(list(per_attack.values()), bool).reshape(len(per_attack), len(robust)),
    "adversarial": np.asarray(adversarial)[correct & ~robust].astype(np.float32),
  }
  about = files.plain(
    {
      "format": FORMAT,
      "kind": KIND,
      "threat": {"norm": spec["norm"], "epsilon": float(spec["epsilon"]), "box": [0, 1]},
      "attacks": list(per_attack),
      "spec": spec,
      "model": dict(model or {}),
      "test_sha256": comparison.test_set_digest(arrays["images"], arrays["labels"]),
      "counts": _counts(arrays, list(per_attack)),
      "accuracy": {
        "clean": intervals.proportion(correct.sum(), len(correct)),
        "robust": intervals.proportion(robust.sum(), len(robust)),
      },
      "arrays": {
        name: {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": _digest(array)}
        for name, array in arrays.items()
      },
    }
  )
  made = Bundle(str(folder), about, **arrays)
  problems = problems_of(made)
  if problems:
    raise UserError(f"the bundle {folder} is not written, because it is wrong: {problems[0]}")
  temporary = folder / f"{ARRAYS}.tmp"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)  # a kill must not leave it beside other arrays
    with open(temporary, "wb") as file:
      np.savez_compressed(file, **arrays)
    temporary.replace(folder / ARRAYS)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise UserError(
      f"{folder} cannot be written ({error.strerror or error}); free space, or leave no bundle"
    ) from error
  files.write_json(folder / ROBUSTBENCH, robustbench(about))
  files.write_sealed(folder / DESCRIPTION, about)
  return folder


def size(images: np.ndarray, broken: int) -> int:
  """Bytes of the arrays of a bundle, unpacked: a bundle above `LARGEST` cannot be read.

  Args:
    images: [n, height, width, channels], the clean images.
    broken: number of adversarial images.
  """
  pixels = int(np.prod(images.shape[1:], dtype=object))
  width = 1 if images.dtype == np.uint8 else 4
  return pixels * (width * len(images) + 4 * broken) + 32 * len(images)


def read(folder: pathlib.Path | str) -> Bundle:
  """Reads a bundle. No code in it is executed, and sizes are checked before anything is unpacked.

  Raises:
    Damaged: it is no bundle, or its description was changed.
    UserError: a file cannot be read.
  """
  folder = pathlib.Path(folder)
  if (folder / "evidence").is_dir() and not (folder / DESCRIPTION).exists():
    names = sorted(path.name for path in (folder / "evidence").iterdir())
    raise UserError(
      f"{folder} is a workdir; give one of the folders in {folder / 'evidence'}: "
      f"{', '.join(names) or 'there is none'}"
    )
  about = files.read_sealed(folder / DESCRIPTION)
  if about.get("format") != FORMAT or about.get("kind") != KIND:
    raise files.Damaged(
      f"{folder / DESCRIPTION} has format {about.get('format')!r} and kind {about.get('kind')!r}; "
      f"expected {FORMAT} and {KIND!r}"
    )
  _check_entries(folder / DESCRIPTION, about)
  try:
    return Bundle(str(folder), about, **_arrays(folder / ARRAYS, about["arrays"]))
  except OSError as error:
    raise UserError(f"{folder / ARRAYS} cannot be read ({error.strerror or error})") from error
  except files.Damaged:
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds on foreign bytes
    raise files.Damaged(
      f"{folder / ARRAYS} cannot be read as the arrays of a bundle "
      f"({type(error).__name__}: {error})"
    ) from error


def _check_entries(path: pathlib.Path, about: Mapping[str, Any]) -> None:
  """Raises Damaged unless the description has all entries, of the right types."""
  wrong = [name for name, kind in ENTRIES.items() if not isinstance(about.get(name), kind)]
  if not wrong:
    threat, counts = about["threat"], about["counts"]
    shares = [about["accuracy"].get(name) for name in ("clean", "robust")]
    is_right = {
      "threat": threat.get("norm") in NORMS and _is_number(threat.get("epsilon")),
      "attacks": all(isinstance(name, str) for name in about["attacks"]),
      "spec": isinstance(about["spec"].get("classes", 1), int),
      "counts": _is_number(counts.get("images")),
      "accuracy": all(isinstance(s, dict) and _is_number(s.get("accuracy")) for s in shares),
    }
    wrong = [name for name, right in is_right.items() if not right]
  if wrong:
    raise files.Damaged(f"{path} lacks entries, or has wrong ones: {', '.join(wrong)}")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _arrays(path: pathlib.Path, listed: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays of the file, which are exactly those that are listed, of the sizes listed there."""
  if set(listed) != set(TYPES):
    raise files.Damaged(f"{path} lists the arrays {sorted(listed)}; expected {sorted(TYPES)}")
  found: dict[str, np.ndarray] = {}
  sizes: dict[str, int] = {}
  for name, (types, axes) in TYPES.items():
    kind, shape = listed[name]["dtype"], listed[name]["shape"]
    is_shape = all(isinstance(size, int) and size >= 0 for size in shape)
    if kind not in types or len(shape) != axes or not is_shape:
      raise files.Damaged(
        f"{path}: {name} is {kind} of shape {shape}; expected {types}, {axes} axes"
      )
    sizes[name] = int(np.dtype(kind).itemsize * np.prod([int(s) for s in shape], dtype=object))
  if sum(sizes.values()) > LARGEST:
    raise files.Damaged(f"{path} lists more than {LARGEST >> 30} GiB; such bundles are not read")
  with zipfile.ZipFile(path) as stored:
    members = {entry.filename: entry.file_size for entry in stored.infolist()}
    if members.keys() != {f"{name}.npy" for name in TYPES}:
      raise files.Damaged(f"{path} holds {sorted(members)}; expected one file for each array")
    for name, size in sizes.items():
      if members[f"{name}.npy"] > size + HEADER:
        raise files.Damaged(f"{path}: {name} is larger than its type and shape say")
      with stored.open(f"{name}.npy") as member:
        raw = io.BytesIO(member.read(size + HEADER + 1))
      array = np.lib.format.read_array(raw, allow_pickle=False)
      if array.dtype.name != listed[name]["dtype"] or list(array.shape) != listed[name]["shape"]:
        raise files.Damaged(
          f"{path}: {name} is {array.dtype} of shape {array.shape}; {DESCRIPTION} says "
          f"{listed[name]['dtype']} of shape {tuple(listed[name]['shape'])}"
        )
      found[name] = array
  return found


def check(folder: pathlib.Path | str) -> list[str]:
  """Checks a bundle without the model.

  Args:
    folder: the folder of the bundle.

  Returns:
    A sentence for each problem; an empty list where there is none. Checked are the digests; that
    images and adversarial images are finite and in [0, 1]; that no perturbation is larger than
    epsilon; that the outcomes agree with each other, with the counts, with the specification of the
    attacks, and with robustbench.json.
  """
  try:
    found = read(folder)
  except UserError as error:
    return [str(error)]
  return [*problems_of(found), *published(found)]


def problems_of(bundle: Bundle) -> list[str]:
  """The problems of a bundle that was read, see `check`; not those of robustbench.json."""
  found = [
    f"the array {name!r} was changed after the bundle was written: its digest does not match"
    for name, listed in bundle.about["arrays"].items()
    if _digest(getattr(bundle, name)) != listed.get("sha256")
  ]
  misshapen = shapes_of(bundle)
  if misshapen:
    return [*found, *misshapen]
  count, names = len(bundle.labels), list(bundle.about["attacks"])
  found += _outcomes(bundle)
  found += _pixels(bundle)
  found += _specification(bundle)
  arrays = {name: getattr(bundle, name) for name in TYPES}
  counts = _counts(arrays, names)
  if counts != bundle.about["counts"]:
    found.append(f"the counts are {bundle.about['counts']}, but the outcomes give {counts}")
  shares = bundle.about["accuracy"]
  for name, key in (("clean", "correct"), ("robust", "robust")):
    right = intervals.proportion(counts[key], count)
    if not _is_near(shares[name], right):
      found.append(f"the {name} accuracy is {shares[name]}, but the outcomes give {right}")
  if bundle.about["test_sha256"] != comparison.test_set_digest(bundle.images, bundle.labels):
    found.append("the digest of the test images does not match the images and labels")
  return found


def shapes_of(bundle: Bundle) -> list[str]:
  """The problems of the arrays' shapes. With one of them, nothing else can be checked."""
  count, names = len(bundle.labels), bundle.about["attacks"]
  lengths = {
    name: len(getattr(bundle, name)) for name in TYPES if name not in ("after", "adversarial")
  }
  if len(set(lengths.values())) > 1 or not bundle.images.size:
    return [f"the arrays have different lengths, or none: {lengths}"]
  if bundle.after.shape != (len(names), count):
    return [f"outcomes after attacks have shape {bundle.after.shape}, not that of {names}"]
  if bundle.adversarial.shape != (int(bundle.broken.sum()), *bundle.images.shape[1:]):
    return [
      f"there are adversarial images of shape {bundle.adversarial.shape}, but "
      f"{bundle.broken.sum()} images are broken"
    ]
  return []


def published(bundle: Bundle) -> list[str]:
  """Where robustbench.json says something else than the bundle."""
  path = pathlib.Path(bundle.folder) / ROBUSTBENCH
  try:
    stored = files.read_json(path)
  except UserError as error:
    return [str(error)]
  expected = robustbench(bundle.about)
  return [
    f"{ROBUSTBENCH}: {name} is {stored.get(name)!r}, but the bundle gives {expected[name]!r}"
    for name in ("eps", "clean_acc", "autoattack_acc")
    if stored.get(name) != expected[name]
  ]


def _specification(bundle: Bundle) -> list[str]:
  """Where the specification of the attacks says something else than the rest of the bundle."""
  about, spec = bundle.about, bundle.about["spec"]
  threat, names, count = about["threat"], list(about["attacks"]), len(bundle.labels)
  share = lambda mask: intervals.proportion(mask.sum(), count)
  expected: dict[str, Any] = {
    "norm": threat["norm"],
    "epsilon": threat["epsilon"],
    "examples": count,
    "clean": share(bundle.correct),
    "robust": share(bundle.robust),
    "per_attack": {name: share(row) for name, row in zip(names, bundle.after, strict=True)},
  }
  found = [
    f"the specification has {name} {spec.get(name)}, but the bundle gives {value}"
    for name, value in expected.items()
    if not _is_near(spec.get(name, value), value)
    or (name in ("norm", "epsilon") and name not in spec)
  ]
  version = spec.get("version")
  single = {name for listed in VERSIONS.values() for name in listed}
  if isinstance(version, list):
    claimed = version
  elif isinstance(version, str) and (version in VERSIONS or version in single):
    claimed = list(VERSIONS.get(version, (version,)))
  else:  # attacks of another kind
    claimed = names
  described = spec.get("attacks", names)
  if claimed != names or not isinstance(described, list | dict) or list(described) != names:
    found.append(
      f"the specification has version {version!r} and attacks {described!r:.200}, but the "
      f"outcomes are those of {names}"
    )
  stated, largest = spec.get("largest_perturbation"), _sizes(bundle).max(initial=0.0)
  if _is_number(stated) and not abs(stated - largest) <= 10 * TOLERANCE * max(1, stated):
    found.append(
      f"the specification has largest_perturbation {stated:.8g}, but the images give {largest:.8g}"
    )
  return found


def _outcomes(bundle: Bundle) -> list[str]:
  """Problems of labels and outcomes."""
  found = []
  classes = bundle.about["spec"].get("classes")
  if bundle.labels.min() < 0 or (classes is not None and bundle.labels.max() >= classes):
    found.append(f"labels range from {bundle.labels.min()} to {bundle.labels.max()}")
  if len(set(bundle.indices.tolist())) < len(bundle.indices):
    found.append("an image of the test set is there twice")
  chain = np.concatenate([bundle.correct[None], bundle.after, bundle.robust[None]])
  if (chain[1:] & ~chain[:-1]).any():
    found.append("an image is robust after an attack, but not before it")
  if len(bundle.after) and (bundle.after[-1] != bundle.robust).any():
    found.append("the outcomes after the last attack are not the worst case")
  return found


def within(bundle: Bundle) -> np.ndarray:
  """Returns which adversarial images are within epsilon and in [0, 1], bool [broken]."""
  epsilon = float(bundle.about["threat"]["epsilon"])
  is_inside = [image.min() >= 0 and image.max() <= 1 for image in bundle.adversarial]
  return (_sizes(bundle) <= epsilon + TOLERANCE * max(1.0, epsilon)) & np.array(is_inside, bool)


def _pixels(bundle: Bundle) -> list[str]:
  """Problems of pixels and perturbations, in float64."""
  found = []
  threat, sizes = bundle.about["threat"], _sizes(bundle)
  epsilon = float(threat["epsilon"])
  if not sizes.max(initial=0.0) <= epsilon + TOLERANCE * max(1.0, epsilon):
    worst = int(np.flatnonzero(bundle.broken)[sizes.argmax()])
    found.append(
      f"a perturbation of {sizes.max():.8g} in {threat['norm']} is larger than epsilon {epsilon:g} "
      f"(image {worst} of the bundle)"
    )
  outside = sum(not (image.min() >= 0 and image.max() <= 1) for image in bundle.adversarial)
  if outside:
    found.append(f"{outside} adversarial images have pixels outside [0, 1]")
  images = bundle.images
  if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 1):
    found.append("clean images have pixels outside [0, 1]")
  return found


def _sizes(bundle: Bundle) -> np.ndarray:
  """The norms of the perturbations [broken], in float64; infinite if a pixel is not a number."""
  sizes = []
  for row, adversarial in zip(np.flatnonzero(bundle.broken), bundle.adversarial, strict=True):
    clean = bundle.images[row]
    if clean.dtype == np.uint8:
      clean = clean.astype(np.float32) / np.float32(255)
    moved = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
    size = {"linf": moved.max, "l1": moved.sum, "l2": lambda m=moved: np.sqrt((m**2).sum())}
    distance = float(size[bundle.about["threat"]["norm"]]())
    sizes.append(np.inf if np.isnan(distance) else distance)
  return np.array(sizes, np.float64)


def _is_near(stored: Any, expected: Any) -> bool:
  """Whether two JSON values are equal; floats up to the rounding of other libraries."""
  if isinstance(expected, dict):
    same = isinstance(stored, dict) and stored.keys() == expected.keys()
    return same and all(_is_near(stored[name], value) for name, value in expected.items())
  if isinstance(expected, list):
    same = isinstance(stored, list) and len(stored) == len(expected)
    return same and all(map(_is_near, stored, expected))
  if isinstance(expected, float):
    return _is_number(stored) and abs(stored - expected) <= 1e-9
  return bool(stored == expected)


def _counts(arrays: Mapping[str, np.ndarray], names: list[str]) -> dict[str, Any]:
  return {
    "images": len(arrays["labels"]),
    "correct": int(arrays["correct"].sum()),
    "robust": int(arrays["robust"].sum()),
    "broken": int((arrays["correct"] & ~arrays["robust"]).sum()),
    "after": {name: int(row.sum()) for name, row in zip(names, arrays["after"], strict=False)},
  }


def _digest(array: np.ndarray) -> str:
  """SHA-256 (hex) of type, shape and bytes, in little-endian order."""
  array = np.ascontiguousarray(array)
  found = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
  found.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
  return found.hexdigest()


def robustbench(about: Mapping[str, Any]) -> dict[str, Any]:
  """The accuracies in the layout of RobustBench's model_info files.

  The keys are those of model_info/cifar10/Linf/*.json in github.com/RobustBench/robustbench at
  commit 56365fd. Accuracies are in percent, as texts with two digits. What the bundle does not know
  is null: complete it before it is published.

  Args:
    about: the content of bundle.json.
  """
  model, threat, spec = about["model"], about["threat"], about["spec"]
  percent = lambda name: f"{100 * about['accuracy'][name]['accuracy']:.2f}"
  levels = threat["epsilon"] * 255
  is_fraction = threat["norm"] == "linf" and abs(levels - round(levels)) < 1e-4
  is_standard = spec.get("version") == "standard"
  count = about["counts"]["images"]
  return {
    "link": None,
    "name": model.get("name"),
    "authors": None,
    "additional_data": None,
    "number_forward_passes": 1,
    "dataset": model.get("data"),
    "venue": None,
    "architecture": model.get("architecture"),
    "eps": f"{round(levels)}/255" if is_fraction else f"{threat['epsilon']:g}",
    "clean_acc": percent("clean"),
    "reported": percent("robust"),
    "autoattack_acc": percent("robust") if is_standard else None,
    "footnote": f"Measured with sprout_jax on {count} images, {threat['norm']}, version "
    f"{spec.get('version')}.",
    "unreliable": None,
  }


def main(arguments: list[str]) -> int:
  """Checks the bundles of a command line and prints their problems.

  Returns:
    0 where no bundle has a problem, else 1; 2 where no folder is given.
  """
  if not arguments:
    print("type: python -m sprout_jax.results.bundle FOLDER", file=sys.stderr)
    return 2
  is_bad = False
  for folder in arguments:
    problems = check(folder)
    is_bad |= bool(problems)
    for problem in problems:
      print(f"{folder}: {problem}")
    if not problems:
      print(repr(read(folder)) + ": no problem found; the model was not asked")
  return int(is_bad)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
