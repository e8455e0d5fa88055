"""Self-supervised pretraining with VICReg."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tll_jax.errors import InvalidValue
from tll_jax.losses.vicreg import invariance, variance_hinge, vicreg
from tll_jax.models.heads import Projector
from tll_jax.objectives.collapse import participation_ratio
from tll_jax.renamed import first_class_names
from tll_jax.typing import ViewBatch

__getattr__ = first_class_names(__name__, VicReg="VICReg")


@dataclass(kw_only=True)
class VICReg:
    """VICReg: invariance of two views' projections, with variance and covariance regularization.

    Each view passes through the network in its own call, so that it is normalized with its own batch statistics, as in
    the authors' code.
    Metrics: `invariance` and `variance_hinge` (mean of both views), 0 when perfect, and the `participation_ratio` of
    the first view's projections. A sign of collapse is a variance hinge of 0.99.
    Source: Bardes et al. 2022 (arXiv 2105.04906) and the authors' code.
    """

    projector: tuple[int, ...] = (8192, 8192, 8192)
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0

    def check(self) -> None:
        Projector(widths=self.projector).check()
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            value = getattr(self, name)
            if value < 0:
                raise InvalidValue(f"{name} is {value}; it must be at least 0")

    def head(self, *, num_classes: int) -> Projector:
        del num_classes
        return Projector(widths=self.projector)

    def num_reduced(self, outputs: Sequence[tuple[int, ...]]) -> int:
        """Values summed over devices: each view's covariance, and four sums a dimension and view for its statistics."""
        dim = outputs[0][1]
        return (dim**2 + 4 * dim) * len(outputs)

    def __call__(self, network: Any, batch: ViewBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, z_a = network(batch.view_a, train=True)
        _, z_b = network(batch.view_b, train=True)
        loss = vicreg(
            z_a,
            z_b,
            invariance_weight=self.invariance_weight,
            variance_weight=self.variance_weight,
            covariance_weight=self.covariance_weight,
        )
        return loss, {
            "invariance": invariance(z_a, z_b),
            "variance_hinge": (variance_hinge(z_a) + variance_hinge(z_b)) / 2,
            "participation_ratio": participation_ratio(z_a),
        }
