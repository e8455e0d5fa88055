"""Occlusion, SBSM and RISE against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.saliency.baselines import flat
from tll_jax.saliency.perturbation import occlusion, random_mask, rise, sbsm, window_starts

RANDOM = np.random.default_rng(0)
IMAGE = jnp.asarray(RANDOM.uniform(size=(7, 5, 3)), jnp.float32)
WEIGHTS = jnp.asarray(RANDOM.normal(size=(7, 5, 3)), jnp.float32)


def score(image):
    return jnp.tanh(jnp.sum(WEIGHTS * image**2) / 4)


def numpy_score(image):
    return np.tanh(np.sum(np.asarray(WEIGHTS, np.float64) * image**2) / 4)


@pytest.mark.parametrize(("method", "count"), [(occlusion, lambda fall: fall), (sbsm, lambda fall: max(fall, 0.0))])
def test_windows_beyond_the_border_count_for_the_pixels_they_cover(method, count):
    image = np.asarray(IMAGE, np.float64)
    total, times = np.zeros((7, 5)), np.zeros((7, 5))
    # Rows 0-3 and 3-6; columns 0-3 and 3-6, of which 5 and 6 are none.
    for row in (0, 3):
        for column in (0, 3):
            occluded = image.copy()
            occluded[row : row + 4, column : column + 4] = 0.5
            total[row : row + 4, column : column + 4] += count(numpy_score(image) - numpy_score(occluded))
            times[row : row + 4, column : column + 4] += 1
    for chunk in (3, 16):
        heatmap = method(score, IMAGE, window=4, stride=3, baseline=flat(0.5), chunk=chunk)
        np.testing.assert_allclose(heatmap, total / times, rtol=1e-4, atol=1e-6)


def test_occlusion_of_single_pixels_of_a_linear_score_is_their_contribution():
    heatmap = occlusion(lambda image: jnp.sum(WEIGHTS * image), IMAGE, window=1, stride=1, baseline=flat(0.0))
    np.testing.assert_allclose(heatmap, np.sum(WEIGHTS * IMAGE, axis=-1), atol=1e-5)


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_pixels_out_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride is {stride} and window 4"):
        occlusion(score, IMAGE, window=4, stride=stride, baseline=flat(0.5))


def test_windows_cover_the_image_and_each_overlaps_it():
    for length in range(1, 13):
        for window in range(1, 15):
            for stride in range(1, window + 1):
                starts = window_starts(length, window, stride)
                covered = {place for start in starts for place in range(start, start + window)}
                assert set(range(length)) <= covered
                assert all(start < length for start in starts)
                assert len(starts) == 1 or starts[-2] + window < length


def test_rise_weighs_masks_by_their_score_minus_the_mean():
    key, image = jax.random.key(0), np.asarray(IMAGE, np.float64)
    masks = jax.vmap(lambda key: random_mask(key, 7, 5, grid=3, keep_probability=0.4))(jax.random.split(key, 17))
    masks = np.asarray(masks, np.float64)
    scores = [numpy_score(image * mask[..., None]) for mask in masks]
    total = np.zeros((7, 5))
    for found, mask in zip(scores, masks, strict=True):
        total += (found - np.mean(scores)) * mask
    heatmap = rise(score, IMAGE, key=key, num_masks=17, grid=3, keep_probability=0.4)
    np.testing.assert_allclose(heatmap, total / (17 * 0.4), rtol=1e-4, atol=1e-6)


def test_masks_have_their_mean_at_every_pixel_and_differ():
    keys = jax.random.split(jax.random.key(0), 4000)
    masks = np.asarray(jax.vmap(lambda key: random_mask(key, 9, 6, grid=4, keep_probability=0.3))(keys))
    assert masks.shape == (4000, 9, 6)
    assert masks.min() >= 0
    assert masks.max() <= 1
    np.testing.assert_allclose(masks.mean(axis=0), np.full((9, 6), 0.3), atol=0.03)
    # Far pixels are in the dark independently of each other; a mask that were never shifted would be 0 or 1 there.
    assert abs(np.corrcoef(masks[:, 0, 0], masks[:, 8, 5])[0, 1]) < 0.06
    assert ((masks[:, 4, 3] > 0.1) & (masks[:, 4, 3] < 0.9)).any()


def test_a_constant_score_has_an_empty_rise_map():
    heatmap = rise(lambda image: jnp.float32(3.0), IMAGE, key=jax.random.key(0), num_masks=50, grid=3)
    np.testing.assert_allclose(heatmap, np.zeros((7, 5)), atol=1e-5)


def test_rise_is_largest_at_the_pixel_of_the_score():
    heatmap = np.asarray(rise(lambda image: image[5, 1, 0], jnp.ones((7, 5, 3)), key=jax.random.key(0), grid=4))
    assert np.unravel_index(heatmap.argmax(), heatmap.shape) == (5, 1)
