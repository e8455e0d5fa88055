"""Linear metric learning in closed form: maps of fixed descriptors, learned from the training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64
from scipy import linalg

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import negative_squared_distance, unit_rows
from tll_jax.systems.baselines import Descriptor, mean_reciprocal_rank, require_pairs
from tll_jax.typing import Image, PairImages, System

COMPARISONS = ("euclidean", "cosine")


@dataclass(kw_only=True)
class LinearMap(System):
    """Base class of learned linear maps of centered descriptors, compared by Euclidean distance or cosine.

    `fit` learns several maps from the training pairs and selects one of them, and one of `comparisons`, by the MRR of
    the validation pairs over both directions, the first on a tie. `chosen` is the selected variant and `validation_mrr`
    the result of each. `fit` must precede `score`. Maps can be stacked, because each is a descriptor.
    """

    features: Descriptor
    comparisons: tuple[str, ...] = COMPARISONS
    chosen: str = field(default="", init=False, repr=False, compare=False)
    validation_mrr: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    training_mean: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    maps: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Learned maps by name, each `[dim, mapped]`."""

    def check(self) -> None:
        if not self.comparisons or not set(self.comparisons) <= set(COMPARISONS):
            raise InvalidValue(
                f"{type(self).__name__}.comparisons is {self.comparisons}; it must hold {' or '.join(COMPARISONS)}"
            )

    def learn(
        self, left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
    ) -> dict[str, Float[Array, "dim _"]]:
        """Candidate maps by name, learned from the centered descriptors of the training pairs."""
        raise NotImplementedError

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits the features, learns the maps and selects one.

        Raises:
            ValueError: there are no training or no validation pairs.
        """
        require_pairs(self, training=train, validation=validation)
        self.features.fit(train, validation)
        left, right = self.features.describe_all(train.left), self.features.describe_all(train.right)
        self.training_mean = (left.mean(axis=0) + right.mean(axis=0)) / 2
        learned = self.learn(jnp.asarray(left - self.training_mean), jnp.asarray(right - self.training_mean))
        self.maps = {name: np.asarray(matrix) for name, matrix in learned.items()}
        left, right = self.features.describe_all(validation.left), self.features.describe_all(validation.right)
        for name in self.maps:
            a, b = ((side - self.training_mean) @ self.maps[name] for side in (left, right))
            for comparison in self.comparisons:
                scores = _compare(a, b, comparison)
                self.validation_mrr[f"{name} {comparison}"] = mean_reciprocal_rank(scores, scores.T)
        self.chosen = max(self.validation_mrr, key=lambda variant: self.validation_mrr[variant])

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images mapped"]:
        """Centered and mapped descriptors of all images."""
        name, _ = self._chosen()
        return (self.features.describe_all(images) - self.training_mean) @ self.maps[name]

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Negative squared distances or cosine similarities, as selected."""
        _, comparison = self._chosen()
        return _compare(self.describe_all(queries), self.describe_all(gallery), comparison)

    def _chosen(self) -> tuple[str, str]:
        if not self.chosen:
            raise InvalidValue(f"{type(self).__name__} has learned no map yet: call fit first")
        name, comparison = self.chosen.rsplit(" ", 1)
        return name, comparison


def _compare(
    a: Float32[np.ndarray, "a dim"], b: Float32[np.ndarray, "b dim"], comparison: str
) -> Float32[np.ndarray, "a b"]:
    return negative_squared_distance(a, b) if comparison == "euclidean" else unit_rows(a) @ unit_rows(b).T


@dataclass(kw_only=True)
class MaximumMargin(LinearMap):
    """Maximum margin criterion: the orthogonal projection that maximizes between-class minus within-class scatter.

    Each training pair is a class of two. `widths` are the numbers of leading eigenvectors to select from. For example
    `MaximumMargin(features=Hog())`.

    Source: Li, Jiang and Zhang 2003, "Efficient and Robust Feature Extraction by Maximum Margin Criterion".
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)

    def check(self) -> None:
        super().check()
        if not self.widths or min(self.widths) < 1:
            raise InvalidValue(f"MaximumMargin.widths is {self.widths}; it must hold numbers of at least 1")

    def learn(
        self, left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
    ) -> dict[str, Float[Array, "dim _"]]:
        _, vectors = margin_directions(left, right)
        return {f"{min(width, len(vectors))} directions": vectors[:, :width] for width in self.widths}


@dataclass(kw_only=True)
class RelevantComponents(LinearMap):
    """Relevant component analysis (RCA): whitens the differences between the two sides of the training pairs.

    Each principal direction of the differences is divided by its standard deviation. `shrinkages` are the values to
    select from that are added to the variances, in units of their mean: near 0 it is plain RCA, which needs more
    training pairs than dimensions; a large value leaves the descriptors unchanged. For example
    `RelevantComponents(features=Hog())`.

    Source: Bar-Hillel et al. 2003, "Learning Distance Functions Using Equivalence Relations".
    """

    shrinkages: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)

    def check(self) -> None:
        super().check()
        if not self.shrinkages or min(self.shrinkages) <= 0:
            raise InvalidValue(f"RelevantComponents.shrinkages is {self.shrinkages}; it must hold numbers above 0")

    def learn(
        self, left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
    ) -> dict[str, Float[Array, "dim _"]]:
        _, within = scatter_matrices(left, right)
        variances, vectors = jnp.linalg.eigh(within)
        # In units of the mean variance; rounding makes some slightly negative.
        relative = jnp.maximum(variances, 0) / jnp.maximum(jnp.mean(variances), jnp.finfo(variances.dtype).tiny)
        return {f"shrinkage {shrinkage:g}": vectors / jnp.sqrt(relative + shrinkage) for shrinkage in self.shrinkages}


@dataclass(kw_only=True)
class PrincipalComponents(LinearMap):
    """Principal component analysis of the training images, whitened by a power of each standard deviation."""

    widths: tuple[int, ...] = (256,)
    whitenings: tuple[float, ...] = (0.5,)

    def check(self) -> None:
        super().check()
        if not self.widths or min(self.widths) < 1:
            raise InvalidValue(f"PrincipalComponents.widths is {self.widths}; it must hold numbers of at least 1")
        if not self.whitenings or not -1 <= min(self.whitenings) <= max(self.whitenings) <= 1:
            raise InvalidValue(
                f"PrincipalComponents.whitenings is {self.whitenings}; it must hold numbers from -1 to 1"
            )

    def learn(
        self, left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
    ) -> dict[str, Float[Array, "dim _"]]:
        deviations, directions = principal_axes(np.concatenate([left, right]))
        rank = len(deviations)
        return {
            f"{min(width, rank)} components, whitening {whitening:g}": jnp.asarray(
                directions[:, : min(width, rank)] * deviations[: min(width, rank)] ** -whitening, jnp.float32
            )
            for width in self.widths
            for whitening in self.whitenings
        }


def principal_axes(
    rows: Float[np.ndarray, "rows dim"],
) -> tuple[Float64[np.ndarray, " axes"], Float64[np.ndarray, "dim axes"]]:
    """Principal axes of centered rows, as far as the rows vary.

    Computed from the eigenvectors of the smaller Gram matrix, which is ten times faster than an SVD for many more
    dimensions than rows; in fp64, because the product squares the condition number.

    Returns:
      Standard deviations, largest first, and unit axes as columns.
    """
    rows = rows.astype(np.float64)
    is_wide = rows.shape[1] > rows.shape[0]
    squares, vectors = linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)
    deviations = np.sqrt(np.maximum(squares[::-1], 0) / len(rows))
    # Directions without variance would be divided by 0.
    varies = deviations > 1e-6 * deviations[0]
    deviations, vectors = deviations[varies], vectors[:, ::-1][:, varies]
    return deviations, (rows.T @ vectors) / (deviations * np.sqrt(len(rows))) if is_wide else vectors


def scatter_matrices(
    left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
) -> tuple[Float[Array, "dim dim"], Float[Array, "dim dim"]]:
    """Between-class and within-class scatter, where each pair is a class of two and all classes have equal weight.

    Between: the covariance of the pair means. Within: the mean covariance (divided by 2) of the two sides. Their sum is
    the covariance of all images.
    """
    means, halves = (left + right) / 2, (left - right) / 2
    means = means - jnp.mean(means, axis=0)
    between = jnp.matmul(means.T, means, precision="highest") / len(left)
    return between, jnp.matmul(halves.T, halves, precision="highest") / len(left)


def margin_directions(
    left: Float[Array, "pairs dim"], right: Float[Array, "pairs dim"]
) -> tuple[Float[Array, " dim"], Float[Array, "dim dim"]]:
    """Eigenvalues, largest first, and eigenvectors (columns) of S_b - S_w, between-class minus within-class scatter.

    The first k columns are the orthonormal W that maximizes trace(W^T (S_b - S_w) W); the maximum is the sum of the
    first k eigenvalues.

    Source: Li et al. 2003, section 3.
    """
    between, within = scatter_matrices(left, right)
    values, vectors = jnp.linalg.eigh(between - within)
    return values[::-1], vectors[:, ::-1]
