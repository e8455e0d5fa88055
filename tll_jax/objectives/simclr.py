"""Self-supervised pretraining with SimCLR."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.nt_xent import nt_xent
from tll_jax.models.heads import Projector
from tll_jax.models.normalization import unit_length
from tll_jax.objectives.collapse import collapse_metrics
from tll_jax.objectives.pairs import embed_pair
from tll_jax.renamed import first_class_names
from tll_jax.typing import ViewBatch

__getattr__ = first_class_names(__name__, SimClr="SimCLR")


@dataclass(kw_only=True)
class SimCLR:
    """SimCLR: NT-Xent loss of two views' projections, with cosines divided by `temperature`.

    Both views pass through the network in one call, as in the authors' code. The projector has no batch normalization
    after its last layer, unlike in that code.
    Metrics: `batch_top1`, the fraction of images whose second view is the nearest of all second views to the first;
    `embedding_std` and `participation_ratio` of the normalized projections. A sign of collapse is a loss of
    log(2 * batch - 1).
    Source: Chen et al. 2020 (arXiv 2002.05709): temperature 0.1 on ImageNet, 0.5 on CIFAR-10.
    """

    projector: tuple[int, ...] = (2048, 128)
    temperature: float = 0.1

    def check(self) -> None:
        Projector(widths=self.projector).check()
        if self.temperature <= 0:
            raise InvalidValue(f"temperature is {self.temperature}; it must be above 0")

    def head(self, *, num_classes: int) -> Projector:
        del num_classes
        return Projector(widths=self.projector)

    def __call__(self, network: Any, batch: ViewBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        z_a, z_b = map(unit_length, embed_pair(network, batch.view_a, batch.view_b))
        z = jnp.concatenate([z_a, z_b])
        loss = nt_xent(z_a, z_b, temperature=self.temperature)
        is_first = jnp.argmax(z_a @ z_b.T, axis=1) == jnp.arange(len(z_a))
        return loss, {
            "batch_top1": jnp.mean(is_first.astype(loss.dtype)),
            **collapse_metrics(z),
        }
