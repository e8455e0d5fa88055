"""Cross-domain similarity local scaling (CSLS), a hubness correction."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import unit_rows
from tll_jax.renamed import first_class_names
from tll_jax.systems.baselines import Descriptor, require_pairs
from tll_jax.typing import Image, PairImages, System

__getattr__ = first_class_names(__name__, LocalScaling="CSLS")


@dataclass(kw_only=True)
class CSLS(System):
    """Cosine similarities with CSLS hubness correction.

    The score is the cosine minus half of the candidate's mean cosine to its `num_neighbors` nearest training images. In
    high dimensions some images (hubs) are near to most others and rank above true positives. Two departures from the
    source: the query's own term is omitted because it is equal for all candidates, and training images replace the
    other queries, so that the scores of a query do not depend on other queries.

    Source: Conneau et al. 2018 (arXiv 1710.04087), equation 7, halved.
    """

    features: Descriptor
    num_neighbors: int = 20
    training: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    """Unit descriptors of all training images; None before `fit`."""

    def check(self) -> None:
        if self.num_neighbors < 1:
            raise InvalidValue(f"CSLS.num_neighbors is {self.num_neighbors}; it must be at least 1")

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits the features and stores their descriptors of the training images.

        Raises:
            ValueError: there are no training pairs.
        """
        require_pairs(self, training=train)
        self.features.fit(train, validation)
        sides = (self.features.describe_all(side) for side in (train.left, train.right))
        self.training = unit_rows(np.concatenate(list(sides)))

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Corrected similarities in [-1.5, 1.5].

        Raises:
            ValueError: `fit` has not been called.
        """
        if self.training is None:
            raise InvalidValue("CSLS has seen no training images yet: call fit first")
        a, b = (unit_rows(self.features.describe_all(images)) for images in (queries, gallery))
        to_training = b @ self.training.T
        count = min(self.num_neighbors, to_training.shape[1])
        nearest = np.partition(to_training, -count, axis=1)[:, -count:]
        return a @ b.T - nearest.mean(axis=1) / 2
