"""Evaluation: what a trained model is worth, with the uncertainty beside every number.

`accuracy` counts, `robustness` and `ensemble` attack. `smoothing` certifies, `calibration` compares
confidence with accuracy, `landscape` and `gradients` look at the loss around the images;
`transformations` and `corruptions` change images as cameras and weather do. `checks`
says which numbers are too good to be true, from what `probes` and `binarization` measure. Nothing
here knows how the model was trained: it gets a Flax module and its variables.
"""
