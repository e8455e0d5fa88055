"""Heads on frozen features: learning of shared dimensions, determinism and errors."""

from dataclasses import dataclass

import numpy as np
import pytest

from tll_jax.models.heads import Diagonal, Identity, Projection, RectifiedProjection
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.triplet import Triplet
from tll_jax.ranking import ranks, reciprocal_rank
from tll_jax.settings import validate
from tll_jax.systems.adapter import Adapter
from tll_jax.training.optimizers import AdamW
from tll_jax.typing import PairImages, System

DIM, NEGATED = 12, 3


@dataclass(kw_only=True)
class Vectors(System):
    """Images that are vectors already."""

    def fit(self, train, validation):
        pass

    def describe_all(self, images):
        return np.stack([images[index] for index in range(len(images))])

    def score(self, queries, candidates):
        raise NotImplementedError


@dataclass(kw_only=True)
class Negated:
    """Geometry that negates the first numbers, to make another version."""

    size: int = DIM
    shortest_side: int = DIM

    def __call__(self, rng, image):
        return np.concatenate([-image[:NEGATED], image[NEGATED:]])


def pairs(number, seed, *, noise=3.0):
    """The first half of the numbers is shared by both sides of a pair, the other half is loud noise of each."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(number, DIM // 2))
    own = noise * random.normal(size=(2, number, DIM // 2))
    left, right = (list(np.hstack([shared, one]).astype(np.float32)) for one in own)
    return PairImages([str(index) for index in range(number)], left, right, np.arange(number))


def adapter(**fields):
    fields = {"objective": InfoNCE(), "optimizer": AdamW(learning_rate=0.03), "num_steps": 60} | fields
    return Adapter(features=Vectors(), **fields)


def quality(system, test):
    found = system.score(test.left, test.right)
    return reciprocal_rank(ranks(found, np.arange(len(test.ids)))).mean()


@pytest.mark.parametrize(
    ("head", "objective"),
    [
        (Diagonal(), InfoNCE()),
        (Projection(widths=(8,)), InfoNCE()),
        (Projection(widths=(16, 8), batch_norm=True), InfoNCE()),
        (RectifiedProjection(width=32), InfoNCE()),
        (Projection(widths=(8,)), Triplet(margin=0.2, mining="semi_hard")),
    ],
)
def test_heads_learn_what_the_sides_of_a_pair_have_in_common(head, objective):
    train, test = pairs(200, 0), pairs(50, 1)
    plain = adapter(head=Identity(), num_steps=1)
    plain.fit(train, train)
    trained = adapter(head=head, objective=objective)
    trained.fit(train, train)
    assert isinstance(trained, System)
    assert quality(plain, test) < 0.35
    assert quality(trained, test) > 2 * quality(plain, test)
    assert trained.losses[-5:].mean() < trained.losses[:5].mean()


def test_diagonal_weights_favor_dimensions_that_pairs_share():
    trained = adapter(head=Diagonal())
    trained.fit(pairs(200, 0), pairs(10, 1))
    weights = np.maximum(trained.variables["params"]["head"]["weights"], 0)
    assert weights[: DIM // 2].min() > 2 * weights[DIM // 2 :].max()


def test_training_is_deterministic_given_the_seed_and_differs_between_seeds():
    train, test = pairs(40, 0), pairs(10, 1)
    scores = []
    for seed in (0, 0, 1):
        system = adapter(head=Projection(widths=(4,)), seed=seed, batch_size=16)
        system.fit(train, train)
        scores.append(system.score(test.left, test.right))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 0.01


def test_dimensions_that_differ_between_versions_lose_weight():
    train = pairs(200, 0, noise=1.0)
    weights = []
    for views in ((), (Negated(),)):
        trained = adapter(head=Diagonal(), views=views)
        trained.fit(train, train)
        weights.append(np.maximum(trained.variables["params"]["head"]["weights"], 0))
    plain, versed = (one / one[NEGATED : DIM // 2].mean() for one in weights)
    assert plain[:NEGATED].min() > 0.5
    assert versed[:NEGATED].max() < 0.5


def test_training_without_enough_pairs_or_with_impossible_settings_is_refused():
    train = pairs(10, 0)
    with pytest.raises(ValueError, match="not trained yet: call fit first"):
        adapter(head=Identity()).score(train.left, train.right)
    with pytest.raises(ValueError, match=r"Adapter\.batch_size is 11, more than the 10 training pairs"):
        adapter(head=Identity(), batch_size=11).fit(train, train)
    with pytest.raises(ValueError, match="needs training pairs"):
        adapter(head=Identity()).fit(PairImages([], [], [], np.arange(0)), train)
    with pytest.raises(ValueError, match="not finite from step"):
        adapter(head=Projection(widths=(4,), normalize=False), optimizer=AdamW(learning_rate=1e30)).fit(train, train)
    for fields, words in (({"num_steps": 0}, "num_steps is 0"), ({"batch_size": 1}, "batch_size is 1")):
        with pytest.raises(ValueError, match=words):
            validate(adapter(head=Identity(), **fields))
