"""Complete made-up result files, as the evaluation writes them, for the tests of the report."""

import base64
import io
import json

import numpy as np
from matplotlib import image as matplotlib_image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CORRUPTIONS = [
  "gaussian_noise",
  "shot_noise",
  "impulse_noise",
  "defocus_blur",
  "glass_blur",
  "motion_blur",
  "zoom_blur",
  "snow",
  "frost",
  "fog",
  "brightness",
  "contrast",
  "elastic_transform",
  "pixelate",
  "jpeg_compression",
]
GRIDS = {
  "rotation": ("degrees", 0.0, (-30.0, -10.0, 0.0, 10.0, 30.0), {10.0: "rotation by 10 degrees"}),
  "brightness": ("factor", 1.0, (0.5, 1.0, 1.5, 3.0), {1.5: "brightness x1.5"}),
  "contrast": ("factor", 1.0, (0.1, 0.5, 1.0, 2.0, 3.0), {2.0: "contrast x2"}),
  "grayscale": ("amount", 0.0, (0.0, 0.5, 1.0), {1.0: "grayscale"}),
  "blur": ("standard deviation in pixels", 0.0, (0.0, 1.0, 3.0), {}),
  "translation_x": ("pixels to the right", 0.0, (-4.0, 0.0, 4.0), {}),
  "scale": ("factor", 1.0, (0.5, 1.0, 2.0), {}),
}


def share(accuracy, count=1000):
  """An accuracy as result files have it; the interval is half a point to each side."""
  accuracy = round(min(max(accuracy, 0.0), 1.0), 4)
  return {
    "accuracy": accuracy,
    "count": count,
    "interval": [round(max(accuracy - 0.005, 0), 4), round(min(accuracy + 0.005, 1), 4)],
  }


def pgd(accuracy, epsilon=0.03, name="pgd-20", steps=20, restarts=1, loss="cross_entropy"):
  return {
    "name": name,
    "norm": "linf",
    "epsilon": epsilon,
    "steps": steps,
    "step_size": 0.007,
    "restarts": restarts,
    "random_start": True,
    "loss": loss,
    "seed": 0,
    **share(accuracy),
  }


def auto_attack(accuracy, epsilon=0.03):
  chain = {
    "apgd-ce": accuracy + 0.04,
    "apgd-t": accuracy + 0.02,
    "fab-t": accuracy + 0.02,
    "square": accuracy,
  }
  return {
    "name": "autoattack-standard",
    "norm": "linf",
    "epsilon": epsilon,
    "steps": 100,
    "restarts": 1,
    "seed": 0,
    **share(accuracy),
    "per_attack": chain,
    "spec": {"notes": []},
  }


def finding(
  name, passed=True, evaluation="sanity", text="All is well.", value=0.1, threshold=0.2, concerns=()
):
  return {
    "name": name,
    "passed": passed,
    "value": value,
    "threshold": threshold,
    "text": text,
    "concerns": list(concerns),
    "evaluation": evaluation,
  }


def png(pixels):
  """Floats [height, width, 3] as base64 of a PNG."""
  stream = io.BytesIO()
  matplotlib_image.imsave(stream, pixels, format="png")
  return base64.b64encode(stream.getvalue()).decode()


def examples(random, count=2):
  found = []
  for index in range(count):
    pixels = random.uniform(size=(8, 8, 3))
    delta = random.choice([-0.03, 0.03], size=(8, 8, 3))
    found.append(
      {
        "index": index,
        "label": 3,
        "predicted": 3,
        "confidence": 0.93,
        "adversarial_predicted": 5,
        "adversarial_confidence": 0.71,
        "image": png(pixels),
        "adversarial": png(np.clip(pixels + delta, 0, 1)),
        "perturbation": png(0.5 + delta / 0.06),
      }
    )
  return {
    "epsilon": 0.03,
    "norm": "linf",
    "attack": "PGD-20, linf, one random start",
    "examples": found,
  }


def evaluations(level, random):
  """Every evaluation there is, of a model that is right on a share `level` of the attacked images."""
  grid = np.linspace(-0.03, 0.03, 7)
  surface = 1 + 20 * (1 - level) * np.add.outer(grid, grid**2)
  corrupted = {
    name: [
      {"severity": severity, **share(0.9 - 0.1 * severity * (1 - level))}
      for severity in range(1, 6)
    ]
    for name in CORRUPTIONS
  }
  radii = np.round(np.linspace(0, 1, 11), 2).tolist()
  return {
    "strength": {
      "epsilon": 0.03,
      "norm": "linf",
      "notes": [],
      "entries": [
        pgd(
          level - 0.0001 * steps - 0.002 * restarts - 0.01 * number,
          steps=steps,
          name=f"pgd-{steps}",
          restarts=restarts,
          loss=loss,
        )
        for number, loss in enumerate(("cross_entropy", "margin", "dlr"))
        for restarts in (1, 10)
        for steps in (20, 100, 200)
      ],
      "best_loss": {
        loss: (level + 2 - 2 * np.exp(-np.arange(201) / 20)).tolist()
        for loss in ("cross_entropy", "margin", "dlr")
      },
    },
    "noise": {
      "entries": [
        {
          "name": "noise-100",
          "norm": "linf",
          "epsilon": epsilon,
          "draws": 100,
          "seed": 0,
          **share(0.85 - epsilon),
        }
        for epsilon in (0.03, 0.07)
      ]
    },
    "transfer": {
      "sources": [
        {
          "workdir": "runs/natural",
          "label": "natural, vgg16",
          "parameters_sha256": "ab" * 32,
          "entries": [pgd(level + 0.2, name="transfer-pgd-20")],
        }
      ]
    },
    "invariance": {
      "transformations": {
        name: {
          "unit": unit,
          "identity": identity,
          "points": [
            {
              "strength": strength,
              "named": named.get(strength, ""),
              **share(0.9 - 0.1 * abs(strength - identity) / (1 + max(strengths))),
            }
            for strength in strengths
          ],
        }
        for name, (unit, identity, strengths, named) in GRIDS.items()
      }
    },
    "corruptions": {
      "source": "computed",
      "corruptions": corrupted,
      "mean": 0.9 - 0.3 * (1 - level),
      "mean_per_severity": [0.9 - 0.1 * severity * (1 - level) for severity in range(1, 6)],
    },
    "smoothing": {
      "sigma": 0.1,
      "n0": 100,
      "n": 1000,
      "alpha": 0.001,
      "seed": 0,
      "norm": "l2",
      "count": 500,
      "abstained": 7,
      "smoothed": share(0.8, 500),
      "radii": [0.1],
      "predictions": [1],
      "mean_radius": 0.1234,
      "curve": [
        {"radius": radius, **share(0.8 * (1 - radius) * (0.5 + level), 500)} for radius in radii
      ],
    },
    "calibration": {
      "ece": 0.0432,
      "nll": 0.512,
      "brier": 0.2,
      "confidence": 0.87,
      **share(0.9),
      "num_bins": 10,
      "bins": [
        {
          "low": k / 10,
          "high": (k + 1) / 10,
          "count": 10 * (k > 2),
          "confidence": k / 10 + 0.05 if k > 2 else None,
          "accuracy": (k / 10 + 0.05) * (0.6 + 0.4 * level) if k > 2 else None,
        }
        for k in range(10)
      ],
    },
    "landscape": {
      "sign_gradient": grid.tolist(),
      "rademacher": grid.tolist(),
      "loss": surface.tolist(),
      "count": 64,
      "seed": 0,
      "clipped": False,
    },
    "gradients": {
      "modules": ["gaussian", "mixup", "dirichlet"],
      "count": 500,
      "undefined": 0,
      "cosine": [[1, 0.5, 0.7], [0.5, 1, 0.4], [0.7, 0.4, 1]],
    },
    "sanity": {
      "epsilon": 0.03,
      "norm": "linf",
      "count": 500,
      "health": {},
      "robust": {
        "fgsm": share(level + 0.05, 500),
        "pgd": share(level, 500),
        "apgd": share(level - 0.01, 500),
        "twice the steps": share(level, 500),
      },
      "large_radius": {"epsilon": 0.5, **share(0.0, 500)},
      "options": {
        "num_steps": 20,
        "step_size": 0.007,
        "num_restarts": 1,
        "loss": "margin",
        "seed": 4,
      },
    },
    "binarization": {
      "epsilon": 0.03,
      "images": 64,
      "count": 60,
      "success": 0.9833,
      "random_success": 0.05,
      "interval": [0.91, 0.998],
      "attack": "PGD-20",
    },
    "examples": examples(random),
  }


def checks():
  """A few findings, one of them failed."""
  return [
    finding("monotone", evaluation="pgd", value=0.0, threshold=0.0),
    finding("gap", evaluation="pgd", value=5.0, threshold=10.0),
    finding(
      "square",
      False,
      "auto_attack",
      "Square broke 3.1 points more: gradients are probably masked.",
      3.1,
      0.2,
      ["square"],
    ),
    finding("gradients", value=0.0, threshold=0.0),
    finding("gradients", value=0.0, threshold=0.0),
    finding("order", value=0, threshold=0),
    finding("effort", value=0.4, threshold=1.0),
    finding("binarization", evaluation="binarization", value=0.98, threshold=0.95),
  ]


def results(method="sprout", level=0.4, seed=0, **config):
  """The content of a complete results.json."""
  random = np.random.default_rng(seed)
  options = {"name": method} | (
    {"concentration": "paper", "draw": "sample"} if method == "sprout" else {}
  )
  return {
    "clean": share(0.5 + level / 2, 10000),
    "attacks": [
      *(pgd(level * (1 - epsilon / 0.1) + 0.1, epsilon) for epsilon in (0.0, 0.01, 0.03, 0.07)),
      auto_attack(level - 0.05),
    ],
    "parameters_sha256": f"{seed}{'c0ffee' * 10}",
    "wall_seconds": 321.4,
    "config": {
      "seed": seed,
      "num_epochs": 30,
      "awp_gamma": 0.0,
      "penalty": {"name": "none"},
      "method": options,
      "model": {"name": "vgg16", "dtype": "float32"},
      "dataset": {"name": "cifar10", "data_dir": "", "cache_dir": ""},
      "optimizer": {"learning_rate": 0.1},
      "evaluation": {"num_steps": 20},
      **config,
    },
    "versions": {"jax": "0.10.2", "devices": "1 x cpu"},
    "dataset": {
      "name": "cifar10",
      "fingerprint": "f" * 64,
      "provenance": "the official set",
      "class_names": CLASSES,
    },
    "checkpoint": {"which": "last", "step": 900, "selected_by": "", "weights": "raw"},
    "training": {
      "seconds": 61.0,
      "steps": 900,
      "planned_steps": 900,
      "peak_memory_bytes": 2**30,
      "seconds_per_epoch": 2.0,
      "batch_size": 128,
    },
    "evaluations": evaluations(level, random),
    "checks": checks(),
  }


def metrics(method, level):
  """Lines of metrics.jsonl."""
  records = []
  for epoch in range(1, 31):
    beta = {"beta": [0.5 + 0.01 * epoch * (k % 3) for k in range(10)]} if method == "sprout" else {}
    records += [
      {
        "step": 30 * epoch,
        "split": "train",
        "steps": 30,
        "epoch": epoch,
        "loss": 1 / epoch + level,
        "accuracy": 1 - 0.7 / epoch,
        **beta,
      },
      {
        "step": 30 * epoch,
        "split": "validation",
        "epoch": epoch,
        "accuracy": level + 0.3 - 0.3 / epoch,
      },
    ]
  return records


def write(folder, content, records=()):
  """Writes a workdir; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "results.json").write_text(json.dumps(content))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  return folder


def workdir(folder, method="sprout", level=0.4, seed=0, **config):
  """A complete workdir."""
  return write(folder, results(method, level, seed, **config), metrics(method, level))
