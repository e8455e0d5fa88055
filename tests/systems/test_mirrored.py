"""Test-time augmentation by a flip: by hand, and invariance to mirroring."""

import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.systems.baselines import Hog, Pixels
from tll_jax.systems.metric_learning import PrincipalComponents
from tll_jax.systems.mirrored import Mirrored, MirrorImages
from tll_jax.typing import PairImages, System


def images(number, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, size=(number, 12, 20, 3), dtype=np.uint8))


def pairs(number):
    left, right = images(number), images(number, seed=1)
    return PairImages([str(index) for index in range(number)], left, right, np.arange(number))


def test_the_sum_by_hand():
    left_half = np.zeros((4, 4, 3), np.uint8)
    left_half[:, :2] = 255
    system = Mirrored(features=Pixels(size=2))
    # Eight columns and channels, half of them in each orientation, at unit length.
    np.testing.assert_allclose(system.describe_all([left_half])[0], np.full(12, 1 / np.sqrt(6)), rtol=1e-6)


def test_descriptors_are_invariant_to_mirroring():
    pictures = images(5)
    mirrored = [image[:, ::-1] for image in pictures]
    system = Mirrored(features=Hog())
    system.fit(pairs(6), pairs(3))
    assert np.all(np.diag(Hog().score(pictures, mirrored)) < 0.99)
    np.testing.assert_allclose(np.diag(system.score(pictures, mirrored)), 1, atol=1e-5)
    assert isinstance(system, System)
    np.testing.assert_array_equal(MirrorImages(pictures)[2], mirrored[2])


def test_fit_fits_the_underlying_features():
    system = Mirrored(features=PrincipalComponents(features=Pixels(size=2), widths=(3,)))
    with pytest.raises(ValueError, match="call fit first"):
        system.describe_all(images(2))
    system.fit(pairs(6), pairs(3))
    assert system.describe_all(images(2)).shape == (2, 3)
    assert serialize.from_json(serialize.to_json(system)) == system
