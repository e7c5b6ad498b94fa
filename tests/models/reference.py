"""Convolution by SciPy, as a reference."""

import numpy as np
from scipy import signal


def correlate(x, kernel, strides, padding):
  """Convolution by SciPy, one channel at a time."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  out = np.stack(
    [
      np.stack(
        [
          sum(
            signal.correlate2d(image[..., c], kernel[..., c, f], "valid")
            for c in range(x.shape[-1])
          )
          for f in range(kernel.shape[-1])
        ],
        axis=-1,
      )
      for image in x
    ]
  )
  return out[:, ::strides, ::strides]
