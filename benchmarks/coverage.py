"""How often the 95 % intervals hold the truth, and how often the matrix of p-values claims a difference that is none.

python benchmarks/coverage.py [PART ...] [--out benchmarks/results/coverage.json]

Every number is a share of `--studies` drawn studies. Parts:
- hits: rates from .003 to .997. A pair's value is the mean of its hits over both directions and all seeds, which are
  independent, of the same pair, or in between (a rate of each pair's own, drawn from a beta distribution of
  correlation 1/2).
- mrr: mean reciprocal ranks. A query's rank is log-normal and cut at the candidates; half of the variance of its
  logarithm is the pair's own.
- differences: of the mean reciprocal ranks of two systems, which find the same pairs hard.
- crossed: intervals over pairs alone and over pairs and runs, where every run, or pretraining, has an effect of its own
  on the logarithm of all ranks; the truth is the mean over all pairs and runs that might be drawn.
- matrix: any claim at .05, after step-down max-T, among systems that differ in nothing, and the power for one that is
  better, beside Holm's correction.

With parts named, only those are measured, and the others in `--out` stay.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import show

from tll_jax.files import read_json, write_whole
from tll_jax.statistics import (
    DIFFERENCES,
    Bands,
    Runs,
    bootstrap_bands,
    crossed_difference,
    crossed_interval,
    holm,
    sign_flip_test,
)

RATES = (0.003, 0.005, 0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 0.75, 0.9, 0.96, 0.98, 0.99, 0.995, 0.997)
NUM_PAIRS = (100, 216, 325)
NUM_SEEDS = (1, 3, 5)
DEPENDENCE = ("independent", "correlated", "same")
LEVELS = {".05": 4.4, ".15": 3.1, ".4": 1.4, ".7": 0.0, ".95": -2.2}
"""Mean logarithms of the rank, by about the mean reciprocal rank that they lead to."""
SPREAD = 1.3
"""Standard deviation of the logarithm of a rank, of a pair and of a query by itself."""
EFFECTS = (0.0, 0.1, 0.3)
"""Standard deviation over runs of the mean logarithm of the rank."""
RUNS = {"3 seeds": (0, 1, 2), "5 seeds": (0, 1, 2, 3, 4), "5 seeds of 3 pretrainings": (0, 1, 2, 0, 1)}
FLIPS = 10_000
"""As many as of a report."""

Row = dict[str, Any]


def hits(studies: int) -> Iterator[Row]:
    """Coverage of rates."""
    for pairs in NUM_PAIRS:
        for dependence in DEPENDENCE:
            for seeds in NUM_SEEDS[:1] if dependence == "same" else NUM_SEEDS:
                found, random = [], np.random.default_rng(pairs * 100 + seeds)
                for rate in RATES:
                    bands = bootstrap_bands(draw_hits(random, rate, (pairs, studies), seeds, dependence), seed=0)
                    found.append(share(bands, rate))
                row = {"pairs": pairs, "seeds": seeds, "hits_of_a_pair": dependence}
                row |= {"mean": round(float(np.mean(found)), 4), "least": min(found)}
                yield row | {"coverage": dict(zip(map(str, RATES), found, strict=True))}


def draw_hits(
    random: np.random.Generator, rate: float, shape: tuple[int, int], seeds: int, dependence: str
) -> np.ndarray:
    """The values `[pairs, studies]` of many studies."""
    if dependence == "same":
        return random.binomial(1, rate, size=shape).astype(float)
    rates = random.beta(rate, 1 - rate, size=shape) if dependence == "correlated" else np.full(shape, rate)
    return random.binomial(2 * seeds, rates) / (2 * seeds)


def draw_pairs(random: np.random.Generator, *shape: int) -> np.ndarray:
    """How hard pairs are: standard deviations from the mean."""
    return random.normal(size=shape)


def reciprocal_ranks(
    random: np.random.Generator, level: np.ndarray | float, hardness: np.ndarray, *, candidates: int
) -> np.ndarray:
    """A value of every pair: the mean over both directions of the reciprocal of a rank drawn about its level."""
    logarithms = level + SPREAD * (
        hardness + random.normal(size=(2, *np.broadcast_shapes(np.shape(level), hardness.shape)))
    )
    return np.mean(1 / np.clip(np.ceil(np.exp(logarithms)), 1, candidates), axis=0)


def mrr(studies: int) -> Iterator[Row]:
    """Coverage of mean reciprocal ranks."""
    for pairs in NUM_PAIRS:
        for seeds in NUM_SEEDS:
            random, found = np.random.default_rng(pairs * 100 + seeds), []
            for level in LEVELS.values():
                truth = reciprocal_ranks(random, level, draw_pairs(random, 1_000_000), candidates=pairs).mean()
                hardness = draw_pairs(random, pairs, studies)
                runs = [reciprocal_ranks(random, level, hardness, candidates=pairs) for _ in range(seeds)]
                found.append(share(bootstrap_bands(np.mean(runs, axis=0), seed=0), truth))
            row = {"pairs": pairs, "seeds": seeds, "mean": round(float(np.mean(found)), 4), "least": min(found)}
            yield row | {"coverage": dict(zip(LEVELS, found, strict=True))}


def differences(studies: int) -> Iterator[Row]:
    """Coverage of differences of mean reciprocal ranks: systems that differ in nothing, little and much."""
    for pairs in NUM_PAIRS:
        for name, level in LEVELS.items():
            random, found = np.random.default_rng(pairs), {}
            for shift in (0.0, 0.1, 0.5):
                sides = (level, level - shift)
                many, some = draw_pairs(random, 1_000_000), draw_pairs(random, pairs, studies)
                truth, drawn = (
                    np.subtract(*(reciprocal_ranks(random, one, hardness, candidates=pairs) for one in sides))
                    for hardness in (many, some)
                )
                found[f"{abs(truth.mean()):.3f}"] = share(
                    bootstrap_bands(drawn, bounds=DIFFERENCES, seed=0), truth.mean() if shift else 0.0
                )
            values = list(found.values())
            row = {"pairs": pairs, "mrr": name, "mean": round(float(np.mean(values)), 4), "least": min(values)}
            yield row | {"coverage_by_difference": found}


def crossed(studies: int) -> Iterator[Row]:
    """Coverage of means over pairs and runs, and of differences between two methods that both run several times."""
    for name, starts in RUNS.items():
        for effect in EFFECTS:
            for pairs in (216, 325):
                yield {"runs": name, "effect_of_runs": effect, "pairs": pairs} | _crossed(
                    starts, effect, pairs, studies
                )


def _crossed(starts: tuple[int, ...], effect: float, pairs: int, studies: int) -> Row:
    random, level = np.random.default_rng(pairs), LEVELS[".4"]
    truth = reciprocal_ranks(
        random, level + effect * random.normal(size=2_000_000), draw_pairs(random, 2_000_000), candidates=pairs
    ).mean()
    drawn = []
    for _ in range(2):
        of_starts = effect * random.normal(size=(max(starts) + 1, studies))[list(starts)]
        drawn.append(of_starts)
    hardness = draw_pairs(random, pairs, studies)
    # [runs, pairs, studies], of two methods on the same pairs.
    a, b = (
        np.stack([reciprocal_ranks(random, level + run, hardness, candidates=pairs) for run in of_starts])
        for of_starts in drawn
    )
    own = None if len(set(starts)) == len(starts) else starts
    means = [crossed_interval(Runs(a[:, :, study], own)) for study in range(studies)]
    both = [crossed_difference(Runs(a[:, :, study], own), Runs(b[:, :, study], own)) for study in range(studies)]
    subtracted = a.mean(axis=0) - b.mean(axis=0)
    return {
        "mean_over_pairs": share(bootstrap_bands(a.mean(axis=0), seed=0), truth),
        "mean_crossed": share(_bands(means), truth),
        "difference_over_pairs": share(bootstrap_bands(subtracted, bounds=DIFFERENCES, seed=0), 0.0),
        "difference_crossed": share(_bands(both), 0.0),
    }


def matrix(studies: int) -> Iterator[Row]:
    """How often anything is claimed of equal systems, and how often the better one of them is seen."""
    for systems in (4, 12, 24):
        random, claims = np.random.default_rng(systems), {"max-T": [0, 0], "Holm": [0, 0]}
        first, second = np.triu_indices(systems, k=1)
        for study in range(studies):
            hardness = draw_pairs(random, 216)
            for which, shift in enumerate((0.0, 0.4)):
                levels = np.full((systems, 1), LEVELS[".4"])
                levels[0] -= shift
                values = reciprocal_ranks(random, levels, hardness, candidates=216)
                test = sign_flip_test((values[first] - values[second]).T, num_resamples=FLIPS, seed=study)
                adjusted = {"max-T": test.adjusted, "Holm": np.array(holm(test.p_values.tolist()))}
                for name, p_values in adjusted.items():
                    better = p_values[first == 0]
                    claims[name][which] += float(np.mean(better <= 0.05)) if which else bool(np.any(p_values <= 0.05))
        row = {"systems": systems, "cells": len(first), "pairs": 216, "flips": FLIPS}
        for name, (false, seen) in claims.items():
            row |= {f"false_claims_{name}": round(false / studies, 4), f"seen_{name}": round(seen / studies, 4)}
        yield row


def share(bands: Bands, truth: float) -> float:
    """Fraction of the intervals that contain the true value."""
    return round(float(np.mean((bands.low <= truth) & (truth <= bands.high))), 4)


def _bands(intervals: list[Any]) -> Bands:
    return Bands(*np.array(intervals).T)


PARTS = {"hits": hits, "mrr": mrr, "differences": differences, "crossed": crossed, "matrix": matrix}
STUDIES = {"hits": 4000, "mrr": 1000, "differences": 1000, "crossed": 1000, "matrix": 200}
"""How many are drawn by default: a share of .95 has a standard error of .003 of 4,000, .007 of 1,000, .015 of 200."""


def main() -> None:
    """Measures every row and prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--studies", type=int, help="how many are drawn for a number")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    result = read_json(arguments.out) if arguments.out is not None and arguments.out.exists() else {}
    for name in arguments.parts or PARTS:
        studies = arguments.studies or STUDIES[name]
        rows = []
        for row in PARTS[name](studies):
            rows.append(row)
            show({"part": name} | row)
        result[name] = {"studies": studies, "rows": rows}
        if arguments.out is not None:
            write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
