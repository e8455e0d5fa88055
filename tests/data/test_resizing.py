"""Antialiased resizing compared with Pillow's, which torchvision uses."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.data.resizing import averaged_together, resize_antialiased

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(height, width, seed=0):
    """Noise whose amplitude falls as 1 / frequency, as in natural images."""
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1.0
    smooth = np.fft.ifft2(noise / frequency[..., None], axes=(0, 1)).real
    return np.clip(128 + 45 * (smooth - smooth.mean()) / smooth.std(), 0, 255).astype(np.uint8)


def with_pillow(image, size, interpolation):
    return np.asarray(Image.fromarray(image).resize((size, size), PILLOW[interpolation]))


def gray_levels(one, two):
    return np.abs(one.astype(float) - two.astype(float)).mean()


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("height", [70, 96, 112, 127, 160, 190, 256, 384])
def test_the_difference_to_pillow_is_a_fraction_of_that_without_antialiasing(height, interpolation):
    image, flag = picture(height, 128), cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    wanted = with_pillow(image, 64, interpolation)
    remains = gray_levels(resize_antialiased(image, 64, interpolation=interpolation), wanted)
    assert remains < 0.2 * gray_levels(cv2.resize(image, (64, 64), interpolation=flag), wanted)


@pytest.mark.parametrize(("interpolation", "bound"), [("bilinear", 0.3), ("bicubic", 1.4)])
def test_enlarging_is_close_to_pillow(interpolation, bound):
    image = picture(40, 64)
    found = resize_antialiased(image, 64, interpolation=interpolation)
    assert gray_levels(found, with_pillow(image, 64, interpolation)) < bound


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("side", [120, 127, 128, 190, 400])
def test_stripes_finer_than_the_new_pixels_go_gray(side, interpolation):
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = RandomResizedCrop(size=64, scale=(1, 1), ratio=(1, 1), flip_probability=0, interpolation=interpolation)
    found = crop(np.random.default_rng(0), stripes)
    assert abs(found.mean() - 127.5) < 10
    # 127.5 before; without a filter 73 after.
    assert found.std() < with_pillow(stripes, 64, interpolation).std() + 12


@pytest.mark.parametrize("shape", [(8, 8), (9, 64), (23, 24), (25, 7), (1, 500), (501, 2), (1000, 999)])
def test_a_flat_picture_stays_flat_at_any_shape(shape):
    image = np.full((*shape, 3), (0, 100, 255), np.uint8)
    for interpolation in PILLOW:
        found = resize_antialiased(image, 8, interpolation=interpolation)
        assert found.shape == (8, 8, 3)
        assert np.all(found == (0, 100, 255))


def test_a_picture_of_the_wanted_size_is_left_as_it_is():
    image = picture(16, 16)
    assert np.array_equal(resize_antialiased(image, 16, interpolation="bicubic"), image)


def test_the_number_of_pixels_averaged_leaves_a_scale_factor_below_three():
    # 191 is less than 3 times 64; 192 is 3 times, of which 2 are averaged and 1.5 are left to filter.
    assert [averaged_together(length, 64) for length in (10, 64, 191, 192, 287, 288, 1000)] == [1, 1, 1, 2, 2, 3, 10]


@pytest.mark.parametrize("interpolation", PILLOW)
def test_a_crop_is_its_box_resized(interpolation):
    crop = RandomResizedCrop(size=16, scale=(0.5, 1.0), flip_probability=0.0, interpolation=interpolation)
    image = picture(41, 37)
    top, left, height, width = crop.draw_box(np.random.default_rng(3), 41, 37)
    box = image[top : top + height, left : left + width]
    expected = resize_antialiased(box, 16, interpolation=interpolation)
    assert np.array_equal(crop(np.random.default_rng(3), image), expected)


def test_only_pixels_beyond_a_whole_multiple_are_left_out():
    image = picture(49, 48)
    image[48] = 0
    assert averaged_together(49, 16) == 2
    assert np.array_equal(resize_antialiased(image, 16), resize_antialiased(image[:48], 16))
