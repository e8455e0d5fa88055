"""Baseline descriptors: sensitivities, invariances, and the known results on the emoji pairs."""

import csv
import io
import os
import zipfile
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from tll_jax.ranking import hits, ranks
from tll_jax.systems.baselines import ColorHistogram, Hog, Pixels
from tll_jax.typing import PairImages

SYSTEMS = (Pixels, Hog, ColorHistogram)


def noise_images(num_images, seed=0, shape=(40, 50, 3)):
    return list(np.random.default_rng(seed).integers(0, 256, size=(num_images, *shape), dtype=np.uint8))


def as_pairs(left, right):
    return PairImages([str(index) for index in range(len(left))], left, right, np.arange(len(left)))


def blobs(num_images, seed):
    """Smooth random pictures, whose content survives resizing."""
    small = np.random.default_rng(seed).integers(0, 256, size=(num_images, 5, 5, 3), dtype=np.uint8)
    return [cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC) for image in small]


@pytest.mark.parametrize("system", [make() for make in SYSTEMS], ids=lambda system: type(system).__name__)
def test_an_image_is_most_alike_to_itself_at_another_size(system):
    images = blobs(6, seed=0)
    larger = [cv2.resize(image, (200, 245), interpolation=cv2.INTER_LINEAR) for image in images]
    scores = system.score(images, larger)
    assert scores.dtype == np.float32
    assert scores.shape == (6, 6)
    assert ranks(scores, np.arange(6)).tolist() == [1] * 6


@pytest.mark.parametrize("system", [make() for make in SYSTEMS], ids=lambda system: type(system).__name__)
def test_constant_and_tiny_images_score_finite_numbers(system):
    images = [
        np.zeros((64, 64, 3), np.uint8),
        np.full((1, 1, 3), 255, np.uint8),
        np.full((3, 300, 3), 128, np.uint8),
        *noise_images(2),
    ]
    system.fit(as_pairs(images[:3], images[:3]), as_pairs(images[:3], images[:3]))
    assert np.isfinite(system.score(images, images)).all()


def test_a_constant_image_has_similarity_zero_by_its_gradients():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert Hog().score([flat], [flat, *noise_images(3)]).tolist() == [[0.0] * 4]


def test_pixels_are_compared_by_the_cosine():
    # One red against one yellow pixel: (1, 0, 0) and (1, 1, 0) have cosine 1 / sqrt(2).
    red, yellow = (np.array([[color]], np.uint8) for color in ((255, 0, 0), (255, 255, 0)))
    assert Pixels(size=1).score([red], [yellow, red])[0] == pytest.approx([2**-0.5, 1.0])


def test_color_histograms_ignore_where_colors_are_and_measure_how_much_they_share():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = (255, 0, 0)
    image[4:] = (0, 0, 255)
    mostly_red = image.copy()
    mostly_red[4:6] = (255, 0, 0)
    green = np.full((8, 8, 3), (0, 255, 0), np.uint8)
    scores = ColorHistogram().score([image], [image[::-1], mostly_red, green])
    # Half red and half blue shares 1/2 + 1/4 with three quarters red and one quarter blue.
    assert scores[0] == pytest.approx([1.0, 0.75, 0.0])


def test_hog_has_the_fixed_layout_and_ignores_brightness():
    (image,) = blobs(1, seed=3)
    # 8x8 cells of 8 pixels make 7x7 overlapping blocks of 2x2 cells with 9 bins.
    assert Hog().describe(image).shape == (7 * 7 * 2 * 2 * 9,)
    darker = (image // 2).astype(np.uint8)
    assert Hog().score([image], [darker])[0, 0] > 0.98


def one_pixel_pairs(left, right):
    return as_pairs(*([np.array([[color]], np.uint8) for color in side] for side in (left, right)))


def test_centering_on_the_training_mean_is_chosen_where_it_helps():
    gray = [(128, 128, 128)] * 2
    # Seen from gray, the first pair differs in strength alone. Raw, its left color is nearer to the second's.
    validation = one_pixel_pairs([(138, 128, 128), (128, 138, 128)], [(228, 128, 128), (128, 138, 128)])
    system = Pixels(size=1)
    system.fit(one_pixel_pairs(gray, gray), validation)
    # Ranks 2, 1 from left to right and 1, 1 back.
    assert system.validation_mrr == {"raw": 3.5 / 4, "centered": 1.0}
    assert system.chosen == "centered"


def test_the_raw_descriptor_is_chosen_where_centering_hurts():
    # Each pair has one hue in two strengths; the training mean lies between the strengths of the first.
    mean = [(75, 150, 0)] * 2
    validation = one_pixel_pairs([(50, 100, 0), (100, 50, 0)], [(100, 200, 0), (200, 100, 0)])
    system = Pixels(size=1)
    system.fit(one_pixel_pairs(mean, mean), validation)
    assert system.validation_mrr["raw"] == 1.0
    assert system.validation_mrr["centered"] < 1.0
    assert system.chosen == "raw"


def test_the_training_mean_is_over_both_sides():
    pairs = one_pixel_pairs([(255, 0, 0)], [(0, 0, 51)])
    system = Pixels(size=1)
    system.fit(pairs, pairs)
    assert system.training_mean == pytest.approx([0.5, 0.0, 0.1])


def test_the_chosen_variant_is_the_one_that_scores():
    images = blobs(8, seed=1)
    pairs = as_pairs(images[:4], images[4:])
    system = Pixels(size=4)
    raw = system.score(images, images)
    system.fit(pairs, pairs)
    vectors = np.stack([system.describe(image) for image in images])
    centered = vectors - vectors.mean(axis=0)
    by_hand = {
        name: np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in rows] for a in rows])
        for name, rows in (("raw", vectors), ("centered", centered))
    }
    assert raw == pytest.approx(by_hand["raw"], abs=1e-5)
    for variant, expected in by_hand.items():
        system.chosen = variant
        assert system.score(images, images) == pytest.approx(expected, abs=1e-4)


def test_a_tie_on_validation_keeps_the_raw_variant():
    images = blobs(3, seed=2)
    system = Pixels()
    system.fit(as_pairs(images, images), as_pairs(images, images))
    assert system.validation_mrr == {"raw": 1.0, "centered": 1.0}
    assert system.chosen == "raw"


@pytest.mark.parametrize("make", [Pixels, Hog])
def test_fitting_without_pairs_is_refused(make):
    images = noise_images(2)
    some, none = as_pairs(images, images), as_pairs([], [])
    with pytest.raises(ValueError, match="needs training pairs"):
        make().fit(none, some)
    with pytest.raises(ValueError, match="needs validation pairs"):
        make().fit(some, none)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"Pixels\.size is 0"):
        Pixels(size=0).check()
    with pytest.raises(ValueError, match=r"ColorHistogram\.bins is \(8, 0, 4\)"):
        ColorHistogram(bins=(8, 0, 4)).check()


def test_learned_values_are_not_part_of_the_settings():
    images = blobs(4, seed=4)
    fitted = Pixels()
    fitted.fit(as_pairs(images[:2], images[2:]), as_pairs(images[:2], images[2:]))
    assert fitted == Pixels()
    assert [setting.name for setting in fields(Pixels) if setting.init] == ["size"]


def emoji_pairs():
    archive = zipfile.ZipFile(Path(os.environ["TLL_DATA"]) / "emoji-pairs.zip")
    with archive.open("pairs.csv") as table:
        kept = [
            row["id"]
            for row in csv.DictReader(io.TextIOWrapper(table, encoding="utf-8"))
            if row["category"] not in ("Smileys & Emotion", "People & Body")
        ]
    ids = list(np.random.default_rng(0).permutation(kept))

    def decode(side, identifier):
        data = np.frombuffer(archive.read(f"{side}/{identifier}.webp"), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    sides = {side: [decode(side, identifier) for identifier in ids] for side in ("left", "right")}
    archive.close()
    return [
        PairImages(ids[part], sides["left"][part], sides["right"][part], np.arange(len(ids))[part])
        for part in (slice(216), slice(216, 432), slice(432, None))
    ]


@pytest.mark.skipif("TLL_DATA" not in os.environ, reason="TLL_DATA does not name the folder of the emoji pairs")
def test_descriptors_reach_their_known_figures_on_the_emoji_pairs():
    test, validation, train = emoji_pairs()
    known = {
        Pixels: {"raw": (0.38, 0.53), "centered": (0.44, 0.62)},
        Hog: {"raw": (0.52, 0.70), "centered": (0.56, 0.74)},
    }
    for make, figures in known.items():
        system = make()
        system.fit(train, validation)
        assert system.chosen == "centered"
        for variant, (top1, top5) in figures.items():
            system.chosen = variant
            scores = system.score(test.left, test.right)
            both = np.concatenate([ranks(way, np.arange(216)) for way in (scores, scores.T)])
            # 0.07 is two standard errors of a proportion near one half over 216 pairs.
            assert np.mean(hits(both, 1)) == pytest.approx(top1, abs=0.07)
            assert np.mean(hits(both, 5)) == pytest.approx(top5, abs=0.07)
