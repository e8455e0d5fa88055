"""CSLS worked by hand, and its correction of a hub."""

import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.systems.baselines import Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.metric_learning import PrincipalComponents
from tll_jax.typing import PairImages, System


def color(*levels):
    return np.full((4, 4, 3), levels, np.uint8)


def pairs(left, right):
    return PairImages([str(index) for index in range(len(left))], left, right, np.arange(len(left)))


RED, GREEN, YELLOW = color(255, 0, 0), color(0, 255, 0), color(255, 255, 0)


def test_the_score_by_hand():
    system = CSLS(features=Pixels(size=1), num_neighbors=2)
    # Among three training images, yellow's two nearest are itself (1) and red (.71), green's are itself and yellow
    # (.71).
    train = pairs([RED, YELLOW], [YELLOW, GREEN])
    system.fit(train, train)
    half = np.sqrt(0.5)
    expected = [[half - (1 + 1) / 4, 0 - (1 + half) / 4]]
    np.testing.assert_allclose(system.score([RED], [YELLOW, GREEN]), expected, atol=1e-6)


def test_a_hub_no_longer_ranks_above_the_positive():
    # Every training image is near to yellow, none to blue.
    train = pairs([color(255, 200, 0)] * 3, [color(200, 255, 0)] * 3)
    query, match = color(120, 120, 110), color(0, 0, 255)
    plain = Pixels(size=1)
    plain.fit(train, train)
    scaled = CSLS(features=plain, num_neighbors=3)
    scaled.fit(train, train)
    # Raw, so that the example can be checked on paper.
    plain.chosen = "raw"
    plain_scores, scaled_scores = (system.score([query], [YELLOW, match])[0] for system in (plain, scaled))
    assert plain_scores[0] > plain_scores[1]
    assert scaled_scores[0] < scaled_scores[1]


def test_scoring_before_fit_is_refused_and_settings_survive_json():
    system = CSLS(features=PrincipalComponents(features=Pixels(size=2)), num_neighbors=3)
    with pytest.raises(ValueError, match="call fit first"):
        system.score([RED], [GREEN])
    with pytest.raises(ValueError, match="at least 1"):
        CSLS(features=Pixels(), num_neighbors=0).check()
    assert isinstance(system, System)
    assert CSLS(features=Pixels()).fits == "training"
    assert serialize.from_json(serialize.to_json(system)) == system
