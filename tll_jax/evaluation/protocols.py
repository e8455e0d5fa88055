"""Protocols beside the standard one: folds that are tested in turn, and the course edition's choice among twenty."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.metrics import Ranks

COURSE_CANDIDATES = 20
COURSE_TOP = 2


def pool_folds(folds: Sequence[Mapping[str, Ranks]]) -> dict[str, Ranks]:
    """The ranks of every system over the pairs of all folds, fold by fold; a query's candidates are its fold's.

    Raises:
        ValueError: if the folds have other systems, or a system other numbers of seeds.
    """
    first = folds[0]
    for number, fold in enumerate(folds):
        if unlike := sorted(fold.keys() ^ first.keys()):
            raise InvalidValue(f"folds 0 and {number} have not the same systems: {', '.join(unlike)} is in one alone")
        if unlike := [name for name in first if len(fold[name]) != len(first[name])]:
            raise InvalidValue(f"folds 0 and {number} have other numbers of seeds of {', '.join(unlike)}")
    return {name: np.concatenate([fold[name] for fold in folds], axis=-1) for name in first}


def course_chances(
    ranks: Ranks, *, num_candidates: int | Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, "seeds 2 pairs"]:
    """How likely a match is among the first 2 of 20 when its 19 foils are drawn from the candidates at hand.

    That is what one seeded draw estimates, without the luck of the draw. Of `num_candidates` - 1 others, rank - 1 are
    not worse than the match; at most one of them may be among the 19: a hypergeometric probability.

    Raises:
        ValueError: if there are fewer than 20 candidates.

    Source: the course COMP90086, 2023: top-2 accuracy among 20 candidates, of which chance reaches 10 %.
    """
    # Takes half a second to import.
    from scipy import stats

    if np.min(num_candidates) < COURSE_CANDIDATES:
        raise InvalidValue(
            f"{np.min(num_candidates)} candidates are too few to draw {COURSE_CANDIDATES - 1} foils from"
        )
    others = np.asarray(num_candidates) - 1
    return np.asarray(stats.hypergeom.cdf(COURSE_TOP - 1, others, ranks - 1, COURSE_CANDIDATES - 1))
