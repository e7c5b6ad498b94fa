"""The 15 common corruptions of small images, at severities 1 to 5, as pure functions.

    corrupted = corruptions.corrupt("fog", key, images, severity=3)
    for name, function in corruptions.CORRUPTIONS.items(): ...    # (key, images, severity)

The definitions are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019, with the constants of CIFAR-10-C from the authors'
public code. The corruptions are computed, so they work on any data set. The functions can be jitted
and vmapped. The severity can be traced: one compilation serves all five.

Accuracies differ from those on the published files of CIFAR-10-C, for these reasons:

- The random numbers differ. Those of an image depend only on its index in the data set.
- There is no rounding to 8 bits. The authors' files are rounded down at the end (half a level
  darker in the mean), and some corruptions in between. Only `jpeg_compression` rounds, as JPEG
  does.
- `frost` uses a procedural texture in place of the authors' photographs. Its brightness and grain
  are chosen, not measured from the photographs. It is the least comparable of the 15.
- `elastic_transform` interpolates exactly. OpenCV rounds positions to 1/32 of a pixel.
- `jpeg_compression` uses an exact cosine transform. libjpeg's has fixed-point coefficients, so a
  few coefficients are rounded differently: 0.1 of 255 levels in the mean.

These details agree with the published files: `glass_blur` copies neighbours (the authors' exchange
of two pixels by NumPy views overwrites one of them); ImageMagick's one-sided motion trail; SciPy's
zoom with its slight shift off the centre; libjpeg's other roundings and its interpolation of
colour.

The constants are those for 32x32 pixels. On other sizes `elastic_transform`, `pixelate` and
`zoom_blur` scale with the side length, and the coarsest detail of `fog` and `frost` is the next
power of two. The other blurs and the flakes of `snow` keep their lengths in pixels, so they are
weaker on large images. On small images, lengths round to whole pixels: on 8x8, `zoom_blur` of
severity 1 changes nothing, and `pixelate` is the same at severities 1 and 2, and at 3 and 4. One
channel is treated as grey.

The mean distortion, mean |corrupted - x|, grows with the severity, except where the published
constants do not make it grow: `elastic_transform` (the affine jitter shrinks while the shifts
grow), `frost` (from severity 4 on, the image is darkened more than the frost adds), `glass_blur`
(severities 1 to 3, and 4 to 5, blur more but move no pixel further) and `motion_blur` (severities 3
and 4 differ only beyond six standard deviations).

The files: `contract` (from an image to a batch), `linear` (filters that several share), `noise`,
`blur`, `weather`, `digital`, `jpeg`.
"""

import jax

from sprout_jax.errors import check_choice
from sprout_jax.evaluation.corruptions import blur
from sprout_jax.evaluation.corruptions import digital
from sprout_jax.evaluation.corruptions import jpeg
from sprout_jax.evaluation.corruptions import noise
from sprout_jax.evaluation.corruptions import weather
from sprout_jax.evaluation.corruptions.contract import SEVERITIES
from sprout_jax.evaluation.corruptions.contract import BatchCorruption

CORRUPTIONS: dict[str, BatchCorruption] = {
  "gaussian_noise": noise.gaussian_noise,
  "shot_noise": noise.shot_noise,
  "impulse_noise": noise.impulse_noise,
  "defocus_blur": blur.defocus_blur,
  "glass_blur": blur.glass_blur,
  "motion_blur": blur.motion_blur,
  "zoom_blur": blur.zoom_blur,
  "snow": weather.snow,
  "frost": weather.frost,
  "fog": weather.fog,
  "brightness": digital.brightness,
  "contrast": digital.contrast,
  "elastic_transform": digital.elastic_transform,
  "pixelate": digital.pixelate,
  "jpeg_compression": jpeg.jpeg_compression,
}


__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]


def corrupt(
  name: str,
  key: jax.Array,
  images: jax.Array,
  severity: int | jax.Array,
  indices: jax.Array | None = None,
) -> jax.Array:
  """Corrupts each image: `CORRUPTIONS[name](key, images, severity, indices)`.

  Args:
    name: a key of `CORRUPTIONS`.
    key: a PRNG key. The result of an image depends on `fold_in(key, index)`, but not on the rest
      of the batch, its size or its order.
    images: float array [batch, height, width, channels] in [0, 1], with 1 or 3 channels and at
      least 8x8 pixels.
    severity: 1, 2, 3, 4 or 5. A traced severity is not checked.
    indices: int array [batch], the images' positions in the whole data set; default: 0, 1, ...,
      batch - 1.

  Returns:
    An array like `images`, in [0, 1].

  Raises:
    UserError: an unknown name or severity (the choices are listed), or images of another shape or
      type.
  """
  check_choice("corruption", name, CORRUPTIONS)
  return CORRUPTIONS[name](key, images, severity, indices)
