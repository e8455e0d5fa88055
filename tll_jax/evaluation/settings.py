"""Settings of kNN and linear probes."""

from dataclasses import dataclass

from tll_jax.settings import require
from tll_jax.typing import Geometry, ImageSettings


@dataclass(kw_only=True)
class Probe:
    """Settings of the probes of frozen backbones on labeled images.

    The kNN probe also runs during pretraining, every `loop.evaluate_every` steps; the linear probe uses the pooled
    features.
    """

    train: ImageSettings
    test: ImageSettings
    geometry: Geometry
    batch_size: int = 256
    num_neighbors: int = 20
    weight_decay: float = 1e-3
    """L2 penalty of the linear probe."""

    def check(self) -> None:
        for name in ("batch_size", "num_neighbors"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
