"""Pooled folds and the course edition's top 2 of 20, worked by hand."""

from itertools import combinations

import numpy as np
import pytest

from tll_jax.evaluation.metrics import chance_row, metrics_row
from tll_jax.evaluation.protocols import course_chances, pool_folds


def test_folds_are_pooled_pair_by_pair_and_seeds_stay_seeds():
    folds = [{"hog": np.array([[[1, 2], [2, 2]], [[1, 1], [1, 2]]])}, {"hog": np.array([[[3], [1]], [[2], [2]]])}]
    assert pool_folds(folds)["hog"].tolist() == [[[1, 2, 3], [2, 2, 1]], [[1, 1, 2], [1, 2, 2]]]


def test_folds_of_other_systems_or_seeds_are_refused():
    one, two = np.ones((1, 2, 3), int), np.ones((2, 2, 3), int)
    with pytest.raises(ValueError, match="folds 0 and 1 have not the same systems: hog, sift is in one alone"):
        pool_folds([{"a": one, "hog": one}, {"a": one, "sift": one}])
    with pytest.raises(ValueError, match="folds 0 and 1 have other numbers of seeds of a"):
        pool_folds([{"a": one}, {"a": two}])


def test_chance_over_folds_counts_every_rank_of_every_fold():
    row = chance_row([2, 3])
    # Ranks 1, 2 and 1, 2, 3.
    assert row["top1"]["value"] == 2 / 5
    assert row["mrr"]["value"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 2 + 1 / 3) / 5)
    assert row["median_rank"] == 2.0
    assert row["top_paper"]["k"] == 1


def test_munteanus_k_over_folds_is_that_of_the_largest_fold_with_its_own_chance():
    # 25 of 1,200 is 2 of 96; of 48 queries 2 are hit by chance, too.
    row = metrics_row("hog", "baseline", np.full((1, 2, 144), 2), num_candidates=[96, 48])
    assert (row["top_paper"]["k"], row["top_paper"]["value"]) == (2, 1.0)
    assert row["top_paper"]["chance"] == chance_row([96, 48])["top_paper"]["chance"] == 4 / 144


def test_course_chances_equal_the_fraction_of_all_draws_of_negatives():
    # 22 candidates: the match at rank 4 and 21 others, of which 19 are drawn, that is, 2 are left out.
    others = range(2, 23)
    ahead = {2, 3, 4}
    draws = list(combinations(others, 2))
    hits = sum(len(ahead - set(left_out)) <= 1 for left_out in draws)
    found = course_chances(np.array([[[4, 1], [2, 22]]]), num_candidates=22)
    assert found[0, 0, 0] == pytest.approx(hits / len(draws))
    assert found[0, 0, 1] == pytest.approx(1)
    assert found[0, 1].tolist() == pytest.approx([1, 0])


def test_with_twenty_candidates_course_chances_equal_top_2():
    ranks = np.arange(1, 21).reshape(1, 1, 20).repeat(2, axis=1)
    expected = [1.0, 1.0, *[0.0] * 18]
    assert course_chances(ranks, num_candidates=20)[0].tolist() == pytest.approx(np.array([expected, expected]))


def test_random_ranks_have_a_course_chance_of_one_in_ten():
    sizes = np.repeat([25, 325], [25, 325])
    ranks = np.concatenate([np.arange(1, 26), np.arange(1, 326)]).reshape(1, 1, -1).repeat(2, axis=1)
    found = course_chances(ranks, num_candidates=sizes)
    assert found[..., :25].mean() == pytest.approx(0.1)
    assert found[..., 25:].mean() == pytest.approx(0.1)


def test_fewer_than_twenty_candidates_are_refused():
    with pytest.raises(ValueError, match="19 candidates are too few to draw 19 foils"):
        course_chances(np.ones((1, 2, 19), int), num_candidates=19)
