"""A trained network as an embedding function of one image, with access to the feature maps of each stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.stages import Tokens
from tll_jax.typing import Features


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkEmbedding:
    """Embedding of one image: the output of the head of a `models.network.Network`.

    Build the network without frozen stages, because those pass no gradient to the image.
    """

    network: nn.Module
    variables: Any

    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, " dim"]:
        return self._apply(image)[1][0]

    def features(self, image: Float[Array, "height width 3"]) -> Features:
        """Backbone features of the image, as a batch of one."""
        return self._apply(image)[0]

    def split(
        self, image: Float[Array, "height width 3"], stage: int
    ) -> tuple[Float[Array, "h w channels"], Callable[[Float[Array, "h w channels"]], Float[Array, " dim"]]]:
        """Feature map of a stage, counted from 0 (the stem), and the embedding as a function of that map.

        Other inputs of the head, such as the maps of earlier stages or a transformer's class token and registers, are
        held constant at their values for the image.

        Raises:
          ValueError: the network has no such stage.
        """
        stages = self.features(image).stages
        require_stage(stage, len(stages))

        def rest(maps: Float[Array, "h w channels"]) -> Float[Array, " dim"]:
            def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
                path = context.module.path
                state = call(*args, **kwargs)
                if context.method_name != "__call__" or path != ("backbone", stage_name(stage)):
                    return state
                return state._replace(maps=maps[None]) if isinstance(state, Tokens) else maps[None]

            with nn.intercept_methods(replace):
                return self._apply(image)[1][0]

        return stages[stage][0], rest

    def _apply(self, image: Float[Array, "height width 3"]) -> tuple[Features, Float[Array, "1 dim"]]:
        applied: Any = self.network.apply(self.variables, image[None], train=False)
        return applied


def stage_name(stage: int) -> str:
    """Module name of a stage in a backbone."""
    return f"stage{stage}" if stage else "stem"


def require_stage(stage: int, num_stages: int) -> None:
    """Raise ValueError unless the network has this stage."""
    if not 0 <= stage < num_stages:
        raise InvalidValue(f"there is no stage {stage}; this network has stages 0 (the stem) to {num_stages - 1}")
