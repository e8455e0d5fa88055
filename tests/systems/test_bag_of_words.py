"""Visual words: clusters and weights by hand, and independence of validation images."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tll_jax import serialize
from tll_jax.systems.bag_of_words import BagOfWords, find_words, nearest_words
from tll_jax.systems.local_features import Keypoints, LocalFeatures
from tll_jax.typing import PairImages, System


@dataclass(kw_only=True)
class FixedFeatures(LocalFeatures):
    """Descriptors along the axes, their numbers by the gray value of a constant image."""

    given: dict = field(default_factory=dict)

    def detect(self, gray):
        axes = np.repeat(np.eye(3, dtype=np.float32), self.given[int(gray[0, 0])], axis=0)
        return Keypoints(np.zeros((len(axes), 2), np.float32), 7 * axes)


def constant(gray):
    return np.full((4, 4, 3), gray, np.uint8)


def as_pairs(left, right):
    return PairImages([str(index) for index in range(len(left))], left, right, np.arange(len(left)))


def noise_pairs(num_pairs, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2 * num_pairs, 48, 48, 3), dtype=np.uint8)
    return as_pairs(list(images[:num_pairs]), list(images[num_pairs:]))


def test_words_are_the_centers_of_well_separated_clusters():
    random = np.random.default_rng(0)
    centers = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    offsets = random.normal(size=(3, 20, 2)).astype(np.float32)
    offsets -= offsets.mean(axis=1, keepdims=True)
    samples = (centers[:, None] + offsets).reshape(-1, 2)
    words = find_words(samples, 3, seed=0)
    assert words.dtype == np.float32
    assert cdist(centers, words).min(axis=1) == pytest.approx(0, abs=1e-4)
    assert np.array_equal(words, find_words(samples, 3, seed=0))


def test_descriptors_are_assigned_to_the_nearest_word():
    random = np.random.default_rng(0)
    descriptors, words = (random.normal(size=(number, 8)).astype(np.float32) for number in (50, 7))
    assert nearest_words(descriptors, words).tolist() == cdist(descriptors, words).argmin(axis=1).tolist()


def test_words_are_weighted_by_inverse_document_frequency():
    # All four training images have the first axis, two the second, one the third.
    given = {0: (1, 0, 0), 1: (2, 1, 0), 2: (1, 3, 1), 3: (5, 0, 0), 4: (2, 1, 1), 5: (0, 0, 0)}
    system = BagOfWords(features=FixedFeatures(given=given), num_words=3, num_samples=100)
    train = as_pairs([constant(0), constant(1)], [constant(2), constant(3)])
    system.fit(train, as_pairs([constant(0)], [constant(1)]))
    axis_of_word = np.argmax(system.words, axis=1)
    assert sorted(axis_of_word) == [0, 1, 2]
    expected = np.array([2 / 4 * np.log(4 / 4), 1 / 4 * np.log(4 / 2), 1 / 4 * np.log(4 / 1)])
    assert system.describe(constant(4)) == pytest.approx(expected[axis_of_word], abs=1e-6)
    assert system.describe(constant(5)).tolist() == [0, 0, 0]


def test_the_words_come_from_the_training_pairs_alone_and_are_the_same_each_time():
    train = noise_pairs(3, seed=0)
    fitted = []
    for seed in (1, 1, 2):
        system = BagOfWords(num_words=8, num_samples=200)
        system.fit(train, noise_pairs(2, seed=seed))
        fitted.append(system)
    for other in fitted[1:]:
        assert np.array_equal(fitted[0].words, other.words)
        assert np.array_equal(fitted[0].rarity, other.rarity)
        assert np.array_equal(fitted[0].training_mean, other.training_mean)


def test_an_image_is_most_alike_to_itself():
    train = noise_pairs(3, seed=0)
    system = BagOfWords(num_words=16, num_samples=200)
    system.fit(train, train)
    scores = system.score(train.left, train.left)
    assert scores.dtype == np.float32
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]


def test_impossible_settings_and_too_few_keypoints_are_refused():
    with pytest.raises(ValueError, match="call fit first"):
        BagOfWords().describe(constant(0))
    with pytest.raises(ValueError, match=r"2 keypoints.*num_words = 3"):
        find_words(np.zeros((2, 4), np.float32), 3, seed=0)
    with pytest.raises(ValueError, match="needs training pairs"):
        BagOfWords().fit(as_pairs([], []), noise_pairs(1, seed=0))
    with pytest.raises(ValueError, match="num_words is 0"):
        BagOfWords(num_words=0).check()
    with pytest.raises(ValueError, match="num_samples is 5"):
        BagOfWords(num_words=9, num_samples=5).check()


def test_settings_come_back_from_json_without_what_was_learned():
    system = BagOfWords(num_words=8, num_samples=200)
    assert isinstance(system, System)
    system.fit(noise_pairs(2, seed=0), noise_pairs(2, seed=1))
    assert serialize.from_json(serialize.to_json(system)) == BagOfWords(num_words=8, num_samples=200)
