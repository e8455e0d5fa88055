"""The trained module: a backbone and a head on it."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from tll_jax.models.stages import stage_of
from tll_jax.typing import Features


class Network(nn.Module):
    """A backbone and a head, with variables under "backbone" and "head"; returns features and the head's output.

    The first `frozen_stages` stages of the backbone, including the stem, get no gradient, and use and keep their
    running statistics. With `remat` the backward pass recomputes activations inside stages instead of storing them.
    With `keep_statistics` the whole backbone uses and keeps its running statistics in training too.
    """

    backbone: nn.Module
    head: nn.Module
    frozen_stages: int = 0
    remat: bool = False
    keep_statistics: bool = False

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Features, Float[Array, "batch out"]]:
        # A user's backbone may have the option under its former name, or not at all.
        options = {"remat": True} if self.remat else {}
        is_train = train and not self.keep_statistics
        features = self.backbone(images, train=is_train, frozen_stages=self.frozen_stages, **options)
        return features, self.head(features, train=train)


def trainable_mask(params: Any, frozen_stages: int) -> Any:
    """Mask of a `Network`'s `params`: False for the parameters of the first `frozen_stages` stages.

    Without it, weight decay would change those parameters although their gradient is zero.
    """

    def is_trainable(path: tuple[Any, ...], _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[0] != "backbone" or stage_of(names[1]) >= frozen_stages

    return jax.tree_util.tree_map_with_path(is_trainable, params)
