"""Every number of a results.json, with what it is a number of: the rows of all tables.

Each function takes the content of a results.json and returns a list of `Measure`, empty if it was
not measured.
"""

import dataclasses
import statistics

from sprout_jax.report import wording


@dataclasses.dataclass(frozen=True)
class Measure:
  """One number.

  `group` is all that defines the measurement but what `row` says; numbers of several runs compare
  where both agree. `tags` are the words by which a check may name it, `order` sorts the rows of a
  group.
  """

  evaluation: str
  group: str
  row: str
  text: str
  detail: str = ""
  order: tuple = ()
  tags: frozenset = frozenset()
  value: float | None = None
  count: int | None = None


def _accuracy(evaluation, group, row, entry, order=(), tags=()):
  return Measure(
    evaluation,
    group,
    row,
    wording.share(entry["accuracy"]),
    wording.interval(entry),
    order,
    frozenset(tags),
    entry["accuracy"],
    entry["count"],
  )


def _tags(entry):
  parts = entry["per_attack"] if wording.is_ensemble(entry) else ()
  return {
    f"epsilon {entry['epsilon']:g}",
    entry["name"],
    *parts,
    *([entry["loss"]] if "loss" in entry else []),
  }


def clean(results):
  count = results["clean"]["count"]
  return [_accuracy("clean", f"clean accuracy, {count} images", "clean", results["clean"])]


def attacks(results):
  """The PGD curve and AutoAttack; after an ensemble's number, its attacks one after the other."""
  found = []
  for entry in results["attacks"]:
    evaluation = "auto_attack" if wording.is_ensemble(entry) else "pgd"
    group = f"{wording.attack_spec(entry)}, {entry['count']} images"
    radius = f"epsilon {entry['epsilon']:g}"
    found.append(_accuracy(evaluation, group, radius, entry, (entry["epsilon"],), _tags(entry)))
    if wording.is_ensemble(entry) and len(entry["per_attack"]) > 1:
      found += [
        Measure(
          evaluation,
          group,
          f"{radius} after {name}",
          wording.share(accuracy),
          "",
          (entry["epsilon"],),
          frozenset({name}),
          accuracy,
        )
        for name, accuracy in entry["per_attack"].items()
      ]
  return found


def strength(results):
  """One attack with more steps, more restarts and other losses, at one radius."""
  return [
    _accuracy(
      "strength",
      f"PGD {wording.NORMS[entry['norm']]}, epsilon {entry['epsilon']:g}, "
      f"{entry['loss']} loss, steps of {entry['step_size']:g}, "
      f"{'random' if entry['random_start'] else 'no random'} start, seed {entry['seed']}, "
      f"{entry['count']} images",
      f"{entry['steps']} steps, {entry['restarts']} start" + "s" * (entry["restarts"] > 1),
      entry,
      (entry["steps"], entry["restarts"]),
      _tags(entry),
    )
    for found in _evaluation(results, "strength")
    for entry in found["entries"]
  ]


def noise(results):
  return [
    _accuracy(
      "noise",
      f"{wording.attack_spec(entry)}, {entry['count']} images",
      f"epsilon {entry['epsilon']:g}",
      entry,
      (entry["epsilon"],),
      _tags(entry),
    )
    for found in _evaluation(results, "noise")
    for entry in found["entries"]
  ]


def transfer(results):
  """Adversarial images of other models, beside PGD on the model itself (earlier files have none)."""
  white = [
    _accuracy(
      "transfer",
      f"on the model itself: {wording.attack_spec(entry)}, {entry['count']} images",
      f"epsilon {entry['epsilon']:g}",
      entry,
      (entry["epsilon"],),
      {"white box"},
    )
    for found in _evaluation(results, "transfer")
    if "white_box" in found
    for entry in [found["white_box"]]
  ]
  return [
    _accuracy(
      "transfer",
      f"transferred from {source['label']} ({source['parameters_sha256'][:12]}): "
      f"{wording.attack_spec(entry)}, {entry['count']} images",
      f"epsilon {entry['epsilon']:g}",
      entry,
      (entry["epsilon"],),
      _tags(entry) | {f"transfer from {source['label']} ({source['parameters_sha256'][:12]})"},
    )
    for found in _evaluation(results, "transfer")
    for source in found["sources"]
    for entry in source["entries"]
  ] + white


def invariance(results):
  """The named points of the curves."""
  return [
    _accuracy(
      "invariance",
      f"transformed images, {point['count']} of them",
      point["named"],
      point,
      tags=(name, point["named"]),
    )
    for found in _evaluation(results, "invariance")
    for name, row in found["transformations"].items()
    for point in row["points"]
    if point["named"]
  ]


def corruptions(results):
  """The mean over all corruptions, and that of each severity."""
  rows = []
  for found in _evaluation(results, "corruptions"):
    counts = sorted(
      {point["count"] for points in found["corruptions"].values() for point in points}
    )
    names, seed = list(found["corruptions"]), found.get("options", {}).get("seed")
    group = (
      f"{len(names)} corruptions, {found['source']}{'' if seed is None else f', seed {seed}'}, "
      f"{' or '.join(map(str, counts))} images each{'' if len(names) > 5 else ': ' + ', '.join(names)}"
    )
    rows.append(
      Measure(
        "corruptions",
        group,
        "mean over all",
        wording.share(found["mean"]),
        "",
        (0,),
        value=found["mean"],
      )
    )
    rows += [
      Measure(
        "corruptions",
        group,
        f"severity {severity}",
        wording.share(mean),
        "",
        (severity,),
        value=mean,
      )
      for severity, mean in enumerate(found["mean_per_severity"], 1)
    ]
  return rows


def smoothing(results):
  """The smoothed classifier: accuracy, and accuracy with a certificate, along the radii."""
  rows = []
  for found in _evaluation(results, "smoothing"):
    group = (
      f"smoothed with noise of standard deviation {found['sigma']:g}, n0 {found['n0']}, n {found['n']}, "
      f"alpha {found['alpha']:g}, seed {found['seed']}, {found['count']} images"
    )
    rows += [
      _accuracy("smoothing", group, "smoothed accuracy", found["smoothed"], (-3,)),
      Measure("smoothing", group, "abstained", f"{found['abstained']} images", "", (-2,)),
      Measure(
        "smoothing", group, "mean certified radius (L2)", f"{found['mean_radius']:.3f}", "", (-1,)
      ),
    ]
    rows += [
      _accuracy(
        "smoothing", group, f"certified at L2 radius {point['radius']:g}", point, (point["radius"],)
      )
      for point in chosen_radii(found["curve"])
    ]
  return rows


def largest_radius(found):
  """The L2 radius that is certified where all n draws agree: sigma Phi^-1(alpha^(1 / n))."""
  return max(
    0.0, found["sigma"] * statistics.NormalDist().inv_cdf(found["alpha"] ** (1 / found["n"]))
  )


def chosen_radii(curve, most=6):
  """Points of a certified curve to show: the quarters, or a few evenly spaced ones."""
  quarters = [
    point for point in curve if abs(4 * point["radius"] - round(4 * point["radius"])) < 1e-6
  ]
  points = quarters if len(quarters) > 2 else curve
  step = -(-len(points) // most)
  return points[::step]


def calibration(results):
  rows = []
  for found in _evaluation(results, "calibration"):
    group = f"{found['num_bins']} bins of equal width, {found['count']} images"
    rows += [
      Measure("calibration", group, row, text, "", (place,))
      for place, (row, text) in enumerate(
        (
          ("expected calibration error", wording.share(found["ece"])),
          ("mean confidence", wording.share(found["confidence"])),
          ("accuracy of the same images", wording.share(found["accuracy"])),
          ("negative log likelihood (nats)", f"{found['nll']:.3f}"),
          ("Brier score (0 to 2)", f"{found['brier']:.3f}"),
        )
      )
    ]
  return rows


def sanity(results):
  """What the checks compare: weak and strong attacks on a few images, and the binarisation test."""
  rows = []
  for found in _evaluation(results, "sanity"):
    group = (
      f"{wording.NORMS[found['norm']]}, epsilon {found['epsilon']:g}, {wording.pgd_options(found)}"
      f"{found['count']} images"
    )
    rows += [
      _accuracy("sanity", group, name, entry, tags=(name,))
      for name, entry in found["robust"].items()
    ]
    large = found["large_radius"]
    rows.append(
      _accuracy(
        "sanity",
        group,
        f"PGD at epsilon {large['epsilon']:g}",
        large,
        tags=(f"epsilon {large['epsilon']:g}",),
      )
    )
  for found in _evaluation(results, "binarization"):
    group = (
      f"binarisation test, {found['attack']}, epsilon {found['epsilon']:g}, built for "
      f"{found['count']} of {found['images']} images"
    )
    detail = "" if found["success"] is None else wording.interval(found)
    rows += [
      Measure(
        "binarization",
        group,
        "planted adversarial examples found",
        wording.share(found["success"]),
        detail,
      ),
      Measure(
        "binarization", group, "found by random noise", wording.share(found["random_success"])
      ),
    ]
  return rows


def training(results):
  """What the training cost."""
  found, group = results["training"], f"on {wording.trained_on(results)}"
  epoch, peak = (
    found.get("seconds_per_epoch"),
    found.get("peak_memory_bytes"),
  )  # earlier versions: none
  rows = [
    Measure("training", group, "training in all", f"{found['seconds']:.0f} s", "", (1,)),
    Measure("training", group, "steps", f"{found['steps']} of {found['planned_steps']}", "", (2,)),
  ]
  if epoch:
    rows.append(Measure("training", group, "time per epoch", f"{epoch:.2f} s", "", (0,)))
  if peak:
    rows.append(
      Measure("training", group, "memory at its peak", f"{peak / 2**30:.2f} GiB", "", (3,))
    )
  return rows


def compact(results):
  """The few numbers, one per evaluation besides the attacks, that a short table shows."""
  rows = [
    dataclasses.replace(m, row=f"lowest {m.group.split(', steps')[0]}, {m.row}")
    for m in sorted(strength(results), key=lambda m: m.value)[:1]
  ]
  rows += [
    dataclasses.replace(m, row=f"random noise, {m.row}")
    for m in sorted(noise(results), key=lambda m: m.order)[-1:]
  ]
  rows += [
    dataclasses.replace(m, row=f"{m.group.split(' (')[0]}, {m.row}")
    for m in sorted(transfer(results), key=lambda m: ("white box" in m.tags, m.value))[:1]
  ]
  rows += invariance(results)
  rows += [
    dataclasses.replace(m, row=f"mean over {m.group.split(',')[0]}")
    for m in corruptions(results)[:1]
  ]
  return rows + _certified(results) + [m for m in calibration(results) if m.order == (0,)]


def _certified(results):
  """Certified accuracy at radius 0.25, or in the middle of the curve."""
  rows = []
  for found in _evaluation(results, "smoothing"):
    curve = found["curve"]
    middle = statistics.median_low(point["radius"] for point in curve)
    point = next(
      (p for p in curve if abs(p["radius"] - 0.25) < 1e-6),
      next(p for p in curve if p["radius"] == middle),
    )
    rows.append(
      _accuracy(
        "smoothing",
        "",
        f"certified at L2 radius {point['radius']:g}, noise {found['sigma']:g}",
        point,
      )
    )
  return rows


def _evaluation(results, name):
  """[what the evaluation found], or [] if it did not run."""
  return [results["evaluations"][name]] if name in results["evaluations"] else []
