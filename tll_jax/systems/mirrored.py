"""An image and its mirror image as one: test-time augmentation by a flip."""

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
    """The sum of what `features` say of an image and of its mirror image, each at unit length.

    It is the same for an image and its mirror image, so that look-alikes that face opposite ways can be found.
    """

    features: Descriptor

    @property
    def fits(self) -> Fits:
        return "training" if self.features.fits == "training" else "choice"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Fit the features, then as every descriptor compared by cosine."""
        self.features.fit(train, validation)
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """The sums, of length 0 to 2."""
        plain, mirrored = self.features.describe_all(images), self.features.describe_all(MirrorImages(images))
        return unit_rows(plain) + unit_rows(mirrored)


@dataclass(frozen=True)
class MirrorImages(Sequence[Image]):
    """Images, left and right exchanged when asked for."""

    images: Sequence[Image]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return np.ascontiguousarray(self.images[index][:, ::-1])
