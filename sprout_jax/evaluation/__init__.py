"""Evaluation: what a trained model is worth, with the uncertainty beside every number.

`EVALUATIONS` has a row for everything that a config can ask for: a function (subject, *, options) ->
dictionary. Its keyword arguments are its options: keys of `config.evaluation.NAME`, or of
`config.evaluation`, which several share. What it returns is JSON and goes to results.json's
"evaluations", but for "findings" of `checks`, which go to its "checks", and the "entries" of "pgd" and
"auto_attack", which go to its "attacks".

`options` (what a config says of them), `subject` (what an evaluation is given), `store` (what it
leaves, and continues from), `accuracy` (running a model over many images). Attacks: `robustness` (PGD
over radii), `ensemble` (AutoAttack), `strength` (PGD from weak to strong), `black_box` (noise,
transfer), `examples`. Changed images: `invariance`, over `transformations` and `corruptions`.
Certificates and confidence: `smoothing`, `calibration`. The loss around the images: `landscape`,
`gradients`. Whether the numbers can be believed: `sanity` and `binarization` run attacks for it,
`probes` has some, `checks` judges. Nothing here knows how the model was trained.
"""

from sprout_jax.evaluation import binarization
from sprout_jax.evaluation import black_box
from sprout_jax.evaluation import calibration
from sprout_jax.evaluation import ensemble
from sprout_jax.evaluation import examples
from sprout_jax.evaluation import gradients
from sprout_jax.evaluation import invariance
from sprout_jax.evaluation import landscape
from sprout_jax.evaluation import robustness
from sprout_jax.evaluation import sanity
from sprout_jax.evaluation import smoothing
from sprout_jax.evaluation import strength

EVALUATIONS = {
  "pgd": robustness.evaluate,
  "auto_attack": ensemble.evaluate,
  "strength": strength.evaluate,
  "noise": black_box.evaluate_noise,
  "transfer": black_box.evaluate_transfer,
  "invariance": invariance.evaluate_invariance,
  "corruptions": invariance.evaluate_corruptions,
  "smoothing": smoothing.evaluate,
  "calibration": calibration.evaluate,
  "landscape": landscape.evaluate,
  "gradients": gradients.evaluate,
  "sanity": sanity.evaluate,
  "binarization": binarization.evaluate,
  "examples": examples.evaluate,
}
