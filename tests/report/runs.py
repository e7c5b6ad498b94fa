"""Workdirs for the tests of the report: real numbers in real files, of made-up outcomes.

What each evaluation leaves has the form in which the evaluators leave it; `summary.collect` derives
the findings and `summary.write` writes results.json, as after an evaluation.
"""

import base64
import dataclasses
import io
import json
import pathlib

import numpy as np
from PIL import Image

from sprout_jax.results import numbers as numbers_lib
from sprout_jax.results import summary
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Stored

COUNT = 200  # test images
FEW = np.arange(1, COUNT, 4)  # the choice of the costly evaluations
LINF = {"norm": "linf", "epsilon": 0.1}
PGD = {"attack": "pgd", "steps": 20, "step_size": 0.01, "restarts": 5, "loss": "margin", "seed": 0}
CLASSES = [f"digit {k}" for k in range(10)]
CORRUPTIONS = ("gaussian_noise", "fog", "jpeg_compression")


def right(share: float, indices: np.ndarray, seed: int = 0) -> np.ndarray:
  """Outcomes of which a share is right: the easiest images, much the same for all seeds."""
  hard = np.random.RandomState(0).rand(COUNT) + 0.3 * np.random.RandomState(seed + 1).rand(COUNT)
  place = np.argsort(np.argsort(hard[indices]))
  return place < round(share * len(indices))


class Evaluations(dict):
  """{name: `Stored`} of a model that is right on a share `level` of the images attacked at 0.1."""

  def __init__(self, level: float, seed: int):
    self.level, self.seed = level, seed
    for name in EVALUATIONS:
      numbers, details = getattr(self, name)()
      self.add(name, numbers, details)

  def add(self, name, numbers, details=(), notes=(), options=()):
    """Adds an evaluation, or puts it in the place of one."""
    numbers = Numbers(dataclasses.replace(number, evaluation=name) for number in numbers)
    options = dict(options) or {"num_steps": 20, "num_restarts": 5}
    provenance = {"jax": "0.10.2", "devices": "1 x cpu"}
    self[name] = Stored(numbers, dict(details), tuple(notes), name, 1, options, 2.5, provenance)

  def accuracy(self, share, indices=None, metric="accuracy", **keys):
    """An accuracy with its outcomes."""
    indices = np.arange(COUNT) if indices is None else indices
    return numbers_lib.accuracy(right(share, indices, self.seed), indices, metric, **keys)

  def at(self, epsilon):
    """The accuracy under attack at a radius."""
    return max(0.95 - (0.95 - self.level) * epsilon / 0.1, 0.0)

  def pgd(self):
    curve = (0.0, 0.05, 0.1, 0.2)
    return [self.accuracy(self.at(e), **PGD, norm="linf", epsilon=e) for e in curve], {}

  def auto_attack(self):
    keys = {"attack": "auto_attack", "version": "standard", "seed": 0}
    stages = {"apgd-ce": {"steps": 100, "restarts": 1}, "apgd-t": {}, "fab-t": {}, "square": {}}
    chain = [
      self.accuracy(self.level - 0.05, **keys, **effort, **LINF, stage=stage)
      for stage, effort in stages.items()
    ]
    worst = self.accuracy(self.level - 0.05, **keys, **LINF)
    return [*chain, worst], {"specs": [{"epsilon": 0.1, "spec": {"targets": 9}}]}

  def strength(self):
    grid = [(loss, steps) for loss in ("cross_entropy", "margin") for steps in (20, 50, 100, 200)]
    # The images that PGD leaves robust, and some more with fewer steps: no check fails.
    robust = lambda steps: right(self.level + 0.05 - steps / 4000, np.arange(COUNT), self.seed)[FEW]
    numbers = [
      numbers_lib.accuracy(robust(steps), FEW, **{**PGD, "loss": loss, "steps": steps}, **LINF)
      for loss, steps in grid
    ]
    curve = (2 - np.exp(-np.arange(21) / 3)).tolist()
    return numbers, {"best_loss": {"cross_entropy": curve, "margin": curve, "dlr": None}}

  def noise(self):
    keys = {"attack": "noise", "draws": 10, "seed": 0, "norm": "linf"}
    return [self.accuracy(0.95 - e / 2, **keys, epsilon=e) for e in (0.05, 0.1)], {}

  def transfer(self):
    own = self.accuracy(self.level, **PGD, **LINF)
    return [
      own,
      self.accuracy(self.level + 0.2, **PGD, **LINF, source="natural (ab12cd34ef56)"),
    ], {}

  def invariance(self):
    grids = {"rotation": (-30.0, 0.0, 10.0, 30.0), "brightness": (0.5, 1.0, 1.5)}
    numbers = [
      self.accuracy(0.95 - abs(strength) / 60, transformation=name, strength=strength)
      for name, strengths in grids.items()
      for strength in strengths
    ]
    rotation = {"unit": "degrees", "identity": 0.0, "named": {"rotation by 10 degrees": 10.0}}
    brightness = {"unit": "factor", "identity": 1.0, "named": {"brightness x1.5": 1.5}}
    return numbers, {"transformations": {"rotation": rotation, "brightness": brightness}}

  def corruptions(self):
    keys = {"origin": "computed", "seed": 0}
    share = lambda severity: 0.9 - 0.1 * severity * (1 - self.level)
    numbers = [
      self.accuracy(share(severity), corruption=name, severity=severity, **keys)
      for name in CORRUPTIONS
      for severity in range(1, 6)
    ]
    keys = {**keys, "corruptions": ", ".join(sorted(CORRUPTIONS))}
    mean = lambda found: float(np.mean([number.value for number in found]))
    means = [
      Number(
        "mean_accuracy", mean(n for n in numbers if n["severity"] == s), keys | {"severity": s}
      )
      for s in range(1, 6)
    ]
    return [*numbers, *means, Number("mean_accuracy", mean(numbers), keys)], {}

  def smoothing(self):
    keys = {"sigma": 0.1, "n0": 100, "n": 1000, "alpha": 0.001, "seed": 0}
    radii = np.round(np.linspace(0, 0.5, 11), 2)
    numbers = [
      self.accuracy(0.9 - r, FEW, "certified_accuracy", radius=float(r), **keys) for r in radii
    ]
    numbers += [
      self.accuracy(0.9, FEW, "smoothed_accuracy", **keys),
      Number("abstained", 3, keys, "images", len(FEW)),
      Number("mean_certified_radius", 0.21, keys, "pixels", len(FEW)),
      Number("largest_certifiable_radius", 0.246, keys, "pixels"),
    ]
    return numbers, {"radii": [0.2] * len(FEW), "predictions": [1] * len(FEW)}

  def calibration(self):
    keys, rows = {"bins": 5}, [(k / 5, (k + 1) / 5) for k in range(5)]
    bins = [
      {"low": low, "high": high, "count": 40, "confidence": high - 0.1, "accuracy": low}
      for low, high in rows[1:]
    ]
    empty = {"low": 0.0, "high": 0.2, "count": 0, "confidence": None, "accuracy": None}
    numbers = [
      Number("expected_calibration_error", 0.0432, keys, "share", COUNT),
      Number("mean_confidence", 0.87, keys, "share", COUNT),
      self.accuracy(0.95, **keys),
      Number("negative_log_likelihood", 0.512, keys, "nats", COUNT),
      Number("brier_score", 0.2, keys, "", COUNT),
    ]
    return numbers, {"bins": [empty, *bins]}

  def landscape(self):
    axis = np.linspace(-0.1, 0.1, 5)
    loss = (1 + 20 * (1 - self.level) * np.add.outer(axis, axis**2)).tolist()
    loss[0][0] = None
    details = {"sign_gradient": axis.tolist(), "rademacher": axis.tolist(), "loss": loss}
    return [Number("highest_loss", 3.0, {**LINF, "seed": 0}, "nats", 64)], details

  def gradients(self):
    pairs = {
      ("gaussian", "mixup"): 0.5,
      ("gaussian", "dirichlet"): 0.7,
      ("mixup", "dirichlet"): 0.4,
    }
    numbers = [
      Number("cosine_similarity", value, {"module": a, "other_module": b, "seed": 0}, "", COUNT)
      for (a, b), value in pairs.items()
    ]
    return [*numbers, Number("undefined_gradients", 0, {"seed": 0}, "images", COUNT)], {}

  def sanity(self):
    keys = {**LINF, "seed": 0}
    apgd = {"attack": "apgd-ce + apgd-dlr", "steps": 20, "restarts": 1}
    numbers = [
      self.accuracy(0.9, FEW, attack="noise", draws=10, **keys),
      self.accuracy(self.level + 0.05, FEW, attack="fgsm", **keys),
      self.accuracy(self.level, FEW, **PGD, **LINF),
      self.accuracy(self.level, FEW, **apgd, **keys),
      self.accuracy(self.level, FEW, **{**PGD, "steps": 40}, **LINF),
      self.accuracy(self.level, FEW, **{**PGD, "restarts": 10}, **LINF),
      self.accuracy(0.0, FEW, "accuracy_at_large_radius", **PGD, norm="linf", epsilon=0.5),
    ]
    numbers += [
      Number(metric, 0.0, {**LINF, "loss": "margin", "place": "at the images"}, count=len(FEW))
      for metric in ("zero_gradients", "nan_gradients", "infinite_gradients")
    ]
    return numbers, {"best_loss": (1 - np.exp(-np.arange(21))).tolist()}

  def binarization(self):
    keys = {**PGD, **LINF}
    found = Number("planted_found", 0.98, keys, count=50, interval=(0.9, 0.995))
    return [found, Number("planted_found_by_noise", 0.04, keys, count=50)], {
      "built": 50,
      "images": 64,
    }

  def examples(self):
    rows = []
    for index in (0, 3, 7):
      broken = (index + self.seed) % 2 == 1
      row = {"index": index, "label": 3, "predicted": 3, "confidence": 0.93, "broken": broken}
      row |= {"adversarial_predicted": 5 if broken else 3, "adversarial_confidence": 0.71}
      pictures = ("image", "adversarial", "perturbation")
      rows.append(row | {name: png(index + 10 * k) for k, name in enumerate(pictures)})
    return [], {"attack": "PGD-20, one random start", **LINF, "examples": rows}


EVALUATIONS = [name for name in vars(Evaluations) if name not in ("add", "accuracy", "at")]
EVALUATIONS = [name for name in EVALUATIONS if not name.startswith("_")]


def png(seed: int = 0, side: int = 8) -> str:
  """Random pixels as base64 of a PNG."""
  pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3)).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG")
  return base64.b64encode(stream.getvalue()).decode()


def about(method="sprout", seed=0, **config) -> dict:
  """What results.json says of a run besides its numbers."""
  return {
    "parameters_sha256": f"{seed}{'c0ffee' * 10}"[:64],
    "config": {
      "seed": seed,
      "method": {"name": method},
      "dataset": {"name": "digits", "data_dir": f"/data/{seed}", "cache_dir": ""},
      "optimizer": {"learning_rate": 0.1},
      **config,
    },
    "versions": {"jax": "0.10.2", "devices": "1 x cpu"},
    "label": {"method": method, "model": "small_cnn", "data": "digits", "seed": seed},
    "data": {
      "name": "digits",
      "fingerprint": "f" * 64,
      "test_sha256": "e" * 64,
      "provenance": "the official set",
      "class_names": CLASSES,
      "count": COUNT,
    },
    "checkpoint": {"which": "last", "step": 900, "selected_by": "", "weights": "raw"},
    "training": {
      "devices": "1 x cpu",
      "seconds": 61.0,
      "steps": 900,
      "planned_steps": 900,
      "peak_memory_bytes": 2**30,
      "batch_size": 64,
    },
  }


def metrics(method: str) -> list[dict]:
  """Lines of metrics.jsonl."""
  records = []
  for epoch in range(1, 9):
    record = {"step": 30 * epoch, "split": "train", "steps": 30, "epoch": epoch}
    record |= {"loss": 1 / epoch, "accuracy": 1 - 0.7 / epoch}
    beta = {"beta": [0.5 + 0.01 * epoch * (k % 3) for k in range(10)]} if method == "sprout" else {}
    validation = {"step": 30 * epoch, "split": "validation", "epoch": epoch}
    validation |= {"accuracy": 0.9 - 0.3 / epoch, "robust_accuracy": 0.5 - 0.3 / epoch}
    records += [record | beta, validation]
  return records


def write(folder, evaluations, about, records=(), clean=0.95, seed=0, failed=()) -> pathlib.Path:
  """Writes a workdir; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  indices = np.arange(COUNT)
  number = numbers_lib.accuracy(right(clean, indices, seed), indices)
  summary.write(summary.collect(folder, about, number, evaluations.values(), dict(failed)))
  text = "".join(json.dumps(record) + "\n" for record in records)
  (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
  return folder


def workdir(
  folder, method="sprout", level=0.5, seed=0, only=None, change=None, failed=(), **config
):
  """A complete workdir.

  Args:
    folder: where.
    method, level, seed, config: what was trained, and how robust it is.
    only: names of the evaluations; default: all.
    change: function of (evaluations, about) that changes them in place.
    failed: {evaluation: reason}.
  """
  evaluations, told = Evaluations(level, seed), about(method, seed, **config)
  for name in set(evaluations) - set(evaluations if only is None else only):
    del evaluations[name]
  if change is not None:
    change(evaluations, told)
  return write(folder, evaluations, told, metrics(method), seed=seed, failed=failed)
