"""What is said about runs, as a document: which sections there are, and what each shows."""

import numpy as np

from sprout_jax.report import curves
from sprout_jax.report import figures
from sprout_jax.report import findings
from sprout_jax.report import grid
from sprout_jax.report import maps
from sprout_jax.report import measures
from sprout_jax.report import parts
from sprout_jax.report import tables
from sprout_jax.report.document import Caution
from sprout_jax.report.document import Document
from sprout_jax.report.document import Figure
from sprout_jax.report.document import Paragraph
from sprout_jax.report.document import Picture
from sprout_jax.report.document import Section

INTERVALS = "Accuracy with its 95 % interval in square brackets."
# What each evaluation shows, as a reader would call it.
NAMES = {
  "strength": "attacks of more strength",
  "noise": "random noise",
  "transfer": "transferred attacks",
  "invariance": "transformations",
  "corruptions": "corruptions",
  "smoothing": "certified accuracy",
  "calibration": "calibration",
  "landscape": "loss around images",
  "gradients": "gradients of the modules",
  "sanity": "sanity checks",
  "binarization": "binarisation test",
  "examples": "adversarial examples",
}
# The evaluations whose numbers have a table of their own, with their failed checks beside them.
WITH_A_TABLE = (
  "strength",
  "noise",
  "transfer",
  "invariance",
  "corruptions",
  "smoothing",
  "calibration",
)


def build(runs):
  """The whole document."""
  made = [
    parts.runs(runs),
    parts.configs(runs),
    attacks(runs),
    strength(runs),
    others(runs),
    invariance(runs),
    corruptions(runs),
    smoothing(runs),
    calibration(runs),
    inside(runs),
    parts.beta(runs),
    parts.training(runs),
    parts.radar(runs),
    parts.examples(runs),
    parts.checks(runs),
    parts.provenance(runs),
  ]
  count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
  return Document(f"Robustness of {count}", tuple(_lead(runs)), tuple(filter(None, made)))


def _lead(runs):
  """Cautions, then how the checks went, then what nobody measured."""
  lead = [Caution(text) for text in tables.cautions([run.results for run in runs])]
  lead += [
    Caution(f"{run.name}: {text}") for run in runs if (text := tables.incomplete(run.results))
  ]
  without = [run.name for run in runs if not run.results["checks"]]
  bad = [
    f"{run.name} ({len(findings.failed(run.results))} of {len(run.results['checks'])})"
    for run in runs
    if findings.failed(run.results)
  ]
  if bad:
    lead.append(Caution(f"Checks failed: {'; '.join(bad)}. Marks beside the numbers name them."))
  if without:
    lead.append(
      Caution(
        f"Nothing was checked for {', '.join(without)}: take the robust accuracies as upper bounds."
      )
    )
  nobody = [
    text for name, text in NAMES.items() if not any(name in run.evaluations for run in runs)
  ]
  if nobody:
    lead.append(Paragraph(f"Not measured for any run: {', '.join(nobody)}."))
  return lead


def attacks(runs):
  """Clean accuracy, the PGD curve, AutoAttack; and every check that has no number elsewhere."""

  def placed(results):
    return [
      finding for finding in findings.failed(results) if finding["evaluation"] not in WITH_A_TABLE
    ]

  def remarks(results):
    return [note for entry in results["attacks"] for note in tables.notes(entry)]

  blocks = [
    grid.numbers(
      f"{INTERVALS} Each group of rows is one attack, with all that defines it.",
      runs,
      lambda results: measures.clean(results) + measures.attacks(results),
      placed,
      remarks,
    )
  ]
  attacked = [run for run in runs if run.results["attacks"]]
  if attacked:
    blocks.append(
      figure(
        "attacks",
        curves.robustness(attacked),
        "Accuracy under attack against epsilon, a curve for each run",
        "Accuracy under attack against the radius epsilon; shaded: "
        "95 % intervals. Letters at the ends of the curves are the runs.",
      )
    )
  blocks.append(lacking("attacks", runs, attacked))
  without = [run.name for run in attacked if not tables.has_auto_attack(run.results["attacks"])]
  if without:
    blocks.append(
      Paragraph(
        f"PGD gives an upper bound on robust accuracy: stronger attacks may lower it "
        f"(no AutoAttack: {', '.join(without)})."
      )
    )
  return section("Accuracy under attack", blocks)


def strength(runs):
  measured = having(runs, "strength")
  blocks = [
    grid.numbers(
      f"{INTERVALS} The same attack with more steps, more random starts and other "
      "losses. These are often fewer images than above: compare within this table.",
      runs,
      measures.strength,
      remarks=lambda results: (
        results["evaluations"]["strength"]["notes"] if "strength" in results["evaluations"] else ()
      ),
    )
  ]
  with_loss = [run for run in measured if curves.losses_over_steps(run)]
  if with_loss:
    blocks.append(
      figure(
        "best_loss",
        curves.best_loss(with_loss),
        "Running best loss against the steps of PGD, a curve for each run",
        "Whether the attack had settled: the running best loss "
        "of the first start. A curve that still rises at its end stopped too early. With the "
        "cross-entropy, PGD climbs the log odds against the label, log((1 - p) / p), which rise "
        "with it and never saturate: above 0 the label has less than half the probability.",
      )
    )
  return section("Stronger attacks", [*blocks, lacking("attacks of more strength", runs, measured)])


def others(runs):
  """What does not use the model's gradients, and what the checks compare."""
  return section(
    "Noise, transfer and sanity",
    [
      grid.numbers(f"{INTERVALS} Under the worst of several draws of noise.", runs, measures.noise),
      lacking("random noise", runs, having(runs, "noise")),
      grid.numbers(
        f"{INTERVALS} Under adversarial images of other models.", runs, measures.transfer
      ),
      lacking("transferred attacks", runs, having(runs, "transfer")),
      grid.numbers(f"{INTERVALS} What the checks compare.", runs, measures.sanity),
      lacking("sanity checks", runs, having(runs, "sanity", "binarization")),
    ],
  )


def invariance(runs):
  measured = having(runs, "invariance")
  blocks = [
    grid.numbers(f"{INTERVALS} The points that the paper names.", runs, measures.invariance)
  ]
  if measured:
    blocks += [
      figure(
        "invariance",
        curves.invariance(measured),
        "Accuracy against the strength of each transformation, a panel for each",
        "Accuracy against strength; the dotted line is the unchanged image.",
      ),
      figure(
        "invariance_map",
        maps.invariance(measured),
        "Accuracy at the named transformations, runs by transformations",
        "The named points as a map.",
      ),
    ]
  return section("Transformations", [*blocks, lacking("transformations", runs, measured)])


def corruptions(runs):
  measured = having(runs, "corruptions")
  blocks = [
    grid.numbers(
      "Mean accuracy under common corruptions. Computed ones follow the published definitions, with "
      "draws of their own: they are not the images of CIFAR-10-C.",
      runs,
      measures.corruptions,
    )
  ]
  if measured:
    blocks.append(
      figure(
        "corruptions",
        maps.corruptions(measured),
        "Accuracy under each corruption",
        "Accuracy under each corruption (letters: the runs)."
        if len(measured) > 1
        else "Accuracy under each corruption and severity.",
      )
    )
  return section("Corruptions", [*blocks, lacking("corruptions", runs, measured)])


def smoothing(runs):
  measured = having(runs, "smoothing")
  blocks = [
    grid.numbers(
      "Of the smoothed classifier, with 95 % intervals in square brackets. The certificate "
      "is about that classifier, not about the network itself.",
      runs,
      measures.smoothing,
    )
  ]
  if measured:
    blocks.append(
      figure(
        "certified",
        curves.certified(measured),
        "Certified accuracy against the L2 radius, a curve for each run",
        "Certified accuracy against the L2 radius; shaded: 95 % intervals.",
      )
    )
    ceilings = {
      run.name: f"{measures.largest_radius(run.evaluations['smoothing']):.3f}" for run in measured
    }
    same = len(set(ceilings.values())) == 1
    blocks.append(
      Paragraph(
        "No larger radius can be certified with these draws, whatever the model: "
        + (
          ceilings[measured[0].name]
          if same
          else ", ".join(f"{ceiling} ({name})" for name, ceiling in ceilings.items())
        )
        + "."
      )
    )
  return section("Certified accuracy", [*blocks, lacking("certified accuracy", runs, measured)])


def calibration(runs):
  measured = having(runs, "calibration")
  blocks = [
    grid.numbers(
      "Whether the model is right as often as it says, on clean images.", runs, measures.calibration
    )
  ]
  if measured:
    blocks.append(
      figure(
        "reliability",
        maps.reliability(measured),
        "Reliability diagrams, a panel for each run",
        "Accuracy of the images of each bin of confidence; on the dashed line "
        "confidence and accuracy agree. ECE: expected calibration error.",
      )
    )
  return section("Calibration", [*blocks, lacking("calibration", runs, measured)])


def inside(runs):
  """The loss around images and the gradients of SPROUT's modules."""
  measured, all_gradients = having(runs, "landscape"), having(runs, "gradients")
  around = [run for run in measured if np.isfinite(maps.surface(run)).any()]
  gradients = [run for run in all_gradients if run.evaluations["gradients"]["cosine"]]
  blocks = []
  if around:
    counts = {run.key: run.evaluations["landscape"]["count"] for run in around}
    if len(set(counts.values())) == 1:
      images = f"{counts[around[0].key]} images"
    else:
      images = f"images ({', '.join(f'{key} {count}' for key, count in counts.items())})"
    blocks += [
      figure(
        "landscapes",
        maps.landscapes(around),
        "Cross-entropy on a plane around images, a panel for each run",
        "Cross-entropy on the plane of the input gradient's sign and random "
        f"signs, mean over {images}; one scale of colours for all runs. A surface "
        "that is flat in the middle and jumps elsewhere hides its gradients.",
      )
    ]
  blocks.append(lacking("loss around images", runs, measured))
  overflowing = [run.name for run in measured if run not in around]
  if overflowing:
    blocks.append(Paragraph(f"The loss around images is nowhere finite: {', '.join(overflowing)}."))
  if gradients:
    blocks.append(
      figure(
        "cosines",
        maps.cosines(gradients),
        "Cosine similarity of the input gradients of the modules, a matrix for each run",
        "Cosine similarity of the input gradients of "
        "SPROUT's three modules; low values: they push in different directions.",
      )
    )
  undefined = [run.name for run in all_gradients if run not in gradients]
  if undefined:
    blocks.append(Paragraph(f"No gradient was defined to compare: {', '.join(undefined)}."))
  if all_gradients:
    blocks.append(lacking("gradients of the modules", runs, all_gradients))
  return section("Loss and gradients", blocks)


def having(runs, *names):
  """The runs with any of the evaluations."""
  return [run for run in runs if any(name in run.evaluations for name in names)]


def lacking(what, runs, measured):
  """Names the runs without, if others have it; else None."""
  without = [run.name for run in runs if run not in measured]
  return (
    Paragraph(f"Not measured ({what}): {', '.join(without)}.") if measured and without else None
  )


def section(title, blocks):
  """A section of those blocks that are there; None if none is."""
  blocks = tuple(block for block in blocks if block is not None)
  return Section(title, blocks) if blocks else None


def figure(name, drawn, alt, caption):
  return Figure(Picture(name, figures.png(drawn), alt), caption)
