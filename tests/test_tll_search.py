"""Systems of the search on Totally Looks Like agree with closed forms and slow loops."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tll_jax.typing import PairImages, System


@pytest.fixture
def systems(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import tll_search_systems

    yield tll_search_systems
    del sys.modules["tll_search_systems"]


@dataclass
class Vectors(System):
    """Vectors in place of images."""

    def fit(self, train, validation):
        pass

    def describe_all(self, images):
        return np.stack(images).astype(np.float32)


def pairs(rng, count, dim):
    means = rng.normal(size=(count, dim)) * np.linspace(2, 0.5, dim)
    sides = (list(means + 0.5 * rng.normal(size=means.shape)) for _ in range(2))
    return PairImages([str(i) for i in range(count)], *sides, np.arange(count))


def test_two_covariances_score_by_the_likelihood_ratio_of_their_gaussians(systems):
    rng = np.random.default_rng(0)
    train, queries, gallery = pairs(rng, 300, 4), rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    system = systems.TwoCovariances(features=Vectors(), shrinkage=0.1)
    system.fit(train, train)
    a, b, left, right = (
        one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, gallery, *map(np.stack, train[1:3]))
    )
    mean = (left.mean(axis=0) + right.mean(axis=0)) / 2
    halves, means = (left - right) / 2, (left + right) / 2 - mean
    within = 2 * halves.T @ halves / len(halves)
    between = means.T @ means / len(means) - within / 2
    within += 0.1 * np.trace(within) / 4 * np.eye(4)
    assert np.linalg.eigvalsh(between).min() > 0
    total = between + within
    together = stats.multivariate_normal(np.tile(mean, 2), np.block([[total, between], [between, total]]))
    alone = stats.multivariate_normal(mean, total)
    expected = [[together.logpdf(np.concatenate([x, y])) - alone.logpdf(x) - alone.logpdf(y) for y in b] for x in a]
    found = system.score(queries, gallery)
    # Constants that are equal for all candidates are left out.
    np.testing.assert_allclose(found - found.mean(), expected - np.mean(expected), atol=2e-3)


def test_a_query_is_expanded_by_its_nearest_candidates_times_their_similarity(systems):
    query, gallery = np.array([1.0, 0.0]), np.array([[0.8, 0.6], [0.6, -0.8], [-1.0, 0.0]])
    system = systems.QueryExpansion(features=Vectors(), count=1, weight=0.5)
    # The nearest has similarity .8: the query becomes (1, 0) + .4 (.8, .6), at unit length.
    expanded = np.array([1.32, 0.24]) / np.hypot(1.32, 0.24)
    np.testing.assert_allclose(system.score([query], list(gallery))[0], gallery @ expanded, rtol=1e-5)


def test_reciprocal_neighbors_are_nearer_than_a_hub_of_equal_cosine(systems):
    # Query and candidate 0 are a pair apart from the rest; candidate 1 has as large a cosine, and neighbors of its own.
    angles = np.deg2rad([10, -10, -12, -14, -16])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    plain = systems.Reciprocal(features=Vectors(), count=2, weight=0.0).score([np.array([1.0, 0.0])], list(gallery))[0]
    np.testing.assert_allclose(plain, np.cos(angles), rtol=1e-5)
    found = systems.Reciprocal(features=Vectors(), count=2, weight=0.3).score([np.array([1.0, 0.0])], list(gallery))[0]
    assert plain[0] == pytest.approx(plain[1])
    assert found[0] > found[1] + 0.05


def test_transported_mass_of_equal_cells_is_worth_one_and_moving_it_costs_its_distance(systems):
    cells = np.eye(4, dtype=np.float32)[None]
    system = systems.Transport(features=None, distance=0.0, epsilon=0.02, num_iterations=50)
    cost = np.zeros((4, 4), np.float32)
    swapped = cells[:, [1, 0, 2, 3]]
    assert system._transported(cells[0], cells, cost) == pytest.approx(1, abs=1e-3)
    assert system._transported(cells[0], swapped, cost) == pytest.approx(1, abs=1e-3)
    cost[0, 1] = cost[1, 0] = 0.4
    # Two of four cells must be moved.
    assert system._transported(cells[0], swapped, cost) == pytest.approx(1 - 0.4 / 2, abs=1e-3)
