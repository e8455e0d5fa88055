"""Ranks: hand-counted, against a slow loop, and what broken scores must not gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.devices import make_mesh
from tll_jax.ranking import (
    blocked,
    embedding_ranks,
    embedding_top_k,
    inner_product,
    munteanu_k,
    negative_squared_distance,
    pair_ranks,
    ranks,
    recall_at_k,
    reciprocal_rank,
    shard_gallery,
    sharded_ranks,
    sharded_top_k,
    top_k,
)

NAN, INF = np.nan, np.inf


def test_the_best_score_ranks_first_and_the_worst_last():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert ranks(scores, np.array([1, 0])).tolist() == [1, 3]


def test_ties_rank_last():
    assert ranks(np.array([[0.5, 0.5, 0.1]]), np.array([0])).tolist() == [2]


def test_a_collapsed_embedding_ranks_every_positive_last():
    assert ranks(np.ones((3, 4)), np.arange(3)).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("row", "match", "rank"),
    [
        ([NAN, 0.2, 0.1], 0, 3),  # a NaN match is last
        ([0.9, NAN, 0.1], 0, 2),  # a NaN candidate may be anything, so it counts
        ([NAN, NAN, NAN], 1, 3),
        ([INF, 0.2, 0.1], 0, 1),
        ([INF, INF, 0.1], 0, 2),
        ([-INF, 0.2, 0.1], 0, 3),
        ([-INF, -INF, 0.1], 2, 1),
        ([-INF, NAN, 0.1], 0, 3),
    ],
)
def test_nan_and_infinite_scores_do_not_improve_ranks(row, match, rank):
    assert ranks(np.array([row]), np.array([match])).tolist() == [rank]


special = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.0, -1.0])


@settings(max_examples=100)
@given(st.lists(special, min_size=6, max_size=6), st.integers(0, 5))
def test_ranks_and_top_k_agree_with_slow_loops(row, match):
    scores = np.array([row], dtype=np.float32)
    strictly_worse = sum(1 for value in row if value < row[match])
    assert ranks(scores, np.array([match])).tolist() == [6 - strictly_worse]
    # Repeatedly take out the first largest; NaN only when nothing else is left.
    left, order = list(range(6)), []
    while left:
        numbers = [index for index in left if not np.isnan(row[index])]
        best = max(numbers, key=lambda index: (row[index], -index)) if numbers else left[0]
        order.append(best)
        left.remove(best)
    assert top_k(scores, 6)[0].tolist() == order


def test_ranks_are_int32_and_the_same_under_jit():
    scores = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    matches = np.arange(5)
    eager = ranks(scores, matches)
    assert eager.dtype == jnp.int32
    assert jax.jit(ranks)(scores, matches).tolist() == eager.tolist()


def test_a_positive_is_in_the_top_k_exactly_when_its_rank_is_at_most_k():
    scores = np.random.default_rng(1).normal(size=(20, 30))
    matches = np.arange(20)
    for k in (1, 5, 30):
        in_top = [match in row for match, row in zip(matches, top_k(scores, k).tolist(), strict=True)]
        assert recall_at_k(ranks(scores, matches), k).tolist() == in_top


def test_top_k_of_fewer_candidates_is_all_of_them():
    assert top_k(np.array([[0.1, 0.3]]), 5).tolist() == [[1, 0]]


def test_reciprocal_rank_and_recall_at_k_of_given_ranks():
    known = np.array([1, 2, 4])
    assert reciprocal_rank(known).tolist() == [1.0, 0.5, 0.25]
    assert recall_at_k(known, 2).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("num_candidates", "k"),
    [(1200, 25), (325, 7), (216, 5), (1, 1), (10, 1), (72, 2), (71, 1), (120, 3), (6016, 125)],
)
def test_munteanu_k_scales_top_25_of_1200_and_rounds_half_up(num_candidates, k):
    assert munteanu_k(num_candidates) == k


@pytest.fixture(params=[1, 8])
def mesh(request):
    return make_mesh(jax.devices()[: request.param])


def slow_scores(queries, candidates, score):
    """In Python's own numbers: whole numbers are exact in any order of adding."""
    return np.array(
        [
            [
                sum(a * b for a, b in zip(query, candidate, strict=True))
                - (sum(b * b for b in candidate) / 2 if score is negative_squared_distance else 0)
                for candidate in candidates.tolist()
            ]
            for query in queries.tolist()
        ]
    )


SIZES = [(1, 1, 1), (37, 2, 50), (3, 15, 2), (9, 16, 7), (37, 17, 1), (9, 31, 2), (3, 32, 50), (1, 33, 7), (37, 40, 7)]
"""Queries, candidates and k: each is compiled anew. Around one block and two, and with fewer candidates than k."""


@pytest.mark.parametrize("score", [inner_product, negative_squared_distance])
@settings(max_examples=25)
@given(data=st.data())
def test_blocked_ranks_and_neighbors_are_those_of_the_slow_loop(data, score, mesh, small_blocks):
    num_queries, num_candidates, k = data.draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few values, so that ties are many.
    queries = rng.integers(-2, 3, (num_queries, 3)).astype(np.float32)
    candidates = rng.integers(-2, 3, (num_candidates, 3)).astype(np.float32)
    candidates[rng.random(num_candidates) < data.draw(st.sampled_from([0, 0.2, 1])), 1] = NAN
    queries[rng.random(num_queries) < data.draw(st.sampled_from([0, 0.2])), 1] = NAN
    matches = rng.integers(0, num_candidates, num_queries)
    scores = slow_scores(queries, candidates, score)
    expected_ranks = [
        sum(1 for value in row if not value < row[match]) for row, match in zip(scores, matches, strict=True)
    ]
    expected_top = [
        sorted(range(num_candidates), key=lambda column: (np.isnan(row[column]), -np.nan_to_num(row[column])))[:k]
        for row in scores
    ]
    assert embedding_ranks(queries, candidates, matches, mesh=mesh, score=score).tolist() == expected_ranks
    assert embedding_top_k(queries, candidates, k, mesh=mesh, score=score).tolist() == expected_top


@pytest.mark.parametrize("num_pairs", [1, 37])
def test_pairs_are_ranked_both_ways_as_by_the_slow_loop(num_pairs, mesh, small_blocks):
    rng = np.random.default_rng(num_pairs)
    for broken_fraction in (0, 0.2, 1):
        # Few values, so that ties are many, and sides that are not about the same point.
        left, right = (rng.integers(-2, 3, (num_pairs, 3)).astype(np.float32) + offset for offset in (0, 5))
        for side in (left, right):
            side[rng.random(num_pairs) < broken_fraction, 1] = NAN
        expected = [
            [
                sum(1 for value in row if not value < row[own])
                for own, row in enumerate(slow_scores(*sides, negative_squared_distance))
            ]
            for sides in ((left, right), (right, left))
        ]
        assert pair_ranks(left, right, mesh=mesh).tolist() == expected


@pytest.mark.parametrize("num_candidates", [5, 327, 5001])
@pytest.mark.parametrize("score", [inner_product, negative_squared_distance])
def test_duplicates_of_the_positive_tie_with_it_in_every_block(num_candidates, score, mesh):
    rng = np.random.default_rng(0)
    candidates = np.repeat(rng.normal(size=(1, 129)).astype(np.float32), num_candidates, axis=0)
    queries = rng.normal(size=(99, 129)).astype(np.float32)
    matches = rng.integers(0, num_candidates, 99)
    assert set(embedding_ranks(queries, candidates, matches, mesh=mesh, score=score).tolist()) == {num_candidates}
    assert (embedding_top_k(queries, candidates, 5, mesh=mesh, score=score) == np.arange(5)).all()


def test_blocks_of_the_usual_size_agree_with_double_precision(mesh):
    rng = np.random.default_rng(1)
    queries, candidates = (rng.normal(size=(n, 16)).astype(np.float32) for n in (1100, 9000))
    matches = rng.integers(0, 9000, 1100)
    distances = ((queries.astype(float)[:64, None] - candidates.astype(float)[None]) ** 2).sum(-1)
    order = np.argsort(distances, axis=1)
    # Where two distances are closer than single precision tells, either order is right.
    found = np.take_along_axis(distances, embedding_top_k(queries, candidates, 25, mesh=mesh)[:64], axis=1)
    np.testing.assert_allclose(found, np.take_along_axis(distances, order[:, :25], axis=1), rtol=1e-5)
    own = np.argmax(order == matches[:64, None], axis=1) + 1
    assert np.abs(embedding_ranks(queries, candidates, matches, mesh=mesh)[:64] - own).max() <= 1


def sides_far_from_the_origin(offset, *, apart=0.0, broken=()):
    """Two sides of 300 pairs at `offset` spreads from the origin, half of them `apart` from the others."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(300, 16))
    pairs[::2, 0] += apart
    left, right = ((pairs + 0.9 * rng.normal(size=pairs.shape) + offset).astype(np.float32) for _ in range(2))
    if broken:
        right[list(broken)] = [[NAN], [NAN], [1e18]]
    return left, right


def ranks_of_double_precision(left, right):
    distances = ((left[:, None].astype(np.float64) - right[None]) ** 2).sum(-1)
    return np.sum(~(distances > np.diagonal(distances)[:, None]), axis=1)


@pytest.mark.parametrize(
    ("offset", "apart", "broken"),
    [(0, 0, ()), (100, 0, ()), (3000, 0, ()), (-1e4, 0, ()), (300, 30, ()), (1000, 0, (0, 100, 299))],
)
def test_ranks_far_from_the_origin_are_those_of_double_precision(offset, apart, broken):
    left, right = sides_far_from_the_origin(offset, apart=apart, broken=broken)
    expected = ranks_of_double_precision(left, right)
    mesh = make_mesh(jax.devices()[:2])
    found = embedding_ranks(left, right, np.arange(300), mesh=mesh)
    sound = np.setdiff1d(np.arange(300), broken)
    assert found[sound].tolist() == expected[sound].tolist()
    both_ways = pair_ranks(left, right, mesh=mesh)
    assert both_ways[0][sound].tolist() == expected[sound].tolist()
    assert both_ways[1][sound].tolist() == ranks_of_double_precision(right, left)[sound].tolist()
    gallery = shard_gallery(right, mesh=mesh)
    assert sharded_ranks(left, gallery, np.arange(300), mesh=mesh)[sound].tolist() == expected[sound].tolist()
    nearest = embedding_top_k(left, right, 1, mesh=mesh)[:, 0]
    assert np.array_equal(nearest, sharded_top_k(left, gallery, 1, mesh=mesh)[:, 0])
    assert np.array_equal(nearest[expected == 1], np.flatnonzero(expected == 1))


def test_duplicates_of_the_positive_tie_with_it_far_from_the_origin():
    left, right = sides_far_from_the_origin(1000)
    right = np.concatenate([right, right[::-1]])
    mesh = make_mesh(jax.devices()[:1])
    once, twice = (embedding_ranks(left, rows, np.arange(300), mesh=mesh) for rows in (right[:300], right))
    assert twice.tolist() == (2 * once).tolist()


def test_duplicates_of_pairs_tie_in_both_directions(mesh, monkeypatch):
    monkeypatch.setattr(blocked, "PAIR_BLOCK", 130)
    left, right = (
        rng.normal(size=(1, 129)) + rng.normal(size=(300, 129)) for rng in map(np.random.default_rng, (0, 1))
    )
    once = pair_ranks(left.astype(np.float32), right.astype(np.float32), mesh=mesh)
    twice = pair_ranks(*(np.tile(side, (2, 1)).astype(np.float32) for side in (left, right)), mesh=mesh)
    assert twice.tolist() == np.tile(2 * once, 2).tolist()
    same = np.repeat(left[:1], 300, axis=0).astype(np.float32)
    assert set(pair_ranks(same, same, mesh=mesh).ravel()) == {300}


def test_scores_of_all_candidates_are_never_held_nor_sent_between_devices():
    mesh = make_mesh()
    candidates, queries = jnp.zeros((100_000, 8)), jnp.zeros((800, 8))
    for measure, rows, options in (
        (blocked._local_ranks, [queries, jnp.zeros(800, jnp.int32)], ()),
        (blocked._local_top_k, [queries], (("k", 25),)),
    ):
        options = (("score", negative_squared_distance), ("num_candidates", 100_000), *options)
        layout = {"candidates_at": blocked.replicated(mesh), "rows_at": blocked.batch_sharded(mesh)}
        program = blocked._on_devices.lower(candidates, rows, measure=measure, options=options, **layout).compile()
        # A hundred queries a device.
        assert program.memory_analysis().temp_size_in_bytes < 100 * 100_000 * 4 / 2
        assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "collective-permute"))
