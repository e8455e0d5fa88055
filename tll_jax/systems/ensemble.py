"""Several systems as one: their scores or ranks, weighted by what the validation pairs say."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64, Real

from tll_jax.errors import InvalidValue
from tll_jax.systems.baselines import mean_reciprocal_rank, require_pairs
from tll_jax.typing import Image, PairImages, System

WEIGHTS = tuple(quarter / 4 for quarter in range(9))
"""The weights tried of one member while those of the others stay; all start at 1."""
FUSION_OFFSET = 60
"""Of reciprocal-rank fusion: how little the first ranks stand out."""


def with_seed(system: System, seed: int) -> System:
    """The same system, not yet fitted, with another seed if it has one."""
    return dataclasses.replace(system, **({} if system.seed is None else {"seed": seed}))  # type: ignore[type-var]


def kind_of(system: System) -> str:
    """Its kind in the results: "fitted" if it has parameters learned from the training pairs."""
    return "fitted" if system.fits == "training" else "baseline"


@dataclass(kw_only=True)
class Ensemble(System):
    """The weighted sum of what its members say of each candidate.

    `by="score"` sums z-scores: each query's scores shifted and scaled to mean 0 and deviation 1 over its candidates, so
    that the scales of the members do not matter. `by="rank"` sums 1 / (60 + rank).

    `fit` fits every member, on the training pairs alone as far as the member itself holds to that, and then chooses the
    weights by the MRR of the validation pairs, both directions: one weight after the other, from equal ones, until no
    single change is better. A weight moves only for a better MRR, and of equally good ones the smallest is taken.
    With `weights` given nothing is chosen: few validation pairs choose badly among systems that are nearly as good.
    `chosen` says the weights, which sum to 1, `validation_mrr` what they reached.

    Source: Cormack, Clarke and Büttcher 2009 for the sum over ranks.
    """

    members: dict[str, System]
    by: str = "score"
    weights: dict[str, float] | None = None
    """By member, of any sum; None to choose."""
    seed: int = 0
    """Given to every member that has a seed."""
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
        """Fit the members, then choose the weights on the validation pairs.

        Raises:
            ValueError: if there are no validation pairs, or a member cannot be fitted.
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
        """The weighted sum; with `by="score"` of mean 0 over the candidates, with `by="rank"` in (0, 1 / 61].

        Raises:
            ValueError: if `fit` has not been called.
        """
        if not self.chosen:
            raise InvalidValue("Ensemble has no weights yet: call fit first")
        weights = np.array([self.chosen[name] for name in self.fitted])
        return combine(weights, self._voices(queries, gallery))

    def _voices(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        return np.stack([VOICES[self.by](member.score(queries, gallery)) for member in self.fitted.values()])


def z_scores(scores: Real[np.ndarray, "queries gallery"]) -> Float64[np.ndarray, "queries gallery"]:
    """Every query's scores with mean 0 and deviation 1 over its candidates; equal scores become 0."""
    centered = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    # Of equal scores the mean may differ by rounding, which must not be scaled up.
    flat = np.ptp(scores, axis=1, keepdims=True) == 0
    return np.where(flat, 0, centered / np.where(flat, 1, centered.std(axis=1, keepdims=True)))


def reciprocal_ranks(scores: Real[np.ndarray, "queries gallery"]) -> Float64[np.ndarray, "queries gallery"]:
    """1 / (60 + rank) of every candidate, ties ranked last."""
    # Takes half a second to import.
    from scipy import stats

    return 1 / (FUSION_OFFSET + stats.rankdata(-scores.astype(np.float64), method="max", axis=1))


VOICES = {"score": z_scores, "rank": reciprocal_ranks}


def combine(
    weights: Float[np.ndarray, " members"], voices: Float[np.ndarray, "members queries gallery"]
) -> Float32[np.ndarray, "queries gallery"]:
    """The sum over members."""
    return np.einsum("m,mqc->qc", weights, voices).astype(np.float32)


def choose_weights(
    ways: Sequence[Float[np.ndarray, "members pairs pairs"]],
) -> tuple[Float[np.ndarray, " members"], float]:
    """Weights for which the matches, on the diagonal, have a high MRR over all `ways`, and that MRR."""
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
