"""Trained networks as embedding functions of one image, with access to the maps of each layer and to attention."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.stages import Tokens
from tll_jax.typing import Features

__all__ = ["Attention", "ModuleEmbedding", "NetworkEmbedding", "require_stage", "stage_name"]

Rest = Callable[[Float[Array, "h w channels"]], Float[Array, " dim"]]
"""Embedding as a function of a layer's feature maps."""


class Attention(NamedTuple):
    """Attention weights of a network for one image, in the order of its blocks."""

    weights: tuple[Float[Array, "heads tokens tokens"], ...]
    """Rows are queries and sum to 1 over keys; class token and registers come before the patches."""
    rest: Callable[[Sequence[Float[Array, "heads tokens tokens"]]], Any]
    """The output as a function of perturbations that are added to the attention weights of each block."""
    grid: tuple[int, int]
    """Numbers of rows and columns of patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleEmbedding:
    """Embedding of one image by any Flax module."""

    module: nn.Module
    variables: Any
    select: Callable[[Any], Float[Array, "1 dim"]] = lambda outputs: outputs
    """Output of the module for a batch of one image -> embedding, as a batch of one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the module's call, such as `{"train": False}`."""

    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, " dim"]:
        return self.select(self.module.apply(self.variables, image[None], **self.options))[0]

    def split(self, image: Float[Array, "height width 3"], layer: str) -> tuple[Float[Array, "h w channels"], Rest]:
        """Feature maps of a submodule by its path ("encoder/block_3"), and the embedding as a function of them.

        If its output is tokens `[1, tokens, channels]`, the maps are the last ones, as many as form a square.

        Raises:
          InvalidValue: there is no such layer, it is called several times, or its output is neither maps nor tokens of
            a square image.
        """
        return _split(self, image, tuple(layer.split("/")))


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
        self, image: Float[Array, "height width 3"], stage: int | str
    ) -> tuple[Float[Array, "h w channels"], Rest]:
        """Feature map of a stage, counted from 0 (the stem), and the embedding as a function of that map.

        A path such as "backbone/stage3/block1" is that of any layer, as in `ModuleEmbedding.split`. Other inputs of the
        head, such as the maps of earlier stages or a transformer's class token and registers, are held constant at
        their values for the image.

        Raises:
          InvalidValue: the network has no such stage.
        """
        if isinstance(stage, str):
            return _split(self, image, tuple(stage.split("/")))
        try:
            return _split(self, image, ("backbone", stage_name(stage)))
        except _NoLayer:
            require_stage(stage, len(self.features(image).stages))
            raise

    def attention(self, image: Float[Array, "height width 3"]) -> Attention:
        """Attention weights that the backbone sows as "weights"; see `VisionTransformerModule`.

        Raises:
          InvalidValue: the backbone sows none.
        """
        (features, _), sown = self._apply_attending(image, {})
        found = {
            path: weights[0]
            for path, weights in flatten_dict(sown.get("intermediates", {})).items()
            if path[-1] == "weights"
        }
        if not found:
            raise InvalidValue("this network has no attention whose weights can be seen; a VisionTransformer has")
        paths = sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", "/".join(path))])

        def rest(changes: Sequence[Array]) -> Float[Array, " dim"]:
            added = {path: change[None] for path, change in zip(paths, changes, strict=True)}
            return self._apply_attending(image, {"perturbations": unflatten_dict(added)})[0][1][0]

        height, width = features.stages[-1].shape[1:3]
        return Attention(tuple(found[path][0] for path in paths), rest, (height, width))

    def _apply(self, image: Float[Array, "height width 3"]) -> tuple[Features, Float[Array, "1 dim"]]:
        applied: Any = self.network.apply(self.variables, image[None], train=False)
        return applied

    def _apply_attending(self, image: Float[Array, "height width 3"], more: Mapping[str, Any]) -> Any:
        return self.network.apply({**self.variables, **more}, image[None], train=False, mutable=["intermediates"])


class _NoLayer(InvalidValue):
    """There is no layer of that name."""


def _split(embed: Any, image: Array, path: tuple[str, ...]) -> tuple[Float[Array, "h w channels"], Rest]:
    name, found, others = "/".join(path), [], set()

    def capture(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        state = call(*args, **kwargs)
        if context.method_name == "__call__":
            others.add("/".join(context.module.path))
            if context.module.path == path:
                found.append(state)
        return state

    with nn.intercept_methods(capture):
        embed(image)
    if not found:
        raise _NoLayer(f"there is no layer {name!r}; there are {', '.join(sorted(others - {''}))}")
    if len(found) > 1:
        raise InvalidValue(
            f"the layer {name!r} is called {len(found)} times for an image; take one that is called once"
        )
    (state,) = found
    count = _num_placeless(state, image.shape, name)

    def rest(maps: Float[Array, "h w channels"]) -> Float[Array, " dim"]:
        def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or context.module.path != path:
                return call(*args, **kwargs)
            # The compiler removes the unused computations before the layer.
            if isinstance(state, Tokens):
                return state._replace(maps=maps[None])
            if state.ndim == 4:
                return maps[None]
            return jnp.concatenate([state[:, :count], maps.reshape(1, -1, maps.shape[-1])], axis=1)

        with nn.intercept_methods(replace):
            return embed(image)

    if isinstance(state, Tokens):
        return state.maps[0], rest
    if state.ndim == 4:
        return state[0], rest
    side = math.isqrt(state.shape[1])
    return state[0, count:].reshape(side, side, -1), rest


def _num_placeless(state: Any, image_shape: tuple[int, ...], name: str) -> int:
    """Number of leading tokens of a layer's output, before those that form a square."""
    if isinstance(state, Tokens) or (isinstance(state, jax.Array) and state.ndim == 4):
        return 0
    if not isinstance(state, jax.Array) or state.ndim != 3 or image_shape[0] != image_shape[1]:
        shown = f"an array {list(state.shape)}" if isinstance(state, jax.Array) else f"a {type(state).__name__}"
        raise InvalidValue(
            f"the layer {name!r} returns {shown} for an image {list(image_shape)}; it must be maps [1, height, width, "
            "channels], or tokens [1, tokens, channels] of a square image"
        )
    return state.shape[1] - math.isqrt(state.shape[1]) ** 2


def stage_name(stage: int) -> str:
    """Module name of a stage in a backbone."""
    return f"stage{stage}" if stage else "stem"


def require_stage(stage: int, num_stages: int) -> None:
    """Raise ValueError unless the network has this stage."""
    if not 0 <= stage < num_stages:
        raise InvalidValue(f"there is no stage {stage}; this network has stages 0 (the stem) to {num_stages - 1}")
