"""Geometric augmentation: distribution and fallback of the random crop, padding and center crop."""

import numpy as np
import pytest

from tll_jax.data.geometry import CenterCrop, Pad, RandomResizedCrop, Resize
from tll_jax.settings import validate


def test_boxes_are_inside_the_image_and_cover_the_requested_areas_and_ratios():
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


def test_if_no_draw_fits_the_largest_centered_box_is_used():
    crop = RandomResizedCrop(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.draw_box(np.random.default_rng(0), 100, 40) == (30, 0, 40, 40)


def test_half_of_the_views_are_flipped():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    crop = RandomResizedCrop(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    rng = np.random.default_rng(1)
    flipped = [crop(rng, image)[0, 0, 0] == 255 for _ in range(400)]
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize("side", range(16, 35))
def test_every_row_of_a_part_counts_however_much_it_shrinks(side):
    crop = RandomResizedCrop(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for row in range(side):
        image = np.zeros((side, side, 3), np.uint8)
        image[row] = 255
        assert crop(np.random.default_rng(0), image).any()


def test_resize_ignores_the_generator():
    image = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)
    one, two = (Resize(size=8)(np.random.default_rng(seed), image) for seed in (0, 1))
    assert np.array_equal(one, two)
    assert one.shape == (8, 8, 3)


def test_padding_keeps_the_shape_in_the_middle():
    image = np.zeros((40, 20, 3), np.uint8)
    padded = Pad(size=16, level=200)(np.random.default_rng(0), image)
    assert padded.shape == (16, 16, 3)
    assert np.all(padded[:, 4:12] == 0)
    assert np.all(padded[:, :4] == 200)
    assert np.all(padded[:, 12:] == 200)


def test_padding_keeps_at_least_one_line_of_a_very_long_image():
    image = np.zeros((5, 1000, 3), np.uint8)
    padded = Pad(size=16)(np.random.default_rng(0), image)
    assert [row for row in range(16) if not padded[row].all()] == [7]


def test_the_center_crop_takes_the_middle_square():
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 40:60] = 255
    assert np.all(CenterCrop(size=10, share=0.5)(np.random.default_rng(0), image) == 255)
    whole = CenterCrop(size=40, share=1.0)(np.random.default_rng(0), image)
    assert np.array_equal(whole, image[:, 30:70])


def test_no_part_is_enlarged_where_the_shorter_side_is_long_enough():
    assert Resize(size=64).shortest_side == 64
    assert CenterCrop(size=224).shortest_side == 256
    # A part of a quarter of the area is at least half as wide at ratio 1.
    assert RandomResizedCrop(size=32, scale=(0.25, 1.0), ratio=(1.0, 1.0)).shortest_side == 64
    crop = RandomResizedCrop(size=32, scale=(0.1, 1.0))
    side = crop.shortest_side
    rng = np.random.default_rng(0)
    boxes = np.array([crop.draw_box(rng, side, side + 30) for _ in range(4000)])
    # Sides are rounded to whole pixels.
    assert 31 <= boxes[:, 2:].min() < 40


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Resize(size=0), "size is 0"),
        (Pad(size=32, level=256), "level is 256"),
        (CenterCrop(size=32, share=0.0), "share is 0.0"),
        (RandomResizedCrop(size=32, scale=(0.5, 2.0)), "scale is"),
        (RandomResizedCrop(size=32, ratio=(2.0, 0.5)), "ratio is"),
        (RandomResizedCrop(size=32, flip_probability=2.0), "flip_probability is 2.0"),
        (
            RandomResizedCrop(size=32, interpolation="lanczos"),
            "interpolation is 'lanczos'; it must be one of bilinear, bicubic",
        ),
    ],
)
def test_impossible_geometry_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        validate(settings)
