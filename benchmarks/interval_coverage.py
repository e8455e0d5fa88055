"""How often the 95 % intervals of rates hold the truth, from .003 to .997.

python benchmarks/interval_coverage.py [--out benchmarks/results/interval_coverage.json]

A pair's value is the mean of its hits over both directions and all seeds, which are independent, of the same pair, or
in between (a rate of each pair's own, drawn from a beta distribution of correlation 1/2). Every number is the share of
`--studies` drawn studies whose interval, as `bootstrap_bands` makes it, holds the rate they were drawn with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from harness import show

from tll_jax.statistics import bootstrap_bands

RATES = (0.003, 0.005, 0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 0.75, 0.9, 0.96, 0.98, 0.99, 0.995, 0.997)
NUM_PAIRS = (100, 216, 325)
NUM_SEEDS = (1, 3, 5)
DEPENDENCE = ("independent", "correlated", "same")


def draw(random: np.random.Generator, rate: float, shape: tuple[int, int], seeds: int, dependence: str) -> np.ndarray:
    """The values `[pairs, studies]` of many studies."""
    if dependence == "same":
        return random.binomial(1, rate, size=shape).astype(float)
    rates = random.beta(rate, 1 - rate, size=shape) if dependence == "correlated" else np.full(shape, rate)
    return random.binomial(2 * seeds, rates) / (2 * seeds)


def coverage(pairs: int, seeds: int, dependence: str, studies: int) -> list[float]:
    """Coverage: the share of studies whose interval holds the rate, for every rate."""
    found, random = [], np.random.default_rng(pairs * 100 + seeds)
    for rate in RATES:
        bands = bootstrap_bands(draw(random, rate, (pairs, studies), seeds, dependence), seed=0)
        found.append(round(float(np.mean((bands.low <= rate) & (rate <= bands.high))), 4))
    return found


def main() -> None:
    """Measures every row and prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for pairs in NUM_PAIRS:
        for dependence in DEPENDENCE:
            for seeds in NUM_SEEDS[:1] if dependence == "same" else NUM_SEEDS:
                found = coverage(pairs, seeds, dependence, arguments.studies)
                row = {"pairs": pairs, "seeds": seeds, "hits_of_a_pair": dependence}
                rows.append(row | {"mean": round(float(np.mean(found)), 4), "least": min(found), "coverage": found})
                show(rows[-1])
    summary = {"mean": round(float(np.mean([row["mean"] for row in rows])), 4), "least": min(r["least"] for r in rows)}
    print(json.dumps(summary))
    if arguments.out is not None:
        result = {"studies": arguments.studies, "rates": RATES, **summary, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
