"""Self-supervised pretraining with Barlow Twins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tll_jax.errors import InvalidValue
from tll_jax.losses.barlow_twins import correlation_loss, cross_correlation
from tll_jax.losses.reduction import on_diagonal
from tll_jax.models.heads import Projector
from tll_jax.typing import ViewBatch


@dataclass(kw_only=True)
class BarlowTwins:
    """Barlow Twins: the cross-correlation matrix of two views' projections should be the identity.

    Each view passes through the network in its own call, so that it is normalized with its own batch statistics, as in
    the authors' code. The default `scale` of 1 goes with a learning rate of biases and BatchNorm that is 0.024 times
    that of the weights, as in their code; their table of batch sizes used scale 0.024 and one learning rate, which is
    equivalent.
    Metrics: `agreement`, the mean diagonal entry of the cross-correlation (1 is perfect), and `redundancy`, the root
    mean square of the other entries (0 is perfect).
    Source: Zbontar et al. 2021 (arXiv 2103.03230) and the authors' code.
    """

    projector: tuple[int, ...] = (8192, 8192, 8192)
    redundancy_weight: float = 0.0051
    scale: float = 1.0

    def check(self) -> None:
        Projector(widths=self.projector).check()
        for name in ("redundancy_weight", "scale"):
            value = getattr(self, name)
            if value <= 0:
                raise InvalidValue(f"{name} is {value}; it must be above 0")

    def head(self, *, num_classes: int) -> Projector:
        del num_classes
        return Projector(widths=self.projector)

    def num_reduced(self, outputs: Sequence[tuple[int, ...]]) -> int:
        """Values summed over devices: the cross-correlation, and four sums a dimension and view for its statistics."""
        dim = outputs[0][1]
        return dim**2 + 4 * dim * len(outputs)

    def __call__(self, network: Any, batch: ViewBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, z_a = network(batch.view_a, train=True)
        _, z_b = network(batch.view_b, train=True)
        correlation = cross_correlation(z_a, z_b)
        loss = correlation_loss(correlation, redundancy_weight=self.redundancy_weight, scale=self.scale)
        correlation = jax.lax.stop_gradient(correlation)
        dim = correlation.shape[0]
        agreement = jnp.sum(jnp.where(on_diagonal(correlation), correlation, 0)) / dim
        squares = jnp.sum(jnp.where(on_diagonal(correlation), 0, correlation**2))
        redundancy = jnp.sqrt(squares / max(dim * (dim - 1), 1))
        return loss, {"agreement": agreement, "redundancy": redundancy}
