"""corruptions: one contract for all, and each against NumPy, SciPy, PIL or its moments."""

import colorsys
import functools
import io

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import scipy.stats

from sprout_jax import data
from sprout_jax.errors import UserError
from sprout_jax.evaluation import corruptions
from sprout_jax.evaluation.corruptions import CORRUPTIONS
from sprout_jax.evaluation.corruptions import linear
from sprout_jax.evaluation.corruptions import weather

KEY = jax.random.key(5)
BATCH, SIZE = 16, 32  # of all colour images here: one compilation for each corruption
SEVERITIES = (1, 2, 3, 4, 5)
WITHOUT_CHANCE = {
  "defocus_blur",
  "zoom_blur",
  "brightness",
  "contrast",
  "pixelate",
  "jpeg_compression",
}
# Severities whose mean distortion does not exceed that of the one before, by the constants: see the
# package's docstring. On colour images here:
NOT_MONOTONE = {
  "elastic_transform": {2, 3, 4, 5},
  "frost": {4, 5},
  "glass_blur": {2, 3, 5},
  "motion_blur": {4},
}


def natural(count=BATCH, size=SIZE):
  """Colour images with the spectrum of natural ones, 1/f^1.3, on 8-bit levels."""
  rng = np.random.default_rng(0)
  frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
  frequency[0, 0] = 1 / size
  noise = np.fft.rfft2(rng.standard_normal((count, 4, size, size)))
  planes = np.fft.irfft2(noise / frequency**1.3)
  images = planes[:, :1] + 0.4 * planes[:, 1:]
  images = 0.22 * images / images.std((1, 2, 3), keepdims=True) + 0.47
  return (np.round(np.moveaxis(images, 1, -1).clip(0, 1) * 255) / 255).astype(np.float32)


IMAGES = natural()
GREY = np.full_like(IMAGES, 0.5)


@functools.cache
def compiled(name):
  return jax.jit(functools.partial(corruptions.corrupt, name))


def run(name, severity, images=IMAGES, indices=None, key=KEY):
  indices = np.arange(len(images)) if indices is None else indices
  return np.asarray(compiled(name)(key, images, severity, indices))


def many(name, severity, image, rounds=20):
  """[rounds * BATCH, ...]: one image, corrupted with as many keys."""
  images = np.broadcast_to(image, (BATCH, *image.shape))
  return np.concatenate(
    [run(name, severity, images, np.arange(i * BATCH, (i + 1) * BATCH)) for i in range(rounds)]
  )


def channels(function, image):
  return np.stack([function(image[..., c]) for c in range(image.shape[-1])], -1)


# What all must do.


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_contract_on_colour_images(name):
  distortions = []
  for severity in SEVERITIES:
    result = run(name, severity)
    assert result.shape == IMAGES.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    distortions.append(np.abs(result - IMAGES).mean())
  not_growing = {s for s in SEVERITIES[1:] if distortions[s - 1] < 1.005 * distortions[s - 2]}
  assert not_growing == NOT_MONOTONE.get(name, set()), distortions
  assert distortions[0] > 0.004

  # Deterministic by key; an image's result is its own, whatever the rest of the batch.
  first, order = run(name, 3), np.random.default_rng(1).permutation(BATCH)
  np.testing.assert_array_equal(run(name, 3), first)
  np.testing.assert_allclose(run(name, 3, IMAGES[order], order), first[order], atol=1e-5)
  alone = np.where(np.arange(BATCH)[:, None, None, None] == 2, IMAGES, 0)
  np.testing.assert_allclose(run(name, 3, alone)[2], first[2], atol=1e-5)
  others = (run(name, 3, key=jax.random.key(6)), run(name, 3, indices=np.arange(BATCH) + BATCH))
  for other in others:
    assert np.array_equal(other, first) == (name in WITHOUT_CHANCE)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_contract_on_digits(name):
  """One channel, 8x12 pixels; all severities at once by vmap; the default indices."""
  digits = np.pad(data.load("digits").test.images[:4], ((0, 0), (0, 0), (0, 4), (0, 0)))
  function = jax.jit(jax.vmap(CORRUPTIONS[name], in_axes=(None, None, 0)))
  results = np.asarray(function(KEY, digits, np.arange(1, 6)))
  assert results.shape == (5, *digits.shape) and results.min() >= 0 and results.max() <= 1
  assert np.abs(results[4] - digits).mean() > 0.01


def test_a_severity_is_the_same_traced_or_not():
  for name in ("zoom_blur", "contrast", "jpeg_compression"):
    fixed = jax.jit(functools.partial(CORRUPTIONS[name], severity=2))(KEY, IMAGES)
    np.testing.assert_allclose(fixed, run(name, 2), atol=1e-6)


def test_wrong_input_is_an_error():
  with pytest.raises(UserError, match="'rain'; choose one of: brightness, contrast, .*zoom_blur"):
    corruptions.corrupt("rain", KEY, IMAGES, 1)
  for severity in (0, 6):
    with pytest.raises(UserError, match=f"severity is {severity}; choose one of: 1, 2, 3, 4, 5"):
      corruptions.corrupt("fog", KEY, IMAGES, severity)
  for images in (IMAGES[..., :2], IMAGES[:, :7]):
    with pytest.raises(UserError, match="1 or 3 channels and at least 8x8"):
      corruptions.corrupt("fog", KEY, images, 1)
  with pytest.raises(UserError, match="expected floats"):
    corruptions.corrupt("fog", KEY, (IMAGES * 255).astype(np.uint8), 1)


# Noise: distributions.


@pytest.mark.parametrize("severity, stddev", [(1, 0.04), (5, 0.10)])
def test_gaussian_noise(severity, stddev):
  noise = (run("gaussian_noise", severity, GREY) - 0.5).ravel()
  assert scipy.stats.kstest(noise / stddev, "norm").pvalue > 0.01


@pytest.mark.parametrize("severity, photons", [(1, 500), (3, 100), (5, 50)])
def test_shot_noise(severity, photons):
  level = 0.3
  counts = (run("shot_noise", severity, np.full_like(IMAGES, level)) * photons).ravel()
  np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
  mean, error = photons * level, np.sqrt(photons * level / counts.size)
  assert abs(counts.mean() - mean) < 5 * error
  assert abs(counts.var() / mean - 1) < 5 * np.sqrt(2 / counts.size)
  assert not run("shot_noise", severity, 0 * IMAGES).any()


@pytest.mark.parametrize("severity, share", [(1, 0.01), (4, 0.05), (5, 0.07)])
def test_impulse_noise(severity, share):
  result = run("impulse_noise", severity, GREY)
  assert set(np.unique(result)) == {0, 0.5, 1}
  for value in (0, 1):
    hits = (result == value).sum()
    assert abs(hits - result.size * share / 2) < 5 * np.sqrt(result.size * share / 2)
  hit = (result != 0.5).astype(float)  # channel by channel: all three at once is rare
  assert hit.prod(-1).mean() < 3 * share**3 + 1e-3


# Blur.


@pytest.mark.parametrize(
  "severity, radius, stddev",
  [(1, 0.3, 0.4), (2, 0.4, 0.5), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)],
)
def test_defocus_blur(severity, radius, stddev):
  grid = np.arange(-8, 9)
  disk = (np.hypot(*np.meshgrid(grid, grid)) <= radius).astype(float)
  side = np.exp(-1 / (2 * stddev**2)) * np.array([1, 0, 1]) + [0, 1, 0]
  kernel = scipy.ndimage.convolve(disk / disk.sum(), np.outer(side, side) / side.sum() ** 2)
  expected = channels(lambda x: scipy.ndimage.convolve(x, kernel, mode="mirror"), IMAGES[0])
  np.testing.assert_allclose(run("defocus_blur", severity)[0], expected, atol=1e-5)


def test_the_weakest_glass_blur_copies_neighbours():
  """Its Gaussian is narrower than a pixel: every value is that of one of four places."""
  image, results = IMAGES[0], many("glass_blur", 1, IMAGES[0])
  places = np.stack(
    [image[2 - dy : SIZE - dy, 2 - dx : SIZE - dx] for dy in (0, 1) for dx in (0, 1)]
  )
  same = np.isclose(results[:, None, 2:, 2:], places[None], atol=1e-6).all(-1)
  assert same.any(1).all()
  np.testing.assert_allclose(same.mean((0, 2, 3)), np.full(4, 0.25), atol=0.01)
  np.testing.assert_allclose(
    results[:, :2], np.broadcast_to(image[:2], results[:, :2].shape), atol=1e-6
  )


@pytest.mark.parametrize("severity, stddev, shuffles", [(3, 0.4, 1), (4, 0.25, 2)])
def test_the_mean_of_glass_blur(severity, stddev, shuffles):
  def shuffled(x):
    mean = (x + np.roll(x, 1, 0) + np.roll(x, 1, 1) + np.roll(x, (1, 1), (0, 1))) / 4
    mean[:2], mean[:, :2] = x[:2], x[:, :2]
    return mean

  smooth = lambda x: scipy.ndimage.gaussian_filter(x, stddev, mode="nearest", truncate=4)
  expected = smooth(IMAGES[0, ..., 0])
  for _ in range(shuffles):
    expected = shuffled(expected)
  results = many("glass_blur", severity, IMAGES[0])[..., 0]
  error = results.std(0) / np.sqrt(len(results))
  np.testing.assert_array_less(np.abs(results.mean(0) - smooth(expected)), 6 * error + 1e-5)


@pytest.mark.parametrize("degrees", [-100.0, 0.0, 30.0])
def test_a_motion_trail_by_hand(degrees):
  image, (radius, stddev) = IMAGES[0], (4, 1.5)
  weights = scipy.stats.norm.pdf(np.arange(2 * radius + 1), scale=stddev)
  expected = np.zeros_like(image)
  for y, x in np.ndindex(SIZE, SIZE):
    for t, weight in enumerate(weights / weights.sum()):
      row = y + np.ceil(t * np.sin(np.radians(degrees)) - 0.5)
      column = x + np.ceil(t * np.cos(np.radians(degrees)) - 0.5)
      expected[y, x] += weight * image[int(row.clip(0, SIZE - 1)), int(column.clip(0, SIZE - 1))]
  tables = linear.motion_weights([(radius, stddev), (6, 2)])
  ours = jax.jit(linear.motion_blur)(image, degrees, tables[0].astype(np.float32))
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  assert not tables[0, 9:].any() and (tables[1] > 0).all()


def test_directions_of_motion_blur():
  point = np.zeros_like(IMAGES[0])
  point[16, 16] = 1
  trails = many("motion_blur", 5, point)[..., 0]
  y, x = (np.tensordot(trails, grid, 2) for grid in np.mgrid[-16:16, -16:16])
  angles = np.degrees(np.arctan2(-y, -x))  # the trail ends where the light came from
  assert scipy.stats.kstest(angles, scipy.stats.uniform(-45, 90).cdf).pvalue > 0.01
  taps = np.arange(2 * 9 + 1)
  weights = np.exp(-(taps**2) / (2 * 2.5**2))
  # Taps are on whole pixels, which adds a little.
  np.testing.assert_allclose(np.hypot(y, x).mean(), weights @ taps / weights.sum(), rtol=0.05)


@pytest.mark.parametrize("severity, last", [(1, 1.06), (2, 1.11), (3, 1.15), (4, 1.20), (5, 1.25)])
def test_zoom_blur(severity, last):
  image = IMAGES[0]
  factors = np.arange(1, last + 0.005, 0.01)
  total = image.astype(float)
  for factor in factors:
    side = int(np.ceil(SIZE / factor))
    top = (SIZE - side) // 2
    cut = image[top : top + side, top : top + side]
    zoomed = scipy.ndimage.zoom(cut, (factor, factor, 1), order=1)
    top = (len(zoomed) - SIZE) // 2
    total += zoomed[top : top + SIZE, top : top + SIZE]
  np.testing.assert_allclose(run("zoom_blur", severity)[0], total / (len(factors) + 1), atol=1e-5)


# Weather.


def plasma_by_points(noise, decay):
  """Diamond-square, point by point, on a torus: the noise of a point is `noise` at its place."""
  size = step = len(noise)
  field, amplitude = {(0, 0): 0.0}, 1.0
  while step > 1:
    half = step // 2
    cross = [(half, 0), (-half, 0), (0, half), (0, -half)]
    diagonal = [(half, half), (half, -half), (-half, half), (-half, -half)]
    for start_y, start_x, around in [(half, half, diagonal), (0, half, cross), (half, 0, cross)]:
      for y in range(start_y, size, step):
        for x in range(start_x, size, step):
          mean = np.mean([field[(y + dy) % size, (x + dx) % size] for dy, dx in around])
          field[y, x] = mean + amplitude * noise[y, x]
    step, amplitude = half, amplitude / decay**2
  values = np.array([[field[y, x] for x in range(size)] for y in range(size)])
  return (values - values.min()) / np.ptp(values)


@pytest.mark.parametrize(
  "severity, amount, decay", [(1, 0.2, 3), (2, 0.5, 3), (3, 0.75, 2.5), (4, 1, 2), (5, 1.5, 1.75)]
)
def test_fog(severity, amount, decay):
  index = 3
  noise = jax.random.uniform(jax.random.fold_in(KEY, index), (SIZE, SIZE), minval=-1, maxval=1)
  mist = amount * plasma_by_points(np.asarray(noise, float), decay)[..., None]
  dim = 0.7 * IMAGES
  expected = (dim[index] + mist) * dim[index].max() / (dim[index].max() + amount)
  np.testing.assert_allclose(run("fog", severity, dim)[index], expected, atol=1e-5)


def test_plasma_of_an_oblong_is_cut_from_a_torus():
  noise = jax.random.uniform(KEY, (16, 16), minval=-1, maxval=1)
  np.testing.assert_allclose(
    jax.jit(weather.plasma, static_argnums=1)(KEY, (9, 12), 2.0),
    plasma_by_points(np.asarray(noise, float), 2.0)[:9, :12],
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "severity, image_weight, frost_weight",
  [(1, 1, 0.2), (2, 1, 0.3), (3, 0.9, 0.4), (4, 0.85, 0.4), (5, 0.75, 0.45)],
)
def test_frost(severity, image_weight, frost_weight):
  index = 3
  noise = jax.random.uniform(jax.random.fold_in(KEY, index), (SIZE, SIZE), minval=-1, maxval=1)
  field = plasma_by_points(np.asarray(noise, float), 2)
  ridges = np.minimum(2 * field, 2 - 2 * field)[..., None]
  expected = image_weight * IMAGES[index] + frost_weight * ridges * [0.8, 0.9, 1.0]
  np.testing.assert_allclose(run("frost", severity)[index], expected.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(
  "severity, constants",
  [
    (1, (0.1, 0.2, 1, 0.6, 8, 3, 0.95)),
    (2, (0.1, 0.2, 1, 0.5, 10, 4, 0.9)),
    (3, (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9)),
    (4, (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)),
    (5, (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
  ],
)
def test_snow(severity, constants):
  """Of the same draws, with SciPy's zoom and the trail as a sum of shifted copies."""
  mean, stddev, zoom, threshold, radius, blur, keep = constants
  index = 3
  key_flakes, key_angle = jax.random.split(jax.random.fold_in(KEY, index))
  flakes = mean + stddev * np.asarray(jax.random.normal(key_flakes, (SIZE, SIZE, 1)))[..., 0]
  side = int(np.ceil(SIZE / zoom))
  start = (SIZE - side) // 2
  cut = flakes[start : start + side, start : start + side]
  flakes = scipy.ndimage.zoom(cut, zoom, order=1)
  start = (len(flakes) - SIZE) // 2
  flakes = flakes[start : start + SIZE, start : start + SIZE].clip(0, 1)
  flakes[flakes < threshold] = 0
  taps = np.arange(2 * radius + 1)
  weights = scipy.stats.norm.pdf(taps, scale=blur)
  angle = np.radians(float(jax.random.uniform(key_angle, minval=-135, maxval=-45)))
  rows, columns = (
    np.ceil(taps * along(angle) - 0.5).astype(int) + 2 * radius for along in (np.sin, np.cos)
  )
  padded = np.pad(flakes, 2 * radius, "edge")
  trail = sum(
    w * padded[y : y + SIZE, x : x + SIZE]
    for w, y, x in zip(weights / weights.sum(), rows, columns, strict=True)
  )
  image = IMAGES[index]
  grey = (image @ [0.299, 0.587, 0.114])[..., None]
  whitened = keep * image + (1 - keep) * np.maximum(image, 1.5 * grey + 0.5)
  expected = whitened + (trail + np.rot90(trail, 2))[..., None]
  np.testing.assert_allclose(run("snow", severity)[index], expected.clip(0, 1), atol=1e-5)


# Digital.


@pytest.mark.parametrize("severity, added", [(1, 0.05), (3, 0.15), (5, 0.3)])
def test_brightness(severity, added):
  images = IMAGES.copy()
  images[0, 0, :3] = [[0, 0, 0], [1, 1, 1], [1, 0, 0.5]]
  expected = np.zeros((SIZE, SIZE, 3))
  for place in np.ndindex(SIZE, SIZE):
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, images[0][place]))
    expected[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))
  np.testing.assert_allclose(run("brightness", severity, images)[0], expected, atol=1e-5)


@pytest.mark.parametrize("severity, factor", [*enumerate([0.75, 0.5, 0.4, 0.3, 0.15], 1)])
def test_contrast(severity, factor):
  mean = IMAGES.mean((1, 2), keepdims=True)
  np.testing.assert_allclose(
    run("contrast", severity), factor * IMAGES + (1 - factor) * mean, atol=1e-5
  )


@pytest.mark.parametrize("severity, share", [*enumerate([0.95, 0.9, 0.85, 0.75, 0.65], 1)])
def test_pixelate_equals_pil(severity, share):
  def resized(plane):
    small = PIL.Image.fromarray(plane).resize((int(SIZE * share),) * 2, PIL.Image.Resampling.BOX)
    return np.asarray(small.resize((SIZE, SIZE), PIL.Image.Resampling.BOX))

  np.testing.assert_allclose(run("pixelate", severity)[0], channels(resized, IMAGES[0]), atol=1e-5)


@pytest.mark.parametrize(
  "severity, jitter, amount, stddev",
  [(1, 0.08, 0, 1), (2, 0.07, 0.05, 0.2), (3, 0.06, 0.08, 0.06), (5, 0.03, 0.1, 0.03)],
)
def test_elastic_transform(severity, jitter, amount, stddev):
  """An image that holds its own coordinates tells where each pixel came from."""
  y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
  ramps = np.stack([y, x, 0 * x], -1) / SIZE
  middle = (slice(8, 24), slice(8, 24))  # where nothing comes from beyond an edge
  sources = SIZE * many("elastic_transform", severity, ramps)[:, *middle, :2].reshape(320, -1, 2)
  here = np.stack([y[middle].ravel(), x[middle].ravel(), np.ones(16 * 16)], 1)
  affine = np.linalg.pinv(here) @ sources  # [n, 3, 2]: the best affine map to the sources
  corners = np.array([[26.0, 26.0], [6.0, 26.0], [6.0, 6.0]])
  moved = (corners - affine[:, 2:]) @ np.linalg.inv(affine[:, :2])
  residual = (sources - here @ affine).std()
  # What SciPy's smooth shifts leave beside their own best affine map.
  rng = np.random.default_rng(0)
  shifts = (
    SIZE
    * amount
    * np.stack(
      [
        scipy.ndimage.gaussian_filter(rng.uniform(-1, 1, (SIZE, SIZE)), SIZE * stddev, truncate=3)[
          middle
        ].ravel()
        for _ in range(640)
      ]
    )
  )
  projection = here @ np.linalg.pinv(here)
  left = shifts - shifts @ projection.T
  np.testing.assert_allclose(residual, left.std(), rtol=0.05, atol=1e-4)
  spread = (moved - corners).reshape(-1, 6)
  if severity == 1:  # no shifts: the jitter itself, exactly uniform
    assert (
      residual < 1e-4
      and scipy.stats.kstest(
        spread.ravel() / (SIZE * jitter), scipy.stats.uniform(-1, 2).cdf
      ).pvalue
      > 0.01
    )
  elif severity == 2:  # the shifts are small beside the jitter
    np.testing.assert_allclose(spread.std(), SIZE * jitter / np.sqrt(3), rtol=0.1)


def jpeg_by_pil(levels, quality):
  file = io.BytesIO()
  PIL.Image.fromarray(levels).save(file, "JPEG", quality=quality)
  return np.asarray(PIL.Image.open(file), float)


@pytest.mark.parametrize("severity, quality", [*enumerate([80, 65, 58, 50, 40], 1)])
def test_jpeg_equals_pil(severity, quality):
  levels = np.round(IMAGES * 255).astype(np.uint8)
  expected = np.stack([jpeg_by_pil(image, quality) for image in levels])
  difference = run("jpeg_compression", severity) * 255 - expected
  # In levels, beside a distortion of 7 to 11. What is left: libjpeg's transform has fixed-point
  # coefficients, so that a quotient near a half is rounded another way now and then.
  assert np.abs(difference).mean() < 0.15 and (np.abs(difference) > 1.5).mean() < 0.03


@pytest.mark.parametrize("shape", [(9, 13, 3), (24, 18, 3), (10, 12, 1)])
def test_jpeg_of_other_shapes_equals_pil(shape):
  height, width, depth = shape
  levels = np.round(IMAGES[:, :height, :width, :depth] * 255).astype(np.uint8)
  result = jax.jit(CORRUPTIONS["jpeg_compression"])(KEY, levels.astype(np.float32) / 255, 5)
  expected = np.stack([jpeg_by_pil(image if depth == 3 else image[..., 0], 40) for image in levels])
  difference = np.abs(np.asarray(result) * 255 - expected.reshape(result.shape))
  assert difference.mean() < 0.5 and np.median(difference.mean((1, 2, 3))) < 0.05
