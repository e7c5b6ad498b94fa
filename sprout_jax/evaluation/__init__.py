"""Evaluation of a model's robustness. Every number has its attack and its uncertainty beside it.

    from sprout_jax import evaluation
    results = evaluation.evaluate(predict, images, labels, workdir="runs/mine", epsilon=8/255)

The files:

- `subject`: the model and the test images of an evaluation.
- `preflight`: checks of the model and the images before anything is measured.
- `table`: `EVALUATIONS`, one row per evaluation. `options`: how their options are declared.
- `session`: `evaluate`, and the order in which evaluations are measured and stored.
- `randomness`: seeds and the choice of test images. `threat`: the threat model.
- Attacks: `pgd`, `auto_attack`, `strength`, `noise`, `transfer`, `sanity`, `binarization`.
- After AutoAttack: `extended`, `union`, `estimate`, `corrupted_attack`. Random perturbations:
  `probabilistic`. Randomised models: `redraws`.
- `replay`: whether the model fails on the adversarial images of a bundle.
- `changed`: accuracy on images changed by `transformations` or `corruptions`.
- `smoothing`: certified accuracy. `calibration`, `landscape`, `gradients`, `examples`: properties
  of the model on clean images and around them.

Nothing here depends on how the model was trained.
"""

from sprout_jax.evaluation.session import evaluate
from sprout_jax.evaluation.subject import Subject
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.evaluation.table import Evaluation

__all__ = ["EVALUATIONS", "Evaluation", "Subject", "evaluate"]
