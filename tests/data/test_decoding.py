"""Decoding: each kind of image, resizing and crops."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from sprout_jax.data import decoding
from sprout_jax.errors import UserError
from tests.data import pictures


def decode(content, channels=3):
  image = decoding.open_image(io.BytesIO(content), "photo.png")
  return np.asarray(decoding.to_channels(image, channels, "photo.png"))


def over_white(colours, alpha):
  """round(alpha * colour + (1 - alpha) * white)."""
  share = alpha[..., None] / 255
  return share * colours + (1 - share) * 255


def test_colour_and_grey():
  colour, grey = pictures.pixels(0), pictures.pixels(1, channels=1)
  np.testing.assert_array_equal(decode(pictures.encoded(colour)), colour)
  np.testing.assert_array_equal(decode(pictures.encoded(grey)), np.repeat(grey, 3, axis=2))
  np.testing.assert_array_equal(decode(pictures.encoded(grey), 1), grey[..., 0])
  black_and_white = np.where(grey > 127, 255, 0).astype(np.uint8)
  found = decode(pictures.encoded(grey > 127, bits=1), 1)
  np.testing.assert_array_equal(found, black_and_white[..., 0])


@pytest.mark.parametrize("form", ["BMP", "WEBP"])
def test_other_formats(form):
  colour = pictures.pixels(0)
  options = {"lossless": True} if form == "WEBP" else {}
  np.testing.assert_array_equal(decode(pictures.encoded(colour, form, **options)), colour)


def test_jpeg():
  flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  np.testing.assert_allclose(decode(pictures.encoded(flat, "JPEG", quality=95)), flat, atol=2)


def test_palette():
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 200, 100, 0])
  image.putdata([1, 0])
  file = io.BytesIO()
  image.save(file, "PNG")
  np.testing.assert_array_equal(decode(file.getvalue()), [[[200, 100, 0], [10, 20, 30]]])
  file = io.BytesIO()
  image.save(file, "PNG", transparency=0)  # the colour 0 is transparent
  np.testing.assert_array_equal(decode(file.getvalue()), [[[200, 100, 0], [255, 255, 255]]])
  file = io.BytesIO()
  image.save(file, "PNG", transparency=b"\x80\xff")  # the colour 0 is half transparent
  found = decode(file.getvalue())
  np.testing.assert_allclose(found[0, 1], over_white(np.array([10, 20, 30]), np.array(128)), atol=1)


def test_transparency_lies_over_white():
  four = pictures.pixels(0, channels=4)
  found = decode(pictures.encoded(four))
  np.testing.assert_allclose(found, over_white(four[..., :3], four[..., 3]), atol=1)
  two = pictures.pixels(1, channels=2)
  file = io.BytesIO()
  Image.merge("LA", [Image.fromarray(two[..., i]) for i in range(2)]).save(file, "PNG")
  expected = over_white(two[..., :1], two[..., 1])
  np.testing.assert_allclose(decode(file.getvalue(), 1), expected[..., 0], atol=1)
  assert decoding.is_grey(decoding.open_image(io.BytesIO(file.getvalue()), ""))
  key = np.array([[[9, 9, 9], [7, 8, 9]]], np.uint8)  # one colour is transparent
  found = decode(pictures.encoded(key, transparency=(7, 8, 9)))
  np.testing.assert_array_equal(found, [[[9, 9, 9], [255, 255, 255]]])


def test_cmyk():
  inks = (40, 80, 120, 60)
  file = io.BytesIO()
  Image.new("CMYK", (16, 16), inks).save(file, "JPEG", quality=95)
  expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
  np.testing.assert_allclose(
    decode(file.getvalue()), np.broadcast_to(expected, (16, 16, 3)), atol=4
  )


# What makes an image with this EXIF orientation upright, in NumPy.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.transpose(1, 0, 2),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
  8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = pictures.pixels(0)
  found = decode(pictures.encoded(stored, exif=exif))
  np.testing.assert_array_equal(found, UPRIGHT[orientation](stored))


def test_more_than_eight_bits():
  grey = pictures.png(2, 1, 16, 0, b"\0" + bytes(4))
  colour = pictures.png(2, 1, 16, 2, b"\0" + bytes(12))
  with_alpha = pictures.png(2, 1, 16, 6, b"\0" + bytes(16))
  for content in (grey, colour, with_alpha):
    with pytest.raises(UserError, match="photo.png has 16 bits.*store the image with 8 bits"):
      decode(content)


def test_huge_images():
  """Pillow would warn, and warnings are errors here."""
  with pytest.raises(UserError, match=r"photo.png has 60000 x 60000 pixels; expected at most"):
    decode(pictures.png(60_000, 60_000, 8, 2, b"\0"))
  allowed = pictures.png(10_000, 10_000, 8, 0, b"\0")  # more than Pillow's limit, less than ours
  assert decoding.open_image(io.BytesIO(allowed), "photo.png").size == (10_000, 10_000)


@pytest.mark.parametrize(
  "content, message",
  [
    (b"", r"photo.png is empty \(0 bytes\)"),
    (b"GIF89a" + bytes(20), "photo.png is no PNG, JPEG, BMP or WebP image"),
    (b"\x89PNG\r\n\x1a\n" + bytes(20), "photo.png cannot be decoded"),
    (b"\xff\xd8\xff" + bytes(3), "photo.png cannot be decoded"),
    (b"BM" + bytes(20), "photo.png cannot be decoded"),
    (b"RIFF\0\0\0\0WEBP", "photo.png cannot be decoded"),
  ],
)
def test_damaged_files(content, message):
  with pytest.raises(UserError, match=message):
    decode(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_truncated_files(form):
  content = pictures.encoded(pictures.pixels(0, 64, 64), form)
  for length in (len(content) // 2, len(content) * 9 // 10):
    with pytest.raises(UserError, match="photo.png cannot be decoded .*replace or remove it"):
      decode(content[:length])


def resized(array, rows, columns):
  """Antialiased bilinear resizing in NumPy: triangles as wide as the scale, one axis at a time."""
  for axis, length in ((1, columns), (0, rows)):
    count = array.shape[axis]
    scale = count / length
    width = max(scale, 1)
    centres = (np.arange(length) + 0.5) * scale
    distance = np.abs(np.arange(count) + 0.5 - centres[:, None]) / width
    weights = np.maximum(0, 1 - distance)
    weights /= weights.sum(axis=1, keepdims=True)
    array = np.moveaxis(np.tensordot(weights, np.moveaxis(array, axis, 0), 1), 0, axis)
  return array


@pytest.mark.parametrize(
  "shape, size, fraction, covered",
  [
    ((40, 60), (16, 16), 0.8, (20, 30)),  # the shorter side becomes 16 / 0.8
    ((60, 40), (16, 16), 1, (24, 16)),
    ((10, 14), (32, 32), 1, (32, 45)),  # enlarged
    ((40, 40), (16, 24), 1, (24, 24)),  # as high and wide as needed
    ((16, 24), (16, 24), 1, (16, 24)),
  ],
)
def test_resize_and_centre_crop(shape, size, fraction, covered):
  array = pictures.pixels(3, *shape)
  found = np.asarray(decoding.centre_crop(Image.fromarray(array), size, fraction, "photo.png"))
  assert found.shape == (*size, 3)
  top, left = ((a - b) // 2 for a, b in zip(covered, size))
  expected = resized(array.astype(float), *covered)[top : top + size[0], left : left + size[1]]
  np.testing.assert_allclose(found, expected, atol=1.01)  # Pillow rounds after each axis


def test_ribbons_are_refused():
  with pytest.raises(UserError, match="photo.png has 100000 x 1 pixels. Resized to cover"):
    decoding.centre_crop(Image.new("L", (100_000, 1)), (64, 64), 1.0, "photo.png")


def test_random_boxes_are_uniform_in_area_and_aspect():
  random, size = np.random.RandomState(0), (400, 300)
  boxes = np.array([decoding.random_box(random, size, 0.1) for _ in range(2000)])
  width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  assert boxes.min() >= 0 and boxes[:, 2].max() <= 400 and boxes[:, 3].max() <= 300
  area, aspect = width * height / 120_000, width / height
  assert 0.098 < area.min() < 0.12 and area.max() > 0.9
  # Wide boxes always fit: below 9/16 of the area, all that is drawn is kept, and uniform.
  low = area[area < 0.5]
  assert abs(np.median(low) - 0.3) < 0.02
  assert 0.73 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
  assert abs(np.median(np.log(aspect[area < 0.5]))) < 0.03
  assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 400  # every corner is reached


def test_random_box_of_a_ribbon_is_its_centre():
  random = np.random.RandomState(0)
  assert decoding.random_box(random, (1000, 9), 0.5) == (494, 0, 506, 9)  # 9 * 4/3 = 12 wide
  assert decoding.random_box(random, (9, 1000), 0.5) == (0, 494, 9, 506)


class Coordinates:
  """One image whose red is the column and whose green is the row."""

  channels = 3

  def __len__(self):
    return 1

  def __getitem__(self, index):
    row, column = np.mgrid[:200, :250]
    return Image.fromarray(np.stack([column, row, 0 * row], -1).astype(np.uint8)), 4

  def where(self, index):
    return f"image {index}"


def test_random_crop_is_the_resized_box():
  decoder = decoding.Decoder(Coordinates(), (20, 20), True, smallest_area=0.2)
  for epoch in range(5):
    image, label = decoder.training(0, 7, epoch, 0)
    again, _ = decoder.training(0, 7, epoch, 0)
    np.testing.assert_array_equal(image, again)
    assert image.shape == decoder.image_shape and image.dtype == np.uint8 and label == 4
    box = decoding.random_box(np.random.RandomState([7, epoch, 0]), (250, 200), 0.2)
    left, top, right, bottom = box
    centres = (np.arange(20) + 0.5) / 20
    # A linear ramp, resized, is linear: away from the border the value is the coordinate.
    inner = slice(2, 18)
    expected = (left + centres * (right - left) - 0.5)[inner]
    np.testing.assert_allclose(image[10, inner, 0], expected, atol=1)
    expected = (top + centres * (bottom - top) - 0.5)[inner]
    np.testing.assert_allclose(image[inner, 10, 1], expected, atol=1)
  assert not np.array_equal(image, decoder.training(0, 7, 3, 0)[0])
  assert not np.array_equal(image, decoder.training(0, 8, 4, 0)[0])


def test_one_size_is_expected_of_images_as_stored():
  decoder = decoding.Decoder(Coordinates(), (200, 200), False)
  with pytest.raises(UserError, match=r"image 0 has height and width \(200, 250\).*image_size="):
    decoder.centre(0)


def test_decoding_in_parallel_keeps_the_order(monkeypatch):
  monkeypatch.setattr(decoding, "CHUNK", 3)

  class Numbers(Coordinates):
    channels = 1

    def __getitem__(self, index):
      return Image.new("L", (2, 2), index), index

  decoder = decoding.Decoder(Numbers(), (2, 2), False)
  found = list(decoding.decode_all(decoder, [5, 1, 4, 8, 2, 9, 3], "numbers"))
  assert [label for _, label in found] == [5, 1, 4, 8, 2, 9, 3]
  assert all((image == label).all() for image, label in found)
  assert math.prod(decoder.image_shape) == 4
