"""Fine-tuning on look-alike pairs with the triplet loss and in-batch negatives."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.reduction import masked_mean
from tll_jax.losses.triplet import Distance, Mining, mine_negatives, pairwise_distances, triplet_losses
from tll_jax.objectives.collapse import collapse_metrics
from tll_jax.objectives.pairs import PairObjective, embed_pair
from tll_jax.typing import PairBatch


@dataclass(kw_only=True)
class Triplet(PairObjective):
    """Triplet loss with every image as an anchor and in-batch mining of negatives.

    An anchor's positive is the other side of its pair. Its negatives are the images of pairs of other groups on the
    other side, which is what a query is ranked against; with `same_side_negatives`, those on the anchor's own side too.
    An anchor without negatives is left out of the mean. Both sides pass through the network in one call and share their
    batch statistics. `soft_margin` and a `margin` other than the default exclude each other. There is no `swap`
    (Balntas et al. 2016), because the positive is an anchor too, with a negative of its own.

    Metrics over the anchors with negatives: `active_fraction`, the fraction whose negative is less than the margin (0
    for the soft margin) farther away than the positive; mean `positive_distance` and `negative_distance` (of the mined
    negatives). Metrics of all embeddings: `embedding_std` and `participation_ratio`. Signs of collapse are a loss equal
    to the margin (log 2 if soft), and distances and standard deviation near 0.
    """

    margin: float = 0.2
    distance: Distance = "squared_l2"
    mining: Mining = "semi_hard"
    soft_margin: bool = False
    same_side_negatives: bool = False

    def check(self) -> None:
        if self.margin <= 0:
            raise InvalidValue(f"margin is {self.margin}; it must be above 0")
        if self.soft_margin and self.margin != Triplet.margin:
            raise InvalidValue(
                f"margin is {self.margin} beside soft_margin=True, which has none; "
                f"leave it at {Triplet.margin}, or set soft_margin to False"
            )

    def __call__(self, network: Any, batch: PairBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        embeddings = jnp.concatenate(embed_pair(network, batch.left, batch.right))
        num_pairs = batch.group.shape[0]
        anchors = jnp.arange(2 * num_pairs)
        group = jnp.concatenate([batch.group, batch.group])
        is_negative = group[:, None] != group[None, :]
        if not self.same_side_negatives:
            is_right = anchors >= num_pairs
            is_negative &= is_right[:, None] != is_right[None, :]

        distances = pairwise_distances(embeddings, embeddings, distance=self.distance)
        positive_distances = distances[anchors, (anchors + num_pairs) % (2 * num_pairs)]
        key = network.make_rng("sample") if self.mining == "random" else None
        negatives = mine_negatives(distances, positive_distances, is_negative, mining=self.mining, key=key)
        negative_distances = distances[anchors, negatives]

        counts = is_negative.any(axis=1)
        losses = triplet_losses(
            positive_distances, negative_distances, margin=self.margin, soft_margin=self.soft_margin
        )
        loss = masked_mean(losses, counts)
        margin = 0.0 if self.soft_margin else self.margin
        is_active = negative_distances - positive_distances < margin
        return loss, {
            "active_fraction": masked_mean(is_active.astype(losses.dtype), counts),
            "positive_distance": masked_mean(positive_distances, counts),
            "negative_distance": masked_mean(negative_distances, counts),
            **collapse_metrics(embeddings),
        }
