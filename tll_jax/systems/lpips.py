"""LPIPS, a perceptual distance from weighted features of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from tll_jax.data.geometry import Resize
from tll_jax.devices import local_mesh
from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import Embedder, negative_squared_distance
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.heads import lpips_vectors
from tll_jax.models.weights import AlexNetLpips, Vgg16Lpips, load_backbone, read_lpips
from tll_jax.typing import Features, Fits, Image, PairImages, System, Weights

QUERY_BYTES, CANDIDATE_BYTES = 2**30, 2**28
"""Maximum size in bytes of the vectors in memory. Candidates are embedded again for every block of queries."""


@dataclass(kw_only=True)
class Lpips(System):
    """LPIPS with the published weights on `AlexNet()` or `Vgg16()`, for images resized to `size` x `size`.

    The distance sums, over five layers, the mean over positions of the weighted squared difference of unit-length
    features, and so equals a squared Euclidean distance of `lpips_vectors`. Needs the extra `tll_jax[weights]`.

    Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1 of the weights.
    """

    trunk: AlexNet | Vgg16 = field(default_factory=AlexNet)
    size: int = 64
    batch_size: int = 32

    def check(self) -> None:
        if self.size < 32:
            raise InvalidValue(
                f"Lpips.size is {self.size}; it must be at least 32 pixels, for the last layers to be left"
            )
        if self.batch_size < 1:
            raise InvalidValue(f"Lpips.batch_size is {self.batch_size}; it must be at least 1")

    @property
    def weights(self) -> Weights:
        """Published weights of the trunk."""
        return AlexNetLpips() if isinstance(self.trunk, AlexNet) else Vgg16Lpips()

    @property
    def fits(self) -> Fits:
        return "nothing"

    def channel_weights(self) -> list[Float32[np.ndarray, " channels"]]:
        """Published weights of each layer's channels.

        Raises:
          ImportError: `tll_jax[weights]` is not installed.
        """
        state = read_lpips(self.weights.find())
        return [state[f"lin{tap}"] for tap in range(self.trunk.num_stages)]

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Does nothing: there are no learned parameters."""

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> Float32[np.ndarray, "queries gallery"]:
        """Negative distances, at most 0 up to rounding.

        Raises:
          ImportError: `tll_jax[weights]` is not installed.
        """
        module = self.trunk.build(dtype=jnp.float32)
        channel_weights = [jnp.asarray(weights) for weights in self.channel_weights()]

        def embed(variables: Any, images: jax.Array) -> jax.Array:
            features: Features = module.apply(variables, images, train=False)  # type: ignore[assignment]
            return lpips_vectors(features.stages, channel_weights)

        embedder = Embedder(embed=embed, geometry=Resize(size=self.size), batch_size=self.batch_size, mesh=local_mesh())
        variables = load_backbone(self.trunk, self.weights)
        dim = jax.eval_shape(embed, variables, jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)).shape[1]
        rows, columns = (max(self.batch_size, size // (4 * dim)) for size in (QUERY_BYTES, CANDIDATE_BYTES))
        scores = np.empty((len(queries), len(gallery)), np.float32)
        for row in range(0, len(queries), rows):
            left = embedder(variables, queries[row : row + rows])
            for column in range(0, len(gallery), columns):
                right = embedder(variables, gallery[column : column + columns])
                scores[row : row + rows, column : column + columns] = negative_squared_distance(left, right)
        return scores
