"""Metrics of the results table, and paired comparisons between systems, from ranks."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tll_jax.errors import InvalidValue, UnknownName
from tll_jax.ranking import munteanu_k, recall_at_k, reciprocal_rank
from tll_jax.statistics import (
    DIFFERENCES,
    Runs,
    bootstrap_bands,
    crossed_difference,
    crossed_interval,
    holm,
    mcnemar_exact,
    paired_differences,
    sign_flip_test,
    wilson_interval,
)

DIRECTIONS = ("left_to_right", "right_to_left")
TOPS = {"top1": 1, "top5": 5, "top10": 10, "top25": 25}
COMPARED = ("top1", "top5", "mrr")
EXPLORED = ("mrr", "top1")
NUM_SIGN_FLIPS = 10_000
"""Number of resamples of every sign-flip test, the same everywhere, so that a comparison has a single p-value."""

Ranks = Int[np.ndarray, "seeds directions=2 pairs"]
"""Rank of each pair's positive (1 is best), by seed and direction (left to right, right to left)."""
Starts = Mapping[str, Sequence[int] | None]
"""Pretraining run that each seed of a system started from; None or missing if seeds share one or have none."""


def metrics_row(
    system: str,
    kind: str,
    ranks: Ranks,
    *,
    num_candidates: int | Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Row of the results table for one system, ready for JSON; all values but the median rank are fractions.

    Args:
        system: its name in the table.
        kind: "baseline", "fitted", "frozen", "file" or "model".
        ranks: ranks of the positives; 1 is best.
        num_candidates: number of candidates per query, by default the number of pairs; for pairs in folds, whose
          candidates are their own fold, the sizes of the folds.
        starts: pretraining run that each seed started from; None if all share one or have none.
        seed: seed of the bootstrap.

    Returns:
        `top1` to `top25`, `top_paper` and `mrr` contain the mean and its 95 % bootstrap interval over pairs, after
        averaging each pair over directions and seeds. `top_paper` scales the top 25 of 1,200 of [Munteanu 2022] to
        `num_candidates`; it includes its `k` and its `chance`. `crossed` contains the wider intervals of the same means
        over pairs and runs, if there are several seeds; `num_starts` is the number of pretraining runs among them, if
        known. `wilson` contains each direction's hits with Wilson intervals, for a single seed only, because queries
        are not independent across seeds.
    """
    num_seeds, _, num_pairs = ranks.shape
    num_candidates = num_pairs if num_candidates is None else num_candidates
    cuts = _cuts(num_candidates)
    starts = _varying_starts(starts)
    row: dict[str, Any] = {"system": system, "kind": kind, "num_seeds": num_seeds}
    row["num_starts"] = None if starts is None else len(set(starts))
    by_run = {name: _per_query(ranks, name, cuts).mean(axis=1) for name in (*cuts, "mrr")}
    per_pair = np.stack([values.mean(axis=0) for values in by_run.values()], axis=1)
    row |= dict(zip(by_run, estimates(per_pair, seed=seed), strict=True))
    row["crossed"] = None
    if num_seeds > 1:
        row["crossed"] = {name: crossed_interval(Runs(values, starts))._asdict() for name, values in by_run.items()}
    row["top_paper"] |= _paper(num_candidates)
    row["median_rank"] = float(np.median(ranks))
    row["wilson"] = {} if num_seeds == 1 else None
    for index, direction in enumerate(DIRECTIONS):
        one_way = ranks[:, index]
        row[direction] = {name: float(_per_query(one_way, name, cuts).mean()) for name in (*cuts, "mrr")}
        row[direction]["median_rank"] = float(np.median(one_way))
        if num_seeds == 1:
            row["wilson"][direction] = {name: _wilson(one_way[0], k) for name, k in cuts.items()}
    return row


def chance_row(num_candidates: int | Sequence[int]) -> dict[str, Any]:
    """Expected metrics of random ranking in closed form: top-k = k / N, MRR = H_N / N, median rank (N + 1) / 2.

    Expectations are exact, so that each interval equals its value. For folds, `num_candidates` are the numbers of pairs
    in each fold, and expectations are over the pairs of all folds.
    """
    cuts = _cuts(num_candidates)
    every = _every_rank(num_candidates)
    values = {name: float(np.mean(every <= k)) for name, k in cuts.items()}
    values["mrr"] = float(np.mean(1 / every))
    median_rank = float(np.median(every))
    row: dict[str, Any] = {"system": "chance", "kind": "chance", "num_seeds": 0}
    row |= {name: {"value": value, "low": value, "high": value} for name, value in values.items()}
    row["top_paper"] |= _paper(num_candidates)
    row |= {"median_rank": median_rank, "wilson": None, "crossed": None, "num_starts": None}
    row |= {direction: values | {"median_rank": median_rank} for direction in DIRECTIONS}
    return row


def compare(
    ranks_by_system: Mapping[str, Ranks],
    *,
    planned: Sequence[tuple[str, str]],
    starts: Starts | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired comparisons of all systems on the same pairs, in top-1, top-5 and MRR: the mean over pairs of a - b.

    Planned comparisons come first, in the given orientation (a, b); their p-values are adjusted by Holm's method over
    that family in all three metrics together. All others are exploratory, and their `p_holm` is None. `crossed` is the
    interval over pairs and runs, if either system has several seeds. `mcnemar` is given for each direction in top-1 and
    top-5, if both systems have one seed.

    Raises:
        KeyError: a planned comparison contains an unknown system.
        ValueError: the systems were ranked on different numbers of pairs.
    """
    for name in {name for pair in planned for name in pair}:
        if name not in ranks_by_system:
            raise UnknownName(f"a planned comparison names {name!r}; there are {', '.join(ranks_by_system)}")
    num_pairs = {name: ranks.shape[-1] for name, ranks in ranks_by_system.items()}
    if len(set(num_pairs.values())) > 1:
        raise InvalidValue(f"a paired comparison needs the same pairs for every system, got {num_pairs}")
    named = {frozenset(pair) for pair in planned}
    exploratory = [pair for pair in combinations(ranks_by_system, 2) if frozenset(pair) not in named]
    draws = {name: _varying_starts((starts or {}).get(name)) for name in ranks_by_system}
    named_metrics = [(a, b, metric) for a, b in (*planned, *exploratory) for metric in COMPARED]
    if not named_metrics:
        return []
    by_run = {
        (name, metric): Runs(_per_query(ranks, metric, TOPS).mean(axis=1), draws[name])
        for name, ranks in ranks_by_system.items()
        for metric in COMPARED
    }
    per_pair = {key: runs.values.mean(axis=0) for key, runs in by_run.items()}
    columns = np.stack([per_pair[a, metric] - per_pair[b, metric] for a, b, metric in named_metrics], axis=1)
    differences = paired_differences(columns, num_resamples=NUM_SIGN_FLIPS, seed=seed)
    comparisons: list[dict[str, Any]] = []
    for (a, b, metric), difference in zip(named_metrics, differences, strict=True):
        crossed, mcnemar = None, None
        if len(ranks_by_system[a]) > 1 or len(ranks_by_system[b]) > 1:
            crossed = crossed_difference(by_run[a, metric], by_run[b, metric])._asdict()
        elif metric in TOPS:
            mcnemar = _mcnemar(ranks_by_system[a][0], ranks_by_system[b][0], TOPS[metric])
        comparisons.append(
            {"a": a, "b": b, "metric": metric, **difference._asdict(), "crossed": crossed, "mcnemar": mcnemar}
        )
    family = comparisons[: len(planned) * len(COMPARED)]
    adjusted = holm([comparison["p_value"] for comparison in family])
    for index, comparison in enumerate(comparisons):
        comparison["planned"] = index < len(family)
        comparison["p_holm"] = adjusted[index] if index < len(family) else None
    return comparisons


def significance(ranks_by_system: Mapping[str, Ranks], *, seed: int = 0) -> list[dict[str, Any]]:
    """Exploratory paired comparisons of all systems in MRR and top-1, with the same p-values as `compare`.

    `p_max_t` is adjusted over all returned comparisons by step-down max-T on the same sign flips. Planned comparisons
    are a family of their own in `compare`.
    """
    named = list(combinations(ranks_by_system, 2))
    if not named:
        return []
    columns = []
    for metric in EXPLORED:
        per_pair = {name: _per_query(ranks, metric, TOPS).mean(axis=(0, 1)) for name, ranks in ranks_by_system.items()}
        columns += [per_pair[a] - per_pair[b] for a, b in named]
    differences = np.stack(columns, axis=1)
    bands = bootstrap_bands(differences, bounds=DIFFERENCES, seed=seed)
    test = sign_flip_test(differences, num_resamples=NUM_SIGN_FLIPS, seed=seed)
    return [
        {
            "a": a,
            "b": b,
            "metric": metric,
            "difference": float(difference),
            "low": float(low),
            "high": float(high),
            "p_value": float(p_value),
            "p_max_t": float(adjusted),
        }
        for (metric, (a, b)), difference, low, high, p_value, adjusted in zip(
            product(EXPLORED, named), differences.mean(axis=0), *bands, *test, strict=True
        )
    ]


def estimate(values_per_pair: Float[np.ndarray, " pairs"], *, seed: int = 0) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval over pairs, ready for JSON."""
    return estimates(values_per_pair[:, None], seed=seed)[0]


def estimates(values_per_pair: Float[np.ndarray, "pairs columns"], *, seed: int = 0) -> list[dict[str, float]]:
    """`estimate` of each column."""
    columns = zip(values_per_pair.mean(axis=0), *bootstrap_bands(values_per_pair, seed=seed), strict=True)
    return [{"value": float(value), "low": float(low), "high": float(high)} for value, low, high in columns]


def _mcnemar(a: Int[np.ndarray, "directions pairs"], b: Int[np.ndarray, "directions pairs"], k: int) -> dict[str, Any]:
    """McNemar's test of the hits among the top k, by direction, from the ranks of one run each."""
    hits_a, hits_b = (np.asarray(recall_at_k(ranks, k)) for ranks in (a, b))
    return {
        direction: mcnemar_exact(hits_a[index], hits_b[index])._asdict() for index, direction in enumerate(DIRECTIONS)
    }


def _varying_starts(starts: Sequence[int] | None) -> list[int] | None:
    """Pretraining runs of the seeds if there are several, else None, because one run has no variance between runs."""
    return None if starts is None or len(set(starts)) < 2 else list(starts)


def _cuts(num_candidates: int | Sequence[int]) -> dict[str, int]:
    return {**TOPS, "top_paper": munteanu_k(int(np.max(num_candidates)))}


def _paper(num_candidates: int | Sequence[int]) -> dict[str, int | float]:
    k = munteanu_k(int(np.max(num_candidates)))
    return {"k": k, "chance": float(np.mean(_every_rank(num_candidates) <= k))}


def _every_rank(num_candidates: int | Sequence[int]) -> Int[np.ndarray, " pairs"]:
    """All ranks that queries of each fold can have; random ranking makes them equally likely."""
    return np.concatenate([np.arange(1, size + 1) for size in np.atleast_1d(num_candidates)])


def _per_query(ranks: Int[np.ndarray, "*shape"], metric: str, cuts: Mapping[str, int]) -> Float[np.ndarray, "*shape"]:
    values = reciprocal_rank(ranks) if metric == "mrr" else recall_at_k(ranks, cuts[metric])
    return np.asarray(values, dtype=np.float64)


def _wilson(ranks: Int[np.ndarray, " pairs"], k: int) -> dict[str, int | float]:
    num_hits = int(recall_at_k(ranks, k).sum())
    return {"hits": num_hits, "of": len(ranks), **wilson_interval(num_hits, len(ranks))._asdict()}
