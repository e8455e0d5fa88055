"""Fine-tuning on look-alike pairs with the multi-similarity loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.multi_similarity import multi_similarity_losses
from tll_jax.losses.reduction import masked_mean
from tll_jax.models.normalization import unit_length
from tll_jax.objectives.collapse import collapse_metrics
from tll_jax.objectives.pairs import PairObjective, embed_pair
from tll_jax.typing import PairBatch


@dataclass(kw_only=True)
class MultiSimilarity(PairObjective):
    """Multi-similarity loss of cosine similarities, with every image as an anchor.

    An anchor's positive is the other side of its pair; its negatives are the images on the other side of all pairs of
    other groups. An anchor without negatives is left out of the mean. Both sides pass through the network in one call
    and share their batch statistics.

    Metrics: `active_fraction`, the fraction of anchors with nonzero loss; `embedding_std` and `participation_ratio`
    of all embeddings. Signs of collapse are an active fraction of 1 and a standard deviation near 0.

    Source: Wang et al. 2019 (arXiv 1904.06627); the threshold as in its code.
    """

    positive_scale: float = 2.0
    negative_scale: float = 50.0
    threshold: float = 0.5
    margin: float = 0.1

    def check(self) -> None:
        for name in ("positive_scale", "negative_scale", "margin"):
            value = getattr(self, name)
            if value <= 0:
                raise InvalidValue(f"{name} is {value}; it must be above 0")
        if not -1 <= self.threshold <= 1:
            raise InvalidValue(f"threshold is {self.threshold}; it must be a cosine, from -1 to 1")

    def __call__(self, network: Any, batch: PairBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        sides = embed_pair(network, batch.left, batch.right)
        embeddings = jnp.concatenate(sides)
        left, right = map(unit_length, sides)
        similarities = jnp.matmul(left, right.T, precision="highest")
        is_negative = batch.group[:, None] != batch.group[None, :]
        # Both masks are symmetric, so they fit both directions.
        losses = multi_similarity_losses(
            jnp.concatenate([similarities, similarities.T]),
            jnp.tile(jnp.eye(len(left), dtype=bool), (2, 1)),
            jnp.tile(is_negative, (2, 1)),
            scales=(self.positive_scale, self.negative_scale),
            threshold=self.threshold,
            margin=self.margin,
        )
        counts = jnp.tile(is_negative.any(axis=1), 2)
        loss = masked_mean(losses, counts)
        return loss, {
            "active_fraction": masked_mean((losses > 0).astype(losses.dtype), counts),
            **collapse_metrics(embeddings),
        }
