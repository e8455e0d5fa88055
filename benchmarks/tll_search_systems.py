"""Systems that `tll_search.py` tries beside those of the package: views, matched cells, learned weights, re-ranking.

All are descriptors or scores on frozen features of a grid of cells. What did not help stays here, out of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from scipy import linalg, optimize, special

from tll_jax.evaluation.embed import unit_rows
from tll_jax.serialize import ADDED
from tll_jax.systems.baselines import CosineDescriptor, Descriptor
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.metric_learning import principal_axes, scatter_matrices
from tll_jax.typing import Image, PairImages, System


def gray(image: Image) -> Image:
    """A gray picture of three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def edges(image: Image) -> Image:
    """Magnitudes of Sobel gradients of the blurred gray picture, dark on white."""
    plain = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    across, down = (cv2.Sobel(plain, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    magnitude = np.hypot(across, down)
    drawn = 255 - np.clip(255 * magnitude / max(np.percentile(magnitude, 99), 1e-6), 0, 255)
    return cv2.cvtColor(drawn.astype(np.uint8), cv2.COLOR_GRAY2RGB)


def mirrored(image: Image) -> Image:
    return np.ascontiguousarray(image[:, ::-1])


def center(image: Image) -> Image:
    """The central .8 of each side."""
    height, width = (length // 10 for length in image.shape[:2])
    return np.ascontiguousarray(image[height:-height, width:-width])


VIEWS: dict[str, Callable[[Image], Image]] = {"gray": gray, "edges": edges, "mirrored": mirrored, "center": center}


def seen(images: Sequence[Image], view: str) -> list[Image]:
    return [VIEWS[view](image) for image in images]


@dataclass(kw_only=True)
class View(System):
    """The same system on a view of both sides."""

    features: Descriptor
    view: str

    def fit(self, train: PairImages, validation: PairImages) -> None:
        both = (
            one._replace(left=seen(one.left, self.view), right=seen(one.right, self.view))
            for one in (train, validation)
        )
        self.features.fit(*both)

    def describe_all(self, images: Sequence[Image]) -> np.ndarray:
        return self.features.describe_all(seen(images, self.view))

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        return self.features.score(seen(queries, self.view), seen(gallery, self.view))


@dataclass(kw_only=True)
class BestOfMirrored(System):
    """The larger of the similarities of the query and of its mirror image to the candidate."""

    features: Descriptor

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        return np.maximum(
            self.features.score(queries, gallery), self.features.score(seen(queries, "mirrored"), gallery)
        )


@dataclass(kw_only=True)
class Joined(CosineDescriptor):
    """Unit descriptors of several systems side by side, each times its weight."""

    members: tuple[Any, ...]
    weights: tuple[float, ...]

    def fit(self, train: PairImages, validation: PairImages) -> None:
        for member in self.members:
            member.fit(train, validation)
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> np.ndarray:
        parts = (w * unit_rows(one.describe_all(images)) for one, w in zip(self.members, self.weights, strict=True))
        return np.concatenate(list(parts), axis=1)


def cells_of(features: FrozenFeatures, images: Sequence[Image]) -> list[np.ndarray]:
    """Descriptors of each stage by cell, `[images, cells, channels]`."""
    rows, count = features.describe_all(images), features.grid**2
    ends = np.cumsum([count * width for width in features.stage_widths])[:-1]
    return [stage.reshape(len(rows), count, -1) for stage in np.split(rows, ends, axis=1)]


@dataclass(kw_only=True)
class CellWhitening(CosineDescriptor):
    """RCA whitening of the channels of each stage, with one map for all cells, before anything else.

    The differences of the sides of pairs are pooled over cells, so that there are sixteen times as many as pairs.
    `jointly` takes the channels of all stages together.
    """

    features: FrozenFeatures
    shrinkage: float
    jointly: bool = field(default=False, metadata=ADDED)
    maps: list[np.ndarray] = field(default_factory=list, init=False, repr=False, compare=False)
    means: list[np.ndarray] = field(default_factory=list, init=False, repr=False, compare=False)

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)
        self.maps, self.means = [], []
        for left, right in zip(*(self._cells(side) for side in (train.left, train.right)), strict=True):
            a, b = (side.reshape(-1, side.shape[-1]).astype(np.float64) for side in (left, right))
            self.means.append(((a.mean(axis=0) + b.mean(axis=0)) / 2).astype(np.float32))
            halves = (a - b) / 2
            variances, vectors = linalg.eigh(halves.T @ halves / len(a))
            relative = np.maximum(variances, 0) / variances.mean()
            self.maps.append((vectors / np.sqrt(relative + self.shrinkage)).astype(np.float32))
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> np.ndarray:
        stages = []
        for cells, mean, matrix in zip(self._cells(images), self.means, self.maps, strict=True):
            mapped = unit_rows(((cells - mean) @ matrix).reshape(-1, matrix.shape[1]))
            stages.append(unit_rows(mapped.reshape(len(cells), -1)))
        return np.concatenate(stages, axis=1)

    def _cells(self, images: Sequence[Image]) -> list[np.ndarray]:
        stages = cells_of(self.features, images)
        return [np.concatenate(stages, axis=-1)] if self.jointly else stages


def cell_similarities(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Cosines of equal cells of each stage, `[stages * cells, a, b]`."""
    found = []
    for one, other in zip(a, b, strict=True):
        one, other = (side / np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-12) for side in (one, other))
        found.append(np.einsum("acd,bcd->cab", one, other, optimize=True))
    return np.concatenate(found)


@dataclass(kw_only=True)
class CellWeights(CosineDescriptor):
    """A weight for each stage and cell, above 0, learned by InfoNCE on the training pairs.

    The logarithms of the weights are drawn to 0 by `penalty` times their squares.
    """

    features: CellWhitening
    penalty: float
    num_pairs: int = 400
    weights: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)
        chosen = np.random.default_rng(0).permutation(len(train.ids))[: self.num_pairs]
        sides = ([side[i] for i in chosen] for side in (train.left, train.right))
        similarities = cell_similarities(*(self._cells(side) for side in sides)).reshape(-1, len(chosen) ** 2)
        truth = np.arange(len(chosen))

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weights, scale = np.exp(parameters[:-1]), np.exp(parameters[-1])
            logits = (scale * (weights @ similarities)).reshape(len(chosen), -1)
            value, gradient = 0.0, np.zeros_like(logits)
            for axis in (0, 1):
                logged = special.log_softmax(logits, axis=axis)
                value -= logged[truth, truth].mean() / 2
                gradient += np.exp(logged) / (2 * len(chosen))
            gradient[truth, truth] -= 1 / len(chosen)
            flat = gradient.reshape(-1)
            slopes = scale * weights * (similarities @ flat)
            value += self.penalty * float(np.sum(parameters[:-1] ** 2))
            return value, np.append(slopes + 2 * self.penalty * parameters[:-1], slopes.sum())

        start = np.append(np.zeros(len(similarities)), np.log(20 / len(similarities)))
        found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60})
        self.weights = np.exp(found.x[:-1]).astype(np.float32)
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> np.ndarray:
        cells = self._cells(images)
        assert self.weights is not None
        weights = np.split(np.sqrt(self.weights), len(cells))
        return np.concatenate(
            [(cell * weight[:, None]).reshape(len(cell), -1) for cell, weight in zip(cells, weights, strict=True)],
            axis=1,
        )

    def _cells(self, images: Sequence[Image]) -> list[np.ndarray]:
        rows, count = self.features.describe_all(images), self.features.features.grid**2
        ends = np.cumsum([count * matrix.shape[1] for matrix in self.features.maps])[:-1]
        stages = [stage.reshape(len(rows), count, -1) for stage in np.split(rows, ends, axis=1)]
        return [one / np.maximum(np.linalg.norm(one, axis=-1, keepdims=True), 1e-12) for one in stages]


@dataclass(kw_only=True)
class Transport(System):
    """Optimal transport between the cells of two pictures, by Sinkhorn's iterations.

    A cell is the principal components of the whitened channels of all stages at its place. Moving mass from one place
    to another costs `distance` times the squared distance, in widths of the picture; `epsilon` is the entropy's weight.
    The score is the transported similarity less that cost.

    Source: Cuturi 2013 (arXiv 1306.0895).
    """

    features: CellWhitening
    distance: float
    epsilon: float = 0.05
    width: int = 96
    num_iterations: int = 20
    axes: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)
        cells = np.concatenate([self._joined(side) for side in (train.left, train.right)])
        rows = cells.reshape(-1, cells.shape[-1])
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:8000]]
        deviations, vectors = principal_axes(rows)
        self.axes = (vectors[:, : self.width] * deviations[: self.width] ** -0.5).astype(np.float32)

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        a, b = (self._joined(side) @ self.axes for side in (queries, gallery))
        a, b = (unit_rows(side.reshape(-1, side.shape[-1])).reshape(side.shape) for side in (a, b))
        grid = self.features.features.grid
        places = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), axis=-1).reshape(-1, 2) / grid
        cost = self.distance * np.sum((places[:, None] - places[None]) ** 2, axis=-1).astype(np.float32)
        return np.stack([self._transported(one, b, cost) for one in a])

    def _transported(self, one: np.ndarray, others: np.ndarray, cost: np.ndarray) -> np.ndarray:
        gains = np.einsum("id,njd->nij", one, others, optimize=True) - cost
        kernel = np.exp(gains / self.epsilon)
        count = kernel.shape[-1]
        column = np.ones((len(kernel), count), np.float32)
        for _ in range(self.num_iterations):
            row = 1 / (count * np.einsum("nij,nj->ni", kernel, column) + 1e-30)
            column = 1 / (count * np.einsum("nij,ni->nj", kernel, row) + 1e-30)
        return np.einsum("ni,nij,nj->n", row, kernel * gains, column)

    def _joined(self, images: Sequence[Image]) -> np.ndarray:
        rows, count = self.features.describe_all(images), self.features.features.grid**2
        ends = np.cumsum([count * matrix.shape[1] for matrix in self.features.maps])[:-1]
        return np.concatenate([one.reshape(len(rows), count, -1) for one in np.split(rows, ends, axis=1)], axis=-1)


@dataclass(kw_only=True)
class TwoCovariances(System):
    """Log-likelihood ratio of "the same pair" of the two-covariance model, on unit-length descriptors.

    A picture is the mean of its pair plus a difference, both Gaussian; `shrinkage` is added to the variances of the
    difference, in units of their mean.

    Source: Prince and Elder 2007, "Probabilistic linear discriminant analysis"; Brümmer and de Villiers 2010.
    """

    features: Descriptor
    shrinkage: float
    training_mean: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    forms: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False, compare=False)

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)
        left, right = (unit_rows(self.features.describe_all(side)) for side in (train.left, train.right))
        self.training_mean = (left.mean(axis=0) + right.mean(axis=0)) / 2
        between, within = (
            np.asarray(one, np.float64)
            for one in scatter_matrices(left - self.training_mean, right - self.training_mean)
        )
        identity = np.eye(len(within))
        # The mean of two pictures has half of a picture's variance within pairs, which is the scatter within.
        between = between - within
        values, vectors = linalg.eigh(between)
        between = (vectors * np.maximum(values, 0)) @ vectors.T
        within = 2 * within
        within += self.shrinkage * np.trace(within) / len(within) * identity
        total = linalg.inv(between + within)
        schur = linalg.inv(between + within - between @ total @ between)
        self.forms = (total - schur, total @ between @ schur)

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        assert self.forms is not None
        alone, together = self.forms
        a, b = (unit_rows(self.features.describe_all(side)) - self.training_mean for side in (queries, gallery))
        own_a, own_b = (np.einsum("nd,nd->n", side @ alone, side) for side in (a, b))
        return (own_a[:, None] / 2 + own_b[None] / 2 + a @ together @ b.T).astype(np.float32)


@dataclass(kw_only=True)
class Reranking(System):
    """Base class of searches that look at the `count` nearest candidates of a query once more."""

    features: Descriptor
    count: int
    weight: float

    def fit(self, train: PairImages, validation: PairImages) -> None:
        self.features.fit(train, validation)


@dataclass(kw_only=True)
class QueryExpansion(Reranking):
    """The query plus `weight` times its `count` nearest candidates, each times its similarity, searches again.

    Source: Radenović, Tolias and Chum 2018 (arXiv 1711.02512), for the weighting by similarity.
    """

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        a, b = (unit_rows(self.features.describe_all(side)) for side in (queries, gallery))
        similarities = a @ b.T
        least = np.partition(similarities, -self.count, axis=1)[:, -self.count, None]
        chosen = np.where(similarities >= least, np.maximum(similarities, 0), 0)
        return unit_rows(a + self.weight * chosen @ b) @ b.T


@dataclass(kw_only=True)
class Reciprocal(Reranking):
    """k-reciprocal re-ranking of the candidates of each query, without the other queries.

    Neighborhoods are among the query and the candidates; the score is the cosine less `weight` times the Jaccard
    distance of the reciprocal neighborhoods, expanded by those of their members.

    Source: Zhong et al. 2017 (arXiv 1701.08398), equations 2 to 12.
    """

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        a, b = (unit_rows(self.features.describe_all(side)) for side in (queries, gallery))
        among = b @ b.T
        return np.stack([self._reranked(query @ b.T, among) for query in a])

    def _reranked(self, to_query: np.ndarray, among: np.ndarray) -> np.ndarray:
        size = len(to_query) + 1
        every = np.ones((size, size), np.float32)
        every[0, 1:] = every[1:, 0] = to_query
        every[1:, 1:] = among
        order = np.argsort(np.argsort(-every, axis=1), axis=1)
        near, half = order <= self.count, order <= max(1, self.count // 2)
        mutual, mutual_half = near & near.T, half & half.T
        # A member's own half-sized neighborhood is added if two thirds of it are mutual already.
        shared = mutual.astype(np.float32) @ mutual_half.astype(np.float32).T
        added = mutual & (shared >= 2 / 3 * mutual_half.sum(axis=1)[None])
        wide = mutual | ((added.astype(np.float32) @ mutual_half.astype(np.float32)) > 0)
        strength = np.where(wide, np.exp(every - 1), 0)
        of_query, others = strength[0], strength[1:]
        lower = np.minimum(of_query, others).sum(axis=1)
        upper = np.maximum(of_query, others).sum(axis=1)
        return to_query - self.weight * (1 - lower / np.maximum(upper, 1e-12))
