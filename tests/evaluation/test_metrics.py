"""Rows and comparisons: worked by hand on a few ranks, and chance against simulation."""

import json

import numpy as np
import pytest

from tll_jax.evaluation.metrics import chance_row, compare, metrics_row, significance

TOPS = ("top1", "top5", "top10", "top25", "top_paper")


def ranks_of(left_to_right, right_to_left):
    return np.array([[left_to_right, right_to_left]])


def test_a_row_is_worked_by_hand():
    row = metrics_row("hog", "baseline", ranks_of([1, 2, 6, 30], [1, 1, 4, 20]), num_candidates=100)
    assert (row["system"], row["kind"], row["num_seeds"]) == ("hog", "baseline", 1)
    assert row["top1"]["value"] == 3 / 8
    assert row["top5"]["value"] == 5 / 8
    assert row["top10"]["value"] == 6 / 8
    assert row["top25"]["value"] == 7 / 8
    # 25 of 1,200 is 2 of 100.
    assert row["top_paper"]["value"] == 4 / 8
    assert (row["top_paper"]["k"], row["top_paper"]["chance"]) == (2, 0.02)
    assert row["mrr"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 30 + 1 + 1 + 1 / 4 + 1 / 20) / 8)
    # Sorted 1 1 1 2 4 6 20 30.
    assert row["median_rank"] == 3.0
    assert row["left_to_right"] == {
        "top1": 0.25,
        "top5": 0.5,
        "top10": 0.75,
        "top25": 0.75,
        "top_paper": 0.5,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 30) / 4),
        "median_rank": 4.0,
    }
    assert row["right_to_left"]["top1"] == 0.5
    assert row["right_to_left"]["median_rank"] == 2.5


def test_a_perfect_and_a_collapsed_system_have_intervals_that_end_at_the_bound():
    perfect = metrics_row("perfect", "model", np.ones((1, 2, 50), dtype=int))
    collapsed = metrics_row("collapsed", "model", np.full((1, 2, 50), 50))
    for name in ("top1", "top25", "mrr"):
        assert (perfect[name]["value"], perfect[name]["high"]) == (1.0, 1.0)
        # Two misses among 54 pairs, pseudo-pairs included, and 1.96 standard errors.
        assert perfect[name]["low"] == pytest.approx(0.913, abs=0.005)
    assert (collapsed["top25"]["value"], collapsed["top25"]["low"]) == (0.0, 0.0)
    assert collapsed["mrr"]["value"] == pytest.approx(1 / 50)
    # Two zeros and two ones among 54: 3 / 54 and 1.96 times .187 / 54 ** 0.5.
    assert collapsed["mrr"]["high"] == pytest.approx(0.105, abs=0.005)


def test_one_seed_counts_hits_by_direction_with_wilson_bounds():
    ranks = np.full((1, 2, 325), 325)
    ranks[0, 0, :51] = 1
    ranks[0, 0, 51:105] = 5
    row = metrics_row("siamese", "model", ranks)
    one_way = row["wilson"]["left_to_right"]
    assert (one_way["top1"]["hits"], one_way["top1"]["of"]) == (51, 325)
    assert [round(100 * one_way["top1"][bound], 1) for bound in ("low", "high")] == [12.1, 20.0]
    assert one_way["top5"]["hits"] == one_way["top_paper"]["hits"] == 105
    assert row["wilson"]["right_to_left"]["top1"]["hits"] == 0
    assert row["top_paper"]["k"] == 7


def test_seeds_and_directions_of_a_pair_do_not_count_as_more_pairs():
    one = np.random.default_rng(0).integers(1, 40, size=(1, 1, 60))
    once = metrics_row("once", "model", np.tile(one, (1, 2, 1)))
    thrice = metrics_row("thrice", "model", np.tile(one, (3, 2, 1)))
    for name in (*TOPS, "mrr"):
        assert once[name] == pytest.approx(thrice[name])
    assert thrice["num_seeds"] == 3
    assert thrice["wilson"] is None


def test_chance_is_the_closed_form():
    row = chance_row(4)
    assert row["top1"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert row["top5"]["value"] == 1.0
    assert row["mrr"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert row["median_rank"] == 2.5
    assert round(100 * chance_row(325)["top1"]["value"], 2) == 0.31
    assert round(100 * chance_row(325)["top5"]["value"], 2) == 1.54
    assert round(100 * chance_row(1200)["top_paper"]["value"], 2) == 2.08


def test_chance_agrees_with_simulated_random_ranks():
    ranks = np.random.default_rng(0).integers(1, 101, size=(1, 2, 20_000))
    guessed = metrics_row("guess", "baseline", ranks[:, :, :4000], num_candidates=100)
    chance = chance_row(100)
    for name in (*TOPS, "mrr"):
        assert guessed[name]["value"] == pytest.approx(chance[name]["value"], abs=0.02)
        assert guessed["left_to_right"].keys() == chance["left_to_right"].keys()
    assert guessed["median_rank"] == pytest.approx(chance["median_rank"], abs=2)
    assert guessed.keys() == chance.keys()


def test_a_comparison_is_worked_by_hand():
    a = ranks_of([1, 1, 1, 2], [1, 1, 1, 1])
    b = ranks_of([2, 2, 1, 1], [1, 2, 1, 9])
    top1, top5, mrr = compare({"a": a, "b": b}, planned=[("a", "b")])
    assert [entry["metric"] for entry in (top1, top5, mrr)] == ["top1", "top5", "mrr"]
    # By pair: a hits 1, 1, 1, 1/2 and b 1/2, 0, 1, 1/2; differences 1/2, 1, 0, 0: two of four sign patterns.
    assert top1["difference"] == pytest.approx(1.5 / 4)
    assert top1["p_value"] == 0.5
    assert top1["mcnemar"]["left_to_right"] == {"only_a": 2, "only_b": 1, "p_value": 1.0}
    assert top1["mcnemar"]["right_to_left"] == {"only_a": 2, "only_b": 0, "p_value": 0.5}
    # Only the last pair's right to left differs: 1/2 of a pair.
    assert top5["difference"] == pytest.approx(1 / 8)
    assert mrr["difference"] == pytest.approx(
        (4 * 1 + 3 * 1 + 0.5 - (1 + 1 + 1 + 1 / 2 + 1 / 2 + 1 + 1 / 2 + 1 / 9)) / 8
    )
    assert mrr["mcnemar"] is None


def test_holm_covers_the_planned_family_and_nothing_else():
    random = np.random.default_rng(0)
    ranks = {name: random.integers(1, high, size=(1, 2, 80)) for name, high in (("a", 3), ("b", 9), ("c", 30))}
    comparisons = compare(ranks, planned=[("c", "a")])
    assert [(entry["a"], entry["b"]) for entry in comparisons[::3]] == [("c", "a"), ("a", "b"), ("b", "c")]
    planned, exploratory = comparisons[:3], comparisons[3:]
    assert all(entry["planned"] and entry["p_holm"] >= entry["p_value"] for entry in planned)
    # Three p-values at their floor of 1 / 10,001: the first is tripled and the others follow it.
    assert [entry["p_holm"] for entry in planned] == pytest.approx([3 / 10_001] * 3)
    assert not any(entry["planned"] for entry in exploratory)
    assert all(entry["p_holm"] is None for entry in exploratory)


def test_without_a_planned_family_everything_is_exploratory():
    ranks = {"a": np.ones((1, 2, 5), dtype=int), "b": np.ones((1, 2, 5), dtype=int)}
    assert [entry["planned"] for entry in compare(ranks, planned=[])] == [False] * 3


def test_mcnemar_is_left_out_with_several_seeds():
    ranks = {"a": np.ones((3, 2, 5), dtype=int), "b": np.ones((1, 2, 5), dtype=int)}
    assert all(entry["mcnemar"] is None for entry in compare(ranks, planned=[("a", "b")]))


def test_a_planned_comparison_of_an_unknown_system_is_refused():
    with pytest.raises(KeyError, match="'ensemble'; there are a"):
        compare({"a": np.ones((1, 2, 5), dtype=int)}, planned=[("a", "ensemble")])


def test_systems_ranked_on_different_pairs_are_not_compared():
    with pytest.raises(ValueError, match="same pairs"):
        compare({"a": np.ones((1, 2, 5), dtype=int), "b": np.ones((1, 2, 6), dtype=int)}, planned=[])


def test_rows_and_comparisons_survive_json():
    ranks = {
        "a": np.random.default_rng(0).integers(1, 9, size=(1, 2, 9), dtype=np.int32),
        "b": np.random.default_rng(1).integers(1, 9, size=(2, 2, 9), dtype=np.int32),
    }
    results = [
        chance_row(9),
        *(metrics_row(name, "model", value) for name, value in ranks.items()),
        *compare(ranks, planned=[("a", "b")]),
    ]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_matrix_has_the_p_values_of_the_comparisons_and_is_corrected_over_all_its_cells():
    random = np.random.default_rng(0)
    ranks = {name: random.integers(1, high, size=(1, 2, 80)) for name, high in (("a", 3), ("b", 4), ("c", 30))}
    matrix = significance(ranks)
    assert [(one["metric"], one["a"], one["b"]) for one in matrix] == [
        (metric, *pair) for metric in ("mrr", "top1") for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    compared = {(one["metric"], one["a"], one["b"]): one for one in compare(ranks, planned=[("a", "c")])}
    for one in matrix:
        other = compared[one["metric"], one["a"], one["b"]]
        assert one["difference"] == pytest.approx(other["difference"])
        assert (one["low"], one["high"]) == pytest.approx((other["low"], other["high"]), abs=1e-12)
        assert one["p_value"] == other["p_value"]
        assert one["p_value"] <= one["p_max_t"] <= 6 * one["p_value"] + 0.02
    # The smallest p-value is at its floor among six, too.
    assert min(one["p_max_t"] for one in matrix) == pytest.approx(1 / 10_001)


def test_crossed_intervals_widen_with_the_variance_between_runs():
    random = np.random.default_rng(0)
    equal = np.tile(random.integers(1, 9, size=(1, 2, 80)), (4, 1, 1))
    unequal = equal + np.array([0, 1, 3, 9])[:, None, None]
    rows = {name: metrics_row(name, "model", ranks) for name, ranks in (("equal", equal), ("unequal", unequal))}
    for name, widened in (("equal", 1.0), ("unequal", 1.5)):
        pairs, crossed = rows[name]["mrr"], rows[name]["crossed"]["mrr"]
        assert crossed["high"] - crossed["low"] > 0.98 * widened * (pairs["high"] - pairs["low"])
    assert metrics_row("one", "model", equal[:1])["crossed"] is None
    assert rows["equal"]["num_starts"] is None
    by_starts = metrics_row("unequal", "model", unequal, starts=[0, 1, 0, 1])
    assert by_starts["num_starts"] == 2
    assert by_starts["mrr"] == rows["unequal"]["mrr"]
    one_start = metrics_row("unequal", "model", unequal, starts=[0, 0, 0, 0])
    assert (one_start["num_starts"], one_start["crossed"]) == (None, rows["unequal"]["crossed"])
    *_, mrr = compare({"a": unequal, "b": equal[:1]}, planned=[("a", "b")], starts={"a": [0, 1, 0, 1], "b": None})
    *_, alone = compare({"a": unequal[:1], "b": equal[:1]}, planned=[("a", "b")])
    assert mrr["crossed"]["high"] - mrr["crossed"]["low"] > mrr["high"] - mrr["low"]
    assert alone["crossed"] is None


def test_one_system_alone_has_no_matrix():
    assert significance({"a": np.ones((1, 2, 5), int)}) == []
