"""The sections about the runs themselves: configs, training, radar chart, examples, checks, origin."""

import base64

from sprout_jax.report import curves
from sprout_jax.report import figures
from sprout_jax.report import grid
from sprout_jax.report import maps
from sprout_jax.report import measures
from sprout_jax.report import radar as radar_lib
from sprout_jax.report import tables
from sprout_jax.report.document import Cell
from sprout_jax.report.document import Figure
from sprout_jax.report.document import Gallery
from sprout_jax.report.document import Paragraph
from sprout_jax.report.document import Picture
from sprout_jax.report.document import Row
from sprout_jax.report.document import Section
from sprout_jax.report.document import Table

# Where files lie and how often they are written: they change no result.
WITHOUT_EFFECT = ("dataset.data_dir", "dataset.cache_dir", "checkpoint.", "log_every")


def runs(all_runs):
  rows = tuple(
    Row(Cell(run.key), (Cell(run.label, run.workdir), Cell(tables.checked(run.results))))
    for run in all_runs
  )
  return Section(
    "Runs",
    (
      Table(
        "What was trained, with its folder.", (Cell("run"), Cell("trained"), Cell("checks")), rows
      ),
    ),
  )


def configs(all_runs):
  """The keys in which the trainings differ; of a single run all that make a difference."""
  flat = _flat(all_runs, lambda key: not key.startswith((*WITHOUT_EFFECT, "evaluation.")))
  keys = sorted(
    {
      key
      for one in flat
      for key in one
      if len(flat) == 1 or any(one[key] != other.get(key, ABSENT) for other in flat)
    }
  )
  if not keys:
    return Section("Configs", (Paragraph("All runs were trained with the same config."),))
  return Section(
    "Configs",
    (
      grid.plain(
        "How the run was trained."
        if len(flat) == 1
        else "How the training differs; all other keys are the same. A dash: no such key.",
        "key",
        all_runs,
        [(key, *(_shown(one, key) for one in flat)) for key in keys],
      ),
    ),
  )


def measuring(all_runs):
  """How the evaluations were set, which says nothing of what was trained; None if they are the same.

  Of several runs, keys that differ; keys that one alone has, as runs of earlier versions lack many, say
  nothing: what was measured how stands with the numbers.
  """
  flat = _flat(all_runs, lambda key: key.startswith("evaluation."))
  values = {key: [one[key] for one in flat if key in one] for one in flat for key in one}
  keys = sorted(
    key
    for key, found in values.items()
    if len(flat) == 1 or any(value != found[0] for value in found)
  )
  return (
    grid.plain(
      "How it was measured; this says nothing of what was trained."
      if len(flat) == 1
      else "How the measuring differs; this says nothing of what was trained. A dash: no such key.",
      "key",
      all_runs,
      [(key, *(_shown(one, key) for one in flat)) for key in keys],
    )
    if keys
    else None
  )


def _flat(all_runs, wanted):
  return [
    {key: value for key, value in flatten(run.results["config"]).items() if wanted(key)}
    for run in all_runs
  ]


class _Absent:
  """Equal to no value of a config."""


ABSENT = _Absent()


def flatten(config, prefix=""):
  """Returns {"optimizer.learning_rate": 0.1, ...}; tuples become lists, as in JSON."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, (tuple, list)) else value
  return flat


def _shown(config, key):
  if key not in config:
    return "–"
  value = config[key]
  if isinstance(value, list):
    return ", ".join(map(_number, value)) or "()"
  return _number(value)


def _number(value):
  if isinstance(value, float):
    return f"{value:g}"
  return '""' if value == "" else str(value)


def beta(all_runs):
  """The label distribution that SPROUT learned."""
  learned = [run for run in all_runs if len(maps.last_beta(run))]
  if not learned:
    return None
  # A panel has a bar per class: only runs of the same classes share the axis.
  blocks = [
    _figure(
      f"beta_{number}" if number else "beta",
      maps.beta(same),
      "The last beta of each run, a bar for each class",
      "Beta, which SPROUT learned for each class, at the end of the training. What it "
      "adds to the label's concentration is a share of it, which differs between variants "
      "(method.concentration).",
    )
    for number, same in enumerate(_by_classes(learned).values())
  ]
  without = [run.name for run in all_runs if run not in learned]
  if without:
    blocks.append(Paragraph(f"Without a learned beta: {', '.join(without)}."))
  return Section("Learned labels", tuple(blocks))


def _by_classes(learned):
  found = {}
  for run in learned:
    names = tuple(run.class_name(k) for k in range(len(maps.last_beta(run))))
    found.setdefault(names, []).append(run)
  return found


def training(all_runs):
  blocks = [
    grid.numbers("What the training cost.", all_runs, measures.training),
    Paragraph("Times say little where runs shared a machine, or ran on different ones."),
  ]
  logged = [run for run in all_runs if curves.split(run.metrics, "train")]
  if logged:
    blocks.append(
      _figure(
        "training",
        curves.training(logged),
        "Training loss and accuracy against epochs, a curve for each run",
        "Above: the training loss; its level does not compare between "
        "methods, which minimise different things. Below: accuracy on the validation split "
        "(without one: on the training batches).",
      )
    )
  missing = [run.name for run in all_runs if run not in logged]
  if missing:
    blocks.append(Paragraph(f"No records of the training (metrics.jsonl): {', '.join(missing)}."))
  return Section("Training", tuple(blocks))


def radar(all_runs):
  """The paper's chart, of two runs or more for which more than clean accuracy and speed was measured."""
  shown = [run for run in all_runs if radar_lib.is_measured(run.results)]
  if len(shown) < 2:
    return None
  chart, blocks = radar_lib.compute(shown), []
  if len(chart.raw) < 3:
    blocks.append(Paragraph("Not drawn: fewer than three axes were measured alike for all runs."))
  else:
    blocks += [
      _figure(
        "radar",
        radar_lib.draw(shown, chart),
        "Radar chart with an axis for each measure, a curve for each run",
        "Each axis is divided by the best run on it; in the legend the score, the mean "
        "of a run's axes.",
      ),
      Paragraph(
        f"The paper's axes, with its PGD and its margin loss (C&W), here {_radius(shown)}. The score does "
        "not rank robustness: it is the mean of all axes, training speed among them. AutoAttack is in "
        "the table of accuracy under attack, and is what counts."
      ),
      grid.plain(
        "The values relative to the best run, and their mean.",
        "",
        shown,
        [
          *(
            (axis, *(f"{value:.3f}" for value in values)) for axis, values in chart.relative.items()
          ),
          ("score", *(f"{score:.3f}" for score in chart.scores)),
        ],
      ),
    ]
  for why in dict.fromkeys(chart.left_out.values()):
    axes = [axis for axis, reason in chart.left_out.items() if reason == why]
    blocks.append(Paragraph(f"Axes left out: {', '.join(axes)} ({why})."))
  without = [run.name for run in all_runs if run not in shown]
  if without:
    blocks.append(Paragraph(f"Not measured (axes of the chart): {', '.join(without)}."))
  return Section("Radar chart", tuple(blocks))


def _radius(runs):
  """The radius of the chart's attacks, in words."""
  radii = {
    f"{run.evaluations['strength']['epsilon']:g}" for run in runs if "strength" in run.evaluations
  }
  return f"at epsilon {' or '.join(sorted(radii))}" if radii else "not measured"


def examples(all_runs):
  shown = [run for run in all_runs if "examples" in run.evaluations]
  if not shown:
    return None
  blocks = [
    Paragraph(
      "The first images that are classified correctly, whether the attack succeeds or not: image, "
      "perturbation (grey: none) and attacked image; under them the label, and the prediction "
      "before and after with its confidence."
    ),
    *map(_gallery, shown),
  ]
  without = [run.name for run in all_runs if run not in shown]
  if without:
    blocks.append(Paragraph(f"Not measured (adversarial examples): {', '.join(without)}."))
  return Section("Attacked images", tuple(blocks))


def _gallery(run):
  found = run.evaluations["examples"]
  items = []
  for one in found["examples"]:
    was = f"{run.class_name(one['predicted'])} ({100 * one['confidence']:.0f} %)"
    becomes = f"{run.class_name(one['adversarial_predicted'])} ({100 * one['adversarial_confidence']:.0f} %)"
    alts = {
      "image": f"image {one['index']}, predicted as {was}",
      "perturbation": "perturbation",
      "adversarial": f"the same image attacked, predicted as {becomes}",
    }
    pictures = tuple(
      Picture(
        f"example_{run.key}_{one['index']}_{key}", figures.enlarged(base64.b64decode(one[key])), alt
      )
      for key, alt in alts.items()
    )
    items.append((pictures, f"label {run.class_name(one['label'])}: {was} → {becomes}"))
  what = f"{run.name}: {found['attack']}, epsilon {found['epsilon']:g}"
  broken = sum(one["adversarial_predicted"] != one["label"] for one in found["examples"])
  caption = (
    f"{what}; broken: {broken} of {len(items)}."
    if items
    else f"{what}: no image is classified correctly."
  )
  return Gallery(caption, tuple(items))


def checks(all_runs):
  without = [run.name for run in all_runs if not run.results["checks"]]
  blocks = []
  if len(without) < len(all_runs):
    blocks.append(grid.checks(all_runs))
  if without:
    blocks.append(
      Paragraph(
        f"Nothing was checked for {', '.join(without)}: the robust accuracies are upper bounds."
      )
    )
  return Section("Checks", tuple(blocks))


def provenance(all_runs):
  """Where the numbers come from: data, weights, versions, time, and how it was measured."""
  facts = [_facts(run.results) for run in all_runs]
  names = dict.fromkeys(name for one in facts for name in one)
  tables_shown = (
    grid.plain(
      "Data, weights and versions.",
      "",
      all_runs,
      [(name, *(one.get(name, "–") for one in facts)) for name in names],
    ),
    measuring(all_runs),
  )
  return Section("Where the numbers come from", tuple(filter(None, tables_shown)))


def _facts(results):
  facts = {
    "data": results["dataset"]["provenance"],
    "data fingerprint": results["dataset"]["fingerprint"][:12],
    "weights": tables.weights(results),
  }
  if "parameters_sha256" in results:
    facts["SHA-256 of the parameters"] = results["parameters_sha256"][:12]
  if "wall_seconds" in results:
    facts["evaluation took"] = f"{results['wall_seconds']:.0f} s"
  return facts | {
    f"version of {name}" if name != "devices" else "evaluated on": str(version)
    for name, version in results["versions"].items()
  }


def _figure(name, drawn, alt, caption):
  return Figure(Picture(name, figures.png(drawn), alt), caption)
