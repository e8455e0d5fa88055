"""SIFT and SURF: images compared by the number of matching keypoints."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from tll_jax.data.imaging import shrink
from tll_jax.errors import InvalidValue, MissingPackage
from tll_jax.evaluation.embed import unit_rows
from tll_jax.ranking import top_k
from tll_jax.systems.baselines import mean_reciprocal_rank, require_pairs
from tll_jax.typing import Fits, Image, PairImages, System

FEWEST_TO_VERIFY = 3
"""Minimum number of matches to verify, because a similarity transform fits any two matches exactly."""


class Keypoints(NamedTuple):
    """Keypoints of an image: positions `[points, 2]` and descriptors `[points, dim]`.

    Positions are (x, y) in pixels of the shrunk image.
    """

    positions: np.ndarray
    descriptors: np.ndarray


@dataclass(kw_only=True)
class LocalFeatures(System):
    """Number of a query's keypoints that pass Lowe's ratio test in the candidate.

    A keypoint matches its nearest neighbor among the candidate's keypoints if its distance is less than a ratio times
    that of the second nearest; candidates with fewer than two keypoints have no matches. `fit` selects the ratio among
    `ratios` by the MRR of the validation pairs over both directions, the first on a tie; before `fit` the first is
    used. Nothing is learned from the training pairs.

    With `verify_top`, the candidates that score at least as high as the query's `verify_top`-th are reranked by the
    number of matches that agree with one similarity transform (shift, rotation and scale; RANSAC); ties are broken by
    the number of all matches.

    Keypoints are computed once per image and cached.

    Source: Lowe 2004, sections 7.1 and 7.4.
    """

    ratios: tuple[float, ...] = (0.8, 0.7, 0.9)
    verify_top: int = 0
    """Number of candidates to verify geometrically; 0 for the ratio test alone."""
    tolerance: float = 8.0
    """Maximum reprojection error of an agreeing match, in pixels of the shrunk image."""
    longest_side: int = 256
    """Longer side in pixels to which larger images are shrunk."""
    max_keypoints: int = 300
    """Maximum number of keypoints; the strongest are kept."""
    chosen: float | None = field(default=None, init=False, repr=False, compare=False)
    validation_mrr: dict[float, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _kept: dict[str, Keypoints] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self) -> None:
        name = type(self).__name__
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise InvalidValue(f"{name}.ratios is {self.ratios}; it must hold numbers above 0 and at most 1")
        if self.verify_top < 0:
            raise InvalidValue(f"{name}.verify_top is {self.verify_top}; it must be 0 (no verification) or more")
        if self.tolerance <= 0:
            raise InvalidValue(f"{name}.tolerance is {self.tolerance}; it must be above 0")
        for option, least in (("longest_side", 16), ("max_keypoints", 2)):
            if getattr(self, option) < least:
                raise InvalidValue(f"{name}.{option} is {getattr(self, option)}; it must be at least {least}")

    def detect(self, gray: UInt8[np.ndarray, "height width"]) -> Keypoints:
        """Keypoints of a gray image, uint8 `[height, width]`; at most `max_keypoints`."""
        raise NotImplementedError

    def keypoints(self, image: Image) -> Keypoints:
        """Keypoints of the image, converted to gray and shrunk; cached."""
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if digest not in self._kept:
            self._kept[digest] = self.detect(shrink(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), self.longest_side))
        return self._kept[digest]

    @property
    def fits(self) -> Fits:
        return "choice"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Selects the ratio on the validation pairs.

        Raises:
            ValueError: there are no validation pairs.
        """
        require_pairs(self, validation=validation)
        left, right = ([self.keypoints(image) for image in side] for side in (validation.left, validation.right))
        scores = zip(self._compare(left, right, self.ratios), self._compare(right, left, self.ratios), strict=True)
        self.validation_mrr = {
            ratio: mean_reciprocal_rank(*both_ways) for ratio, both_ways in zip(self.ratios, scores, strict=True)
        }
        self.chosen = max(self.ratios, key=lambda ratio: self.validation_mrr[ratio])

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Numbers of matches; with `verify_top`, of agreeing matches plus a fraction below 1 for all matches."""
        query_points, candidate_points = ([self.keypoints(image) for image in side] for side in (queries, gallery))
        ratio = self.ratios[0] if self.chosen is None else self.chosen
        return self._compare(query_points, candidate_points, (ratio,))[0]

    def _compare(
        self, queries: Sequence[Keypoints], gallery: Sequence[Keypoints], ratios: Sequence[float]
    ) -> Float32[np.ndarray, "ratios queries gallery"]:
        nearest_two = make_nearest_two([points.descriptors for points in gallery])
        scores = np.zeros((len(ratios), len(queries), len(gallery)), np.float32)
        for row, query in enumerate(queries):
            nearest, first, second = nearest_two(query.descriptors)
            for which, ratio in enumerate(ratios):
                # For unit vectors, d^2 = 2 - 2 cosine.
                is_match = 1 - first < ratio**2 * (1 - second)
                scores[which, row] = is_match.sum(axis=0)
                if self.verify_top:
                    scores[which, row] = self._verified(scores[which, row], query, gallery, nearest, is_match)
        return scores

    def _verified(
        self,
        counts: Float32[np.ndarray, " gallery"],
        query: Keypoints,
        gallery: Sequence[Keypoints],
        nearest: Int[np.ndarray, "points gallery"],
        is_match: np.ndarray,
    ) -> Float32[np.ndarray, " gallery"]:
        last = int(top_k(counts[None], self.verify_top)[0, -1])
        scores = counts / np.float32(self.max_keypoints + 1)
        for column in np.flatnonzero(counts >= max(counts[last], FEWEST_TO_VERIFY)).tolist():
            rows = np.flatnonzero(is_match[:, column])
            targets = gallery[column].positions[nearest[rows, column]]
            scores[column] += count_agreeing(query.positions[rows], targets, tolerance=self.tolerance)
        return scores


@dataclass(kw_only=True)
class Sift(LocalFeatures):
    """Scale-invariant feature transform (SIFT) of OpenCV, 128 dimensions.

    Source: Lowe 2004.
    """

    def detect(self, gray: UInt8[np.ndarray, "height width"]) -> Keypoints:
        # Default settings but uint8: descriptors are integers up to 255, and take a quarter of the memory as bytes.
        sift = cv2.SIFT.create(self.max_keypoints, 3, 0.04, 10, 1.6, cv2.CV_8U)
        found, descriptors = sift.detectAndCompute(gray, None)
        if not found:
            return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
        # OpenCV may return more keypoints if several are equally strong.
        strongest = np.argsort([-point.response for point in found], kind="stable")[: self.max_keypoints]
        positions = np.array([point.pt for point in found], np.float32)
        return Keypoints(positions[strongest], descriptors[strongest])


@dataclass(kw_only=True)
class Surf(LocalFeatures):
    """Speeded-up robust features (SURF) of mahotas, 64 dimensions; needs the extra `tll_jax[surf]`.

    Source: Bay et al. 2008.
    """

    def detect(self, gray: UInt8[np.ndarray, "height width"]) -> Keypoints:
        try:
            from mahotas.features.surf import surf
        except ImportError as error:
            raise MissingPackage("SURF needs mahotas: pip install 'tll_jax[surf]'") from error
        # Each row contains y, x, scale, score, laplacian, angle and the descriptor.
        found = surf(gray, max_points=self.max_keypoints).astype(np.float32)
        return Keypoints(found[:, 1::-1], found[:, 6:])


NearestTwo = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_nearest_two(gallery: Sequence[np.ndarray]) -> NearestTwo:
    """Nearest-neighbor search in the descriptors of all candidates.

    Args:
      gallery: descriptors `[points, dim]` of each candidate.

    Returns:
      A function from a query's descriptors `[points, dim]` to the index of the nearest descriptor and the cosines of
      the two nearest, each `[points, gallery]`. A candidate with fewer than two descriptors has cosines of -inf and 1,
      so that the ratio test fails.
    """
    num_points = np.array([len(descriptors) for descriptors in gallery])
    most, dim = max(int(num_points.max(initial=0)), 2), gallery[0].shape[1]
    # An extra column, -9 for padding, makes padding the farthest in the same matrix product.
    padded = np.zeros((len(gallery), most, dim + 1), np.float32)
    padded[:, :, -1] = -9
    for row, descriptors in zip(padded, gallery, strict=True):
        row[: len(descriptors), :-1] = unit_rows(descriptors.astype(np.float32))
        row[: len(descriptors), -1] = 0
    flat = padded.reshape(-1, dim + 1).T

    def nearest_two(query: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ones = np.ones((len(query), 1), np.float32)
        extended = np.concatenate([unit_rows(query.astype(np.float32)), ones], axis=1)
        cosines = (extended @ flat).reshape(len(query), len(gallery), most)
        nearest = cosines.argmax(axis=2)
        first = np.take_along_axis(cosines, nearest[:, :, None], axis=2)[:, :, 0]
        np.put_along_axis(cosines, nearest[:, :, None], -np.inf, axis=2)
        second = cosines.max(axis=2)
        first[:, num_points < 2], second[:, num_points < 2] = -np.inf, 1
        return nearest, first, second

    return nearest_two


def count_agreeing(
    sources: Float32[np.ndarray, "matches 2"], targets: Float32[np.ndarray, "matches 2"], *, tolerance: float
) -> int:
    """Number of matches consistent with the best similarity transform found by RANSAC, in both directions.

    A match counts if the transform brings its source within `tolerance` pixels of its target and the inverse its target
    within `tolerance` pixels of its source. Deterministic.
    """
    transform, _ = cv2.estimateAffinePartial2D(sources, targets, ransacReprojThreshold=tolerance)
    if transform is None:
        return 0
    errors = np.linalg.norm(sources @ transform[:, :2].T + transform[:, 2] - targets, axis=1)
    # The inverse divides by the scale; a transform that maps everything to a point agrees with nothing.
    scale = float(np.linalg.norm(transform[:, 0]))
    return int(np.sum(errors < tolerance * min(1, scale)))
