"""The random crop's distribution, and its fallback."""

import numpy as np
import pytest

from tll_jax.config import validate
from tll_jax.data.geometry import RandomResizedCrop, Resize


def test_boxes_lie_inside_and_cover_the_areas_and_ratios_asked_for():
    crop = RandomResizedCrop(size=32, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([crop.draw_box(rng, 300, 400) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 300) & (left + width <= 400))
    area, ratio = height * width / (300 * 400), width / height
    assert np.all((area > 0.19) & (area < 0.61))
    assert np.all((ratio > 0.49) & (ratio < 2.03))
    # Wide boxes fit more often into a wide image, so the mean ratio leans to them; the area stays near uniform.
    assert area.mean() == pytest.approx(0.4, abs=0.03)


def test_where_no_draw_fits_the_largest_centered_part_is_taken():
    crop = RandomResizedCrop(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.draw_box(np.random.default_rng(0), 100, 40) == (30, 0, 40, 40)


def test_half_of_the_views_are_flipped():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    crop = RandomResizedCrop(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    rng = np.random.default_rng(1)
    flipped = [crop(rng, image)[0, 0, 0] == 255 for _ in range(400)]
    assert 160 < sum(flipped) < 240


def test_resize_ignores_the_generator():
    image = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)
    one, two = (Resize(size=8)(np.random.default_rng(seed), image) for seed in (0, 1))
    assert np.array_equal(one, two)
    assert one.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Resize(size=0), "size is 0"),
        (RandomResizedCrop(size=32, scale=(0.5, 2.0)), "scale is"),
        (RandomResizedCrop(size=32, ratio=(2.0, 0.5)), "ratio is"),
        (RandomResizedCrop(size=32, flip_probability=2.0), "flip_probability is 2.0"),
    ],
)
def test_impossible_geometry_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        validate(settings)
