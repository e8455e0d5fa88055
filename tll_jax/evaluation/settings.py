"""The settings of a probe of frozen backbones."""

from dataclasses import dataclass

from tll_jax.settings import require
from tll_jax.typing import Geometry, ImageSettings


@dataclass(kw_only=True)
class Probe:
    """Images with classes that frozen backbones are asked about: by the votes of the nearest training images, also
    while they pretrain (every `loop.evaluate_every` steps), and by a linear classifier on their pooled features."""

    train: ImageSettings
    test: ImageSettings
    geometry: Geometry
    batch_size: int = 256
    num_neighbors: int = 20
    weight_decay: float = 1e-3
    """Of the linear classifier."""

    def check(self) -> None:
        for name in ("batch_size", "num_neighbors"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
