"""Baseline descriptors without a network: pixels, HOG and color histograms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from skimage.feature import hog

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import unit_rows
from tll_jax.ranking import ranks, reciprocal_rank
from tll_jax.typing import Fits, Image, PairImages, System

VARIANTS = ("raw", "centered")
BLOCK = 256
"""Number of images described at a time."""


class Descriptor(System, Protocol):
    """Protocol of systems that compare images by one vector each."""

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]: ...


class ImageByImage:
    """Base class of descriptors that process one image at a time."""

    def describe(self, image: Image) -> Float[np.ndarray, " dim"]:
        raise NotImplementedError

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Descriptors of all images."""
        return np.stack([self.describe(image) for image in images]).astype(np.float32)


@dataclass(kw_only=True)
class CosineDescriptor(ImageByImage, System):
    """Base class of descriptors compared by cosine, either raw or centered on the mean of the training images.

    `fit` evaluates both variants on the validation pairs and keeps the one with the higher MRR over both directions,
    raw on a tie. `chosen` is the selected variant and `validation_mrr` the result of each. Before `fit` descriptors are
    raw.
    """

    chosen: str = field(default="raw", init=False, repr=False, compare=False)
    validation_mrr: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    training_mean: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def fits(self) -> Fits:
        return "choice"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Computes the mean of the training images and selects the variant on the validation pairs.

        Raises:
            ValueError: there are no training or no validation pairs.
        """
        require_pairs(self, training=train, validation=validation)
        # A running sum, because the descriptors of a large training set may not fit into memory together.
        total = np.zeros(())
        for block in in_blocks(train.left, train.right):
            total = total + self.describe_all(block).sum(axis=0, dtype=np.float64)
        self.training_mean = (total / (2 * len(train.ids))).astype(np.float32)
        left, right = self.describe_all(validation.left), self.describe_all(validation.right)
        for variant in VARIANTS:
            scores = self._compare(left, right, variant)
            self.validation_mrr[variant] = mean_reciprocal_rank(scores, scores.T)
        self.chosen = max(VARIANTS, key=lambda variant: self.validation_mrr[variant])

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Cosine similarities in [-1, 1]; 0 for zero descriptors, such as the gradients of a constant image."""
        return self._compare(self.describe_all(queries), self.describe_all(gallery), self.chosen)

    def _compare(
        self, a: Float32[np.ndarray, "a dim"], b: Float32[np.ndarray, "b dim"], variant: str
    ) -> Float32[np.ndarray, "a b"]:
        if variant == "centered":
            a, b = a - self.training_mean, b - self.training_mean
        return unit_rows(a) @ unit_rows(b).T


@dataclass(kw_only=True)
class Pixels(CosineDescriptor):
    """RGB pixels of the image resized to `size` x `size` without preserving the aspect ratio."""

    size: int = 16

    def check(self) -> None:
        if self.size < 1:
            raise InvalidValue(f"Pixels.size is {self.size}; it must be at least 1")

    def describe(self, image: Image) -> Float[np.ndarray, " dim"]:
        return _squash(image, self.size).ravel() / np.float32(255)


@dataclass(kw_only=True)
class Hog(CosineDescriptor):
    """Histograms of oriented gradients of the gray image, resized to 64 x 64; without tunable parameters.

    Cells of 8 x 8 pixels, blocks of 2 x 2 cells, 9 unsigned orientations, L2-Hys normalization: 1,764 dimensions.

    Source: Dalal and Triggs 2005.
    """

    def describe(self, image: Image) -> Float[np.ndarray, " dim"]:
        gray = cv2.cvtColor(_squash(image, 64), cv2.COLOR_RGB2GRAY)
        return hog(gray, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), block_norm="L2-Hys")


@dataclass(kw_only=True)
class ColorHistogram(ImageByImage, System):
    """HSV color histograms, compared by histogram intersection.

    Source: Swain and Ballard 1991, equation 1.
    """

    bins: tuple[int, int, int] = (8, 8, 4)
    """Number of bins of hue, saturation and value."""

    def check(self) -> None:
        if min(self.bins) < 1:
            raise InvalidValue(f"ColorHistogram.bins is {self.bins}; each must be at least 1")

    @property
    def fits(self) -> Fits:
        return "nothing"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Does nothing: there are no learned parameters."""

    def describe(self, image: Image) -> Float[np.ndarray, " dim"]:
        """Fraction of pixels in each bin, summing to 1."""
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        # OpenCV's 8-bit hue is in units of two degrees.
        counts = cv2.calcHist([hsv], [0, 1, 2], None, list(self.bins), [0, 180, 0, 256, 0, 256])
        return counts.ravel() / np.float32(hsv.shape[0] * hsv.shape[1])

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Histogram intersections in [0, 1]."""
        a, b = self.describe_all(queries), self.describe_all(gallery)
        # One row at a time, because all at once would need queries x candidates x bins values.
        return np.stack([np.minimum(row, b).sum(axis=1) for row in a])


def _squash(image: Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    # Area averaging shrinks without aliasing, but enlarges by replicating pixels.
    shrinks = min(image.shape[:2]) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def in_blocks(*sides: Sequence[Image]) -> Iterator[Sequence[Image]]:
    """All images of all sides in sequence, in blocks of `BLOCK`."""
    return (side[start : start + BLOCK] for side in sides for start in range(0, len(side), BLOCK))


def mean_reciprocal_rank(*ways: Float32[np.ndarray, "pairs pairs"]) -> float:
    """MRR of score matrices whose positives are on the diagonal, averaged over the matrices (directions)."""
    return float(np.mean([np.mean(reciprocal_rank(ranks(way, np.arange(len(way))))) for way in ways]))


def require_pairs(system: System, **parts: PairImages) -> None:
    """Raises ValueError if a part that `system` is fitted on is empty."""
    for name, pairs in parts.items():
        if len(pairs.ids) == 0:
            raise InvalidValue(f"{type(system).__name__} needs {name} pairs to be fitted, and there are none")
