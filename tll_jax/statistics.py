"""Intervals and paired tests over pairs: a pair's directions and seeds are dependent, so averaged first."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special

from tll_jax.errors import InvalidValue

BLOCK_ELEMENTS = 2**20
"""How many numbers one block of resamples may hold, so that memory does not grow with the resamples."""


MOST_FLIPS_AT_ONCE = 256
"""Of all columns, which may be thousands."""
DIFFERENCES = (-1.0, 1.0)
"""The bounds of a difference of two shares or reciprocal ranks."""


class Interval(NamedTuple):
    low: float
    high: float


class Bands(NamedTuple):
    """The ends of the intervals of several means: `[columns]` each."""

    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """The mean of a - b over pairs, its bootstrap interval and its two-sided sign-flip p-value."""

    difference: float
    low: float
    high: float
    p_value: float


class SignFlipTest(NamedTuple):
    """Two-sided p-values of several columns, `[columns]` each."""

    p_values: np.ndarray
    """Of every column by itself."""
    adjusted: np.ndarray
    """For the number of columns, by step-down max-T."""


class Runs(NamedTuple):
    """What each run of one system says of each pair."""

    values: np.ndarray
    """`[runs, pairs]`."""
    starts: Sequence[int] | None = None
    """Which pretraining each run started from; None where each run stands on its own, or all on one."""


class McNemar(NamedTuple):
    """How many queries only a, and only b, answered, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of a proportion, for `n` independent trials: one seed and one direction.

    Raises:
        ValueError: unless 0 <= successes <= n and n is at least 1.

    Source: Wilson 1927, equation 4, without continuity correction.

    >>> low, high = wilson_interval(51, 325)
    >>> print(f"{low:.3f} {high:.3f}")
    0.121 0.200
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidValue(f"{successes} successes of {n}: there must be at least 1 trial and 0 to n successes")
    z = float(special.ndtri((1 + confidence) / 2))
    proportion = successes / n
    center = proportion + z**2 / (2 * n)
    half = z * np.sqrt(proportion * (1 - proportion) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At 0 and n successes the bound is exactly 0 and 1; only rounding would move it.
    low = 0.0 if successes == 0 else (center - half) / scale
    high = 1.0 if successes == n else (center + half) / scale
    return Interval(float(low), float(high))


def bootstrap_interval(
    values_per_pair: Shaped[np.ndarray, " pairs"],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> Interval:
    """The standard bootstrap interval, over pairs, of the mean of values that cannot leave `bounds`.

    That is the mean plus and minus 1.96 bootstrap standard errors, cut at the bounds, where pseudo-pairs at either
    bound join the pairs: about 2 of shares and reciprocal ranks in [0, 1], about half a one of differences in [-1, 1].
    Without them, no hit in 325 pairs would have an interval of no width, and systems that are equal on all pairs a
    difference known to be 0; with them these intervals reach to .014, and .006 to either side. Of rates from .003 to
    .997 and 100 pairs or more it holds the truth 96.6 % of the time on average and never under 92.7 %
    (`benchmarks/coverage.py`); of systems that differ on hardly a pair nearly always.

    It says how far other pairs would move the mean and holds the candidates fixed: where every pair's images are the
    candidates of all others, it does not see that their ranks depend on each other.

    Raises:
        ValueError: if there are no pairs, or a value is beyond the bounds or NaN.

    Source: Efron and Tibshirani 1993, chapter 13; the pseudo-pairs of Agresti and Coull 1998, and of Agresti and Min
    2005 for differences.
    """
    num_pairs = len(values_per_pair)
    _check_values(values_per_pair, bounds)
    copies, each, total = _pseudo_pairs(num_pairs, bounds)
    drawn_from = np.concatenate([np.repeat(np.asarray(values_per_pair, np.float64), copies), np.repeat(bounds, each)])
    random = np.random.default_rng(seed)
    means = [
        drawn_from[random.integers(len(drawn_from), size=(size, total), dtype=np.int32)].mean(axis=1)
        for size in _block_sizes(num_resamples, total)
    ]
    low, high = _standard_interval(float(np.mean(drawn_from)), np.concatenate(means), bounds, confidence)
    return Interval(float(low), float(high))


def bootstrap_bands(
    values: Float[np.ndarray, "pairs columns"],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> Bands:
    """`bootstrap_interval` of the mean of every column, all over the same resamples of pairs.

    Each interval holds by itself: nothing is said of all of them together.
    """
    _check_values(values, bounds)
    copies, each, total = _pseudo_pairs(len(values), bounds)
    weights = np.concatenate([np.full(len(values), copies), [each, each]]) / (copies * len(values) + 2 * each)
    values = np.concatenate([values, np.repeat([bounds], values.shape[1], axis=0).T])
    random = np.random.default_rng(seed)
    means = [
        random.multinomial(total, weights, size=size).astype(np.float64) @ values / total
        for size in _block_sizes(num_resamples, total)
    ]
    return Bands(*_standard_interval(weights @ values, np.concatenate(means), bounds, confidence))


def _check_values(values: np.ndarray, bounds: tuple[float, float]) -> None:
    if len(values) == 0:
        raise InvalidValue("a bootstrap over pairs needs at least one pair, and there is none")
    least, most = np.min(values), np.max(values)
    if not bounds[0] <= least <= most <= bounds[1]:
        raise InvalidValue(f"values lie from {least:g} to {most:g}; they must be from {bounds[0]:g} to {bounds[1]:g}")


def _pseudo_pairs(num_pairs: int, bounds: tuple[float, float]) -> tuple[int, int, int]:
    """How often each pair stands among what is drawn from, how often each bound does, and how many draws make a mean.

    At either bound there are 1.92 pseudo-pairs, half of 1.96 squared, or .48 where bounds are twice as far apart: in
    either case the squares about their middle add up to as much.
    """
    each = 48 if bounds[1] - bounds[0] <= 1 else 12
    return 25, each, num_pairs + round(2 * each / 25)


def _standard_interval(
    center: float | np.ndarray, means: np.ndarray, bounds: tuple[float, float], confidence: float
) -> tuple[Any, Any]:
    half = special.ndtri((1 + confidence) / 2) * np.std(means, axis=0)
    return np.clip(center - half, *bounds), np.clip(center + half, *bounds)


def paired_difference(
    a: Shaped[np.ndarray, " pairs"],
    b: Shaped[np.ndarray, " pairs"],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> Difference:
    """The mean of a - b over the same pairs, with a bootstrap interval and a sign-flip permutation test.

    Both are in [0, 1], as shares and reciprocal ranks are. Of systems that are equal on all pairs the difference is 0,
    p is 1, and the interval says how far they may differ on pairs that were not drawn.

    The test asks how often the mean would be as far from 0 if each pair's difference had either sign with
    equal chance (see `sign_flip_p_values`).

    Raises:
        ValueError: if there are no pairs, or a difference is beyond -1 and 1.

    >>> paired_difference(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0]), seed=0).p_value
    0.5
    """
    # Subtracting Booleans is an error in numpy.
    differences = a.astype(np.float64) - b.astype(np.float64)
    low, high = bootstrap_interval(
        differences, bounds=DIFFERENCES, num_resamples=num_resamples, confidence=confidence, seed=seed
    )
    p_value = sign_flip_p_values(differences[:, None], num_resamples=num_resamples, seed=seed)[0]
    return Difference(float(np.mean(differences)), low, high, float(p_value))


def sign_flip_p_values(
    differences: Float[np.ndarray, "pairs columns"], *, num_resamples: int, seed: int
) -> Float[np.ndarray, " columns"]:
    """Two-sided p-values of the mean of every column being 0: how often it would be as far from 0 by random signs.

    All sign patterns are counted for a column where there are at most `num_resamples` of them; else that many are
    drawn, and the observed one is counted among them so that p is never 0. A pair's signs depend on `seed` and the
    number of pairs alone, so that a column has the same p-value whatever stands beside it.

    Source: Phipson and Smyth 2010 for the drawn p-value.
    """
    return sign_flip_test(differences, num_resamples=num_resamples, seed=seed).p_values


def sign_flip_test(differences: Float[np.ndarray, "pairs columns"], *, num_resamples: int, seed: int) -> SignFlipTest:
    """Every column's p-value by itself, as `sign_flip_p_values` gives it, and adjusted by step-down max-T.

    The statistic of a column is |sum| / sqrt(sum of squares), which orders columns as Student's t does. The adjusted
    p-value of the largest asks how often, under the same random signs for all columns, any column reaches it; that of
    the next how often any but the larger ones does; and none is below one before it. So the chance of one false claim
    among all columns stays under the level, and columns that go up and down together cost less than with Holm's
    correction: equal columns nothing at all.

    Source: Westfall and Young 1993, algorithm 2.8; Ge, Dudoit and Speed 2003, box 2.

    >>> test = sign_flip_test(np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 0.0]]), num_resamples=8, seed=0)
    >>> test.p_values.tolist(), test.adjusted.tolist()
    ([0.25, 0.5], [0.25, 0.5])
    """
    norms = np.sqrt(np.sum(differences**2, axis=0))
    scaled = differences / np.where(norms > 0, norms, 1.0)
    # Patterns whose sum equals the observed one on paper differ from it by rounding.
    observed = np.abs(scaled.sum(axis=0)) - 1e-9 * np.abs(scaled).sum(axis=0)
    order = np.argsort(-observed, kind="stable")
    moved = scaled[np.any(scaled != 0, axis=1)]
    exactly = len(moved) <= np.log2(num_resamples)
    alone, together, count = np.zeros(len(norms), int), np.zeros(len(norms), int), 0
    for signs in _all_signs(len(moved)) if exactly else _drawn_signs(len(scaled), num_resamples, seed):
        statistics = np.abs(signs @ (moved if exactly else scaled))
        alone += np.sum(statistics >= observed, axis=0)
        # By column the largest of it and all that are smaller than it as observed.
        largest = np.maximum.accumulate(statistics[:, order[::-1]], axis=1)[:, ::-1]
        together += np.sum(largest >= observed[order], axis=0)
        count += len(signs)
    # The pattern that was observed is among all there are, and counts as one more among those drawn.
    more = 0 if exactly else 1
    p_values, steps = (alone + more) / (count + more), (together + more) / (count + more)
    if not exactly:
        for column in np.flatnonzero(np.sum(scaled != 0, axis=0) <= np.log2(num_resamples)):
            p_values[column] = sign_flip_test(differences[:, [column]], num_resamples=num_resamples, seed=seed)[0][0]
    adjusted = np.empty(len(norms))
    adjusted[order] = np.maximum.accumulate(np.maximum(steps, p_values[order]))
    return SignFlipTest(p_values, adjusted)


def _all_signs(num_pairs: int) -> Iterator[np.ndarray]:
    """Every sign pattern once: `[2 ** pairs, pairs]` of -1 and 1."""
    yield 2.0 * (np.arange(2**num_pairs)[:, None] >> np.arange(num_pairs) & 1) - 1


def _drawn_signs(num_pairs: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for size in _block_sizes(num_resamples, max(num_pairs, BLOCK_ELEMENTS // MOST_FLIPS_AT_ONCE)):
        yield 2.0 * random.integers(2, size=(size, num_pairs), dtype=np.int8) - 1


def crossed_interval(runs: Runs, *, bounds: tuple[float, float] = (0.0, 1.0), confidence: float = 0.95) -> Interval:
    """The interval of a method's mean over pairs and over its runs: other pairs, other seeds and other pretrainings.

    It is the standard interval of the crossed bootstrap, which draws pairs and runs anew, each with replacement and
    independently; where several runs start from one pretraining, pretrainings are drawn, with all their runs. Nothing
    is drawn here: that bootstrap's variance is known in closed form. It is the sum of the variance over pairs, as in
    `bootstrap_interval` and with its pseudo-pairs; of the variance of the means of the runs; and of what is left when
    both are taken off. Variances over G runs are divided by G - 1 and the quantile is Student's, of
    Satterthwaite's degrees of freedom, for there are few runs. It holds the candidates fixed. Coverage:
    `benchmarks/coverage.py`.

    Raises:
        ValueError: if there are no pairs, or a value is beyond the bounds or NaN.

    Source: Owen 2007, "The pigeonhole bootstrap", for crossed factors; Satterthwaite 1946.
    """
    return _crossed([(1.0, runs)], bounds, confidence)


def crossed_difference(a: Runs, b: Runs, *, confidence: float = 0.95) -> Interval:
    """The interval of the mean of a - b over pairs and runs: pairs are the same for both, runs are each one's own."""
    return _crossed([(1.0, a), (-1.0, b)], DIFFERENCES, confidence)


def _crossed(signed: Sequence[tuple[float, Runs]], bounds: tuple[float, float], confidence: float) -> Interval:
    values = sum(sign * runs.values.astype(np.float64).mean(axis=0) for sign, runs in signed)
    assert isinstance(values, np.ndarray)
    _check_values(values, bounds)
    copies, each, total = _pseudo_pairs(len(values), bounds)
    weights = np.concatenate([np.full(len(values), copies), [each, each]]) / (copies * len(values) + 2 * each)
    values = np.concatenate([values, bounds])
    center = weights @ values
    variance, uncertain = weights @ (values - center) ** 2 / total, 0.0
    for _, runs in signed:
        of_runs, left, num_draws = _variances_of_runs(runs)
        variance += of_runs + left
        uncertain += of_runs**2 / max(num_draws - 1, 1)
    quantile = (1 + confidence) / 2
    factor = special.stdtrit(variance**2 / uncertain, quantile) if uncertain > 0 else special.ndtri(quantile)
    half = float(factor * np.sqrt(variance))
    return Interval(float(max(bounds[0], center - half)), float(min(bounds[1], center + half)))


def _variances_of_runs(runs: Runs) -> tuple[float, float, int]:
    """What the mean over all varies by from run to run, and by what runs say of single pairs; and how many can be
    drawn, runs or pretrainings."""
    num_runs, num_pairs = runs.values.shape
    starts = np.arange(num_runs) if runs.starts is None else np.unique(runs.starts, return_inverse=True)[1]
    num_draws = int(starts.max()) + 1
    if num_draws == 1:
        return 0.0, 0.0, 1
    deviations = (runs.values - runs.values.mean(axis=0)) / num_runs
    parts = np.zeros((num_draws, num_pairs))
    np.add.at(parts, starts, deviations)
    means = parts.mean(axis=1)
    few = num_draws / (num_draws - 1)
    return few * float(means @ means), few * float(np.sum((parts - means[:, None]) ** 2)) / num_pairs**2, num_draws


def detectable_difference(interval: tuple[float, float], *, power: float = 0.8) -> float:
    """The true difference that would have been found, with an interval of this width, in a share `power` of studies.

    Found is what a 95 % interval keeps from 0: (1.96 + .84) standard errors.

    >>> print(f"{detectable_difference((-0.020, 0.020)):.4f}")
    0.0286
    """
    quantile = float(special.ndtri(0.975))
    return (interval[1] - interval[0]) / 2 * (1 + float(special.ndtri(power)) / quantile)


def mcnemar_exact(a_hits: Bool[np.ndarray, " queries"], b_hits: Bool[np.ndarray, " queries"]) -> McNemar:
    """McNemar's exact test on the queries where a and b disagree: one seed and one direction.

    >>> mcnemar_exact(np.array([True, True, False]), np.array([False, False, False]))
    McNemar(only_a=2, only_b=0, p_value=0.5)
    """
    # Takes half a second to import.
    from scipy import stats

    only_a = int(np.sum(a_hits & ~b_hits))
    only_b = int(np.sum(b_hits & ~a_hits))
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down, in the order given.

    Source: Holm 1979.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for position, index in enumerate(np.argsort(p_values, kind="stable")):
        so_far = max(so_far, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = float(so_far)
    return adjusted


def _block_sizes(num_resamples: int, num_pairs: int) -> Iterator[int]:
    block = max(1, BLOCK_ELEMENTS // num_pairs)
    for start in range(0, num_resamples, block):
        yield min(block, num_resamples - start)
