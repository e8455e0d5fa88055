"""Execution of a backbone's stages, with frozen stages and rematerialization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.typing import Features


class Tokens(NamedTuple):
    """State between transformer blocks: patch tokens as feature maps, and other tokens, class token first."""

    maps: jax.Array
    """`[batch, height, width, channels]`."""
    others: jax.Array
    """`[batch, tokens, channels]`."""


def check_image_size(backbone: Any, size: int) -> None:
    """Raise InvalidValue if square images of `size` pixels a side do not fit the backbone, as far as it has a limit."""
    if hasattr(backbone, "check_size"):
        backbone.check_size(size)


def stage_of(name: str) -> int:
    """Number of the stage with this top-level name in a backbone's parameters; 0 for "stem"."""
    return 0 if name == "stem" else int(name.removeprefix("stage"))


def maps_of(state: Any) -> Array:
    """Feature maps of a stage's output, which is either maps or `Tokens`."""
    return state.maps if isinstance(state, Tokens) else state


def mean_over_positions(maps: Array) -> Array:
    """Global average pooling, in fp32."""
    return jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)


def run_stages(
    stages: Sequence[nn.Module],
    state: Any,
    *,
    train: bool,
    frozen_stages: int = 0,
    remat: bool = False,
    pool: Callable[[Any], Array] = mean_over_positions,
) -> Features:
    """Feature maps of every stage, and the pooled output of the last one in fp32.

    The first `frozen_stages` stages pass no gradient to their parameters or to their input, and use and keep their
    running statistics. With `remat` only the outputs of stages are stored for the backward pass, which recomputes the
    activations inside stages: the same results with less memory and about a third more work.

    Args:
      state: input of the first stage. It and the outputs of stages are maps or `Tokens`.
      pool: pooled feature of the last stage's output.
    """
    outputs = []
    for number, stage in enumerate(stages):
        is_frozen = number < frozen_stages

        def run(stage: Any, state: Any, *, train: bool = train and not is_frozen) -> Any:
            return stage(state, train=train)

        state = (nn.remat(run) if remat and not is_frozen else run)(stage, state)
        if is_frozen:
            state = jax.lax.stop_gradient(state)
        outputs.append(state)
    pooled = pool(state).astype(jnp.float32)
    if frozen_stages >= len(stages):
        pooled = jax.lax.stop_gradient(pooled)
    return Features(stages=tuple(map(maps_of, outputs)), pooled=pooled)


class StagedModule(nn.Module):
    """Base class of the Flax modules of backbones, which run their stages one after another.

    A subclass defines `parts`, and `pool` unless the pooled feature is the mean over the positions of the last map.
    """

    is_embedded_in_parts: ClassVar[bool] = True
    """Whether embedding on a CPU is faster in a loop over a few images each, whose maps stay in the processor's cache.
    Those with 3x3 convolutions of all channels are not, for each part transforms the kernels again."""

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[Sequence[nn.Module], Array]:
        """The stages, from the stem on, and their input, for images in [0, 1]."""
        raise NotImplementedError

    def pool(self, last: Any, state: Any) -> Float[Array, "batch dim"]:
        """Pooled feature, from the last stage and its output."""
        del last
        return mean_over_positions(state)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool,
        frozen_stages: int = 0,
        remat: bool = False,
    ) -> Features:
        """Feature maps of all stages in the module's dtype and the pooled feature in fp32; see `run_stages`."""
        stages, state = self.parts(images)
        pool = partial(self.pool, stages[-1])
        return run_stages(stages, state, train=train, frozen_stages=frozen_stages, remat=remat, pool=pool)
