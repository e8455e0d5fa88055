"""Test-time augmentation by a horizontal flip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from tll_jax.evaluation.embed import unit_rows
from tll_jax.systems.baselines import CosineDescriptor, Descriptor
from tll_jax.typing import Fits, Image, PairImages


@dataclass(kw_only=True)
class Mirrored(CosineDescriptor):
    """Sum of the unit-length descriptors of an image and of its mirror image.

    It is invariant to mirroring, so that look-alikes that face opposite ways can be found.
    """

    features: Descriptor

    @property
    def fits(self) -> Fits:
        return "training" if self.features.fits == "training" else "choice"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fits the features, then centering as for every `CosineDescriptor`."""
        self.features.fit(train, validation)
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Summed descriptors, of length 0 to 2."""
        plain, mirrored = self.features.describe_all(images), self.features.describe_all(MirrorImages(images))
        return unit_rows(plain) + unit_rows(mirrored)


@dataclass(frozen=True)
class MirrorImages(Sequence[Image]):
    """Lazily mirrored images (left and right exchanged)."""

    images: Sequence[Image]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return np.ascontiguousarray(self.images[index][:, ::-1])
