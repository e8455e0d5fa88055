"""Ranks: hand-counted, against a slow loop, and what broken scores must not gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.ranking import hits, paper_k, ranks, reciprocal_rank, top_k

NAN, INF = np.nan, np.inf


def test_the_best_score_ranks_first_and_the_worst_last():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert ranks(scores, np.array([1, 0])).tolist() == [1, 3]


def test_a_rank_counts_ties_against_the_model():
    assert ranks(np.array([[0.5, 0.5, 0.1]]), np.array([0])).tolist() == [2]


def test_a_collapsed_embedding_ranks_every_match_last():
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
def test_nan_and_infinite_scores_gain_nothing(row, match, rank):
    assert ranks(np.array([row]), np.array([match])).tolist() == [rank]


special = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.0, -1.0])


@settings(max_examples=100, deadline=None)
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


def test_a_match_is_in_the_top_k_exactly_when_its_rank_is_at_most_k():
    scores = np.random.default_rng(1).normal(size=(20, 30))
    matches = np.arange(20)
    for k in (1, 5, 30):
        in_top = [match in row for match, row in zip(matches, top_k(scores, k).tolist(), strict=True)]
        assert hits(ranks(scores, matches), k).tolist() == in_top


def test_top_k_of_fewer_candidates_is_all_of_them():
    assert top_k(np.array([[0.1, 0.3]]), 5).tolist() == [[1, 0]]


def test_reciprocal_rank_and_hits_of_known_ranks():
    known = np.array([1, 2, 4])
    assert reciprocal_rank(known).tolist() == [1.0, 0.5, 0.25]
    assert hits(known, 2).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("num_candidates", "k"),
    [(1200, 25), (325, 7), (216, 5), (1, 1), (10, 1), (72, 2), (71, 1), (120, 3), (6016, 125)],
)
def test_paper_k_scales_top_25_of_1200_and_rounds_half_up(num_candidates, k):
    assert paper_k(num_candidates) == k
