"""Fine-tuning on look-alike pairs with InfoNCE over all in-batch negatives."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.info_nce import info_nce_losses
from tll_jax.losses.reduction import masked_mean
from tll_jax.models.normalization import unit_length
from tll_jax.objectives.collapse import collapse_metrics
from tll_jax.objectives.pairs import PairObjective, embed_pair
from tll_jax.renamed import first_class_names, with_first_names
from tll_jax.serialize import renamed
from tll_jax.typing import PairBatch

__getattr__ = first_class_names(__name__, InfoNce="InfoNCE")


@with_first_names
@dataclass(kw_only=True)
class InfoNCE(PairObjective):
    """Symmetric InfoNCE: the positive is the other side of the pair, the logits are `logit_scale` times the cosine.

    The negatives of an image are the images on the other side of all pairs of other groups; an image without negatives
    is left out of the mean. Both sides pass through the network in one call and share their batch statistics.

    Metrics: `batch_top1`, the fraction of left images whose positive has the largest logit; `embedding_std` and
    `participation_ratio` of all embeddings. Signs of collapse are a loss of log(batch) and a standard deviation near 0.

    Source: Risser-Maroix et al. 2022 (arXiv 2206.01417), on look-alikes with logit scale 15; both directions are
    averaged as in CLIP (Radford et al. 2021, arXiv 2103.00020).
    """

    logit_scale: float = field(default=15.0, metadata=renamed("temperature"))
    """Factor of the cosines: an inverse temperature."""

    def check(self) -> None:
        if self.logit_scale <= 0:
            raise InvalidValue(f"logit_scale is {self.logit_scale}; it must be above 0")

    def __call__(self, network: Any, batch: PairBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        sides = embed_pair(network, batch.left, batch.right)
        embeddings = jnp.concatenate(sides)
        left, right = map(unit_length, sides)
        similarities = self.logit_scale * jnp.matmul(left, right.T, precision="highest")
        is_negative = batch.group[:, None] != batch.group[None, :]
        counts = is_negative.any(axis=1)
        losses = info_nce_losses(similarities, is_negative) + info_nce_losses(similarities.T, is_negative)
        loss = masked_mean(losses / 2, counts)
        is_first = jnp.argmax(jnp.where(is_negative | jnp.eye(len(counts), dtype=bool), similarities, -jnp.inf), axis=1)
        return loss, {
            "batch_top1": masked_mean((is_first == jnp.arange(len(counts))).astype(loss.dtype), counts),
            **collapse_metrics(embeddings),
        }
