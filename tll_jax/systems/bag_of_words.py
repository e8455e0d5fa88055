"""Which kinds of details an image has and how many of each, regardless of where."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float32

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import unit_rows
from tll_jax.systems.baselines import CosineDescriptor, require_pairs
from tll_jax.systems.local_features import LocalFeatures, Sift
from tll_jax.typing import Fits, Image, PairImages

KMEANS_STEPS = 20


@dataclass(kw_only=True)
class BagOfWords(CosineDescriptor):
    """Counts of visual words, each weighted by how few training images have it (tf-idf); nearest neighbors by cosine.

    A word is a cluster of the local descriptors of the training images, found by k-means on a random part of
    them. `fit` must come before anything else.

    Source: Sivic and Zisserman 2003; Csurka et al. 2004.
    """

    features: LocalFeatures = field(default_factory=Sift)
    num_words: int = 500
    num_samples: int = 50_000
    """How many local descriptors are clustered, spread evenly over the training images."""
    seed: int = 0
    words: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    rarity: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def check(self) -> None:
        if self.num_words < 1:
            raise InvalidValue(f"BagOfWords.num_words is {self.num_words}; it must be at least 1")
        if self.num_samples < self.num_words:
            raise InvalidValue(f"BagOfWords.num_samples is {self.num_samples}; it must be at least num_words")

    @property
    def fits(self) -> Fits:
        return "training"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Find the words and their rarity on the training images, then as every descriptor compared by cosine.

        Raises:
            ValueError: if there are no training or no validation pairs, or fewer keypoints than words.
        """
        require_pairs(self, training=train, validation=validation)
        self.words = find_words(self._samples(train), self.num_words, seed=self.seed)
        occurrences = np.zeros(self.num_words)
        for side in (train.left, train.right):
            for image in side:
                occurrences += self._counts(image, self.words) > 0
        self.rarity = np.log(2 * len(train.ids) / np.maximum(occurrences, 1))
        super().fit(train, validation)

    def describe(self, image: Image) -> Float32[np.ndarray, " words"]:
        """The share of the image's keypoints that are each word, times the word's rarity; zeros without keypoints."""
        if self.words is None or self.rarity is None:
            raise InvalidValue("BagOfWords has no words yet: call fit first")
        counts = self._counts(image, self.words)
        return (counts / max(counts.sum(), 1) * self.rarity).astype(np.float32)

    def _counts(self, image: Image, words: Float32[np.ndarray, "words dim"]) -> np.ndarray:
        descriptors = unit_rows(self.features.keypoints(image).descriptors.astype(np.float32))
        return np.bincount(nearest_words(descriptors, words), minlength=len(words))

    def _samples(self, train: PairImages) -> Float32[np.ndarray, "samples dim"]:
        random = np.random.default_rng(self.seed)
        share = -(-self.num_samples // (2 * len(train.ids)))
        samples = []
        for side in (train.left, train.right):
            for image in side:
                descriptors = self.features.keypoints(image).descriptors
                samples.append(random.permutation(descriptors)[:share])
        return unit_rows(np.concatenate(samples).astype(np.float32))


def find_words(samples: Float32[np.ndarray, "samples dim"], num_words: int, *, seed: int) -> np.ndarray:
    """float32 `[words, dim]`: cluster centers by k-means, started by k-means++; the same for the same seed.

    Raises:
        ValueError: if there are fewer samples than words.
    """
    if len(samples) < num_words:
        raise InvalidValue(f"the training images have {len(samples)} keypoints, too few for num_words = {num_words}")
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, KMEANS_STEPS, 0.0)
    labels = np.zeros(len(samples), np.int32)
    _, _, words = cv2.kmeans(samples, num_words, labels, criteria, 1, cv2.KMEANS_PP_CENTERS)
    return np.asarray(words)


def nearest_words(
    descriptors: Float32[np.ndarray, "points dim"], words: Float32[np.ndarray, "words dim"]
) -> np.ndarray:
    """int `[points]`: the word nearest to each descriptor."""
    return np.argmax(2 * descriptors @ words.T - np.sum(words**2, axis=1), axis=1)
