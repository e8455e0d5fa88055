"""Further evaluation protocols: cross-validation folds, and the course edition's top 2 of 20 candidates."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.metrics import Ranks

COURSE_CANDIDATES = 20
COURSE_TOP = 2


def pool_folds(folds: Sequence[Mapping[str, Ranks]]) -> dict[str, Ranks]:
    """Pooled ranks of every system over the pairs of all folds; the candidates of a query are the pairs of its fold.

    Raises:
        ValueError: the folds have different systems, or a system has different numbers of seeds.
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
    """Probability that the positive is among the top 2 of 20 candidates when 19 negatives are sampled at random.

    This is the expectation of the accuracy over random draws. Among the `num_candidates` - 1 negatives, rank - 1 score
    at least as high as the positive; at most one of them may be among the 19, which is a hypergeometric probability.

    Raises:
        ValueError: there are fewer than 20 candidates.

    Source: the course COMP90086, 2023: top-2 accuracy among 20 candidates, with a chance level of 10 %.
    """
    # Imported here because it takes half a second.
    from scipy import stats

    if np.min(num_candidates) < COURSE_CANDIDATES:
        raise InvalidValue(
            f"{np.min(num_candidates)} candidates are too few to draw {COURSE_CANDIDATES - 1} foils from"
        )
    others = np.asarray(num_candidates) - 1
    return np.asarray(stats.hypergeom.cdf(COURSE_TOP - 1, others, ranks - 1, COURSE_CANDIDATES - 1))
