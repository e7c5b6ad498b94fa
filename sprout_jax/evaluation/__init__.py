"""Evaluation: what a trained model is worth, with the uncertainty beside every number.

`accuracy` counts, `robustness` and `ensemble` attack. Nothing here knows how the
model was trained: it gets a Flax module and its variables.
"""
