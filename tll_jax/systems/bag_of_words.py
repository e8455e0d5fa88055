"""Bag of visual words: histograms of quantized local descriptors, regardless of position."""

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
    """Bag of visual words with tf-idf weights; images are compared by cosine.

    Visual words are the k-means clusters of a sample of the training images' local descriptors. `fit` must be called
    first.

    Source: Sivic and Zisserman 2003; Csurka et al. 2004.
    """

    features: LocalFeatures = field(default_factory=Sift)
    num_words: int = 500
    num_samples: int = 50_000
    """Number of local descriptors clustered, sampled evenly over the training images."""
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
        """Fits visual words and idf weights on the training images, then centering as for every `CosineDescriptor`.

        Raises:
            ValueError: there are no training or no validation pairs, or fewer keypoints than words.
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
        """Fraction of the image's keypoints assigned to each word, times the word's idf; zeros without keypoints."""
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
    """Cluster centers, float32 `[words, dim]`, by k-means with k-means++ initialization; deterministic given `seed`.

    Raises:
        ValueError: there are fewer samples than words.
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
    """Index of the word nearest to each descriptor, int `[points]`."""
    return np.argmax(2 * descriptors @ words.T - np.sum(words**2, axis=1), axis=1)
