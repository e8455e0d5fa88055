"""Fine-tuning on look-alike pairs with the contrastive loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.contrastive import contrastive_losses
from tll_jax.losses.reduction import masked_mean
from tll_jax.losses.triplet import pairwise_distances
from tll_jax.objectives.collapse import collapse_metrics
from tll_jax.objectives.pairs import PairObjective, embed_pair
from tll_jax.typing import PairBatch


@dataclass(kw_only=True)
class Contrastive(PairObjective):
    """Contrastive loss: positives are pulled together, negatives pushed apart to the Euclidean distance `margin`.

    The negatives of an image are the images on the other side of all pairs of other groups. They far outnumber the
    positives, so the loss is the mean over positives plus the mean over negatives. Both sides pass through the network
    in one call and share their batch statistics.

    Metrics: `active_fraction`, the fraction of negatives nearer than the margin; mean `positive_distance` and
    `negative_distance`; `embedding_std` and `participation_ratio` of all embeddings. Signs of collapse are a loss of
    half the squared margin, and distances and standard deviation near 0.

    Source: Hadsell et al. 2006, who have equal numbers of positives and negatives.
    """

    margin: float = 1.0

    def check(self) -> None:
        if self.margin <= 0:
            raise InvalidValue(f"margin is {self.margin}; it must be above 0")

    def __call__(self, network: Any, batch: PairBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        left, right = embed_pair(network, batch.left, batch.right)
        embeddings = jnp.concatenate([left, right])
        distances = pairwise_distances(left, right, distance="l2").ravel()
        is_match = jnp.eye(len(left), dtype=bool).ravel()
        is_other = (batch.group[:, None] != batch.group[None, :]).ravel()
        losses = contrastive_losses(distances, is_match, margin=self.margin)
        loss = masked_mean(losses, is_match) + masked_mean(losses, is_other)
        return loss, {
            "active_fraction": masked_mean((distances < self.margin).astype(losses.dtype), is_other),
            "positive_distance": masked_mean(distances, is_match),
            "negative_distance": masked_mean(distances, is_other),
            **collapse_metrics(embeddings),
        }
