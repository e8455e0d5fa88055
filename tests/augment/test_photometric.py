"""Photometric changes against colorsys, OpenCV, SciPy and paper."""

import colorsys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.augment.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur_plainly,
    gaussian_blur,
    luminance,
    luminance_by_sum,
    solarize,
)
from tll_jax.augment.recipes import BLUR_REACH

IMAGE = np.random.default_rng(0).uniform(size=(13, 17, 3)).astype(np.float32)
UNIT = st.integers(0, 255).map(lambda value: value / 255)


def pixel(*values):
    return jnp.asarray(values, jnp.float32)[None, None]


def test_brightness_multiplies_and_clips():
    np.testing.assert_allclose(adjust_brightness(pixel(0.2, 0.5, 0.8), 1.5), pixel(0.3, 0.75, 1.0), rtol=1e-6)


def test_contrast_zero_is_the_mean_luminance_and_two_doubles_the_difference_to_it():
    image = jnp.concatenate([pixel(0.4, 0.4, 0.4), pixel(0.6, 0.6, 0.6)], axis=1)
    # The weights of the three channels sum to 0.9999.
    np.testing.assert_allclose(adjust_contrast(image, 0.0), np.full((1, 2, 3), 0.5), atol=1e-4)
    np.testing.assert_allclose(adjust_contrast(image, 2.0)[0, :, 0], [0.3, 0.7], atol=1e-4)


def test_saturation_zero_is_the_gray_of_opencv():
    gray = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)
    for weigh in (luminance, luminance_by_sum):
        np.testing.assert_allclose(weigh(jnp.asarray(IMAGE))[..., 0], gray, atol=2e-4)
    np.testing.assert_allclose(adjust_saturation(jnp.asarray(IMAGE), 0.0)[..., 1], gray, atol=2e-4)


def test_saturation_moves_a_pixel_from_its_gray():
    # Gray of pure red is 0.2989; halfway there.
    expected = pixel((1 + 0.2989) / 2, 0.2989 / 2, 0.2989 / 2)
    np.testing.assert_allclose(adjust_saturation(pixel(1, 0, 0), 0.5), expected, rtol=1e-5)


@settings(max_examples=100)
@given(red=UNIT, green=UNIT, blue=UNIT, turns=st.floats(-0.5, 0.5))
def test_hue_moves_as_in_colorsys(red, green, blue, turns):
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    expected = colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
    np.testing.assert_allclose(adjust_hue(pixel(red, green, blue), turns)[0, 0], expected, atol=1e-5)


def test_a_third_of_a_turn_makes_red_green_and_gray_stays():
    np.testing.assert_allclose(adjust_hue(pixel(1, 0, 0), 1 / 3), pixel(0, 1, 0), atol=1e-6)
    np.testing.assert_array_equal(adjust_hue(pixel(0.5, 0.5, 0.5), 0.3), pixel(0.5, 0.5, 0.5))


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_factor_one_changes_nothing(adjust):
    np.testing.assert_allclose(adjust(jnp.asarray(IMAGE), 1.0), IMAGE, atol=1e-6)


def test_solarize_inverts_the_bright_half():
    np.testing.assert_allclose(solarize(pixel(0.25, 0.5, 0.875)), pixel(0.25, 0.5, 0.125))


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 1), (0.7, 3), (2.0, 8), (2.0, 20)])
def test_blur_is_the_gaussian_of_scipy_renormalized_at_the_edges(sigma, radius):
    def scipy_blur(image):
        return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="constant", radius=(radius, radius, 0))

    expected = scipy_blur(IMAGE) / scipy_blur(np.ones_like(IMAGE))
    for blur in (gaussian_blur, blur_plainly):
        np.testing.assert_allclose(blur(jnp.asarray(IMAGE), sigma, radius=radius), expected, atol=1e-6)


def test_blur_keeps_a_flat_image_and_its_smallest_sigma_keeps_any():
    flat = jnp.full((9, 9, 3), 0.3)
    np.testing.assert_allclose(gaussian_blur(flat, 2.0, radius=8), flat, rtol=1e-6)
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(IMAGE), 0.1, radius=8), IMAGE, atol=1e-6)


def test_the_truncated_tail_of_a_blur_is_less_than_a_gray_level():
    worst = jnp.where(jnp.arange(64)[:, None, None] < 32, 0.0, 1.0) * jnp.ones((64, 64, 3))
    whole = gaussian_blur(worst, 2.0, radius=32)
    assert float(jnp.max(jnp.abs(gaussian_blur(worst, 2.0, radius=2 * BLUR_REACH) - whole))) < 1 / 255 / 10
