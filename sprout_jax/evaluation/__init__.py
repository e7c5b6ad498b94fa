"""Evaluation: how robust a model is, with the uncertainty beside every number.

    from sprout_jax import evaluation
    results = evaluation.evaluate(predict, images, labels, workdir="runs/mine", epsilon=8/255)

The files: `subject` (what an evaluation is given), `preflight` (can its numbers mean anything),
`table` (`EVALUATIONS`, a row each), `options` (how options are declared), `session` (`evaluate`,
and how evaluations run and are kept), `randomness` and `threat` (seeds, the choice of images; the
ball and the box). One file for each evaluation or family of them: `pgd`, `auto_attack`, `strength`,
`noise`, `transfer`, `sanity`, `binarization` attack; `changed` measures transformed and corrupted
images, over `transformations` and `corruptions`; `smoothing` certifies; `calibration`, `landscape`,
`gradients` and `examples` look at the model. Nothing here knows how the model was trained.
"""

from sprout_jax.evaluation.session import evaluate
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.evaluation.table import Evaluation

__all__ = ["EVALUATIONS", "Evaluation", "Subject", "evaluate"]
