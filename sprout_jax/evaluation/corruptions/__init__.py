"""The 15 common corruptions of small images, at severities 1 to 5, as pure functions.

    corrupted = corruptions.corrupt("fog", key, images, severity=3)
    for name, function in corruptions.CORRUPTIONS.items(): ...    # (key, images, severity)

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, with the constants of CIFAR-10-C, from the authors' public code. Computed
here from their definitions: nothing is read from disk, so any data set has them. The functions can
be jitted and vmapped, with a traced severity too: one compilation serves all five.

What differs from the published files, so that accuracies here are not those on CIFAR-10-C:

- The random numbers. An image's depend on its index in the data set alone.
- No rounding to 8 bits, which the authors' files have at the end (downwards, half a level darker in
  the mean) and some corruptions in between; only `jpeg_compression` rounds, as JPEG does.
- `frost` takes a procedural texture for the authors' photographs; its brightness and its grain are
  a choice, not measured from them: the least comparable of the 15.
- `elastic_transform` interpolates exactly, where OpenCV rounds places to 1/32 of a pixel.
- `jpeg_compression` has an exact cosine transform where libjpeg's has fixed-point coefficients: a
  coefficient now and then is rounded another way, 0.1 of 255 levels in the mean.

What does not: `glass_blur` copies neighbours as the authors' code does (its exchange of two pixels
by NumPy views overwrites one of them, so that nothing is shuffled); ImageMagick's one-sided motion
trail; SciPy's zoom and its slight shift off the centre; libjpeg's other roundings and its
interpolation of colour.

The constants are those for 32x32 pixels. On other sizes `elastic_transform`, `pixelate` and
`zoom_blur` scale with the side, and `fog` and `frost` have the next power of two as their coarsest
detail; the other blurs, and the flakes of `snow`, keep their lengths in pixels and are weaker on
large images. On small ones the rounding to whole pixels bites: on 8x8, `zoom_blur` of severity 1
changes nothing, and severities 1 and 2, and 3 and 4, of `pixelate` are the same. One channel is
treated as grey.

The mean distortion, mean |corrupted - x|, grows with the severity save where the published
constants themselves do not make it grow: `elastic_transform` (the affine jitter shrinks while the
shifts grow), `frost` (from 4 on the image is darkened more than the frost adds), `glass_blur` (1 to
3, and 4 to 5, blur more and move no pixel further) and `motion_blur` (3 and 4 differ in taps beyond
six standard deviations, that is not at all).

The files: `contract` (from an image to a batch), `linear` (filters that several share), `noise`,
`blur`, `weather`, `digital`, `jpeg`.
"""

from sprout_jax.errors import check_choice
from sprout_jax.evaluation.corruptions import blur
from sprout_jax.evaluation.corruptions import digital
from sprout_jax.evaluation.corruptions import jpeg
from sprout_jax.evaluation.corruptions import noise
from sprout_jax.evaluation.corruptions import weather
from sprout_jax.evaluation.corruptions.contract import SEVERITIES

CORRUPTIONS = {
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


def corrupt(name, key, images, severity, indices=None):
  """Corrupts each image: `CORRUPTIONS[name](key, images, severity, indices)`.

  Args:
    name: a key of `CORRUPTIONS`.
    key: a PRNG key. An image's result depends on `fold_in(key, index)` alone, not on the rest of
      the batch, its size or its order.
    images: float array [batch, height, width, channels] in [0, 1], 1 or 3 channels, 8x8 or more.
    severity: 1, 2, 3, 4 or 5; may be traced, and is then not checked.
    indices: int array [batch], the images' positions in the whole data set; default 0, 1, ...,
      batch - 1.

  Returns:
    An array like `images`, in [0, 1].

  Raises:
    UserError: an unknown name or severity (the choices are listed), or images of another kind.
  """
  check_choice("corruption", name, CORRUPTIONS)
  return CORRUPTIONS[name](key, images, severity, indices)
