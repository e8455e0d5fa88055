"""Execution of a backbone's stages, with frozen stages and rematerialization."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tll_jax.typing import Features


class Tokens(NamedTuple):
    """State between transformer blocks: patch tokens as feature maps, and other tokens, class token first."""

    maps: jax.Array
    """`[batch, height, width, channels]`."""
    others: jax.Array
    """`[batch, tokens, channels]`."""


def stage_of(name: str) -> int:
    """Number of the stage with this top-level name in a backbone's parameters; 0 for "stem"."""
    return 0 if name == "stem" else int(name.removeprefix("stage"))


def maps_of(state: Any) -> Array:
    """Feature maps of a stage's output, which is either maps or `Tokens`."""
    return state.maps if isinstance(state, Tokens) else state


def states_of(stages: Sequence[nn.Module], state: Any, *, train: bool, frozen_stages: int, remat: bool) -> list[Any]:
    """Output of every stage, maps or `Tokens`; see `run_stages`."""
    outputs = []
    for number, stage in enumerate(stages):
        is_frozen = number < frozen_stages

        def run(stage: Any, state: Any, *, train: bool = train and not is_frozen) -> Any:
            return stage(state, train=train)

        state = (nn.remat(run) if remat and not is_frozen else run)(stage, state)
        if is_frozen:
            state = jax.lax.stop_gradient(state)
        outputs.append(state)
    return outputs


def run_stages(stages: Sequence[nn.Module], maps: Array, *, train: bool, frozen_stages: int, remat: bool) -> Features:
    """Output of every stage, and the mean of the last one over all positions in fp32.

    The first `frozen_stages` stages pass no gradient to their parameters or to `maps`, and use and keep their running
    statistics. With `remat` only the outputs of stages are stored for the backward pass, which recomputes the
    activations inside stages: the same results with less memory and about a third more work.
    """
    outputs = states_of(stages, maps, train=train, frozen_stages=frozen_stages, remat=remat)
    return Features(stages=tuple(outputs), pooled=jnp.mean(outputs[-1], axis=(1, 2), dtype=jnp.float32))
