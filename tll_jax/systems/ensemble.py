"""Ensembles of systems by fusion of scores or ranks, with weights selected on the validation pairs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64, Real

from tll_jax.errors import InvalidValue
from tll_jax.systems.baselines import mean_reciprocal_rank, require_pairs
from tll_jax.typing import Image, PairImages, System

WEIGHTS = tuple(quarter / 4 for quarter in range(9))
"""Weights tried for one member at a time; all weights start at 1."""
FUSION_OFFSET = 60
"""The constant k of reciprocal-rank fusion."""


def with_seed(system: System, seed: int) -> System:
    """Unfitted copy of the system with another seed, if it has one."""
    return dataclasses.replace(system, **({} if system.seed is None else {"seed": seed}))  # type: ignore[type-var]


def kind_of(system: System) -> str:
    """Kind of the system in the results table: "fitted" if it learns from the training pairs, else "baseline"."""
    return "fitted" if system.fits == "training" else "baseline"


@dataclass(kw_only=True)
class Ensemble(System):
    """Weighted sum of the members' normalized scores or reciprocal ranks.

    `by="score"` sums z-scores: the scores of each query are standardized over its candidates, so that members may have
    different scales. `by="rank"` sums 1 / (60 + rank) (reciprocal-rank fusion).

    `fit` fits every member and then selects the weights by coordinate ascent on the MRR of the validation pairs over
    both directions: starting from equal weights, one weight is changed at a time until no single change improves the
    MRR; among equally good values the smallest is used. With `weights` given nothing is selected, which is better for
    few validation pairs and members of similar quality. `chosen` contains the weights, which sum to 1, and
    `validation_mrr` their result.

    Source: Cormack, Clarke and Büttcher 2009 for reciprocal-rank fusion.
    """

    members: dict[str, System]
    by: str = "score"
    weights: dict[str, float] | None = None
    """Weight of each member, with any positive sum; None to select them on the validation pairs."""
    seed: int = 0
    """Seed of every member that has one."""
    chosen: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    validation_mrr: float | None = field(default=None, init=False, repr=False, compare=False)
    fitted: dict[str, System] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self) -> None:
        if not self.members:
            raise InvalidValue("Ensemble.members is empty; it must have at least one system")
        if self.by not in VOICES:
            raise InvalidValue(f"Ensemble.by is {self.by!r}; it must be one of {', '.join(VOICES)}")
        if self.weights is None:
            return
        if set(self.weights) != set(self.members) or min(self.weights.values()) < 0 or not sum(self.weights.values()):
            raise InvalidValue(
                f"Ensemble.weights is {self.weights}; it must hold a number for each of {', '.join(self.members)}, "
                "none below 0 and not all 0"
            )

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits the members, then selects the weights on the validation pairs.

        Raises:
            ValueError: there are no validation pairs, or a member cannot be fitted.
        """
        require_pairs(self, validation=validation)
        self.fitted = {name: with_seed(member, self.seed) for name, member in self.members.items()}
        for member in self.fitted.values():
            member.fit(train, validation)
        ways = [
            self._voices(queries, gallery)
            for queries, gallery in ((validation.left, validation.right), (validation.right, validation.left))
        ]
        if self.weights is None:
            weights, self.validation_mrr = choose_weights(ways)
        else:
            weights = np.array([self.weights[name] for name in self.fitted])
            self.validation_mrr = mean_reciprocal_rank(*(combine(weights, voices) for voices in ways))
        self.chosen = dict(zip(self.fitted, (weights / weights.sum()).tolist(), strict=True))

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Fused scores: with mean 0 over the candidates for `by="score"`, in (0, 1 / 61] for `by="rank"`.

        Raises:
            ValueError: `fit` has not been called.
        """
        if not self.chosen:
            raise InvalidValue("Ensemble has no weights yet: call fit first")
        weights = np.array([self.chosen[name] for name in self.fitted])
        return combine(weights, self._voices(queries, gallery))

    def _voices(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        return np.stack([VOICES[self.by](member.score(queries, gallery)) for member in self.fitted.values()])


def z_scores(scores: Real[np.ndarray, "queries gallery"]) -> Float64[np.ndarray, "queries gallery"]:
    """Scores standardized over the candidates of each query (mean 0, standard deviation 1); equal scores become 0."""
    centered = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    # Rounding of the mean must not be scaled up if all scores are equal.
    flat = np.ptp(scores, axis=1, keepdims=True) == 0
    return np.where(flat, 0, centered / np.where(flat, 1, centered.std(axis=1, keepdims=True)))


def reciprocal_ranks(scores: Real[np.ndarray, "queries gallery"]) -> Float64[np.ndarray, "queries gallery"]:
    """1 / (60 + rank) of every candidate; ties rank last."""
    # Imported here because it takes half a second.
    from scipy import stats

    return 1 / (FUSION_OFFSET + stats.rankdata(-scores.astype(np.float64), method="max", axis=1))


VOICES = {"score": z_scores, "rank": reciprocal_ranks}


def combine(
    weights: Float[np.ndarray, " members"], voices: Float[np.ndarray, "members queries gallery"]
) -> Float32[np.ndarray, "queries gallery"]:
    """Weighted sum over the members."""
    return np.einsum("m,mqc->qc", weights, voices).astype(np.float32)


def choose_weights(
    ways: Sequence[Float[np.ndarray, "members pairs pairs"]],
) -> tuple[Float[np.ndarray, " members"], float]:
    """Coordinate ascent on the weights.

    Args:
      ways: normalized scores for each direction, with the positives on the diagonal.

    Returns:
      The selected weights and their MRR over all directions.
    """
    weights = np.ones(len(ways[0]))

    def reached(index: int, weight: float) -> float:
        tried = np.where(np.arange(len(weights)) == index, weight, weights)
        return mean_reciprocal_rank(*(combine(tried, voices) for voices in ways))

    best = reached(0, 1.0)
    moved = True
    while moved:
        moved = False
        for index in range(len(weights)):
            values = [reached(index, weight) for weight in WEIGHTS]
            if max(values) > best:
                best, moved = max(values), True
                weights[index] = WEIGHTS[int(np.argmax(values))]
    return weights, best
