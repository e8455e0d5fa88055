"""Confidence intervals and paired tests over pairs; average a pair's directions and seeds first, they are dependent."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special

from tll_jax.errors import InvalidValue

BLOCK_ELEMENTS = 2**20
"""Numbers held at once by a block of resamples, so that memory does not grow with their number."""
MOST_FLIPS_AT_ONCE = 256
"""Sign patterns held at once, because they are multiplied with all columns, which may be thousands."""
DIFFERENCES = (-1.0, 1.0)
"""Bounds of the difference of two proportions or reciprocal ranks."""


class Interval(NamedTuple):
    low: float
    high: float


class Bands(NamedTuple):
    """Lower and upper ends of the confidence intervals of several means, `[columns]` each."""

    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """Mean of a - b over pairs, its bootstrap confidence interval and its two-sided sign-flip p-value."""

    difference: float
    low: float
    high: float
    p_value: float


class SignFlipTest(NamedTuple):
    """Two-sided p-values of the columns, `[columns]` each."""

    p_values: np.ndarray
    """Unadjusted, of each column by itself."""
    adjusted: np.ndarray
    """Adjusted for the number of columns by step-down max-T."""


class Runs(NamedTuple):
    """Values of each pair in each run of one system."""

    values: np.ndarray
    """`[runs, pairs]`."""
    starts: Sequence[int] | None = None
    """Number of the pretraining that each run started from; None if runs are independent, or all share one."""


class McNemar(NamedTuple):
    """Numbers of queries with a hit by only a and by only b, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion from `n` independent trials, such as one seed and one direction.

    Raises:
        ValueError: unless 0 <= successes <= n and n is at least 1.

    Source: Wilson 1927, equation 4, without continuity correction.

    Examples:
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
    # At 0 and n successes the bound is exactly 0 and 1, up to rounding.
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
    """Bootstrap confidence interval, over pairs, of the mean of values within `bounds`.

    It is the standard bootstrap interval, the mean plus and minus 1.96 bootstrap standard errors (at confidence .95),
    clipped to the bounds. Pseudo-pairs at both bounds are added to the sample: about 2 at each for proportions and
    reciprocal ranks in [0, 1], about half a pair at each for differences in [-1, 1]. Without them the interval of 0
    hits in 325 pairs, or of two systems that agree on all pairs, would have width 0; with them it reaches to .014, and
    .006 to either side. For rates from .003 to .997 and at least 100 pairs, coverage is 96.6 % on average and at least
    92.7 % (`benchmarks/coverage.py`); for systems that differ on hardly any pair it is close to 100 %.

    The interval is about the sampling of pairs with a fixed gallery. Where each pair's images are in the gallery of all
    others, it ignores that their ranks are dependent.

    Raises:
        ValueError: there are no pairs, or a value is NaN or outside the bounds.

    Source: Efron and Tibshirani 1993, chapter 13; the pseudo-pairs of Agresti and Coull 1998, and of Agresti and Min
    2005 for differences.
    """
    low, high = bootstrap_bands(
        np.asarray(values_per_pair, np.float64)[:, None],
        bounds=bounds,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    return Interval(float(low[0]), float(high[0]))


def bootstrap_bands(
    values: Float[np.ndarray, "pairs columns"],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> Bands:
    """`bootstrap_interval` of the mean of each column, all from the same resamples of pairs.

    A column's interval does not depend on the other columns. The intervals are pointwise, not simultaneous.
    """
    _check_values(values, bounds)
    copies, each, total = _pseudo_pairs(len(values), bounds)
    values, weights = _with_pseudo_pairs(values, bounds)
    # A row is drawn as often as its copies are.
    row_of = np.repeat(np.arange(len(values)), [copies] * (len(values) - 2) + [each, each])
    random = np.random.default_rng(seed)
    means = []
    for size in _block_sizes(num_resamples, total):
        rows = row_of[random.integers(len(row_of), size=(size, total), dtype=np.int32)]
        counts = np.bincount((rows + len(values) * np.arange(size)[:, None]).ravel(), minlength=size * len(values))
        means.append(counts.reshape(size, -1).astype(np.float64) @ values / total)
    half = special.ndtri((1 + confidence) / 2) * np.std(np.concatenate(means), axis=0)
    center = weights @ values
    return Bands(np.clip(center - half, *bounds), np.clip(center + half, *bounds))


def _check_values(values: np.ndarray, bounds: tuple[float, float]) -> None:
    if len(values) == 0:
        raise InvalidValue("a bootstrap over pairs needs at least one pair, and there is none")
    least, most = np.min(values), np.max(values)
    if not bounds[0] <= least <= most <= bounds[1]:
        raise InvalidValue(f"values lie from {least:g} to {most:g}; they must be from {bounds[0]:g} to {bounds[1]:g}")


def _pseudo_pairs(num_pairs: int, bounds: tuple[float, float]) -> tuple[int, int, int]:
    """Copies of each pair in the sample, copies of each bound, and draws per resample.

    There are 1.92 pseudo-pairs at each bound (half of 1.96 squared), or .48 if the bounds are twice as far apart: their
    sum of squares about the center is the same in both cases. With 25 copies of each pair these are whole numbers.
    """
    each = 48 if bounds[1] - bounds[0] <= 1 else 12
    return 25, each, num_pairs + round(2 * each / 25)


def _with_pseudo_pairs(
    values: Float[np.ndarray, "pairs ..."], bounds: tuple[float, float]
) -> tuple[Float[np.ndarray, "rows ..."], Float[np.ndarray, " rows"]]:
    """Values followed by a row at each bound, and the rows' weights, which sum to 1."""
    copies, each, _ = _pseudo_pairs(len(values), bounds)
    weights = np.concatenate([np.full(len(values), copies), [each, each]]) / (copies * len(values) + 2 * each)
    ends = np.stack([np.full(values.shape[1:], bound) for bound in bounds])
    return np.concatenate([values, ends]), weights


def paired_difference(
    a: Shaped[np.ndarray, " pairs"],
    b: Shaped[np.ndarray, " pairs"],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> Difference:
    """Mean of a - b over the same pairs, with a bootstrap confidence interval and a sign-flip permutation test.

    `a` and `b` are in [0, 1], such as proportions or reciprocal ranks. For systems that agree on all pairs the
    difference is 0, p is 1, and the interval still has a width (see `bootstrap_interval`).

    The p-value is the probability of a mean at least as far from 0 if the sign of each pair's difference is random (see
    `sign_flip_p_values`).

    Raises:
        ValueError: there are no pairs, or a difference is outside [-1, 1].

    Examples:
      >>> paired_difference(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0]), seed=0).p_value
      0.5
    """
    # NumPy raises an error when Booleans are subtracted.
    differences = a.astype(np.float64) - b.astype(np.float64)
    return paired_differences(differences[:, None], num_resamples=num_resamples, confidence=confidence, seed=seed)[0]


def paired_differences(
    differences: Float[np.ndarray, "pairs columns"],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> list[Difference]:
    """`paired_difference` of each column, of which none depends on the others."""
    bands = bootstrap_bands(
        differences, bounds=DIFFERENCES, num_resamples=num_resamples, confidence=confidence, seed=seed
    )
    p_values = sign_flip_p_values(differences, num_resamples=num_resamples, seed=seed)
    columns = zip(differences.mean(axis=0), *bands, p_values, strict=True)
    return [Difference(*map(float, column)) for column in columns]


def sign_flip_p_values(
    differences: Float[np.ndarray, "pairs columns"], *, num_resamples: int, seed: int
) -> Float[np.ndarray, " columns"]:
    """Two-sided p-values of the hypothesis that a column's mean is 0, by random sign flips of its pairs.

    A column with at most `num_resamples` sign patterns is tested exactly with all of them. Otherwise that many are
    drawn, and the observed pattern is counted too, so that p is never 0. A pair's signs depend only on `seed` and the
    number of pairs, so the p-value of a column does not depend on the other columns.

    Source: Phipson and Smyth 2010 for the drawn p-value.
    """
    return sign_flip_test(differences, num_resamples=num_resamples, seed=seed).p_values


def sign_flip_test(differences: Float[np.ndarray, "pairs columns"], *, num_resamples: int, seed: int) -> SignFlipTest:
    """Sign-flip p-values of each column, unadjusted as in `sign_flip_p_values` and adjusted by step-down max-T.

    The statistic of a column is |sum| / sqrt(sum of squares), which is monotone in Student's t. The adjusted p-value of
    the largest statistic is the fraction of sign patterns, the same for all columns, in which any column reaches it;
    that of the next largest leaves out the columns before it; and the sequence is made non-decreasing. This controls
    the family-wise error rate. Correlated columns are adjusted less than by Holm's correction, and identical ones not
    at all.

    Source: Westfall and Young 1993, algorithm 2.8; Ge, Dudoit and Speed 2003, box 2.

    Examples:
      >>> test = sign_flip_test(np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 0.0]]), num_resamples=8, seed=0)
      >>> test.p_values.tolist(), test.adjusted.tolist()
      ([0.25, 0.5], [0.25, 0.5])
    """
    norms = np.sqrt(np.sum(differences**2, axis=0))
    scaled = differences / np.where(norms > 0, norms, 1.0)
    # Patterns whose exact sum equals the observed one may differ from it by rounding.
    observed = np.abs(scaled.sum(axis=0)) - 1e-9 * np.abs(scaled).sum(axis=0)
    order = np.argsort(-observed, kind="stable")
    moved = scaled[np.any(scaled != 0, axis=1)]
    exactly = len(moved) <= np.log2(num_resamples)
    alone, together, count = np.zeros(len(norms), int), np.zeros(len(norms), int), 0
    for signs in _all_signs(len(moved)) if exactly else _drawn_signs(len(scaled), num_resamples, seed):
        statistics = np.abs(signs @ (moved if exactly else scaled))
        alone += np.sum(statistics >= observed, axis=0)
        # For each column, the maximum over it and all columns with a smaller observed statistic.
        largest = np.maximum.accumulate(statistics[:, order[::-1]], axis=1)[:, ::-1]
        together += np.sum(largest >= observed[order], axis=0)
        count += len(signs)
    # The exact test includes the observed pattern; among drawn patterns it is counted in addition.
    more = 0 if exactly else 1
    p_values, steps = (alone + more) / (count + more), (together + more) / (count + more)
    if not exactly:
        for column in np.flatnonzero(np.sum(scaled != 0, axis=0) <= np.log2(num_resamples)):
            p_values[column] = sign_flip_test(differences[:, [column]], num_resamples=num_resamples, seed=seed)[0][0]
    adjusted = np.empty(len(norms))
    adjusted[order] = np.maximum.accumulate(np.maximum(steps, p_values[order]))
    return SignFlipTest(p_values, adjusted)


def _all_signs(num_pairs: int) -> Iterator[np.ndarray]:
    """All sign patterns, `[2 ** pairs, pairs]` of -1 and 1."""
    yield 2.0 * (np.arange(2**num_pairs)[:, None] >> np.arange(num_pairs) & 1) - 1


def _drawn_signs(num_pairs: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for size in _block_sizes(num_resamples, max(num_pairs, BLOCK_ELEMENTS // MOST_FLIPS_AT_ONCE)):
        yield 2.0 * random.integers(2, size=(size, num_pairs), dtype=np.int8) - 1


def crossed_interval(runs: Runs, *, bounds: tuple[float, float] = (0.0, 1.0), confidence: float = 0.95) -> Interval:
    """Confidence interval of a method's mean over pairs and runs, for new pairs, seeds and pretrainings.

    It is the standard interval of the crossed bootstrap, which resamples pairs and runs independently; if several runs
    start from one pretraining, pretrainings are resampled with all their runs. The bootstrap's variance is computed in
    closed form, without resampling: the variance over pairs (as in `bootstrap_interval`, with its pseudo-pairs), plus
    the variance of the runs' means, plus the residual variance. Because runs are few, variances over G runs are divided
    by G - 1, and the quantile is Student's t with Satterthwaite's degrees of freedom. The gallery is fixed. Coverage is
    measured in `benchmarks/coverage.py`.

    Raises:
        ValueError: there are no pairs, or a value is NaN or outside the bounds.

    Source: Owen 2007, "The pigeonhole bootstrap", for crossed factors; Satterthwaite 1946.
    """
    return _crossed([(1.0, runs)], bounds, confidence)


def crossed_difference(a: Runs, b: Runs, *, confidence: float = 0.95) -> Interval:
    """Confidence interval of the mean of a - b over pairs, which are shared, and runs, which are each system's own."""
    return _crossed([(1.0, a), (-1.0, b)], DIFFERENCES, confidence)


def _crossed(signed: Sequence[tuple[float, Runs]], bounds: tuple[float, float], confidence: float) -> Interval:
    """Interval of the signed sum of means of one or two systems; see `crossed_interval`."""
    values = np.sum([sign * runs.values.astype(np.float64).mean(axis=0) for sign, runs in signed], axis=0)
    _check_values(values, bounds)
    *_, total = _pseudo_pairs(len(values), bounds)
    values, weights = _with_pseudo_pairs(values, bounds)
    center = weights @ values
    # Satterthwaite's degrees of freedom are variance**2 / inverse: only the variance between few runs is uncertain.
    variance, inverse = weights @ (values - center) ** 2 / total, 0.0
    for _, runs in signed:
        between_runs, residual, num_draws = _variances_of_runs(runs)
        variance += between_runs + residual
        inverse += between_runs**2 / max(num_draws - 1, 1)
    quantile = (1 + confidence) / 2
    factor = special.stdtrit(variance**2 / inverse, quantile) if inverse > 0 else special.ndtri(quantile)
    half = float(factor * np.sqrt(variance))
    return Interval(float(max(bounds[0], center - half)), float(min(bounds[1], center + half)))


def _variances_of_runs(runs: Runs) -> tuple[float, float, int]:
    """Variance of the overall mean between runs, its residual variance, and the number of runs (or pretrainings)."""
    num_runs, num_pairs = runs.values.shape
    starts = np.arange(num_runs) if runs.starts is None else np.unique(runs.starts, return_inverse=True)[1]
    num_draws = int(starts.max()) + 1
    if num_draws == 1:
        return 0.0, 0.0, 1
    deviations = (runs.values - runs.values.mean(axis=0)) / num_runs
    parts = np.zeros((num_draws, num_pairs))
    np.add.at(parts, starts, deviations)
    means = parts.mean(axis=1)
    # Variances over G runs are divided by G - 1.
    unbiased = num_draws / (num_draws - 1)
    residual = unbiased * float(np.sum((parts - means[:, None]) ** 2)) / num_pairs**2
    return unbiased * float(means @ means), residual, num_draws


def detectable_difference(interval: tuple[float, float], *, power: float = 0.8) -> float:
    """Minimum detectable effect: the difference for which an interval this wide excludes 0 with probability `power`.

    For a 95 % `interval` and a power of .8 it is (1.96 + .84) standard errors.

    Examples:
      >>> print(f"{detectable_difference((-0.020, 0.020)):.4f}")
      0.0286
    """
    half = (interval[1] - interval[0]) / 2
    return half * (1 + float(special.ndtri(power) / special.ndtri(0.975)))


def mcnemar_exact(a_hits: Bool[np.ndarray, " queries"], b_hits: Bool[np.ndarray, " queries"]) -> McNemar:
    """McNemar's exact test on the queries that only one of a and b has as a hit, for one seed and one direction.

    >>> mcnemar_exact(np.array([True, True, False]), np.array([False, False, False]))
    McNemar(only_a=2, only_b=0, p_value=0.5)
    """
    only_a = int(np.sum(a_hits & ~b_hits))
    only_b = int(np.sum(b_hits & ~a_hits))
    # Both tails of the binomial distribution; they overlap where a and b have equally many. `scipy.stats.binomtest` is
    # the same, but importing it takes half a second.
    p_value = min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(only_a, only_b, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    Source: Holm 1979.

    Examples:
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
