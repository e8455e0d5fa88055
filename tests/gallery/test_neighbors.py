import numpy as np
import pytest

from tll_jax.gallery import neighbors
from tll_jax.gallery.neighbors import Neighbors, Points

TILE, STRIPE = neighbors.TILE, neighbors._STRIPE


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighbors, "TILE", 32)
    monkeypatch.setattr(neighbors, "_STRIPE", 16)


def clustered(num, dim=12, seed=0):
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(num // 8 + 1, dim))
    return (centers[generator.integers(0, len(centers), num)] + generator.normal(size=(num, dim))).astype(np.float16)


def slow_cosines(a, b):
    a, b = (rows.astype(np.float64) for rows in (a, b))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def slow_lists(cosines, k):
    order = np.argsort(-np.round(cosines, 6), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def same_lists(found, cosines, k):
    """Cosines equal place by place; indices may differ only where cosines are as good as equal."""
    _, expected = slow_lists(cosines, k)
    np.testing.assert_allclose(found.cosines, expected, atol=3e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, found.indices.astype(int), axis=1), expected, atol=3e-6)


@pytest.mark.parametrize("num", [3, 31, 32, 33, 150])
def test_symmetric_blocks_find_what_a_plain_loop_finds(num):
    vectors, k = clustered(num), min(7, num - 1)
    found = neighbors.within(Points.of(vectors), k)
    cosines = slow_cosines(vectors, vectors)
    np.fill_diagonal(cosines, -np.inf)
    same_lists(found, cosines, k)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def test_tiles_and_stripes_of_their_real_size_list_every_row(monkeypatch):
    monkeypatch.setattr(neighbors, "TILE", TILE)
    monkeypatch.setattr(neighbors, "_STRIPE", STRIPE)
    vectors = clustered(2 * TILE + 5)
    points = Points.of(vectors)
    found = neighbors.within(points, 20)
    cosines = slow_cosines(vectors, vectors)
    np.fill_diagonal(cosines, -np.inf)
    same_lists(found, cosines, 20)
    ranked = neighbors.csls(found, points, np.ones(len(vectors), bool), 5)
    hubs = np.sort(cosines, axis=1)[:, -20:].mean(axis=1) / 2
    scores = cosines - hubs[:, None] - hubs
    np.testing.assert_allclose(ranked.scores, np.sort(scores, axis=1)[:, ::-1][:, :5], atol=5e-6)


def test_lists_end_where_there_are_no_more_pictures():
    found = neighbors.within(Points.of(clustered(3)), 5)
    assert found.lengths.tolist() == [2, 2, 2]
    assert np.all(found.bound == -np.inf)


def test_blocks_across_two_sides_serve_both_directions():
    left, right = clustered(70, seed=1), clustered(45, seed=2)
    found, back = neighbors.across(Points.of(left), Points.of(right), 6)
    cosines = slow_cosines(left, right)
    same_lists(found, cosines, 6)
    same_lists(back, cosines.T, 6)


def test_across_two_sides_a_file_is_not_its_own_neighbor():
    vectors = clustered(50, seed=8)
    points, own = Points.of(vectors), np.where(np.arange(50) < 30, np.arange(50), -1)
    lists = neighbors.across(points, points, 24, own=own)
    cosines = slow_cosines(vectors, vectors)
    cosines[np.arange(30), np.arange(30)] = -np.inf
    same_lists(lists[0], cosines, 24)
    same_lists(lists[1], cosines.T, 24)
    ranked = neighbors.csls_across(lists, (points, points), own, 20)
    assert not np.any(ranked.indices[:30] == np.arange(30)[:, None])
    assert np.all(ranked.indices[30:, 0] == np.arange(30, 50))


def test_equal_cosines_are_ordered_by_index_wherever_blocks_end():
    vectors = np.tile(np.eye(4, dtype=np.float16), (30, 1))
    found = neighbors.within(Points.of(vectors), 5)
    for at, row in enumerate(found.indices.tolist()):
        assert row == [other for other in range(at % 4, 120, 4) if other != at][:5]


def test_frames_of_an_animation_are_one_picture_and_the_best_counts():
    vectors = clustered(90, seed=3)
    owners = np.sort(np.random.default_rng(0).integers(0, 40, 90))
    points = Points.of(vectors, owners)
    found = neighbors.within(points, 8)
    rows = slow_cosines(vectors, vectors)
    names = np.unique(owners)
    cosines = np.array([[rows[owners == a][:, owners == b].max() for b in names] for a in names])
    np.testing.assert_allclose(points.cosines(np.arange(len(names)), points), cosines, atol=3e-6)
    np.fill_diagonal(cosines, -np.inf)
    for at in range(len(names)):
        length = found.lengths[at]
        expected = np.sort(cosines[at])[::-1]
        np.testing.assert_allclose(found.cosines[at, :length], expected[:length], atol=3e-6)
        assert expected[length] <= found.bound[at] + 3e-6


def slow_csls(cosines, k):
    """Ranked lists by a loop over pairs; cosines within one side."""
    num = len(cosines)
    mean = [np.mean(sorted((cosines[a, b] for b in range(num) if b != a), reverse=True)[:20]) for a in range(num)]
    scores = np.full((num, num), -np.inf)
    for a in range(num):
        for b in range(num):
            if a != b:
                scores[a, b] = cosines[a, b] - (mean[a] + mean[b]) / 2
    return np.sort(scores, axis=1)[:, ::-1][:, :k], scores


@pytest.mark.parametrize("listed", [20, 24])
def test_csls_is_what_a_loop_over_all_pairs_gives(listed):
    # Hubs: some pictures lie near the middle, so that lists by cosine and by CSLS differ.
    vectors = clustered(160, seed=4)
    vectors[:12] = (vectors.mean(axis=0) + 0.3 * vectors[:12]).astype(np.float16)
    points = Points.of(vectors)
    found = neighbors.within(points, listed)
    ranked = neighbors.csls(found, points, np.ones(160, bool), 12)
    cosines = slow_cosines(vectors, vectors)
    expected, scores = slow_csls(cosines, 12)
    np.testing.assert_allclose(ranked.scores, expected, atol=5e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, ranked.indices.astype(int), axis=1), expected, atol=5e-6)
    by_cosine = np.argsort(-np.where(np.eye(160, dtype=bool), -np.inf, cosines), axis=1)[:, :12]
    assert np.mean(by_cosine != ranked.indices) > 0.2


def test_csls_across_two_sides_is_what_a_loop_gives():
    left, right = clustered(60, seed=5), clustered(90, seed=6)
    sides = Points.of(left), Points.of(right)
    found, back = neighbors.across(*sides, 24)
    ranked = neighbors.csls_across((found, back), sides, np.full(60, -1), 9)
    cosines = slow_cosines(left, right)
    ours, theirs = (np.sort(one, axis=1)[:, -20:].mean(axis=1) for one in (cosines, cosines.T))
    expected = np.sort(cosines - (ours[:, None] + theirs) / 2, axis=1)[:, ::-1][:, :9]
    np.testing.assert_allclose(ranked.scores, expected, atol=5e-6)


def test_lists_that_lose_collapsed_pictures_are_filled_up_from_all_others():
    vectors = clustered(100, seed=7)
    points, chosen = Points.of(vectors), np.arange(100) % 3 > 0
    found = neighbors.refill(neighbors.within(points, 9).keep(chosen), points, chosen, 9)
    cosines = slow_cosines(vectors, vectors)
    np.fill_diagonal(cosines, -np.inf)
    cosines[:, ~chosen] = -np.inf
    same_lists(
        Neighbors(indices=found.indices[chosen], cosines=found.cosines[chosen], bound=found.bound[chosen]),
        cosines[chosen],
        9,
    )


def test_lists_are_brought_up_to_date_as_if_they_were_made_anew():
    vectors = clustered(140, seed=9)
    generator = np.random.default_rng(0)
    former, present = (np.sort(generator.choice(140, 120, replace=False)) for _ in range(2))
    places = np.full(120, -1, np.int32)
    there = np.isin(former, present)
    places[there] = np.searchsorted(present, former[there])
    points = Points.of(vectors[present])
    found = neighbors.updated(neighbors.within(Points.of(vectors[former]), 16), places, points)
    whole = neighbors.within(points, 16)
    cosines = slow_cosines(vectors[present], vectors[present])
    np.fill_diagonal(cosines, -np.inf)
    for at in range(120):
        length = found.lengths[at]
        np.testing.assert_allclose(found.cosines[at, :length], whole.cosines[at, :length], atol=2e-6)
        assert set(found.indices[at, :length]) == set(whole.indices[at, :length])
        assert np.sort(cosines[at])[::-1][length] <= found.bound[at] + 3e-6
    refilled = neighbors.refill(found, points, np.ones(120, bool), 16)
    np.testing.assert_allclose(refilled.cosines, whole.cosines, atol=2e-6)
    assert np.sum(found.lengths < 16) > 5


def test_best_columns_are_those_of_rounded_scores_and_equal_ones_go_by_column():
    products = np.array([[0.5, 0.9, 0.5000004, 0.1], [0.2, 0.2, 0.2, 0.2]], np.float32)
    columns, cosines = neighbors.best_columns(products, 3)
    assert columns.tolist() == [[1, 0, 2], [0, 1, 2]]
    np.testing.assert_allclose(cosines, [[0.9, 0.5, 0.5], [0.2, 0.2, 0.2]], atol=1e-7)
    # .9 - .6 < .5 - .1 = .5 - .1 < .1 + .8
    penalty = np.array([0.1, 0.6, 0.1, -0.8], np.float32)
    columns, cosines = neighbors.best_columns(products[:1], 3, penalty)
    assert columns.tolist() == [[3, 0, 2]]
    np.testing.assert_allclose(cosines, [[0.1, 0.5, 0.5]], atol=1e-7)
    assert neighbors.best_columns(np.zeros((2, 0), np.float32), 3)[0].shape == (2, 0)
