"""Evaluation: what a trained model is worth, with the uncertainty beside every number.

`accuracy` counts, `robustness` attacks, `statistics` has the intervals. Nothing here knows how the
model was trained: it gets a Flax module and its variables.
"""
