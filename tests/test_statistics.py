"""Statistics: worked by hand, counted exhaustively, and against scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from tll_jax.statistics import (
    Runs,
    bootstrap_bands,
    bootstrap_interval,
    crossed_difference,
    crossed_interval,
    detectable_difference,
    holm,
    mcnemar_exact,
    paired_difference,
    paired_differences,
    sign_flip_p_values,
    sign_flip_test,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "low", "high"), [(51, 12.1, 20.0), (41, 9.4, 16.7)])
def test_wilson_gives_the_intervals_of_munteanus_two_systems(successes, low, high):
    interval = wilson_interval(successes, 325)
    assert [round(100 * bound, 1) for bound in interval] == [low, high]


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 325), (325, 325), (7, 20), (1, 1000)])
def test_wilson_agrees_with_scipy(successes, n):
    oracle = stats.binomtest(successes, n).proportion_ci(method="wilson", confidence_level=0.9)
    assert wilson_interval(successes, n, confidence=0.9) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


def standard_interval(values, pseudo, bounds=(0.0, 1.0)):
    """The closed form: the standard error of a mean of pairs and pseudo-pairs, over all resamples there are."""
    weights = np.array([1.0] * len(values) + [pseudo, pseudo])
    joined = np.array([*values, *bounds])
    center = np.average(joined, weights=weights)
    half = 1.96 * np.sqrt(np.average((joined - center) ** 2, weights=weights) / weights.sum())
    return max(bounds[0], center - half), min(bounds[1], center + half)


def test_the_interval_of_four_pairs_is_worked_by_hand():
    # With two zeros and two ones 0, 0, 0, 0, 1, 1, 1, 1: mean 1/2, standard deviation 1/2 over the root of 8.
    low, high = bootstrap_interval(np.array([0.0, 0.0, 1.0, 1.0]), num_resamples=200_000, seed=0)
    assert (low, high) == pytest.approx((0.5 - 0.98 / 8**0.5, 0.5 + 0.98 / 8**0.5), abs=2e-3)


def test_intervals_of_no_hits_and_of_only_hits_have_positive_width():
    # Wilson's interval of 0 of 325 ends at .012, Agresti and Coull's at .014.
    none, all_of_them = (bootstrap_interval(np.full(325, value), seed=0) for value in (0.0, 1.0))
    assert none.low == 0
    assert none.high == pytest.approx(0.0145, abs=5e-4)
    assert all_of_them == pytest.approx((1 - none.high, 1), abs=5e-4)


@pytest.mark.parametrize(("bounds", "pseudo"), [((0.0, 1.0), 1.92), ((-1.0, 1.0), 0.48)])
def test_the_bootstrap_comes_close_to_the_standard_error_over_all_resamples(bounds, pseudo):
    values = np.random.default_rng(0).uniform(*bounds, size=60) ** 3
    expected = standard_interval(values, pseudo, bounds)
    assert bootstrap_interval(values, bounds=bounds, num_resamples=50_000, seed=2) == pytest.approx(expected, abs=1e-3)
    bands = bootstrap_bands(values[:, None], bounds=bounds, num_resamples=50_000, seed=2)
    assert (bands.low[0], bands.high[0]) == pytest.approx(expected, abs=1e-3)


def test_the_bootstrap_is_deterministic_in_its_seed():
    values = np.random.default_rng(0).uniform(size=30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def coverage(values, truth, bounds=(0.0, 1.0)):
    """How many of many studies `[pairs, studies]` have an interval that holds the truth; all share their resamples."""
    bands = bootstrap_bands(values, bounds=bounds, num_resamples=1000, seed=0)
    return np.mean((bands.low <= truth) & (truth <= bands.high))


@pytest.mark.parametrize(("num_pairs", "num_seeds"), [(100, 1), (325, 1), (216, 3)])
def test_95_percent_intervals_of_rates_cover_the_truth_near_0_and_1_too(num_pairs, num_seeds):
    random = np.random.default_rng(num_pairs)
    rates = [0.003, 0.005, 0.01, 0.04, 0.3, 0.9, 0.98, 0.995, 0.997]
    trials = 2 * num_seeds
    covered = [coverage(random.binomial(trials, rate, size=(num_pairs, 500)) / trials, rate) for rate in rates]
    # Three standard errors of a share of 500 at 0.95 are 0.029; of nine such shares 0.01.
    assert min(covered) > 0.92 - 0.02
    assert 0.93 <= np.mean(covered) <= 0.98


def test_95_percent_intervals_cover_a_mean_reciprocal_rank_and_a_small_difference():
    random = np.random.default_rng(0)
    ranks = np.ceil(np.exp(random.normal(3.0, 2.0, size=(216, 1000))))
    truth = np.mean(1 / np.ceil(np.exp(random.normal(3.0, 2.0, size=1_000_000))))
    assert 0.92 < coverage(1 / ranks, truth) < 0.98
    # Systems that differ on one pair of 40 by half a hit: conservative.
    differences = random.choice([-0.5, 0.0, 0.5], p=[0.01, 0.975, 0.015], size=(216, 1000))
    assert coverage(differences, 0.0025, (-1.0, 1.0)) > 0.95


def test_a_bootstrap_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        bootstrap_interval(np.array([]), seed=0)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_values_beyond_the_bounds_are_refused(value):
    with pytest.raises(ValueError, match=r"they must be from 0 to 1"):
        bootstrap_interval(np.array([0.5, value]), seed=0)


def sign_flips_counted_one_by_one(differences):
    observed = abs(sum(differences))
    extreme = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) >= observed - 1e-9
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(extreme) / len(extreme)


def test_a_sign_flip_p_value_is_worked_by_hand():
    # 3, 1 and 1 quarters: of eight sums only +-5 reach 5.
    result = paired_difference(np.array([0.75, 0.25, 0.25]), np.zeros(3), seed=0)
    assert (result.difference, result.p_value) == (5 / 12, 2 / 8)


@pytest.mark.parametrize("num_pairs", [1, 4, 9])
def test_few_pairs_are_enumerated_exactly(num_pairs):
    random = np.random.default_rng(num_pairs)
    a, b = random.choice([0.0, 0.1, 0.2, 0.3], size=(2, num_pairs))
    expected = sign_flips_counted_one_by_one((a - b).tolist())
    assert paired_difference(a, b, seed=0).p_value == pytest.approx(expected)


def test_an_exact_p_value_agrees_with_scipy():
    a, b = np.random.default_rng(5).uniform(size=(2, 10))
    oracle = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert paired_difference(a, b, seed=0).p_value == pytest.approx(oracle.pvalue)


def test_a_drawn_p_value_comes_close_to_the_exact_one():
    a, b = np.random.default_rng(7).uniform([[0.2], [0.0]], [[1.0], [0.8]], size=(2, 12))
    exact = paired_difference(a, b, num_resamples=4096, seed=0).p_value
    drawn = paired_difference(a, b, num_resamples=4095, seed=0).p_value
    assert exact == sign_flips_counted_one_by_one((a - b).tolist())
    assert drawn == pytest.approx(exact, abs=0.03)


def test_a_drawn_p_value_is_never_zero():
    result = paired_difference(np.ones(100), np.zeros(100), num_resamples=999, seed=0)
    assert (result.difference, result.high, result.p_value) == (1.0, 1.0, 1 / 1000)


def test_equal_systems_have_difference_zero_and_an_interval_of_positive_width():
    hits = np.arange(325) % 3 == 0
    result = paired_difference(hits, hits, seed=0)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    # Half a pseudo-pair at either bound: a standard deviation of 1 / 326 ** 0.5 over 326 ** 0.5.
    assert (result.low, result.high) == pytest.approx((-1.96 / 326, 1.96 / 326), rel=0.05)


def test_p_values_under_the_null_are_uniform_enough():
    random = np.random.default_rng(0)
    p_values = [
        paired_difference(*random.binomial(1, 0.4, size=(2, 60)), num_resamples=400, seed=seed).p_value
        for seed in range(300)
    ]
    # Three standard errors of a share of 300 at 0.05 are 0.038.
    assert np.mean(np.array(p_values) <= 0.05) <= 0.088


def test_swapping_the_systems_changes_the_sign_and_not_the_p_value():
    a, b = np.random.default_rng(9).uniform(size=(2, 40))
    one, other = paired_difference(a, b, seed=0), paired_difference(b, a, seed=0)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value


def test_mcnemar_is_worked_by_hand():
    # Five queries only a answers, one only b: 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64.
    a = np.array([True] * 5 + [False] + [True, False])
    b = np.array([False] * 5 + [True] + [True, False])
    result = mcnemar_exact(a, b)
    assert (result.only_a, result.only_b) == (5, 1)
    assert result.p_value == pytest.approx(14 / 64)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (1, 1), (7, 8), (8, 8), (3, 40), (300, 260)])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(only_a, only_b):
    is_a = np.arange(only_a + only_b) < only_a
    assert mcnemar_exact(is_a, ~is_a).p_value == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)


def test_mcnemar_without_disagreement_has_p_value_one():
    hits = np.array([True, False])
    assert mcnemar_exact(hits, hits) == (0, 0, 1.0)


def test_holm_is_worked_by_hand_in_any_order():
    # Sorted .01 .03 .04 times 3, 2, 1 are .03 .06 .04, and .04 may not fall below .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_holm_never_exceeds_one_and_leaves_a_single_p_value_alone():
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_bands_are_the_interval_of_every_column_over_the_same_resamples():
    values = np.random.default_rng(0).uniform(size=(60, 3)) ** 2
    bands = bootstrap_bands(values, seed=1)
    for column in range(3):
        interval = bootstrap_interval(values[:, column], seed=1)
        assert (bands.low[column], bands.high[column]) == pytest.approx(interval, abs=1e-12)


def test_bands_are_those_of_a_loop_over_resamples_of_copies():
    values, total = np.random.default_rng(0).uniform(size=20), 20 + round(2 * 48 / 25)
    # As `bootstrap_interval` describes it: 25 copies of each pair, 48 of 0 and of 1.
    drawn_from = [*np.repeat(values, 25), *[0.0] * 48, *[1.0] * 48]
    random = np.random.default_rng(5)
    drawn = random.integers(len(drawn_from), size=(300, total), dtype=np.int32)
    means = [np.mean([drawn_from[index] for index in row]) for row in drawn]
    half = 1.959964 * np.std(means)
    center = np.mean(drawn_from)
    interval = bootstrap_interval(values, num_resamples=300, seed=5)
    assert interval == pytest.approx((center - half, center + half), abs=1e-6)


def test_paired_differences_are_those_of_every_column_alone():
    a, b = np.random.default_rng(1).uniform(size=(2, 40, 3))
    together = paired_differences(a - b, num_resamples=500, seed=4)
    for column in range(3):
        alone = paired_difference(a[:, column], b[:, column], num_resamples=500, seed=4)
        assert together[column] == pytest.approx(alone, abs=1e-12)


def test_sign_flips_of_several_columns_are_counted_exhaustively():
    # Among 8 patterns |sum| reaches 3 in 2; for (3, 1, 0) it reaches 4 in half; for (1, -1, 0) always.
    differences = np.array([[1.0, 3.0, 1.0], [1.0, 1.0, -1.0], [1.0, 0.0, 0.0]])
    assert sign_flip_p_values(differences, num_resamples=8, seed=0).tolist() == [0.25, 0.5, 1.0]


def test_drawn_sign_flips_of_a_column_agree_with_those_of_the_column_alone():
    differences = np.random.default_rng(0).uniform(-0.6, 1.0, size=(80, 3))
    together = sign_flip_p_values(differences, num_resamples=20_000, seed=0)
    for column in range(3):
        alone = paired_difference(differences[:, column], np.zeros(80), num_resamples=20_000, seed=0)
        assert together[column] == pytest.approx(alone.p_value, abs=1e-12)


def test_the_p_value_of_a_column_does_not_depend_on_other_columns():
    differences = np.random.default_rng(3).uniform(-0.6, 1.0, size=(80, 5))
    # So few pairs of this comparison differ that all patterns of signs are counted.
    differences[6:, 4] = 0
    together = sign_flip_test(differences, num_resamples=2000, seed=0).p_values
    for column in range(5):
        alone = sign_flip_p_values(differences[:, [column]], num_resamples=2000, seed=0)
        assert together[column] == alone[0]
    assert together[4] == sign_flips_counted_one_by_one(differences[:6, 4].tolist())


def test_step_down_max_t_is_worked_by_hand():
    # Statistics 4 / 10 ** .5 = 1.26 and 3 / 3 ** .5 = 1.73. Over the 8 patterns the second is 1.73 twice and else .58,
    # the first 1.26 four times, where the first two signs are equal, and else .63.
    differences = np.array([[3.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    test = sign_flip_test(differences, num_resamples=8, seed=0)
    assert test.adjusted.tolist() == [0.5, 0.25]
    # (1, -1, 0) is 0 here and 1.41 where the first two signs differ: with it, 1.26 is reached in all patterns.
    test = sign_flip_test(np.column_stack([differences, [1.0, -1.0, 0.0]]), num_resamples=8, seed=0)
    assert test.adjusted.tolist() == [1.0, 0.25, 1.0]
    # (1, 1, 0) reaches its 1.41 in four patterns, and (1, 0, 1) in two of the others: six of eight for the first step.
    test = sign_flip_test(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), num_resamples=8, seed=0)
    assert test.p_values.tolist() == [0.5, 0.5]
    assert test.adjusted.tolist() == [0.75, 0.75]


def max_t_by_loops(differences):
    """Every pattern, column by column, as the definition says."""
    num_pairs, num_columns = differences.shape

    def statistics_of(signs):
        found = []
        for column in range(num_columns):
            values = differences[:, column]
            total = sum(sign * value for sign, value in zip(signs, values, strict=True))
            found.append(abs(total) / sum(value**2 for value in values) ** 0.5)
        return found

    observed = statistics_of([1] * num_pairs)
    every = [statistics_of(signs) for signs in product((-1, 1), repeat=num_pairs)]
    adjusted, before = [0.0] * num_columns, 0.0
    left = set(range(num_columns))
    for column in sorted(left, key=lambda column: -observed[column]):
        reached = [max(one[other] for other in left) >= observed[column] - 1e-9 for one in every]
        before = max(before, sum(reached) / len(every))
        adjusted[column] = before
        left.remove(column)
    return adjusted


@pytest.mark.parametrize("seed", range(4))
def test_step_down_max_t_over_all_flips_agrees_with_loops(seed):
    random = np.random.default_rng(seed)
    differences = random.normal(random.normal(0, 0.7, size=5), 1, size=(8, 5))
    test = sign_flip_test(differences, num_resamples=256, seed=0)
    assert test.adjusted == pytest.approx(max_t_by_loops(differences))
    drawn = sign_flip_test(differences, num_resamples=255, seed=1)
    assert drawn.adjusted == pytest.approx(test.adjusted, abs=0.1)


def test_max_t_does_not_adjust_equal_columns_and_is_at_most_holm():
    one = np.random.default_rng(0).normal(0.2, 1, size=(60, 1))
    test = sign_flip_test(np.tile(one, 7), num_resamples=2000, seed=0)
    assert test.adjusted == pytest.approx(test.p_values)
    others = np.random.default_rng(1).normal(0.3, 1, size=(60, 30))
    test = sign_flip_test(others, num_resamples=20_000, seed=0)
    assert np.all(test.adjusted >= test.p_values)
    assert np.mean(test.adjusted) < np.mean(holm(test.p_values.tolist()))


def test_max_t_has_no_floor_where_holm_has_one():
    # 1,000 cells of a sure difference: Holm's p-values are 1 at this number of flips.
    differences = np.random.default_rng(0).normal(2, 1, size=(80, 1000))
    test = sign_flip_test(differences, num_resamples=500, seed=0)
    assert test.adjusted == pytest.approx(1 / 501)
    assert min(holm(test.p_values.tolist())) == 1.0


def test_max_t_controls_the_family_wise_error_rate():
    random = np.random.default_rng(0)
    claims = 0
    for study in range(200):
        shared = random.normal(size=(40, 1))
        nothing = shared + random.normal(size=(40, 10))
        claims += sign_flip_test(nothing, num_resamples=200, seed=study).adjusted.min() <= 0.05
    # Three standard errors of a share of 200 at 0.05 are 0.046.
    assert claims / 200 <= 0.096


def crossed_bootstrap_by_loops(values, starts, *, num_resamples, seed):
    """The means of studies whose pairs and pretrainings, with all their runs, are drawn anew."""
    random = np.random.default_rng(seed)
    groups = [[run for run, start in enumerate(starts) if start == one] for one in sorted(set(starts))]
    means = []
    for _ in range(num_resamples):
        pairs = random.integers(values.shape[1], size=values.shape[1])
        runs = [run for group in random.integers(len(groups), size=len(groups)) for run in groups[group]]
        means.append(values[np.ix_(runs, pairs)].mean())
    return np.array(means)


@pytest.mark.parametrize("starts", [range(12), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]])
def test_the_crossed_interval_has_the_variance_of_a_bootstrap_over_pairs_and_runs(starts):
    random = np.random.default_rng(0)
    of_starts = random.normal(0, 0.05, size=12)[list(starts)]
    values = np.clip(0.5 + of_starts[:, None] + random.normal(0, 0.1, (12, 200)) + random.normal(0, 0.2, 200), 0, 1)
    means = crossed_bootstrap_by_loops(values, list(starts), num_resamples=4000, seed=1)
    interval = crossed_interval(Runs(values, list(starts)))
    num_draws = len(set(starts))
    # The bootstrap divides the variance over runs by their number and not by one less, and takes a normal quantile;
    # so the interval is wider, by what Student's quantile of all degrees of freedom at least explains.
    least, most = 1.96 * means.std(), stats.t.ppf(0.975, num_draws - 1) * means.std() * (num_draws / (num_draws - 1))
    assert least < (interval.high - interval.low) / 2 < most
    assert np.mean(interval) == pytest.approx(values.mean(), abs=0.01)


def test_the_crossed_interval_is_worked_by_hand():
    # Two runs that differ by .2 on every pair: their means are .4 and .6, of variance .02 / 2 over runs; pairs do not
    # vary, but for the pseudo-pairs: 100 values of .5 and 1.92 times 0 and 1.
    values = np.repeat([[0.4], [0.6]], 100, axis=1)
    over_pairs, over_runs = 0.25 * 3.84 / 103.84 / 104, 0.02 / 2
    freedom = (over_pairs + over_runs) ** 2 / over_runs**2
    half = stats.t.ppf(0.975, freedom) * (over_pairs + over_runs) ** 0.5
    low, high = crossed_interval(Runs(values))
    assert (low, high) == pytest.approx((max(0, 0.5 - half), min(1, 0.5 + half)), rel=2e-3)
    # Two pretrainings of one run each give the same; one pretraining has no variance between pretrainings.
    assert crossed_interval(Runs(values, [7, 3])) == (low, high)
    alone = crossed_interval(Runs(values, [0, 0]))
    assert alone == pytest.approx(bootstrap_interval(values.mean(axis=0), seed=0), abs=1e-3)


def test_run_and_residual_variances_are_the_closed_form_of_two_way_tables():
    values = np.random.default_rng(0).uniform(size=(4, 60))
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    of_runs = np.var(values.mean(axis=1), ddof=1) / 4
    left = np.sum(rest**2) / (4 * 60) ** 2 * 4 / 3
    alone = values.mean(axis=0)
    weights = np.array([*[1.0] * 60, 1.92, 1.92])
    joined = np.array([*alone, 0.0, 1.0])
    center = np.average(joined, weights=weights)
    total = np.average((joined - center) ** 2, weights=weights) / weights.sum() + of_runs + left
    half = stats.t.ppf(0.975, total**2 / (of_runs**2 / 3)) * total**0.5
    assert crossed_interval(Runs(values)) == pytest.approx((center - half, center + half), abs=2e-4)


def test_a_crossed_difference_combines_both_systems_runs_and_is_antisymmetric():
    random = np.random.default_rng(0)
    a, b = random.uniform(size=(3, 50)), random.uniform(size=(5, 50))
    one, other = crossed_difference(Runs(a), Runs(b)), crossed_difference(Runs(b), Runs(a))
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    # Against a system without seeds the runs of the other are all there is.
    fixed = crossed_difference(Runs(a), Runs(b[:1]))
    assert fixed.high - fixed.low > 0
    pairs_only = bootstrap_interval(a.mean(axis=0) - b[0], bounds=(-1.0, 1.0), seed=0)
    assert fixed.high - fixed.low > 0.99 * (pairs_only.high - pairs_only.low)


def test_the_detectable_difference_has_power_four_fifths():
    error = 0.013
    found = detectable_difference((0.1 - 1.959964 * error, 0.1 + 1.959964 * error))
    # A normal estimate about it has an interval above 0 with probability .8.
    assert stats.norm.sf(1.959964 - found / error) == pytest.approx(0.8, abs=1e-6)
    assert detectable_difference((-0.02, 0.02), power=0.5) == pytest.approx(0.02)
